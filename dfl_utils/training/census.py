"""How two tokenizers cut a corpus, and the map learned from it: counted once, block by block, kept in the run store."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from dfl_utils.scores.ranking import Estimate
from dfl_utils.store import provenance
from dfl_utils.store.store import Kind, RunStore
from dfl_utils.training import vocabulary
from dfl_utils.training.vocabulary import END, MEANING_PACKAGES, VocabularyMap, Votes

BLOCK = 20_000  # captions a shard
CENSUS = Kind("census")
TALLY = Kind("census-tally", made_from=(CENSUS,))
TOKEN_MAP = Kind("token-map", made_from=(CENSUS,))
NORMAL = 1.959964  # half the width of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Cuts:
    """Tokens of some captions by one tokenizer."""

    ids: np.ndarray  # (tokens,) int64, caption after caption, no special tokens
    counts: np.ndarray  # (captions,) int64, tokens of each

    @property
    def captions(self) -> np.ndarray:
        """(tokens,) which caption each token is of."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def rows(self) -> list[list[int]]:
        """The ids of each caption."""
        return [part.tolist() for part in np.split(self.ids, np.cumsum(self.counts)[:-1])]


class Census:
    """Both cuts of the same captions, at least one, and what they say, each answer a small shard.

    Captions are cut where an answer is missing, or where `captioner`, `generator` or `votes` are looked at.
    """

    def __init__(self, store: RunStore, captioner: Tokenizer, generator: Tokenizer, captions: Sequence[str]):
        self._store, self._pair, self._number = store, (captioner, generator), len(captions)
        self._key = _key(*self._pair, captions)
        self._blocks = [captions[k : k + BLOCK] for k in range(0, len(captions), BLOCK)]
        for block in self._blocks:  # the cost of the census, whether it is read or not
            store.count(CENSUS, _key(*self._pair, block))

    @cached_property
    def _parts(self) -> list[dict[str, np.ndarray]]:
        return [self._store.get(CENSUS, _key(*self._pair, b), partial(_cut, *self._pair, b)) for b in self._blocks]

    def _cuts(self, side: str) -> Cuts:
        parts = [[part[f"{side} {what}"] for part in self._parts] for what in ("ids", "counts")]
        return Cuts(*(np.concatenate(arrays).astype(np.int64) for arrays in parts))

    @cached_property
    def captioner(self) -> Cuts:
        return self._cuts("captioner")

    @cached_property
    def generator(self) -> Cuts:
        return self._cuts("generator")

    @cached_property
    def votes(self) -> Votes:
        """Those of all captions, for `VocabularyMap.make`."""
        votes = Votes()
        for part in self._parts:
            votes.add(_votes({name: part[name] for name in vars(votes)}))
        return votes

    def spelled(self) -> tuple[Cuts, Cuts]:
        """Both cuts, a token's number that of its string without its tokenizer's marks."""
        sides = zip((self.captioner, self.generator), _strings(*self._pair), strict=True)
        return tuple(replace(cuts, ids=strings[cuts.ids]) for cuts, strings in sides)

    def same_list(self) -> np.ndarray:
        """Whether both tokenizers cut a caption into the same strings in the same order, `(captions,)` bool."""
        return self._bits("same list", lambda: equal(*self.spelled()))

    def same_set(self) -> np.ndarray:
        """Likewise of the sets of strings (Appendix G speaks of a set)."""
        return self._bits("same set", lambda: equal_sets(*self.spelled()))

    def mapped_own(self, index: Tensor) -> np.ndarray:
        """Whether a vocabulary map turns the captioner's ids of a caption into the generator's own, `(captions,)`."""

        return self._bits(
            "mapped own",
            lambda: equal(replace(self.captioner, ids=index.numpy()[self.captioner.ids]), self.generator),
            _of(index.numpy()),
        )

    def tokens_where(self, chosen: np.ndarray) -> np.ndarray:
        """How many of each caption's tokens are among the captioner's tokens `(V,)` bool: `(captions,)` int64."""

        return self._numbers(
            "tokens where",
            lambda: np.bincount(self.captioner.captions, chosen[self.captioner.ids], self._number).astype(int),
            _of(chosen),
        )

    def counts(self) -> np.ndarray:
        """Tokens of each caption by the captioner's tokenizer, `(captions,)` int64."""
        return self._numbers("counts", lambda: self.captioner.counts)

    def times(self, vocab_size: int) -> np.ndarray:
        """How often each of the captioner's tokens stands in the captions, `(vocab_size,)` int64."""
        return self._numbers("times", lambda: np.bincount(self.captioner.ids, minlength=vocab_size), vocab_size)

    def voted(self, kind: str) -> int:
        """Number of the captioner's tokens with a vote of `Votes`, `equal` or `within`."""
        return int(self._numbers(kind, lambda: np.array([sum(getattr(self.votes, kind).values())]))[0])

    def _bits(self, what: str, make: Callable[[], np.ndarray], asked: object = None) -> np.ndarray:
        bits = self._kept(what, lambda: np.packbits(make()), asked)
        return np.unpackbits(bits, count=self._number).astype(bool)

    def _numbers(self, what: str, make: Callable[[], np.ndarray], asked: object = None) -> np.ndarray:
        """Whole numbers of 0 or more, kept in the fewest bytes."""

        def narrow():
            values = make()
            return values.astype(np.min_scalar_type(values.max(initial=0)))

        return self._kept(what, narrow, asked).astype(np.int64)

    def _kept(self, what: str, make: Callable[[], np.ndarray], asked: object) -> np.ndarray:
        key = self._key | {"what": what, "asked": asked}
        return self._store.get(TALLY, key, lambda: {"found": make()})["found"]


