"""How two tokenizers cut a corpus, and the map learned from it: counted once, block by block, kept in the run store."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dfl_utils.scores.ranking import Estimate
from dfl_utils.store import provenance
from dfl_utils.store.store import Kind, RunStore
from dfl_utils.training import alignment, vocabulary
from dfl_utils.training.alignment import Votes
from dfl_utils.training.vocabulary import END, MEANING_PACKAGES, VocabularyMap

BLOCK = 20_000  # captions a shard
CENSUS = Kind("census")
TALLY = Kind("census-tally", made_from=(CENSUS,))
TOKEN_MAP = Kind("token-map", made_from=(CENSUS,))
NORMAL = 1.959964  # half the width of a 95 % interval, in standard errors


def clean(caption: str) -> str:
    """A caption as BLIP is trained on: lower case, `. ! " ( ) * # : ; ~` and runs of spaces become one space."""
    return re.sub(r"\s+", " ", re.sub(r"[.!\"()*#:;~]", " ", caption.lower())).strip()


@dataclass(frozen=True)
class Cuts:
    """Tokens of some captions by one tokenizer.

    Attributes:
        ids: (tokens,) int64, caption after caption, no special tokens.
        counts: (captions,) int64, tokens of each.
    """

    ids: np.ndarray
    counts: np.ndarray

    @property
    def captions(self) -> np.ndarray:
        """(tokens,) which caption each token is of."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def rows(self) -> list[list[int]]:
        """The ids of each caption."""
        return [part.tolist() for part in np.split(self.ids, np.cumsum(self.counts)[:-1])]


