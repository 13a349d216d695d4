"""The embedded world: what its captions say is true of its pictures, and its test sets never change."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from dfl_utils.world import data, profile, scenes, splits

SCENES = [scenes.sample(f"test-world/{k}") for k in range(600)]


@pytest.mark.parametrize("part", splits.PARTS)
def test_test_sets_are_the_published_ones_bit_for_bit(part):
    published = json.loads(splits.FINGERPRINTS.read_text(encoding="utf-8"))
    assert splits.fingerprint(part) == published[part]


def test_no_scene_occurs_twice_in_or_across_splits():
    drawn = [(scene.things, scene.ground) for pairs in splits._draws(splits.SPLITS).values() for _, scene in pairs]
    assert len(drawn) == len(set(drawn)) == 9000
    train = {(i.scene.things, i.scene.ground) for i in splits.items("coco", "train")}
    assert len(splits.held_out()) == 3000 and not train & splits.held_out()


def test_domains_hold_known_mixed_and_new_categories():
    known, new = set(scenes.IN_DOMAIN), set(scenes.NOVEL)
    assert not known & new and (len(known), len(new)) == (32, 16)
    for part, name, pools in (("coco", "test", (known,)), ("nocaps", "in", (known,)), ("nocaps", "out", (new,)),
                              ("nocaps", "near", (known, new))):  # fmt: skip
        for item in splits.items(part, name):
            nouns = {thing.category for thing in item.scene.things}
            assert nouns <= set().union(*pools) and all(nouns & pool for pool in pools)


def test_things_are_distinct_apart_and_inside():
    for scene in SCENES:
        taken = np.zeros((scenes.GRID, scenes.GRID), int)
        for thing in scene.things:
            assert min(thing.x, thing.y) >= 0 and max(thing.x, thing.y) + thing.cells <= scenes.GRID
            taken[thing.y : thing.y + thing.cells, thing.x : thing.x + thing.cells] += 1
        assert taken.max() == 1
        assert len({thing.category for thing in scene.things}) == len(scene.things)


def test_pixels_are_ground_outside_the_things_and_coloured_inside():
    for scene in SCENES[:100]:
        image = scenes.render(scene)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        rest = np.ones((64, 64), bool)
        for thing in scene.things:
            box = np.s_[8 * thing.y : 8 * (thing.y + thing.cells), 8 * thing.x : 8 * (thing.x + thing.cells)]
            rest[box] = False
            colour = np.array(scenes.COLOURS[thing.colour])
            assert (np.abs(image[box].astype(int) - colour).max(-1) <= 1).sum() > 30
        assert (image[rest] == scenes.GROUNDS[scene.ground]).all()


@pytest.fixture
def small(monkeypatch):
    """The world with few images a split."""
    counts = {"train": 12, "val": 3, "test": 4}
    few = tuple(splits.Split(s.part, s.name, counts.get(s.name, 2), s.references, s.pools, s.first_id, s.test)
                for s in splits.SPLITS)  # fmt: skip
    monkeypatch.setattr(splits, "SPLITS", few)
    published = {part: splits.fingerprint(part) for part in splits.PARTS}
    monkeypatch.setattr(splits, "_published", lambda: published)


def test_written_world_has_the_real_formats(small, tmp_path):
    splits.write(tmp_path)
    karpathy = json.loads((tmp_path / "coco/dataset_coco.json").read_text())
    assert [image["split"] for image in karpathy["images"]] == ["train"] * 12 + ["val"] * 3 + ["test"] * 4
    image = karpathy["images"][-1]
    assert image["filepath"] == "val2014" and image["filename"] == f"COCO_val2014_{image['cocoid']:012d}.png"
    assert [s["sentid"] for s in image["sentences"]] == image["sentids"] and len(image["sentids"]) == 5
    nocaps = json.loads((tmp_path / "nocaps/nocaps_val_4500_captions.json").read_text())
    assert [i["domain"] for i in nocaps["images"]] == ["in-domain"] * 2 + ["near-domain"] * 2 + ["out-domain"] * 2
    assert len(nocaps["annotations"]) == 60 and len({a["id"] for a in nocaps["annotations"]}) == 60
    truth = {i.image_id: i.scene for name in ("in", "near", "out") for i in splits.items("nocaps", name)}
    written = json.loads((tmp_path / "nocaps/scenes.json").read_text())
    assert written == json.loads(json.dumps({k: asdict(scene) for k, scene in truth.items()}))
    for record in nocaps["images"]:
        with Image.open(tmp_path / "nocaps/images" / record["file_name"]) as written:
            np.testing.assert_array_equal(np.asarray(written), scenes.render(truth[record["id"]]))


def test_development_scenes_are_written_apart_with_their_truth(small, tmp_path, monkeypatch):
    few = tuple(replace(split, count=3) for split in splits.DEVELOPMENT)
    monkeypatch.setattr(splits, "DEVELOPMENT", few)
    monkeypatch.setitem(splits.EXTRA, "development", (splits.DEVELOPMENT, 2, splits.SPLITS))
    models = replace(profile.load("mini"), data_root=tmp_path)
    examples = data.development(models)
    assert [example.domain for example in examples] == ["in", "in", "near", "near", "out", "out"]
    drawn = [item for split in few for item in list(splits.items("nocaps", split.name))[:2]]
    assert [(e.image_id, e.references) for e in examples] == [(item.image_id, item.captions) for item in drawn]
    assert data.scenes(models, examples) == [item.scene for item in drawn]
    before = [example.path.stat().st_mtime_ns for example in examples]
    assert [example.path.stat().st_mtime_ns for example in data.development(models)] == before


def test_a_whole_world_is_left_alone_and_a_damaged_one_written_anew(small, tmp_path, monkeypatch):
    splits.write(tmp_path)
    drawn = []
    render = scenes.render
    monkeypatch.setattr(scenes, "render", lambda scene: drawn.append(scene) or render(scene))
    splits.write(tmp_path)
    assert not drawn
    picture = next((tmp_path / "nocaps/images").iterdir())
    picture.write_bytes(picture.read_bytes()[:100])
    splits.write(tmp_path)
    assert len(drawn) == 6 + 6  # written, and looked at for their fingerprint
    (tmp_path / "coco" / splits.MARKER).write_text("[]")
    splits.write(tmp_path)
    assert len(drawn) == 12 + 19 + 4


def test_a_killed_write_leaves_nothing_that_looks_whole(small, tmp_path, monkeypatch):
    render, drawn = scenes.render, []

    def render_some(scene):
        drawn.append(scene)
        if len(drawn) == 10:
            raise KeyboardInterrupt
        return render(scene)

    monkeypatch.setattr(scenes, "render", render_some)
    with pytest.raises(KeyboardInterrupt):
        splits.write(tmp_path)
    assert not (tmp_path / "coco").exists()
    splits.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"coco", "nocaps"}


def test_another_test_set_than_the_published_is_warned_of(small, tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "_published", lambda: {"coco": "other", "nocaps": splits.fingerprint("nocaps")})
    with pytest.warns(UserWarning, match="The coco-like test set .* install the versions of constraints.txt"):
        splits.write(tmp_path)
