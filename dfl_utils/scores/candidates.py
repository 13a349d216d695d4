"""Candidate captions beside the references of their image, checked once and free of repeated strings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
        """Index one list of N captions, of which some may be empty, and one of references for each image.

        Raises:
            ValueError, TypeError: as `check`.
        """
        check(captions, references)
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


def check(captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> None:
    """Refuse captions without images, of unequal numbers, and what `check_references` refuses.

    Raises:
        ValueError, TypeError: one sentence naming the list and the image at fault.
    """
    if not len(captions) == len(references) > 0:
        raise ValueError(f"captions has {len(captions)} images and references has {len(references)}; give both the "
                         "same images in the same order, at least one.")  # fmt: skip
    for image, texts in enumerate(captions):
        _check_texts("captions", image, texts)
        if len(texts) != len(captions[0]):
            raise ValueError(f"captions[{image}] holds {len(texts)} candidates where captions[0] holds "
                             f"{len(captions[0])}; give every image the same number.")  # fmt: skip
    check_references(references)


def check_references(references: Sequence[Sequence[str]]) -> None:
    """Refuse an image without references and a blank reference, naming the image (ValueError, TypeError)."""
    for image, texts in enumerate(references):
        _check_texts("references", image, texts)
        if not all(text.strip() for text in texts):
            raise ValueError(f"references[{image}] holds a blank string; drop it from the references of that image.")


def _check_texts(name: str, image: int, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name}[{image}] is no list of strings; give one for each image.")
    if len(texts) == 0:
        raise ValueError(f"{name}[{image}] is an empty list; give image {image} at least one string in {name}.")
