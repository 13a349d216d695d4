"""Pairs of captions of a drawn scene that differ in one thing: one that says what is there, and its foil.

Both are made of the same sentence, so that a judge that knows only how sentences go has little to choose by. A pair is
a pure function of kind, scene and seed. Known relatives: FOIL (Shekhar et al., ACL 2017), Winoground (Thrush et al.,
CVPR 2022), whose two images and two captions, the same words in other roles, are the quartets here.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from dfl_utils.world.profile import MINI
from dfl_utils.world.scenes import BESIDE, CATEGORIES, COLOURS, OVER, Scene, Thing, thirds, with_article

Pair = tuple[str, str]  # what is there, its foil
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def named(thing: Thing) -> str:
    """A thing with its colour: `a red dog`, `an orange cat`."""
    return with_article(f"{thing.colour} {thing.category}")


def said(things: Sequence[Thing]) -> str:
    """All things, in their order: `a red dog`, `a red dog and a blue cat`, `a red dog, a blue cat and a black cup`."""
    *first, last = map(named, things)
    return f"{', '.join(first)} and {last}" if first else last


def _absent(scene: Scene, rng: random.Random) -> str:
    there = {thing.category for thing in scene.things}
    return rng.choice([name for name in CATEGORIES if name not in there])


def _changed(scene: Scene, place: int, **other: str) -> Pair:
    things = list(scene.things)
    things[place] = replace(things[place], **other)
    return said(scene.things), said(things)


def thing(scene: Scene, rng: random.Random) -> Pair:
    """Something else of the same colour."""
    return _changed(scene, rng.randrange(len(scene.things)), category=_absent(scene, rng))


def colour(scene: Scene, rng: random.Random) -> Pair:
    """The same thing in a colour that nothing here has."""
    place, there = rng.randrange(len(scene.things)), {thing.colour for thing in scene.things}
    return _changed(scene, place, colour=rng.choice([name for name in COLOURS if name not in there]))


def swapped(scene: Scene, rng: random.Random) -> Pair | None:
    """The colours of two things change places: the same words; None where there are not two things of two colours."""
    if len(scene.things) != 2 or len({thing.colour for thing in scene.things}) != 2:
        return None
    return said(scene.things), said(_exchanged(scene, "colour").things)


def _exchanged(scene: Scene, *names: str) -> Scene:
    """The scene whose two things have exchanged what is named, and keep the rest."""
    things = zip(scene.things, reversed(scene.things), strict=True)
    return replace(scene, things=tuple(replace(a, **{name: getattr(b, name) for name in names}) for a, b in things))


def sides(scene: Scene) -> tuple[Pair, Pair] | None:
    """Left and right, or above and below, said both ways round: each word is once right and once wrong.

    The first pair names first what stands left or above. None where there are not two things.
    """
    if len(scene.things) != 2:
        return None
    words = BESIDE if scene.relation == "beside" else OVER
    one, other = map(named, scene.things)
    orders = ((one, other, True), (other, one, False))
    return tuple(tuple(f"{a} {words[right][0]} {b}" for right in (first, not first)) for a, b, first in orders)


def side(scene: Scene, rng: random.Random) -> Pair | None:
    """One of `sides`; None where there are not two things."""
    pairs = sides(scene)
    return pairs and pairs[rng.random() >= 0.5]


def place(scene: Scene, rng: random.Random) -> Pair | None:
    """A lone thing at the opposite side; None where there are several, or it stands in the middle."""
    x, y = thirds(scene.things[0])
    if len(scene.things) > 1 or not (x or y):
        return None
    words = "on the {} side" if x else "at the {}"
    return tuple(f"{named(scene.things[0])} {words.format(side)}" for side in (x or y, OPPOSITE[x or y]))


def count(scene: Scene, rng: random.Random) -> Pair:
    """One of the things once more; the world has never two of a kind."""
    return said(scene.things), said([*scene.things, rng.choice(scene.things)])


def invented(scene: Scene, rng: random.Random) -> Pair | None:
    """Something that is not there, beside all that is; None where three things are there, the most that there are."""
    if len(scene.things) > 2:
        return None
    extra = replace(scene.things[0], category=_absent(scene, rng), colour=rng.choice(tuple(COLOURS)))
    return said(scene.things), said([*scene.things, extra])


def omitted(scene: Scene, rng: random.Random) -> Pair | None:
    """One thing is not told of: nothing is wrong, and less is said; None where there is one thing."""
    if len(scene.things) == 1:
        return None
    place = rng.randrange(len(scene.things))
    return said(scene.things), said(scene.things[:place] + scene.things[place + 1 :])


KINDS: dict[str, Callable[[Scene, random.Random], Pair | None]] = {
    "thing": thing,
    "colour": colour,
    "swapped colours": swapped,
    "side": side,
    "place": place,
    "count": count,
    "invention": invented,
    "omission": omitted,
}


def pair(kind: str, scene: Scene, seed: str) -> Pair | None:
    """A caption of the scene and its foil of a kind of `KINDS`; None for a scene that has no such foil."""
    return KINDS[kind](scene, random.Random(f"{seed}/{kind}"))


# --- Quartets: a scene, its partner, and a caption of each, in the same words.


QUARTETS = {"colours": ("colour",), "places": ("category", "colour")}  # what two things exchange


@dataclass(frozen=True)
class Quartet:
    """Two scenes and a caption of each; a judge has all four right if it gives each scene its own."""

    scenes: tuple[Scene, Scene]
    captions: Pair


def quartet(kind: str, scene: Scene) -> Quartet | None:
    """A scene and its partner, in which two things have exchanged colours, or places; None without two of two colours.

    Boxes and ground stay, so that nothing else tells the two images apart; a place is told by `left of` or `above`.
    """
    if len(scene.things) != 2 or len({thing.colour for thing in scene.things}) != 2:
        return None
    both = scene, _exchanged(scene, *QUARTETS[kind])
    word = (BESIDE if scene.relation == "beside" else OVER)[True][0]
    say = said if kind == "colours" else lambda things: f" {word} ".join(map(named, things))
    return Quartet(both, tuple(say(one.things) for one in both))


@cache
def met() -> frozenset[int]:
    """Image ids of NoCaps-like scenes of which a quartet was met in a training; `mini.streams` writes them."""
    return frozenset(json.loads((MINI / "met_in_training.json").read_text(encoding="utf-8")))