@dataclass(frozen=True)
class Census:
    """Both cuts of the same captions, and how their characters fall together.

    Attributes:
        captioner, generator: cuts by the two tokenizers.
        votes: of all captions, for `VocabularyMap.make`.
        strings: token id -> number of its string without its tokenizer's marks, one array for each of the two.
    """

    captioner: Cuts
    generator: Cuts
    votes: Votes
    strings: tuple[np.ndarray, np.ndarray]

    def same_list(self) -> np.ndarray:
        """Whether both tokenizers cut a caption into the same strings in the same order, `(captions,)` bool."""
        return _equal(self._spelled(0), self._spelled(1))

    def same_set(self) -> np.ndarray:
        """Likewise of the sets of strings (Appendix G speaks of a set)."""
        width = max(map(len, self.strings)) * 2
        keys = [np.unique(cuts.captions * width + cuts.ids) for cuts in map(self._spelled, (0, 1))]
        same = np.full(len(self.captioner.counts), True)
        same[np.setxor1d(*keys, assume_unique=True) // width] = False
        return same

    def mapped_own(self, index: Tensor) -> np.ndarray:
        """Whether a vocabulary map turns the captioner's ids of a caption into the generator's own, `(captions,)`."""
        return _equal(Cuts(index.numpy()[self.captioner.ids], self.captioner.counts), self.generator)

    def tokens_where(self, chosen: np.ndarray) -> np.ndarray:
        """How many of each caption's tokens are among the captioner's tokens `(V,)` bool: `(captions,)` int64."""
        return np.bincount(self.captioner.captions, chosen[self.captioner.ids], len(self.captioner.counts)).astype(int)

    def _spelled(self, side: int) -> Cuts:
        cuts = (self.captioner, self.generator)[side]
        return Cuts(self.strings[side][cuts.ids], cuts.counts)


def take(
    store: RunStore,
    captioner_tokenizer: PreTrainedTokenizerBase,
    generator_tokenizer: PreTrainedTokenizerBase,
    captions: Sequence[str],
) -> Census:
    """Cut and align all captions by both tokenizers; a second census of the same captions reads them from the store.

    Raises:
        ValueError: no captions.
    """
    if not captions:
        raise ValueError("A census needs captions: raise NUM_CAPTIONS.")
    pair = captioner_tokenizer, generator_tokenizer
    found = [_block(store, *pair, block) for block in _blocks(captions)]
    cuts = [
        Cuts(
            *(np.concatenate([part[f"{side} {what}"] for part in found]).astype(np.int64) for what in ("ids", "counts"))
        )
        for side in ("captioner", "generator")
    ]
    votes = Votes()
    for part in found:
        votes.add(_votes({name: part[name] for name in vars(votes)}))
    return Census(*cuts, votes, _strings(*pair))


class Tally:
    """What a census of many captions says, each answer a small shard: the census itself is made where one is missing.

    Args: as of `take`.

    Raises:
        ValueError: no captions.
    """

    def __init__(
        self,
        store: RunStore,
        captioner_tokenizer: PreTrainedTokenizerBase,
        generator_tokenizer: PreTrainedTokenizerBase,
        captions: Sequence[str],
    ):
        if not captions:
            raise ValueError("A census needs captions: raise NUM_CAPTIONS.")
        self._store, self._captions = store, captions
        self._pair = captioner_tokenizer, generator_tokenizer
        self._key = _key(*self._pair) | {"captions": _digest("\n".join(captions))}
        for block in _blocks(captions):  # the cost of the census, whether it is read or not
            store.count(CENSUS, _block_key(*self._pair, block))

    @cached_property
    def census(self) -> Census:
        return take(self._store, *self._pair, self._captions)

    def same_list(self) -> np.ndarray:
        """As `Census.same_list`."""
        return self._bits("same list", lambda: self.census.same_list())

    def same_set(self) -> np.ndarray:
        """As `Census.same_set`."""
        return self._bits("same set", lambda: self.census.same_set())

    def mapped_own(self, index: Tensor) -> np.ndarray:
        """As `Census.mapped_own`."""
        return self._bits("mapped own", lambda: self.census.mapped_own(index), _of(index.numpy()))

    def tokens_where(self, chosen: np.ndarray) -> np.ndarray:
        """As `Census.tokens_where`."""
        return self._numbers("tokens where", lambda: self.census.tokens_where(chosen), _of(chosen))

    def counts(self) -> np.ndarray:
        """Tokens of each caption by the captioner's tokenizer, `(captions,)` int64."""
        return self._numbers("counts", lambda: self.census.captioner.counts)

    def times(self, vocab_size: int) -> np.ndarray:
        """How often each of the captioner's tokens stands in the captions, `(vocab_size,)` int64."""
        return self._numbers("times", lambda: np.bincount(self.census.captioner.ids, minlength=vocab_size), vocab_size)

    def votes(self, kind: str) -> int:
        """Number of the captioner's tokens with a vote of `Votes`, `equal` or `within`."""
        return int(self._numbers(kind, lambda: np.array([sum(getattr(self.census.votes, kind).values())]))[0])

    def _bits(self, what: str, make: Callable[[], np.ndarray], asked: object = None) -> np.ndarray:
        bits = self._kept(what, lambda: np.packbits(make()), asked)
        return np.unpackbits(bits, count=len(self._captions)).astype(bool)

    def _numbers(self, what: str, make: Callable[[], np.ndarray], asked: object = None) -> np.ndarray:
        return self._kept(what, lambda: _narrow(make()), asked).astype(np.int64)

    def _kept(self, what: str, make: Callable[[], np.ndarray], asked: object) -> np.ndarray:
        key = self._key | {"what": what, "asked": asked}
        return self._store.get(TALLY, key, lambda: {"found": make()})["found"]


def learn(
    store: RunStore,
    captioner_tokenizer: PreTrainedTokenizerBase,
    generator_tokenizer: PreTrainedTokenizerBase,
    captions: Sequence[str] = (),
    **options,
) -> VocabularyMap:
    """`VocabularyMap.make` of the captions' census, with the same options, by way of the store."""
    pair = captioner_tokenizer, generator_tokenizer

    def make():
        votes = take(store, *pair, captions).votes if captions else Votes()
        made = VocabularyMap.make(*pair, votes, **options)
        names = [made.captioner, made.generator, str(made.generator_size)]
        return {"index": made.index.numpy(), "how": list(made.how), "names": names}

    key = _key(*pair) | {"captions": _digest("\n".join(captions)), "options": options}
    if options.get("by_meaning", True):
        key["meaning"] = {name: provenance.release(name) for name in MEANING_PACKAGES}
    found = store.get(TOKEN_MAP, key, make)
    *prints, size = found["names"]
    return VocabularyMap(torch.from_numpy(found["index"]), tuple(found["how"]), *prints, int(size))


def share(part: np.ndarray, whole: np.ndarray, clusters: np.ndarray) -> Estimate:
    """`part` in per cent of `whole`, with a 95 % interval over clusters: captions of one image go together.

    The interval is that of a ratio of sums (linearised, normal): bootstrapping 80,000 images would say the same.

    Args:
        part, whole: `(captions,)` numbers, such as tokens that are matched and tokens.
        clusters: `(captions,)` int, the image of each.

    Returns:
        The estimate, whose n is the sum of `whole`; of one cluster low = value = high.
    """
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    value = part.sum() / whole.sum()
    _, place = np.unique(clusters, return_inverse=True)
    residuals = np.bincount(place, part - value * whole)
    groups = len(residuals)
    spread = np.sqrt((residuals**2).sum() * groups / max(groups - 1, 1)) if groups > 1 else 0.0
    half = NORMAL * spread / whole.sum()
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Estimate(100 * value, 100 * low, 100 * high, int(whole.sum()))


def _key(captioner, generator) -> dict:
    return {
        "tokenizers": [_recipe(captioner), _recipe(generator)],
        "package": provenance.release("tokenizers"),
    }


def _blocks(captions: Sequence[str]) -> Iterator[Sequence[str]]:
    return (captions[k : k + BLOCK] for k in range(0, len(captions), BLOCK))


def _block_key(captioner, generator, captions: Sequence[str]) -> dict:
    return _key(captioner, generator) | {"captions": _digest("\n".join(captions))}


def _of(values: np.ndarray) -> str:
    """An array in a key."""
    return hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).hexdigest()


