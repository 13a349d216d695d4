"""The nearest word by meaning that the generator reads as one token."""

from collections.abc import Mapping
from functools import cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from dfl_utils import alignment

END = "</w>"
COMMON = 20_000  # so many of the commonest whole words may be chosen
CHUNK = 1024  # words whose cosines with every target are held at a time


@cache
def whole_words(generator_tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Words of letters that the generator's tokenizer, asked for the word alone, gives a single token."""
    known = {
        token.removesuffix(END): index
        for token, index in generator_tokenizer.get_vocab().items()
        if token.endswith(END) and token.removesuffix(END).isascii() and token.removesuffix(END).isalpha()
    }
    words = sorted(known)
    cut = alignment.spans(generator_tokenizer, words)
    firsts = cut.ids[np.cumsum(cut.counts) - cut.counts]
    pairs = zip(words, firsts, cut.counts, strict=True)
    return {word: known[word] for word, first, count in pairs if count == 1 and first == known[word]}


def nearest(words: Mapping[int, str], generator_tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """For each token whose word has a GloVe vector, the generator's whole word of the largest cosine.

    Vectors are those of `transport.word_vectors` (50-d). They are read only if there is a word to look for.

    Args:
        words: token -> its word, lower case.
        generator_tokenizer: whose whole words are the targets.

    Returns:
        token -> generator token; tokens whose word has no vector are left out.
    """
    if not words:
        return {}
    from dfl_utils.transport import word_vectors  # gensim and the word list take seconds

    choice = whole_words(generator_tokenizer)
    vectors = word_vectors([*choice, *words.values()])
    known = [(token, word) for token, word in words.items() if word in vectors]
    # The word list is sorted by frequency: rare words have poor vectors and are near to anything.
    names = [word for word in vectors.index_to_key if word in choice][:COMMON]
    if not known or not names:
        return {}
    table = _unit(vectors[names])
    found = {}
    for start in range(0, len(known), CHUNK):
        part = known[start : start + CHUNK]
        best = (_unit(vectors[[word for _, word in part]]) @ table.T).argmax(1)
        found |= {token: choice[names[k]] for (token, _), k in zip(part, best, strict=True)}
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
