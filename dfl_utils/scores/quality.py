"""Which scores say how good a candidate caption is beside the references of its image (the paper's Figure 3).

CIDEr, SPICE-like and SPICE are x 100. WMD lies in [0, 2], lower is better, and is NaN where it is undefined. CLIP-text
and SBERT are cosines. An empty caption scores WMD NaN, by CLIP and SBERT what they make of the empty text, and else 0.
BLEU is a score of a corpus and not of a caption: see `ngrams.bleu_statistics`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FIGURE3 = ("CIDEr", "WMD", "CLIP-text", "SBERT")
METRICS = (*FIGURE3, "SPICE-like", "SPICE")
TRUTH = ("truth", "invented", "omitted")  # of the drawn world alone, whose scenes are known: see `truth`
Texts = Sequence[Sequence[str]]  # one list for each image


@dataclass(frozen=True)
class Candidates:
    """Captions and references as places in one list of distinct texts, so that a text is worked on once."""

    texts: list[str]  # captions first, in order of first appearance
    captions: np.ndarray  # (images, candidates) int
    references: np.ndarray  # (R,) int, image after image
    image: np.ndarray  # (R,) int, the image of each reference

    @classmethod
    def of(cls, captions: Texts, references: Texts) -> "Candidates":
        """Index N captions of each image, of which some may be empty, and its references, as `check` lets them in."""
        flat_captions = [text for texts in captions for text in texts]
        flat_references = [text for texts in references for text in texts]
        place = {text: k for k, text in enumerate(dict.fromkeys(flat_captions + flat_references))}
        return cls(
            texts=list(place),
            captions=np.array([place[text] for text in flat_captions]).reshape(len(captions), -1),
            references=np.array([place[text] for text in flat_references]),
            image=np.repeat(np.arange(len(references)), [len(texts) for texts in references]),
        )

    def mean(self, values: np.ndarray) -> np.ndarray:
        """(R, K) values of references -> (images, K): means over each image's references, NaN left out."""
        starts, known = np.searchsorted(self.image, np.arange(len(self.captions))), ~np.isnan(values)
        totals = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
        counts = np.add.reduceat(known.astype(int), starts, axis=0)
        return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def check_metrics(metrics: Sequence[str]) -> None:
    """ValueError for metrics that there are not, or none."""
    there_are = METRICS + TRUTH
    unknown = [metric for metric in metrics if metric not in there_are]
    if unknown or not metrics:
        raise ValueError(f"metrics must name some of {', '.join(there_are)}, not {', '.join(unknown) or 'nothing'}.")


def check(captions: Texts, references: Texts) -> None:
    """Refuse captions without images or of unequal numbers, and what `check_references` refuses (ValueError)."""
    if not len(captions) == len(references) > 0:
        raise ValueError(f"captions has {len(captions)} images and references has {len(references)}; give both the "
                         "same images in the same order, at least one.")  # fmt: skip
    _check_texts("captions", captions)
    for image, texts in enumerate(captions):
        if len(texts) != len(captions[0]):
            raise ValueError(f"captions[{image}] holds {len(texts)} candidates where captions[0] holds "
                             f"{len(captions[0])}; give every image the same number.")  # fmt: skip
    check_references(references)


def check_references(references: Texts) -> None:
    """Refuse an image without references and a blank reference, naming the image (ValueError)."""
    _check_texts("references", references)
    for image, texts in enumerate(references):
        if not all(text.strip() for text in texts):
            raise ValueError(f"references[{image}] holds a blank string; drop it from the references of that image.")


def _check_texts(name: str, rows: Texts) -> None:
    for image, texts in enumerate(rows):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"{name}[{image}] is no list of strings or empty; give at least one string.")