def _narrow(values: np.ndarray) -> np.ndarray:
    """Whole numbers of 0 or more in the fewest bytes."""
    return values.astype(np.min_scalar_type(values.max(initial=0)))


def _block(store: RunStore, captioner, generator, captions: Sequence[str]) -> dict:
    def make():
        ours, theirs = alignment.spans(captioner, captions), alignment.spans(generator, captions)
        content = {}
        for side, cut in (("captioner", ours), ("generator", theirs)):
            content |= {f"{side} ids": cut.ids.astype(np.int32), f"{side} counts": cut.counts.astype(np.int32)}
        votes = vars(alignment.align(ours, theirs))
        return content | {name: _rows(counter) for name, counter in votes.items()}, len(captions)

    return store.get(CENSUS, _block_key(captioner, generator, captions), make)


def _rows(counter: Counter) -> np.ndarray:
    """A counter as rows of its key and its number."""
    rows = [[*(key if isinstance(key, tuple) else (key,)), number] for key, number in counter.items()]
    return np.array(rows, dtype=np.int32).reshape(len(rows), -1)


def _votes(content: dict[str, np.ndarray]) -> Votes:
    counters = {}
    for name, rows in content.items():
        keys = rows[:, 0].tolist() if rows.shape[1] == 2 else map(tuple, rows[:, :2].tolist())
        counters[name] = Counter(dict(zip(keys, rows[:, -1].tolist(), strict=True)))
    return Votes(**counters)


@cache
def _recipe(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of how a tokenizer cuts: what it was told of padding and length does not count here."""
    recipe = json.loads(alignment.backend(tokenizer).to_str()) | {"truncation": None, "padding": None}
    return _digest(json.dumps(recipe, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache  # a chapter asks it of three tokenizers, again and again
def _strings(captioner, generator) -> tuple[np.ndarray, np.ndarray]:
    bodies = vocabulary.bodies_of(captioner)
    names = {index: token.removesuffix(END) for token, index in generator.get_vocab().items()}
    known = {text: k for k, text in enumerate(dict.fromkeys([*bodies.values(), *names.values()]))}
    return tuple(
        np.array([known.get(side.get(token), -1) for token in range(max(side) + 1)]) for side in (bodies, names)
    )


def _equal(first: Cuts, second: Cuts) -> np.ndarray:
    same = first.counts == second.counts
    chosen = [cuts.ids[np.repeat(same, cuts.counts)] for cuts in (first, second)]
    owners = first.captions[np.repeat(same, first.counts)]
    same[owners[chosen[0] != chosen[1]]] = False
    return same
