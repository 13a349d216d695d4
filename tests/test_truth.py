"""The truth score by hand-written scenes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dfl_utils.game.scorer import Scorer
from dfl_utils.scores import quality, truth
from dfl_utils.store.store import RunStore
from dfl_utils.world import data, splits
from dfl_utils.world.scenes import Scene, Thing

DOG, CUP, KEY = (
    Thing("dog", "red", "small", 0, 0),
    Thing("cup", "blue", "small", 4, 0),
    Thing("key", "red", "small", 0, 5),
)
TWO, THREE = Scene((DOG, CUP), "white", "beside"), Scene((DOG, CUP, KEY), "white", "over")


@pytest.mark.parametrize(
    ("caption", "facts"),
    [
        ("a big red puppy", [("dog",), ("dog", "red")]),
        ("a red and a cup", [("cup",)]),
        ("a cup on the right of a dog", [("cup",), ("dog",), ("dog", "left of", "cup")]),
        ("a mug next to a dog", [("cup",), ("dog",)]),
        ("a key beneath a dog", [("key",), ("dog",), ("dog", "above", "key")]),
        ("two blue cups", 2 * [("cup",), ("cup", "blue")]),
        ("a dog and a cup above a key on a white background",
         [("dog",), ("cup",), ("key",), ("dog", "above", "key"), ("cup", "above", "key")]),
        ("a picture of nothing", []),
    ],
)  # fmt: skip
def test_what_a_caption_says(caption, facts):
    assert truth.said(caption) == Counter(facts)


def test_what_a_scene_holds():
    pairs = [("dog", "left of", "cup"), ("dog", "above", "key"), ("cup", "above", "key"), ("key", "left of", "cup")]
    things = [("dog",), ("dog", "red"), ("cup",), ("cup", "blue"), ("key",), ("key", "red")]
    assert truth.held(THREE) == Counter(things + pairs)


def test_inventions_and_omissions_are_told_apart():
    captions = ["a red dog left of a blue cup", "a red dog", "a blue dog and a key", "", "a dog and a dog"]
    found = truth.truth([TWO], [captions])  # five facts are there
    np.testing.assert_allclose(found.invented[0], [0, 0, 200 / 3, np.nan, 50])
    np.testing.assert_allclose(found.omitted[0], [0, 60, 80, 100, 80])
    np.testing.assert_allclose(found.truth[0], [100, 400 / 7, 25, 0, 200 / 7])


def test_of_a_pair_apart_along_both_axes_one_relation_is_enough():
    found = truth.truth(
        [Scene((CUP, KEY), "white", "over")], [["a blue cup over a red key", "a red key left of a blue cup"]]
    )
    np.testing.assert_array_equal(found.truth, [[100, 100]])


def test_annotators_of_the_world_leave_out_but_never_invent():
    items = list(splits.items("nocaps", "near"))
    found = truth.truth([item.scene for item in items], [item.captions for item in items])
    assert found.invented.max() == 0
    assert 5 < found.omitted.mean() < 25


def test_truth_is_scored_where_a_scene_is_known(mini, tmp_path):
    examples = data.load(mini, "nocaps", "out")[:2] + data.load(mini, "coco", "val")[:1]
    assert data.has_scenes(mini)
    scenes = data.scenes(mini, examples)
    items = [*list(splits.items("nocaps", "out"))[:2], next(splits.items("coco", "val"))]
    assert scenes == [item.scene for item in items]
    captions = [[text] for text in (examples[1].references[0], "", "a red dog")]
    found = Scorer(mini, RunStore(tmp_path), examples).score(examples, captions, ["CIDEr", *quality.TRUTH])
    expected = truth.truth(scenes, captions)
    np.testing.assert_array_equal(found["truth"], expected.truth)
    np.testing.assert_array_equal(found["omitted"], expected.omitted)
    elsewhere = [replace(examples[0], path=tmp_path / "photo.png")]
    with pytest.raises(ValueError, match=f"What is in image {examples[0].image_id} is not known"):
        data.scenes(mini, elsewhere)
