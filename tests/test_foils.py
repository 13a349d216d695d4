"""Foils differ from what is there in one thing, by hand on one scene and in words on many."""

import pytest

from dfl_utils.world import foils, scenes
from dfl_utils.world.scenes import Scene, Thing

DOG, CAT = Thing("dog", "red", "small", 0, 2), Thing("cat", "orange", "small", 4, 2)
TWO, ONE = Scene((DOG, CAT), "white", "beside"), Scene((DOG,), "white", None)


def test_by_hand():
    right = "a red dog and an orange cat"
    assert foils.pair("swapped colours", TWO, "0") == (right, "an orange dog and a red cat")
    assert set(foils.pair("side", TWO, "0")) in (
        {f"a red dog to the {side} of an orange cat" for side in ("left", "right")},
        {f"an orange cat to the {side} of a red dog" for side in ("left", "right")},
    )
    assert foils.sides(TWO) == (
        ("a red dog to the left of an orange cat", "a red dog to the right of an orange cat"),
        ("an orange cat to the right of a red dog", "an orange cat to the left of a red dog"),
    )
    assert foils.sides(ONE) is None
    assert foils.pair("place", ONE, "0") == ("a red dog on the left side", "a red dog on the right side")
    middle = Scene((Thing("dog", "red", "small", 3, 0),), "white", None)
    assert foils.pair("place", middle, "0") == ("a red dog at the top", "a red dog at the bottom")
    assert foils.pair("place", TWO, "0") is None
    assert foils.pair("count", ONE, "0") == ("a red dog", "a red dog and a red dog")
    assert foils.pair("omission", TWO, "0") in ((right, "a red dog"), (right, "an orange cat"))
    assert [kind for kind in foils.KINDS if not foils.pair(kind, ONE, "0")] == ["swapped colours", "side", "omission"]


def test_the_side_that_is_said_is_the_one_that_is():
    for seed in map(str, range(20)):
        right, wrong = foils.pair("side", TWO, seed)
        assert ("left" in right) == right.startswith("a red dog") == ("right" in wrong)
        over = foils.pair("side", Scene((DOG, CAT), "white", "over"), seed)[0]
        assert ("above" in over) == over.startswith("a red dog")


def test_what_changes_in_many_scenes():
    drawn = [scenes.sample(str(k)) for k in range(200)]
    for scene in drawn:
        there = {thing.category for thing in scene.things}, {thing.colour for thing in scene.things}
        for kind, place in (("thing", 0), ("colour", 1)):
            right, wrong = (text.replace(",", "").split() for text in foils.pair(kind, scene, "0"))
            new = [b for a, b in zip(right, wrong, strict=True) if a != b and b not in ("a", "an")]
            assert len(new) == 1 and new[0] not in there[place]
        swap = foils.pair("swapped colours", scene, "0")
        words = [sorted(text.replace("an ", "a ").split()) for text in swap or ("", "")]
        assert words[0] == words[1]
        invented = foils.pair("invention", scene, "0")
        assert (invented is None) == (len(scene.things) == 3)
    assert foils.pair("thing", drawn[0], "0") == foils.pair("thing", drawn[0], "0")


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'size': choose one of thing, colour"):
        foils.pair("size", ONE, "0")
