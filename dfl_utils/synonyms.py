"""The nearest word by meaning that the generator reads as one token."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from dfl_utils import alignment

END = "</w>"
COMMON = 20_000  # so many of the commonest whole words may be chosen
CHUNK = 128  # words whose cosines with every target are held at a time


@cache
def whole_words(generator_tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Words of letters that the generator's tokenizer, asked for the word alone, gives a single token."""
    known = {
        token.removesuffix(END): index
        for token, index in generator_tokenizer.get_vocab().items()
        if token.endswith(END) and token.removesuffix(END).isascii() and token.removesuffix(END).isalpha()
    }
    words = sorted(known)
    asked = [f" {word}" for word in words]  # as `alignment.spans` asks
    cuts = alignment.plain(generator_tokenizer).encode_batch(asked, add_special_tokens=False)
    return {word: known[word] for word, cut in zip(words, cuts, strict=True) if cut.ids == [known[word]]}


def nearest(words: Mapping[int, str], generator_tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """For each token whose word has a GloVe vector, the generator's whole word of the largest cosine.

    Vectors are those of `transport.word_vectors` (50-d). They are read only if there is a word to look for, and a word
    is looked for once a process.

    Args:
        words: token -> its word, lower case.
        generator_tokenizer: whose whole words are the targets.

    Returns:
        token -> generator token; tokens whose word has no vector are left out.
    """
    if not words:
        return {}
    known = _found(generator_tokenizer)
    if new := sorted(set(words.values()) - known.keys()):
        known |= dict.fromkeys(new) | _search(new, generator_tokenizer)
    return {token: known[word] for token, word in words.items() if known[word] is not None}


@cache
def _found(generator_tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """What `nearest` has found: word -> generator token, or None where there is none."""
    return {}


@cache
def _targets(generator_tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], np.ndarray]:
    """The `COMMON` whole words, as tokens, and their unit vectors."""
    from dfl_utils.transport import word_vectors  # gensim and the word list take seconds

    choice = whole_words(generator_tokenizer)
    vectors = word_vectors(choice)
    # The word list is sorted by frequency: rare words have poor vectors and are near to anything.
    names = [word for word in vectors.index_to_key if word in choice][:COMMON]
    return [choice[name] for name in names], _unit(vectors[names]) if names else np.empty((0, 0))


def _search(words: Sequence[str], generator_tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    from dfl_utils.transport import word_vectors

    targets, table = _targets(generator_tokenizer)
    vectors = word_vectors(words)
    known, found = [word for word in words if word in vectors] if targets else [], {}
    for start in range(0, len(known), CHUNK):
        part = known[start : start + CHUNK]
        best = (_unit(vectors[part]) @ table.T).argmax(1)
        found |= {word: targets[k] for word, k in zip(part, best, strict=True)}
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
