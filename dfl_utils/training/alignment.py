"""Which tokens of two tokenizers stand for the same characters of the same texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

CHUNK = 20_000  # texts whose tokens are held at a time


@dataclass(frozen=True)
class Spans:
    """All tokens of some texts, in order, and where they stand in the texts laid end to end."""

    ids: np.ndarray  # (tokens,) int64
    # starts, ends: (tokens,) int64, character positions; the space before a word belongs to no token
    starts: np.ndarray
    ends: np.ndarray
    counts: np.ndarray  # (texts,) int64, tokens of each text


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The fast tokenizer behind one of transformers'; ValueError for a slow one, which keeps no positions."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise ValueError(
            f"{type(tokenizer).__name__} keeps no character positions, which the vocabulary map is learned from: "
            "save it with a tokenizer.json and load that."
        )
    return fast


@cache
def plain(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of its `backend` that neither pads nor cuts, as the owner's may."""
    fast = Tokenizer.from_str(backend(tokenizer).to_str())
    fast.no_padding()
    fast.no_truncation()
    return fast


def spans(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Spans:
    """Tokens of the texts and the characters that they stand for; no special tokens, nothing cut off.

    Byte-level tokens carry the space before their word, so every text is read with one before its first.
    """
    texts = [f" {text.strip()}" for text in texts]
    encodings = plain(tokenizer).encode_batch(texts, add_special_tokens=False)
    counts = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    ids = np.array([token for encoding in encodings for token in encoding.ids], dtype=np.int64)
    places = np.array([place for encoding in encodings for place in encoding.offsets], dtype=np.int64).reshape(-1, 2)
    bases = np.cumsum([0, *map(len, texts)])[:-1]
    starts, ends = (places + np.repeat(bases, counts)[:, None]).T
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    spaced = (starts < ends) & (characters[np.minimum(starts, len(characters) - 1)] == ord(" "))
    return Spans(ids, starts + spaced, ends, counts)


def containing(inner: Spans, outer: Spans) -> np.ndarray:
    """For each token of `inner` the place of the token of `outer` whose characters include its own, or -1: (tokens,).

    Both are spans of the same texts. A token of no characters is included by none.
    """
    if len(outer.ids) == 0:
        return np.full(len(inner.ids), -1)
    place = np.searchsorted(outer.starts, inner.starts, side="right") - 1
    nearest = np.maximum(place, 0)
    holds = (place >= 0) & (inner.starts < inner.ends)
    # Texts begin with a space that no token owns, so a token never reaches into the next text.
    return np.where(holds & (outer.ends[nearest] >= inner.ends), nearest, -1)


@dataclass(frozen=True)
class Votes:
    """How often tokens of a source and of a target stood for the same characters."""

    sources: Counter = field(default_factory=Counter)  # sources, targets: id -> how often it was seen
    targets: Counter = field(default_factory=Counter)
    # (source id, target id) -> how often their characters were the same
    equal: Counter = field(default_factory=Counter)
    # likewise -> how often the target's characters included the source's, the same or more
    within: Counter = field(default_factory=Counter)
    # likewise -> how often the source's characters included the target's, the same or more
    parts: Counter = field(default_factory=Counter)

    def add(self, other: "Votes") -> None:
        """Count another's votes too."""
        for name, counter in vars(other).items():
            getattr(self, name).update(counter)


def align(ours: Spans, theirs: Spans) -> Votes:
    """The votes of two cuts of the same texts."""
    place = containing(ours, theirs)
    known = place >= 0
    equal = known & (theirs.starts[place] == ours.starts) & (theirs.ends[place] == ours.ends) if known.any() else known
    inside = containing(theirs, ours)
    held = inside >= 0
    return Votes(
        Counter(ours.ids.tolist()),
        Counter(theirs.ids.tolist()),
        Counter(zip(ours.ids[equal].tolist(), theirs.ids[place[equal]].tolist(), strict=True)),
        Counter(zip(ours.ids[known].tolist(), theirs.ids[place[known]].tolist(), strict=True)),
        Counter(zip(ours.ids[inside[held]].tolist(), theirs.ids[held].tolist(), strict=True)),
    )


def count(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, texts: Sequence[str]) -> Votes:
    """The votes of all texts."""
    votes = Votes()
    for start in range(0, len(texts), CHUNK):
        part = texts[start : start + CHUNK]
        votes.add(align(spans(source, part), spans(target, part)))
    return votes
