"""A judge that draws nothing: how well the generator takes noise from an image when it is told the caption.

The paper's Section 4.1 says that a better caption has the lower loss; here that ranks captions. All captions of an
image, and all images of a text, are asked with the same noise, so that what differs is the caption, or the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from dfl_utils.game.drawings import Drawings, Similarities
from dfl_utils.models import denoising, similarity
from dfl_utils.models.denoising import check as check  # it belongs to the interface
from dfl_utils.models.workshop import ORIGINALS, Workshop, read
from dfl_utils.store import blocks
from dfl_utils.store.blocks import Block
from dfl_utils.store.store import Held, Job, Kind
from dfl_utils.world.data import Example


@dataclass(frozen=True)
class Losses:
    """The generator's denoising losses, `(images, candidates, K)` at K timesteps."""

    losses: np.ndarray


DENOISING, DRAWING_DENOISING = Kind("denoising", Losses), Kind("drawing-denoising", Losses)
ONE_STEP = Kind("one-step-similarity", Similarities, made_from=(ORIGINALS["clip"],))
# Of 19 single timesteps the one that judged captions best on development images, in the chapter "Score, don't draw". On
# its test images t = 300 has nearly the same tau (0.449 beside 0.442): the choice stands as it was made before them.
TIMESTEPS = (150,)


def spread(count: int, of: int = 1000) -> tuple[int, ...]:
    """`count` timesteps in equal steps over a schedule: nine of 1000 are 100, 200, ... 900."""
    return tuple(of * (k + 1) // (count + 1) for k in range(count))


def losses(
    workshop: Workshop,
    examples: Sequence[Example],
    captions: Sequence[Sequence[str]],
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
) -> np.ndarray:
    """The generator's loss of each caption of the originals: `(images, N, K)` float32, squared error a latent value.

    Args:
        workshop: models and store; of a `Game` its `workshop`.
        examples: originals.
        captions: the same number N >= 1 for each; an empty one asks for the unconditional loss.
        timesteps: K >= 1 of the generator's schedule; one that comes twice has noise twice.
        seed: starts the noise; that of a timestep depends on it, the image and the timestep alone.

    Raises:
        ValueError: a generator without such a loss, timesteps out of its schedule; before any work.
    """
    contents = _fill(workshop, DENOISING, examples, captions, timesteps, seed, _ask)
    return blocks.join([content.losses for content in contents], len(captions[0]))


def scores(
    workshop: Workshop,
    examples: Sequence[Example],
    captions: Sequence[Sequence[str]],
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
    unconditional: bool = False,
) -> np.ndarray:
    """What the losses say of captions, higher is better: minus their mean over timesteps, `(images, N)` float32.

    Args:
        unconditional: measured from the loss without a caption: 0 where a caption tells the generator nothing. That is
            one number an image, so that it moves no rank among captions of one image, but makes images comparable.
        others: as of `losses`.
    """
    of_image = partial(losses, workshop, examples, timesteps=timesteps, seed=seed)
    with_captions = of_image(captions).mean(axis=-1)
    return (of_image([[""]] * len(examples)).mean(axis=-1) if unconditional else 0) - with_captions


def one_step(
    workshop: Workshop,
    examples: Sequence[Example],
    captions: Sequence[Sequence[str]],
    *,
    timestep: int = TIMESTEPS[0],
    seed: int = 0,
) -> np.ndarray:
    """Cosine of original and one-step image by CLIP: `(images, N)` float32.

    The image is what one prediction implies of the noised original (x̂₀); other arguments and errors as of `losses`.
    """
    encoder = {"encoder": workshop.encoder_key("clip")}
    contents = _fill(workshop, ONE_STEP, examples, captions, [timestep], seed, _see, **encoder)
    return blocks.join([content.sim for content in contents], len(captions[0]))


def _fill(
    workshop: Workshop, kind: Kind[Held], examples, captions, timesteps: Sequence[int], seed: int, ask, **encoder: dict
) -> list[Held]:
    """What `ask` gives of each block of images and captions."""
    denoising.check(workshop.profile, timesteps)
    jobs, seeds = [], _seeds(examples, timesteps, seed)
    for block in blocks.cut(len(examples), len(captions[0])):
        part, texts, noise = examples[block.images], block.of(captions), seeds[block.images]
        key = _key(workshop, timesteps, noise) | workshop.images_key(part) | {"captions": texts} | encoder
        jobs.append(Job(kind, key, partial(ask, workshop, part, texts, timesteps, noise)))
    return workshop.fill(jobs, "denoising", images=len(examples))


def drawing_losses(drawings: Drawings, captions: Sequence[str], *, timesteps: Sequence[int], seed: int) -> np.ndarray:
    """As `losses`, of drawings in the place of originals: `(images, N, K)` of one caption for the N of an image.

    The N share their noise.
    """
    shop = drawings.workshop
    denoising.check(shop.profile, timesteps)
    jobs, seeds = [], _seeds(drawings.examples, timesteps, seed)
    for block in drawings.blocks:
        texts, noise = list(captions[block.images]), seeds[block.images]
        key = _key(shop, timesteps, noise) | {"drawings": drawings.source(block), "captions": texts}
        jobs.append(Job(DRAWING_DENOISING, key, partial(_ask_drawings, drawings, block, texts, timesteps, noise)))
    contents = shop.fill(jobs, "denoising", images=len(drawings.examples))
    return blocks.join([content.losses for content in contents], len(drawings.captions[0]))


def _key(workshop: Workshop, timesteps: Sequence[int], seeds: Sequence[Sequence[int]]) -> dict:
    size = workshop.profile.image_size
    return workshop.made_by("generator") | {"image_size": size, "timesteps": list(timesteps), "seeds": list(seeds)}


def _seeds(examples: Sequence[Example], timesteps: Sequence[int], seed: int) -> list[list[int]]:
    """One for each timestep of each image; a timestep that comes again has another."""
    blocks.check_seed(seed)
    places = [(timestep, list(timesteps[:k]).count(timestep)) for k, timestep in enumerate(timesteps)]
    return [[blocks.drawing_seed(blocks.NOISE_OF_LOSS, seed, e.image_id, *place) for place in places] for e in examples]


def _ask(workshop: Workshop, examples, captions, timesteps, seeds) -> tuple[Losses, int]:
    asked = denoising.losses(workshop.generator, read(examples), captions, timesteps, seeds)
    return Losses(asked), asked.size


def _see(workshop: Workshop, examples, captions, timesteps, seeds) -> tuple[Similarities, int]:
    seen = denoising.one_step_images(workshop.generator, read(examples), captions, timesteps[0], seeds)
    hats = workshop.encoder("clip").embed(seen.reshape(-1, *seen.shape[2:]))
    originals = workshop.originals("clip", examples)
    return Similarities(similarity.cosine(originals, hats.reshape(*seen.shape[:2], -1))), len(hats)


def _ask_drawings(drawings: Drawings, block: Block, captions, timesteps, seeds) -> tuple[Losses, int]:
    images = drawings.draw(block)
    count = images.shape[1]
    pictures = [Image.fromarray(image) for image in images.reshape(-1, *images.shape[2:])]
    texts, noise = ([[text] for text in captions for _ in range(count)], [row for row in seeds for _ in range(count)])
    asked = denoising.losses(drawings.workshop.generator, pictures, texts, timesteps, noise)
    return Losses(asked.reshape(len(images), count, -1)), asked.size
