"""Which scores say how good a candidate caption is against the references that people wrote (the paper's Figure 3).

CIDEr, SPICE-like and SPICE are x 100. WMD lies in [0, 2], lower is better, and is NaN where it is undefined. CLIP-text
and SBERT are cosines. An empty caption scores WMD NaN, by CLIP and SBERT what they make of the empty text, and else 0.
BLEU is a score of a corpus and not of a caption: see `ngrams.bleu_statistics`.
"""

from collections.abc import Sequence

FIGURE3 = ("CIDEr", "WMD", "CLIP-text", "SBERT")
METRICS = (*FIGURE3, "SPICE-like", "SPICE")


def check(metrics: Sequence[str]) -> None:
    """ValueError for metrics that there are not, or none."""
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must name some of {', '.join(METRICS)}, not {', '.join(unknown) or 'nothing'}.")
