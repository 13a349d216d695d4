"""Readers of the published layouts, and what they say when something is missing or broken."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dfl_utils import data

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
    return SimpleNamespace(data_root=tmp_path, data_writer=None, data_command="dfl data")


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


def test_other_published_layouts_give_the_same_examples(profile):
    root = profile.data_root
    before = [
        (e.image_id, e.references, e.domain, e.path.name)
        for s in ("test", "train")
        for e in data.load(profile, "coco", s)
    ] + [  # fmt: skip
        (e.image_id, e.references, e.domain, e.path.name) for e in data.load(profile, "nocaps", "overall")
    ]
    (root / "coco/images").mkdir()
    for folder in ("train2014", "val2014"):
        (root / "coco" / folder).rename(root / "coco/images" / folder)
    (root / "coco/annotations").mkdir()
    (root / "coco/dataset_coco.json").rename(root / "coco/annotations/dataset_coco.json")
    captions = root / "nocaps/nocaps_val_4500_captions.json"
    dump(root / "nocaps/annotations/nocaps_val_image_info.json", {"images": json.loads(captions.read_text())["images"]})
    for field in ("domain", "file_name"):
        edit(captions, lambda content, field=field: [image.pop(field) for image in content["images"]])
    captions.rename(root / "nocaps/annotations" / captions.name)
    (root / "nocaps/val").rename(root / "nocaps/images")
    after = [
        (e.image_id, e.references, e.domain, e.path.name)
        for s in ("test", "train")
        for e in data.load(profile, "coco", s)
    ] + [  # fmt: skip
        (e.image_id, e.references, e.domain, e.path.name) for e in data.load(profile, "nocaps", "overall")
    ]
    assert before == after


KARPATHY, NOCAPS = "coco/dataset_coco.json", "nocaps/nocaps_val_4500_captions.json"


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        (KARPATHY, lambda c: c["images"][2]["sentences"].clear(), "no reference caption for image 42"),
        (KARPATHY, lambda c: c["images"][2].pop("filename"), "lacks the field 'filename'"),
        (KARPATHY, lambda c: c.pop("images"), "lacks the field 'images'"),
        (
            KARPATHY,
            lambda c: [i.update(split="val") for i in c["images"]],
            "no images of split 'test'; to get the data",
        ),
        (NOCAPS, lambda c: c["images"][1].pop("domain"), "lacks the field 'domain'"),
        (NOCAPS, lambda c: c["images"][1].update(domain="far"), "unknown domain 'far'; it should be one of in-domain"),
        (NOCAPS, lambda c: c.update(annotations=c["annotations"][:20]), "no reference caption for image 2"),
        (NOCAPS, lambda c: [a.update(caption=" ") for a in c["annotations"]], "no reference caption for image 0"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(profile, file, change, sentence):
    edit(profile.data_root / file, change)
    dataset, split = ("coco", "test") if file == KARPATHY else ("nocaps", "overall")
    with pytest.raises(ValueError, match=sentence) as caught:
        data.load(profile, dataset, split)
    assert str(profile.data_root / dataset) in str(caught.value) and "\n" not in str(caught.value)


def test_broken_json_is_named(profile):
    path = profile.data_root / KARPATHY
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"dataset_coco.json is not valid JSON \(.*\); fetch or write the file again"):
        data.load(profile, "coco", "test")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"dataset_coco.json is not valid JSON"):
        data.read_json(path)


def test_missing_files_are_named_with_the_mend(profile):
    for path in (profile.data_root / "nocaps/val").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"0.jpg is missing \(3 of 3 images are\); to get the data: dfl data"):
        data.load(profile, "nocaps", "overall")
    (profile.data_root / KARPATHY).unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset_coco.json is missing; to get the data: dfl data"):
        data.load(profile, "coco", "test")


@pytest.mark.parametrize(("dataset", "split"), [("flickr", "test"), ("coco", "in"), ("nocaps", "test")])
def test_unknown_datasets_and_splits_are_refused(profile, dataset, split):
    with pytest.raises(ValueError, match=f"no split '{split}' of dataset '{dataset}': choose from coco: train"):
        data.load(profile, dataset, split)


def test_read_image_gives_rgb(tmp_path):
    Image.fromarray(RED[..., 0]).save(tmp_path / "gray.png")
    image = data.read_image(tmp_path / "gray.png")
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (200, 200, 200)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0, 20, 0.6])
def test_truncated_images_are_refused(tmp_path, format, keep):
    path = tmp_path / "picture"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(OSError, match="picture is truncated or not an image") as caught:
        data.read_image(path)
    assert "\n" not in str(caught.value)


def test_missing_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a.png is missing; fetch or write the data again \(`dfl data`\)"):
        data.read_image(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"a.png is missing; fetch"):
        data.read_bytes(tmp_path / "a.png")


def examples(**counts):
    names = [(domain, k) for domain, count in counts.items() for k in range(count)]
    return [data.Example(i, f"{i}.png", ("a",), domain) for i, (domain, _) in enumerate(names)]


def test_a_subset_is_a_prefix_of_every_larger_one():
    pool = examples(near=29, out=9, **{"in": 6})
    whole = data.subset(pool, len(pool), seed=0)
    assert sorted(e.image_id for e in whole) == list(range(44))
    assert all(data.subset(pool, n, seed=0) == whole[:n] for n in range(1, 44))
    assert data.subset(pool[::-1], 10, seed=0) == whole[:10] != data.subset(pool, 10, seed=1)


def test_a_subset_is_stratified_by_domain():
    pool = examples(near=290, out=90, **{"in": 60})
    for n in (44, 132, 220):
        drawn = [e.domain for e in data.subset(pool, n, seed=3)]
        assert [drawn.count(domain) for domain in ("near", "out", "in")] == [n * 290 / 440, n * 90 / 440, n * 60 / 440]
    assert [e.image_id for e in data.subset(examples(x=100), 10, seed=0)] != list(range(10))


@pytest.mark.parametrize("num_images", [0, -1, 5])
def test_a_subset_out_of_range_is_refused(num_images):
    with pytest.raises(ValueError, match=f"num_images is {num_images}: choose 1 to 4, the images that there are"):
        data.subset(examples(x=4), num_images, seed=0)


def test_ensure_calls_the_profiles_writer_or_asks_for_the_data(tmp_path):
    profile = SimpleNamespace(data_root=tmp_path / "new", data_writer="pathlib:Path.mkdir", data_command="bring it")
    data.ensure(profile)
    assert profile.data_root.is_dir()
    profile = SimpleNamespace(data_root=tmp_path / "other", data_writer=None, data_command="bring it")
    with pytest.raises(FileNotFoundError, match="other is missing; to get the data: bring it"):
        data.ensure(profile)
