"""Foils differ from what is there in one thing, by hand on one scene and in words on many."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np

from dfl_utils.mini import streams
from dfl_utils.world import foils, scenes, splits
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


def test_a_quartet_by_hand():
    blue = replace(CAT, colour="blue", size="large")
    scene = Scene((DOG, blue), "white", "beside")
    colours, places = (foils.quartet(kind, scene) for kind in ("colours", "places"))
    assert colours.captions == ("a red dog and a blue cat", "a blue dog and a red cat")
    assert colours.scenes[1].things == (replace(DOG, colour="blue"), replace(blue, colour="red"))
    assert places.captions == ("a red dog to the left of a blue cat", "a blue cat to the left of a red dog")
    assert places.scenes[1].things == (Thing("cat", "blue", "small", 0, 2), Thing("dog", "red", "large", 4, 2))
    over = foils.quartet("places", replace(scene, relation="over")).captions
    assert over == ("a red dog above a blue cat", "a blue cat above a red dog")
    assert foils.quartet("colours", ONE) is None
    assert foils.quartet("places", Scene((DOG, replace(CAT, colour="red")), "white", "beside")) is None


def test_the_partner_of_a_partner_is_the_scene_and_the_words_stay():
    made = [(kind, foils.quartet(kind, scenes.sample(str(k)))) for k in range(200) for kind in foils.QUARTETS]
    for kind, one in ((kind, one) for kind, one in made if one):
        assert foils.quartet(kind, one.scenes[1]) == foils.Quartet(one.scenes[::-1], one.captions[::-1])
        words = [Counter(text.replace("an ", "a ").split()) for text in one.captions]
        assert words[0] == words[1] and one.captions[0] != one.captions[1]
        renders = [scenes.render(scene) for scene in one.scenes]
        assert not np.array_equal(*renders)


def test_scenes_that_were_met_are_left_out():
    """The first thousands of each stream; all of them take half a minute (`python -m dfl_utils.mini.streams`)."""
    met = {(item.scene.things, item.scene.ground) for item in splits.items("coco", "train")}
    for stream in (streams.of_captioners(), streams.of_autoencoder(), streams.of_clip()):
        met |= {(scene.things, scene.ground) for scene in islice(stream, 8000)}
    items = [item for name in ("in", "near", "out") for item in splits.items("nocaps", name)]
    kept = [item for item in items if item.image_id not in foils.met()]
    assert foils.met() and len(items) - len(kept) == len(foils.met())
    for kind in foils.QUARTETS:
        quartets = [one for one in (foils.quartet(kind, item.scene) for item in kept) if one]
        assert len(quartets) >= 300
        assert not met & {(scene.things, scene.ground) for one in quartets for scene in one.scenes}
