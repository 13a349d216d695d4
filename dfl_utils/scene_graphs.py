"""SPICE-like: captions compared by the objects, attributes and relations that they name.

SPICE (Anderson et al., 2016) reads a caption's scene graph off CoreNLP's dependencies. CoreNLP is a download that
no wheel brings, so ours reads it off spaCy's (`grammar`) and then compares as SPICE does, with the synsets that
SPICE takes from METEOR. Another parser makes other tuples: ours is called SPICE-like wherever it is printed.
"""

import zipfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from pycocoevalcap import spice

from dfl_utils import grammar
from dfl_utils.candidates import Candidates
from dfl_utils.grammar import Fact

JAR = Path(spice.__file__).with_name("lib") / "Meteor-1.5.jar"
MEMBER = "synonym/english.synsets"

_known: dict[str, frozenset[Fact]] = {}  # a caption is parsed once: most of them come again


@cache
def _lists() -> dict[str, str]:
    """Word -> its synsets in one string: they are split when asked for, as captions know few of the 150,000 words."""
    try:
        with zipfile.ZipFile(JAR) as jar:  # a jar is a zip file; no Java is needed
            lines = jar.read(MEMBER).decode("utf-8").splitlines()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise OSError(f"{JAR.name} with {MEMBER} cannot be read; reinstall the wheel pycocoevalcap.") from error
    return dict(zip(lines[::2], lines[1::2], strict=True))


@cache
def synsets(words: str) -> frozenset[str]:
    """Numbers of the meanings that a word or phrase can have; none for one that WordNet lacks.

    Args:
        words: a lemma in lower case, or several with single spaces, such as "traffic light".

    Raises:
        OSError: the wheel's file is missing or broken.

    Note: METEOR's list keeps no part of speech, so a verb and a noun of the same spelling share their numbers.
    """
    return frozenset(_lists().get(words.replace(" ", "_"), "").split())


def similar(first: str, second: str) -> bool:
    """Whether two lemmas are one word or share a meaning: SPICE's rule for a match."""
    return first == second or not synsets(first).isdisjoint(synsets(second))


def _parse(texts: Iterable[str]) -> None:
    new = [text for text in dict.fromkeys(texts) if text not in _known]
    _known.update((text, frozenset()) for text in new if not text.strip())
    new = [text for text in new if text.strip()]
    _known.update(zip(new, grammar.read(new), strict=True))


def tuples(text: str) -> frozenset[Fact]:
    """The scene graph of a caption.

    Returns:
        (object,), (object, attribute) and (object, relation, object), of lemmas in lower case; nothing of a
        text that names no thing.

    Raises:
        TypeError: not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}; give one caption.")
    _parse([text])
    return _known[text]


def _match(first: Fact, second: Fact) -> bool:
    return len(first) == len(second) and all(map(similar, first, second))


def _merge(facts: Iterable[Fact]) -> list[list[Fact]]:
    """Groups of facts that say the same, so that a bike and a bicycle are one thing to find."""
    groups: list[list[Fact]] = []
    for fact in sorted(facts):
        same = [group for group in groups if any(_match(fact, other) for other in group)]
        groups = [group for group in groups if group not in same] + [[fact, *(f for group in same for f in group)]]
    return groups


def _share(groups: list[list[Fact]], others: Iterable[Fact]) -> float:
    """Share of the groups of which a fact matches one of the others."""
    found = [any(_match(fact, other) for fact in group for other in others) for group in groups]
    return sum(found) / len(found) if found else 0.0


def spice_like(captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """F1 of every candidate's scene graph and that of all references of its image together.

    Tuples match if each of their places does, by lemma or by a shared synset. As in SPICE, tuples of one graph
    that match each other count once. Precision is the share of the candidate's tuples that a reference has, recall
    the share of the references' that the candidate has.

    Args:
        captions: one list of N candidates for each image. A caption without tuples, an empty one say, scores 0.
        references: one list for each image.

    Returns:
        (images, N), x 100: in [0, 100]. With several references 100 is out of reach of one sentence.

    Raises:
        ValueError, TypeError: malformed captions or references; see `Candidates.of`.
    """
    pairs = Candidates.of(captions, references)
    _parse(pairs.texts)
    facts = [_known[text] for text in pairs.texts]
    scores = np.zeros(pairs.captions.shape)
    for image, row in enumerate(pairs.captions):
        truth = frozenset().union(*(facts[k] for k in pairs.references[pairs.image == image]))
        merged = _merge(truth)
        f1 = {k: _f1(facts[k], truth, merged) for k in set(row.tolist())}
        scores[image] = [f1[k] for k in row.tolist()]
    return 100.0 * scores


def _f1(facts: frozenset[Fact], truth: frozenset[Fact], merged: list[list[Fact]]) -> float:
    precision, recall = _share(_merge(facts), truth), _share(merged, facts)
    return 2 * precision * recall / (precision + recall) if precision else 0.0