def equal(first: Cuts, second: Cuts) -> np.ndarray:
    """Whether two cuts of the same captions have the same ids in the same order, `(captions,)` bool."""
    same = first.counts == second.counts
    chosen = [cuts.ids[np.repeat(same, cuts.counts)] for cuts in (first, second)]
    owners = first.captions[np.repeat(same, first.counts)]
    same[owners[chosen[0] != chosen[1]]] = False
    return same


def equal_sets(first: Cuts, second: Cuts) -> np.ndarray:
    """Likewise of the sets of ids, which count from 0."""
    width = max(cuts.ids.max(initial=0) for cuts in (first, second)) + 1
    keys = [np.unique(cuts.captions * width + cuts.ids) for cuts in (first, second)]
    same = np.full(len(first.counts), True)
    same[np.setxor1d(*keys, assume_unique=True) // width] = False
    return same


def learn(
    store: RunStore, captioner: Tokenizer, generator: Tokenizer, captions: Sequence[str] = (), **options
) -> VocabularyMap:
    """`VocabularyMap.make` of the captions' census, with the same options, by way of the store."""
    pair = captioner, generator

    def make():
        votes = Census(store, *pair, captions).votes if captions else Votes()
        return VocabularyMap.make(*pair, votes, **options).to_content()

    key = _key(*pair, captions) | {"options": options}
    if options.get("by_meaning", True):
        key["meaning"] = {name: provenance.release(name) for name in MEANING_PACKAGES}
    return VocabularyMap.from_content(store.get(TOKEN_MAP, key, make))


def share(part: np.ndarray, whole: np.ndarray, clusters: np.ndarray) -> Estimate:
    """`part` in per cent of `whole`, `(captions,)` numbers, with a 95 % interval over clusters, the image of each.

    The interval is that of a ratio of sums (linearised, normal): bootstrapping 80,000 images would say the same. n is
    the sum of `whole`; of one cluster low = value = high.
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


def _key(captioner, generator, captions: Sequence[str]) -> dict:
    return {
        "tokenizers": [_recipe(captioner), _recipe(generator)],
        "package": provenance.release("tokenizers"),
        "captions": _digest("\n".join(captions)),
    }


def _of(values: np.ndarray) -> str:
    """An array in a key."""
    return hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).hexdigest()


def _cut(captioner, generator, captions: Sequence[str]) -> tuple[dict, int]:
    ours, theirs = vocabulary.spans(captioner, captions), vocabulary.spans(generator, captions)
    content = {}
    for side, cut in (("captioner", ours), ("generator", theirs)):
        content |= {f"{side} ids": cut.ids.astype(np.int32), f"{side} counts": cut.counts.astype(np.int32)}
    for name, counter in vars(vocabulary.align(ours, theirs)).items():  # rows of a key and its number
        content[name] = np.column_stack([list(counter), list(counter.values())]).astype(np.int32)
    return content, len(captions)


def _votes(content: dict[str, np.ndarray]) -> Votes:
    counters = {}
    for name, rows in content.items():
        keys = rows[:, 0].tolist() if rows.shape[1] == 2 else map(tuple, rows[:, :2].tolist())
        counters[name] = Counter(dict(zip(keys, rows[:, -1].tolist(), strict=True)))
    return Votes(**counters)


@cache
def _recipe(tokenizer: Tokenizer) -> str:
    """SHA-256 of how a tokenizer cuts, whatever its padding and length."""
    recipe = json.loads(vocabulary.backend(tokenizer).to_str()) | {"truncation": None, "padding": None}
    return _digest(json.dumps(recipe, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _strings(captioner, generator) -> tuple[np.ndarray, np.ndarray]:
    bodies = vocabulary.bodies_of(captioner)
    names = {index: token.removesuffix(END) for token, index in generator.get_vocab().items()}
    known = {text: k for k, text in enumerate(dict.fromkeys([*bodies.values(), *names.values()]))}
    return tuple(
        np.array([known.get(side.get(token), -1) for token in range(max(side) + 1)]) for side in (bodies, names)
    )
