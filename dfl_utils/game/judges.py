"""Judges of drawings beside CLIP and DINO: how like original and drawing are by pixels and by the probe's labels, and
how likely the captioner finds the text that was drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageOps
from scipy.special import expit

from dfl_utils.game.drawings import Drawings, Likelihoods, Similarities
from dfl_utils.models.workshop import read
from dfl_utils.store import blocks
from dfl_utils.store.blocks import Block
from dfl_utils.store.store import Kind
from dfl_utils.world.data import Example


@dataclass(frozen=True)
class Logits:
    """The probe's, of each original and its drawings, `(images, 1 + candidates, labels)`."""

    logits: np.ndarray


PIXELS, LABELS = Kind("pixel-similarity", Similarities), Kind("labels", Logits)
DRAWING_LIKELIHOOD = Kind("drawing-likelihood", Likelihoods)


def squares(examples: Sequence[Example], side: int) -> np.ndarray:
    """The originals cut to a drawing's shape, `(images, side, side, 3)` uint8."""
    return np.stack([np.asarray(ImageOps.fit(image, (side, side))) for image in read(examples)])


def originals(drawings: Drawings, images: slice = slice(None)) -> np.ndarray:
    """Those of drawings, `(images, 1, H, W, 3)` uint8."""
    return squares(drawings.examples[images], drawings.workshop.profile.image_size)[:, None]


def pixels(drawings: Drawings) -> np.ndarray:
    """Minus the mean absolute difference of the pixels, in [-1, 0], `(images, N)`."""
    contents = drawings.look(PIXELS, {}, partial(_apart, drawings), "pixels", originals=True)
    return blocks.join([content.sim for content in contents], len(drawings.captions[0]))


def _apart(drawings: Drawings, block: Block) -> Similarities:
    apart = np.abs(drawings.draw(block) - originals(drawings, block.images).astype(np.float32))
    return Similarities(-apart.mean(axis=(2, 3, 4)) / 255)


def labels(drawings: Drawings) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the probe's labels in originals, `(images, labels)`, and in drawings, `(images, N, labels)`.

    Raises:
        ValueError: a profile without a probe.
    """
    key = drawings.workshop.made_by("probe")
    contents = drawings.look(LABELS, key, partial(_look, drawings), "labels", originals=True)
    logits = [content.logits for content in contents]
    firsts = [part[:, 0] for part, block in zip(logits, drawings.blocks, strict=True) if not block.candidates.start]
    hats = blocks.join([part[:, 1:] for part in logits], len(drawings.captions[0]))
    return expit(np.concatenate(firsts)), expit(hats)


def _look(drawings: Drawings, block: Block) -> tuple[Logits, int]:
    pictures = np.concatenate([originals(drawings, block.images), drawings.draw(block)], axis=1)
    referee = drawings.workshop.referee
    logits = referee.logits(pictures.reshape(-1, *pictures.shape[2:]))
    return Logits(logits.reshape(*pictures.shape[:2], -1)), len(logits)


def agreement(drawings: Drawings) -> np.ndarray:
    """Of the labels that either picture shows, the share that both show, in [0, 1], `(images, N)`."""
    original, drawn = labels(drawings)
    both = np.minimum(original[:, None], drawn).sum(axis=-1)
    return both / np.maximum(original[:, None], drawn).sum(axis=-1)


def likelihood(drawings: Drawings) -> np.ndarray:
    """Mean log-probability a token that the captioner gives to the caption of each drawing, looking at the drawing:
    `(images, N)` float32. Nothing is read off it, and no two texts are compared."""
    key = drawings.workshop.captioner_key()
    contents = drawings.look(DRAWING_LIKELIHOOD, key, partial(_weigh, drawings), "likelihood")
    return np.array(drawings.rows([content.log_likelihood for content in contents]))


def _weigh(drawings: Drawings, block: Block) -> tuple[Likelihoods, int]:
    images, captions = drawings.draw(block), block.of(drawings.captions)
    pictures = [Image.fromarray(image) for image in images.reshape(-1, *images.shape[2:])]
    texts = [[text] for row in captions for text in row]
    likelihoods = drawings.workshop.captioner.log_likelihood(pictures, texts)
    return Likelihoods(likelihoods.reshape(images.shape[:2])), likelihoods.size
