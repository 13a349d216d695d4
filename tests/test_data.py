"""Readers of the published layouts and of image files, and what they say when something is missing or broken."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dfl_utils.world import data
from dfl_utils.world import profile as profiles

RED = np.full((4, 5, 3), (200, 10, 10), np.uint8)


@pytest.fixture
def profile(tmp_path):
    """A profile whose data are three COCO images in Karpathy's splits and three of NoCaps."""
    karpathy = []
    for cocoid, filepath, split in ((9, "train2014", "train"), (7, "val2014", "restval"), (42, "val2014", "test")):
        filename = f"COCO_{filepath}_{cocoid:012d}.jpg"
        karpathy.append({"cocoid": cocoid, "filepath": filepath, "filename": filename, "split": split,
                         "sentences": [{"raw": f"caption {k} of {cocoid} "} for k in range(5)]})  # fmt: skip
        save(tmp_path / "coco" / filepath / filename)
    dump(tmp_path / "coco/dataset_coco.json", {"images": karpathy, "dataset": "coco"})
    images, annotations = [], []
    for image_id, domain in enumerate(("near-domain", "in-domain", "out-domain")):
        images.append({"id": image_id, "file_name": f"{image_id:016x}.jpg", "open_images_id": f"{image_id:016x}",
                       "domain": domain})  # fmt: skip
        annotations += [{"id": 10 * image_id + k, "image_id": image_id, "caption": f"text {k}"} for k in range(10)]
        save(tmp_path / "nocaps/val" / f"{image_id:016x}.jpg")
    dump(tmp_path / "nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    return bring(tmp_path)


def bring(root, **changes):
    """The mini profile with other data, which cannot be written."""
    mini = profiles.PROFILES["mini"]
    return replace(mini, data_root=root, data_writer=None, data_command="dfl data", **changes)


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RED).save(path, quality=100)


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    dump(path, content)


def test_coco_reads_karpathys_splits_with_restval_in_train(profile):
    train = data.load(profile, "coco", "train")
    assert [example.image_id for example in train] == [7, 9]
    assert train[0].path == profile.data_root / "coco/val2014/COCO_val2014_000000000007.jpg"
    assert train[0].references == tuple(f"caption {k} of 7" for k in range(5)) and train[0].domain is None
    assert [example.image_id for example in data.load(profile, "coco", "test")] == [42]


def test_nocaps_splits_by_domain(profile):
    assert [example.domain for example in data.load(profile, "nocaps", "overall")] == ["near", "in", "out"]
    (example,) = data.load(profile, "nocaps", "in")
    assert (example.image_id, len(example.references)) == (1, 10)
    assert example.path == profile.data_root / "nocaps/val/0000000000000001.jpg"


def said(profile):
    """All that is read of the data, but the folders in which the images lie."""
    parts = (("coco", "test"), ("coco", "train"), ("nocaps", "overall"))
    return [replace(e, path=e.path.name) for dataset, split in parts for e in data.load(profile, dataset, split)]


def test_other_published_layouts_give_the_same_examples(profile):
    root, before = profile.data_root, said(profile)
    (root / "coco/images").mkdir()
    for folder in ("train2014", "val2014"):
        (root / "coco" / folder).rename(root / "coco/images" / folder)
    (root / "coco/annotations").mkdir()
    (root / "coco/dataset_coco.json").rename(root / "coco/annotations/dataset_coco.json")
    captions = root / "nocaps/nocaps_val_4500_captions.json"
    edit(captions, lambda content: [image.pop("file_name") for image in content["images"]])
    (root / "nocaps/annotations").mkdir()
    captions.rename(root / "nocaps/annotations" / captions.name)
    (root / "nocaps/val").rename(root / "nocaps/images")
    assert said(profile) == before


KARPATHY, NOCAPS = "coco/dataset_coco.json", "nocaps/nocaps_val_4500_captions.json"


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        (KARPATHY, lambda c: c["images"][2]["sentences"].clear(), "without references, or twice; fetch"),
        (KARPATHY, lambda c: c["images"][2].pop("filename"), "not of its published form .it lacks 'filename'"),
        (KARPATHY, lambda c: [i.update(split="val") for i in c["images"]], "no images of split 'test'; to get the"),
        (NOCAPS, lambda c: c.update(annotations=c["annotations"][:20]), "without references, or twice"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(profile, file, change, sentence):
    edit(profile.data_root / file, change)
    dataset, split = ("coco", "test") if file == KARPATHY else ("nocaps", "overall")
    with pytest.raises(ValueError, match=sentence) as caught:
        data.load(profile, dataset, split)
    assert str(profile.data_root / dataset) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_are_named_with_the_mend(profile):
    for path in (profile.data_root / "nocaps/val").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"0.jpg is missing \(3 of 3 images are\); to get the data: dfl data"):
        data.load(profile, "nocaps", "overall")
    with pytest.raises(ValueError, match="no split 'test' of dataset 'nocaps': choose from coco: train"):
        data.load(profile, "nocaps", "test")
    (profile.data_root / KARPATHY).unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset_coco.json is missing; to get the data: dfl data"):
        data.load(profile, "coco", "test")


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [20, 0.6])
def test_truncated_and_missing_images_are_refused(tmp_path, format, keep):
    path = tmp_path / "picture"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(
        OSError, match="picture is truncated or not an image .*: put a whole copy in its place, or"
    ) as caught:
        data.read_image(path)
    assert "\n" not in str(caught.value)
    for folder, mend in (
        (tmp_path, "put a whole copy in its place, or leave it out"),
        (profiles.MINI / "world", "delete its folder, then `dfl data`"),
        (profiles.DOWNLOADS / "coco", "delete its folder, then `dfl fetch --profile paper`"),
    ):
        with pytest.raises(FileNotFoundError, match=f"a.png is missing: {mend}"):
            data.read_image(folder / "a.png")


