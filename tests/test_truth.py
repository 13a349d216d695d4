"""The truth score by hand-written scenes."""

from collections import Counter

import numpy as np
import pytest

from dfl_utils.scores import truth
from dfl_utils.world import splits
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
    np.testing.assert_allclose(found.invented[0], [0, 0, 2 / 3, np.nan, 1 / 2])
    np.testing.assert_allclose(found.omitted[0], [0, 3 / 5, 4 / 5, 1, 4 / 5])
    np.testing.assert_allclose(found.f1[0], [100, 400 / 7, 25, 0, 200 / 7])


def test_of_a_pair_apart_along_both_axes_one_relation_is_enough():
    found = truth.truth(
        [Scene((CUP, KEY), "white", "over")], [["a blue cup over a red key", "a red key left of a blue cup"]]
    )
    np.testing.assert_array_equal(found.f1, [[100, 100]])


def test_annotators_of_the_world_leave_out_but_never_invent():
    items = list(splits.items("nocaps", "near"))
    found = truth.truth([item.scene for item in items], [item.captions for item in items])
    assert found.invented.max() == 0
    assert 0.05 < found.omitted.mean() < 0.25
