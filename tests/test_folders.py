"""Folders of one's own, with captions in the forms that people have, and what is said of a broken one."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from dfl_utils.world import data

RED = np.full((4, 5, 3), (200, 10, 10), np.uint8)


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RED).save(path, quality=100)


def dump(path, content):
    path.write_text(json.dumps(content))


CAPTIONS = {"b.jpg": ["a red wall", "a wall, and red"], "a.png": ["a réd wall"], "deep/c.JPG": ["red"]}


@pytest.fixture
def own(tmp_path):
    for name in CAPTIONS:
        save(tmp_path / "own" / name)
    (tmp_path / "own/notes.txt").write_text("no image")
    (tmp_path / "own/._a.png").write_text("left by a file manager")
    return tmp_path / "own"


ROWS = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


def write(path, columns=("file", "caption"), rows=ROWS, encoding="utf-8"):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding=encoding) as file:
            csv.writer(file).writerows([columns, *rows])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    else:
        ids = {name: k for k, name in enumerate(CAPTIONS)}
        images = [{"id": k, "file_name": name} for name, k in ids.items()]
        dump(path, {"images": images, "annotations": [{"image_id": ids[n], "caption": text} for n, text in rows]})
    return path


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.json"])
def test_a_folder_is_read_with_its_captions(own, tmp_path, name):
    found = data.folder(own, write(tmp_path / name))
    assert [example.path for example in found] == [own / "a.png", own / "b.jpg", own / "deep/c.JPG"]
    assert [list(example.references) for example in found] == [CAPTIONS[n] for n in ("a.png", "b.jpg", "deep/c.JPG")]
    assert {example.domain for example in found} == {None}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_imagefolders_metadata_are_found(own, name):
    assert [example.references for example in data.folder(own)] == [(), (), ()]
    for column in ("text", "caption"):
        write(own / name, ("file_name", column))
        assert [len(example.references) for example in data.folder(own)] == [1, 2, 1]


def test_ids_stay_when_rows_and_files_are_reordered_or_added(own, tmp_path):
    def read(rows):
        found = data.folder(own, write(tmp_path / "c.csv", rows=rows))
        return {e.path: (e.image_id, set(e.references)) for e in found}

    before = read(ROWS)
    save(own / "aa.png")
    after = read(ROWS[::-1])
    assert after.pop(own / "aa.png")[1] == set()
    assert after == before
    assert len({image_id for image_id, _ in before.values()}) == 3 and max(i for i, _ in before.values()) < 2**53


def test_a_csv_of_a_spreadsheet_is_read(own, tmp_path):
    rows = [("./b.jpg", " a red  wall "), ("u\u0308.png", "ä")]  # a byte order mark, spaces, a decomposed letter
    save(own / "\u00fc.png")
    found = data.folder(own, write(tmp_path / "c.csv", (" File_name".lower(), "text "), rows, "utf-8-sig"))
    assert {e.path.name: e.references for e in found if e.references} == {
        "b.jpg": ("a red wall",),
        "\u00fc.png": ("ä",),
    }


def test_a_cell_may_hold_a_list_of_captions(own, tmp_path):
    rows = [("b.jpg", "['a red wall', 'bricks']"), ("b.jpg", '["a wall"]'), ("b.jpg", "[sic] a wall, 'red' [1]")]
    found = data.folder(own, write(tmp_path / "c.csv", rows=rows))
    assert [e.references for e in found if e.references] == [
        ("a red wall", "bricks", "a wall", "[sic] a wall, 'red' [1]")
    ]


def test_json_lines_under_another_name_and_a_name_that_is_no_text_are_said(own, tmp_path):
    with pytest.raises(ValueError, match=r"c\.json holds JSON Lines, an object a line: let its name end in .jsonl"):
        data.folder(own, write(tmp_path / "c.jsonl").rename(tmp_path / "c.json"))
    save(own / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(ValueError, match=r"holds the file b'caf.xe9.png', whose name is not in UTF-8: rename it"):
        data.folder(own)


HALF = b"a dog \\ud83d"  # a character cut through, as JSON escapes it


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("c.csv", b"file,note\nb.jpg,red", "has the columns 'file', 'note': it needs one of file, .* of caption, text"),
        ("c.csv", b"file;caption\nb.jpg;red", "has the columns 'file;caption': .* separated by commas"),
        ("c.csv", b"file,caption\nb.jpg, ", "has ' ' for a caption of b.jpg: write a text, or drop"),
        ("c.csv", b"file,caption\n/else/b.jpg,red", "names '/else/b.jpg', which is no image of .*own: put"),
        ("c.csv", b"file,caption\nb.jpg,red,blue", "has more cells in a row than in its header"),
        ("c.csv", b"file,caption", "holds no caption: write some, or give no file"),
        ("c.csv", b"file,caption\nb.jpg,red\nb.jpg,a caf\xe9", "its line 3 is not in UTF-8, byte 0xe9"),
        ("c.csv", "file,caption".encode("utf-16"), "its line 1 is not in UTF-8, byte 0xff"),
        ("c.json", b'[{"image": "b.jpg",\n"caption": "a caf\xe9"}]', "its line 2 is not in UTF-8"),
        ("c.json", b'[{"image": "b.jpg", "caption": "%s"}]' % HALF, "has half a character, .* in a caption of b.jpg"),
        ("c.jsonl", b'{"file": "b.jpg", "caption": "%s"}' % HALF, "its line 1: half a character"),
        ("c.jsonl", b'{"file": "b.jpg", "caption": ["red", "%s"]}' % HALF, "its line 1: half a character"),
        ("c.jsonl", b'{"file": "d.jpg", "caption": "red"}', "names 'd.jpg', which is no image of .*own: put"),
        ("c.jsonl", b'{"file": "b.jpg", "caption": {"en": "red"}}', "has an object for a caption: write a text"),
        ("c.jsonl", b'{"file": "b.jpg", "caption": 5}', "has 5 for a caption of b.jpg: write a text, or drop"),
        ("c.jsonl", b'[{"file": "b.jpg", "caption": "red"}]', "its line 1: no object; write one"),
    ],
)
def test_a_broken_captions_file_is_named(own, tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        data.folder(own, tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_of_two_metadata_files_none_goes_before_in_silence(own):
    for name in ("metadata.csv", "metadata.jsonl"):
        write(own / name, ("file_name", "text"))
    with pytest.raises(ValueError, match="has captions of .*, as has another file of metadata: keep one"):
        data.folder(own)


@pytest.mark.parametrize(
    "content",
    [
        [{"image": "b.jpg", "caption": ["a red dog", "one dog"]}],  # BLIP's validation and test lists
        # BLIP's training list and the authors' one caption an image: a row a caption.
        [{"image": "b.jpg", "caption": text, "image_id": "coco_1"} for text in ("a red dog", "one dog")],
        {"images": [{"id": "7", "file_name": "b.jpg"}], "annotations": [{"image_id": 7, "caption": text}
                                                                       for text in ("a red dog", "one dog")]},
        {"images": [{"id": "x", "file_name": "b.jpg"}], "annotations": [{"image_id": "x", "caption": "a red dog"},
         {"image_id": "x", "bbox": [0, 0, 1, 1]}, {"image_id": "x", "caption": "one dog"}]},
        {"images": [{"filepath": None, "filename": "b.jpg", "sentences": [{"raw": "a red dog"}, {"raw": "one dog"}]}]},
    ],
)  # fmt: skip
def test_captions_are_read_in_the_forms_that_people_have(own, tmp_path, content):
    (tmp_path / "c.json").write_text(json.dumps(content))
    found = {example.path.name: example.references for example in data.folder(own, tmp_path / "c.json")}
    assert found["b.jpg"] == ("a red dog", "one dog")


def test_an_image_is_named_once_and_by_any_path_of_it(own, tmp_path, monkeypatch):
    monkeypatch.chdir(own.parent)
    rows = [(str(own / "b.jpg"), "a red dog")]
    found = data.folder(own.name, write(tmp_path / "c.csv", ("file", "caption"), rows))
    assert {e.path.name: e.references for e in found if e.references} == {"b.jpg": ("a red dog",)}
    twice = {"images": [{"id": 1, "file_name": "b.jpg"}, {"id": 1, "file_name": "c.jpg"}], "annotations": []}
    (tmp_path / "c.json").write_text(json.dumps(twice))
    with pytest.raises(ValueError, match="c.json is not of its published form .an image id comes twice"):
        data.folder(own, tmp_path / "c.json")


def test_metadata_of_subfolders_and_every_usual_suffix_are_read(tmp_path, caplog):
    for name in ("train/1.png", "test/1.jfif", "x.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    (tmp_path / "a.HEIC").write_bytes(b"of a telephone")
    for part, suffix in (("train", "png"), ("test", "jfif")):
        (tmp_path / part / "metadata.csv").write_text(f"file_name,text\n1.{suffix},of {part}\n")
    found = {example.path.name: example.references for example in data.folder(tmp_path)}
    assert found == {"1.png": ("of train",), "1.jfif": ("of test",)}
    assert "2 files of" in caplog.text and "such as a.HEIC" in caplog.text


def test_missing_folders_and_files_are_named(own, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder of images: give one that is there"):
        data.folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image that is read: put files of AVIF, BMP, GIF, JPEG"):
        data.folder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="c.csv is missing: give a captions file that is there, or none"):
        data.folder(own, tmp_path / "c.csv")


def test_nocaps_weights_give_its_domains_their_shares(mini):
    examples = data.load(mini, "nocaps", "in")[:2] + data.load(mini, "nocaps", "near")[:1]
    with pytest.raises(ValueError, match="NoCaps' weights need images of in, near, out: give all three domains"):
        data.nocaps_weights(examples)
    weights = data.nocaps_weights(examples + data.load(mini, "nocaps", "out")[:1])
    np.testing.assert_allclose(weights, np.array([324, 324, 2938, 914]) * 4 / 4500)
