"""Candidate captions beside the references of their image, checked once and free of repeated strings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


def _check_texts(name: str, texts: object, image: int) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"{name}[{image}] is a {type(texts).__name__}; give a list of strings for each image.")
    if len(texts) == 0:
        raise ValueError(f"{name}[{image}] is an empty list; give image {image} at least one string in {name}.")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name}[{image}] holds something that is not a string; give strings only.")


def check_references(references: Sequence[Sequence[str]]) -> None:
    """Refuse no images, an image without references and a blank reference, naming the image (ValueError, TypeError)."""
    if len(references) == 0:
        raise ValueError("references holds no images; give one list of references for each image.")
    for image, texts in enumerate(references):
        _check_texts("references", texts, image)
        if not all(text.strip() for text in texts):
            raise ValueError(f"references[{image}] holds a blank string; drop it from the references of that image.")


@dataclass(frozen=True)
class Candidates:
    """Captions and references as places in one list of distinct texts, so that a text is worked on once.

    Attributes:
        texts: the T distinct strings, captions first, in order of first appearance.
        captions: (images, candidates) int, places in `texts`.
        references: (R,) int, places in `texts`; all references, image after image.
        image: (R,) int, the image of each reference.
    """

    texts: list[str]
    captions: np.ndarray
    references: np.ndarray
    image: np.ndarray

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> "Candidates":
        """Check and index.

        Args:
            captions: one list of N >= 1 candidates for each image, the same N throughout; an empty string is allowed
                (a captioner may write one; each score says what it makes of it).
            references: one list of at least one reference for each image; the numbers may differ; none blank.

        Raises:
            ValueError, TypeError: one sentence naming the list and the image at fault.
        """
        if len(captions) == 0:
            raise ValueError("captions holds no images; give one list of candidate captions for each image.")
        if len(captions) != len(references):
            raise ValueError(f"captions has {len(captions)} images and references has {len(references)}; give both "
                             "lists the same images in the same order.")  # fmt: skip
        for image, texts in enumerate(captions):
            _check_texts("captions", texts, image)
            if len(texts) != len(captions[0]):
                raise ValueError(f"captions[{image}] holds {len(texts)} candidates where captions[0] holds "
                                 f"{len(captions[0])}; give every image the same number.")  # fmt: skip
        check_references(references)
        flat_captions = [text for texts in captions for text in texts]
        flat_references = [text for texts in references for text in texts]
        place = {text: k for k, text in enumerate(dict.fromkeys(flat_captions + flat_references))}
        return cls(
            texts=list(place),
            captions=np.array([place[text] for text in flat_captions]).reshape(len(captions), -1),
            references=np.array([place[text] for text in flat_references]),
            image=np.repeat(np.arange(len(references)), [len(texts) for texts in references]),
        )

    def reduce(self, values: np.ndarray, how: Literal["mean", "min"] = "mean") -> np.ndarray:
        """(R, K) values of references -> (images, K): mean or minimum over each image's references, NaN left out.

        Where all references of an image are NaN the result is NaN.
        """
        starts = np.searchsorted(self.image, np.arange(len(self.captions)))
        if how == "min":
            return np.fmin.reduceat(values, starts, axis=0)
        if how != "mean":
            raise ValueError(f"reduce must be 'mean' or 'min', not {how!r}.")
        known = ~np.isnan(values)
        totals = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
        counts = np.add.reduceat(known.astype(int), starts, axis=0)
        return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