def examples(**counts):
    names = [(domain, k) for domain, count in counts.items() for k in range(count)]
    return [data.Example(i, f"{i}.png", ("a",), domain) for i, (domain, _) in enumerate(names)]


def test_a_subset_is_a_prefix_of_every_larger_one():
    pool = examples(near=29, out=9, **{"in": 6})
    whole = data.subset(pool, len(pool), seed=0)
    assert sorted(e.image_id for e in whole) == list(range(44))
    assert all(data.subset(pool, n, seed=0) == whole[:n] for n in range(1, 44))
    assert data.subset(pool[::-1], 10, seed=0) == whole[:10] != data.subset(pool, 10, seed=1)
    with pytest.raises(ValueError, match="num_images is 45: choose 1 to 44, the images that there are"):
        data.subset(pool, 45, seed=0)


def test_a_subset_is_stratified_by_domain():
    pool = examples(near=290, out=90, **{"in": 60})
    for n in (44, 132, 220):
        drawn = [e.domain for e in data.subset(pool, n, seed=3)]
        assert [drawn.count(domain) for domain in ("near", "out", "in")] == [n * 290 / 440, n * 90 / 440, n * 60 / 440]
    assert [e.image_id for e in data.subset(examples(x=100), 10, seed=0)] != list(range(10))


def test_ensure_calls_the_profiles_writer_or_asks_for_the_data(tmp_path):
    profile = replace(bring(tmp_path / "new"), data_writer="pathlib:Path.mkdir")
    data.ensure(profile)
    assert profile.data_root.is_dir()
    with pytest.raises(FileNotFoundError, match="other is missing; to get the data: dfl data"):
        data.ensure(bring(tmp_path / "other"))
    data.ensure(bring(tmp_path / "other", nocaps_root=tmp_path))


# --- what the published files get wrong --------------------------------------------------------------------
def test_captions_keep_their_letters_and_lose_odd_whitespace(profile):
    raw = ["  Un café à Málaga\n", "a\tdog  on\u00a0a hill\r\n", "   ", "犬が走る", "a dog", "a dog"]
    sentences = [{"raw": text} for text in raw]
    edit(profile.data_root / KARPATHY, lambda content: content["images"][2].update(sentences=sentences))
    (found,) = data.load(profile, "coco", "test")
    assert found.references == ("Un café à Málaga", "a dog on a hill", "犬が走る", "a dog", "a dog")


def test_nocaps_without_domains_is_read_as_a_whole(profile):
    edit(profile.data_root / NOCAPS, lambda content: [image.pop("domain") for image in content["images"]])
    assert [example.domain for example in data.load(profile, "nocaps", "overall")] == [None] * 3
    with pytest.raises(ValueError, match="no images of split 'near'"):
        data.load(profile, "nocaps", "near")


# --- images ------------------------------------------------------------------------------------------------
CORNERS = np.zeros((16, 24, 3), np.uint8)  # four flat blocks, wider than high
CORNERS[:8, :8], CORNERS[:8, 8:], CORNERS[8:, :8], CORNERS[8:, 8:] = (250, 0, 0), (0, 250, 0), (0, 0, 250), (90, 90, 90)


def test_adobes_inverted_cmyk_is_read_in_its_colours(tmp_path):
    inks = 255 - CORNERS  # cyan, magenta and yellow without black
    cmyk = Image.merge("CMYK", [*Image.fromarray(inks).split(), Image.new("L", (24, 16))])
    cmyk.save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()  # the mark of stored values that are 255 minus the ink
    assert np.abs(np.asarray(data.read_image(tmp_path / "a.jpg")).astype(int) - CORNERS).max() <= 6
    cmyk.save(tmp_path / "a.tif")  # not inverted
    assert np.abs(np.asarray(data.read_image(tmp_path / "a.tif")).astype(int) - CORNERS).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_images_are_turned_upright(tmp_path, orientation, format):
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose, as the camera stored it
    upright = Image.fromarray(CORNERS)
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a", format, exif=exif, quality=100, subsampling=0)
    found = data.read_image(tmp_path / "a")
    assert found.size == (24, 16) and np.abs(np.asarray(found).astype(int) - CORNERS).max() <= 6


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    Image.fromarray(np.uint16([[0, 257, 32896, 65535]])).save(tmp_path / "a.png")
    assert np.asarray(data.read_image(tmp_path / "a.png"))[0, :, 1].tolist() == [0, 1, 128, 255]
    Image.fromarray(np.float32([[0, 1]])).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match="a.tif .*samples of 32 bits; save it with 8 or 16"):
        data.read_image(tmp_path / "a.tif")


def test_what_is_transparent_becomes_white(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    Image.fromarray(np.uint8([[[255, 0, 0, 255], [0, 0, 255, 0]]])).save(tmp_path / "rgba.png")
    for name in ("p.png", "rgba.png"):
        assert np.asarray(data.read_image(tmp_path / name)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    palette.save(tmp_path / "whole.png")
    assert np.asarray(data.read_image(tmp_path / "whole.png")).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_what_is_no_file_is_no_image(tmp_path):
    with pytest.raises(ValueError, match=r"A Pillow image of \(8, 8\) pixels cannot be read \(it has samples of"):
        data.in_memory(Image.new("F", (8, 8)))
    with pytest.raises(OSError, match="cannot be read .*: put a whole copy in its place, or leave it out"):
        data.read_image(tmp_path)
