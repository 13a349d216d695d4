"""Truth: what a caption of the drawn world says, compared with what its scene holds.

It asks no model and no reference: a caption is read word by word (`said`), and each of its facts is true or an
invention, each fact of the scene said or an omission.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dfl_utils.world.scenes import BESIDE, CATEGORIES, COLOURS, OVER, SYNONYMS, Scene, Thing

Fact = tuple[str, ...]  # (thing,), (thing, colour) or (thing, "left of" or "above", thing)

_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
_NOUNS = {name: name for name in CATEGORIES} | {synonym: name for name, synonym in SYNONYMS.items()}
_NOUNS |= {f"{word}s": name for word, name in _NOUNS.items()}
_RELATIONS = {words: ("left of", forward) for forward, group in BESIDE.items() for words in group}
_RELATIONS |= {words: ("above", forward) for forward, group in OVER.items() for words in group}
_WORDS = re.compile("|".join([*sorted(_RELATIONS, key=len, reverse=True), r"[\w-]+"]))


@dataclass(frozen=True)
class Truth:
    """Of each caption in per cent, `(images, candidates)` float64."""

    truth: np.ndarray  # F1: harmonic mean of what is neither invented nor omitted; 0 where nothing true is said
    invented: np.ndarray  # of what is said, what is not so; NaN where nothing is said
    omitted: np.ndarray  # of what there is, what is not said


def said(caption: str) -> Counter[Fact]:
    """The facts of a caption: each thing as often as it is named, its colour, and exact relations.

    A relation holds between all things of the group before it and all of the group after it, as in "a dog and a cat
    above a cup". Sizes, places in the image and the ground are not looked at.
    """
    facts, before, group, relation = Counter(), [], [], None
    colour, number = None, 1
    for word in _WORDS.findall(caption.lower()):
        number = _NUMBERS.get(word, number)
        if word in _RELATIONS and group:
            before, group, relation = group, [], _RELATIONS[word]
        if word in _NOUNS:
            thing = _NOUNS[word]
            facts[thing,] += number
            if colour:
                facts[thing, colour] += number
            group.append(thing)
            for other in before:
                name, forward = relation
                facts[(other, name, thing) if forward else (thing, name, other)] += 1
            number = 1
        colour = word if word in COLOURS else None
    return facts


def held(scene: Scene) -> Counter[Fact]:
    """The facts of a scene in the form of `said`: every pair of things has at least one relation."""
    facts = Counter()
    for thing in scene.things:
        facts[thing.category,] += 1
        facts[thing.category, thing.colour] += 1
    for first, second in combinations(scene.things, 2):
        facts.update(_relations(first, second))
    return facts


def _relations(first: Thing, second: Thing) -> Iterator[Fact]:
    """By their boxes, which never overlap along one axis at least."""
    for one, other in ((first, second), (second, first)):
        if one.x + one.cells <= other.x:
            yield one.category, "left of", other.category
        if one.y + one.cells <= other.y:
            yield one.category, "above", other.category


def truth(scenes: Sequence[Scene], captions: Sequence[Sequence[str]]) -> Truth:
    """Facts said and held of each image's candidates.

    Of a pair of things one relation is enough: a second one, where two things lie apart along both axes, is true if
    it is said and no omission if it is not.
    """
    shares = np.array(
        [[_shares(scene, said(text)) for text in row] for scene, row in zip(scenes, captions, strict=True)]
    )
    precision, recall = np.moveaxis(shares.reshape(len(captions), -1, 2), 2, 0)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    return Truth(100 * f1, 100 * (1 - precision), 100 * (1 - recall))


def _shares(scene: Scene, facts: Counter[Fact]) -> tuple[float, float]:
    """Precision, NaN where nothing is said, and recall."""
    there = held(scene)
    true = facts & there
    precision = true.total() / facts.total() if facts else np.nan
    return precision, _once_a_pair(true) / _once_a_pair(there)


def _once_a_pair(facts: Counter[Fact]) -> int:
    pairs = {frozenset(fact[::2]) for fact in facts if len(fact) == 3}
    return sum(count for fact, count in facts.items() if len(fact) < 3) + len(pairs)
