"""What the two games bring back."""

from dataclasses import dataclass

import numpy as np

from dfl_utils.data import Example
from dfl_utils.drawings import Drawings


@dataclass(frozen=True)
class Reconstructions:
    """What came back of images: similarities now, pictures on demand.

    Attributes:
        examples: the originals, in order.
        captions: their captions, `images` lists of N.
        sim_image: encoder name -> cosine(original, image_hat), `(images, N)` float32.
        drawings: the pictures' place in the store.
    """

    examples: list[Example]
    captions: list[list[str]]
    sim_image: dict[str, np.ndarray]
    drawings: Drawings

    def load_images(self, k: int) -> np.ndarray:
        """The N drawings of example k, `(N, H, W, 3)` uint8."""
        return self.drawings.load(k)


@dataclass(frozen=True)
class Readings:
    """What came back of texts: N drawings of each and what the captioner reads in them.

    Attributes:
        examples: the images whose captions were drawn, in order.
        captions: the original texts, one an image.
        captions_hat: what was read in each drawing, `images` lists of N; compared with the text, it ranks.
        sim_image: encoder name -> cosine(image that the text was written of, drawing), `(images, N)` float32; the
            quality of a drawing (Section 3.3), never used to rank.
        drawings: the pictures' place in the store.
    """

    examples: list[Example]
    captions: list[str]
    captions_hat: list[list[str]]
    sim_image: dict[str, np.ndarray]
    drawings: Drawings

    def load_images(self, k: int) -> np.ndarray:
        """The N drawings of text k, `(N, H, W, 3)` uint8."""
        return self.drawings.load(k)
