"""What the captioner is shown in each way to train, and what its loss then asks of the generator, by timestep."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dfl_utils.store.store import Kind
from dfl_utils.training import anatomy, finetune, pairs
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import WAYS, Batch, TalkingPair

WAY_GRADIENTS = Kind("way-gradients", made_from=(pairs.LATENTS,))
LOSSES = WAYS["alternating"][0]  # the generator's turn


@dataclass(frozen=True)
class TwoWays:
    """Both ways on the same images, captions, timesteps and noise, before any training."""

    timesteps: tuple[int, ...]
    # way -> loss -> `(timesteps, images)` Euclidean norm of its gradient at the generator's trained weights
    norms: dict[str, dict[str, np.ndarray]]
    losses: dict[str, dict[str, np.ndarray]]  # likewise the loss itself
    pictures: dict[str, np.ndarray]  # way -> `(timesteps, H, W, 3)` uint8, what the captioner reads of the first image
    image: np.ndarray  # `(H, W, 3)` uint8, the first image as the captioner reads it


def compare(finetuner: Finetuner, timesteps: Sequence[int], count: int, seed: int = 0) -> TwoWays:
    """Each way on the first `count` training images, one by one, by the autoencoder's own decoder.

    Raises:
        ValueError: timesteps that the noise schedule does not have, more images than there are.
    """
    examples = finetuner.examples[:count]
    if not 1 <= count <= len(examples) or not timesteps or not set(timesteps) <= set(range(1000)):
        raise ValueError(
            f"The ways cannot be compared on {count} of {len(examples)} training images at timesteps "
            f"{', '.join(map(str, timesteps))}: take some that there are, and timesteps from 0 to 999."
        )
    key = finetuner.models_key() | finetuner.images_key(examples) | {"timesteps": list(timesteps), "seed": seed}
    key |= {"captions": [list(example.references) for example in examples]}

    def make():
        pair, batch = anatomy.one_batch(finetuner, Recipe(batch_size=count, seed=seed))
        weights = list(finetune.unfreeze(pair, ("generator",)).values())
        at = [[_at(batch, row, timestep) for row in range(count)] for timestep in timesteps]
        content = {"image": anatomy.as_picture(pair, batch.pixel_values[:1])}
        for pair.way in WAYS:
            measured = [[_measure(pair, one, weights) for one in row] for row in at]
            content[f"measured {pair.way}"] = np.array(measured)  # timesteps, images, norm or value, losses
            content[f"pictures {pair.way}"] = np.stack([_picture(pair, row[0]) for row in at])
        return content, len(timesteps) * count

    content = finetuner.store.get(WAY_GRADIENTS, key, make)
    norms, values = (
        {way: dict(zip(LOSSES, np.moveaxis(content[f"measured {way}"][:, :, k], 2, 0), strict=True)) for way in WAYS}
        for k in range(2)
    )
    pictures = {way: content[f"pictures {way}"] for way in WAYS}
    return TwoWays(tuple(timesteps), norms, values, pictures, content["image"])


def _at(batch: Batch, row: int, timestep: int) -> Batch:
    part = batch.rows(slice(row, row + 1))
    return replace(part, timesteps=torch.full_like(part.timesteps, timestep))


def _measure(pair: TalkingPair, batch: Batch, weights: list[torch.nn.Parameter]) -> list[list[float]]:
    losses = pair(batch, LOSSES).values()
    return [[anatomy.norm(loss, weights) for loss in losses], [loss.item() for loss in losses]]


@torch.no_grad()
def _picture(pair: TalkingPair, batch: Batch) -> np.ndarray:
    noisy = pair.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    predicted = pair.unet(noisy, batch.timesteps, pair.text_encoder(batch.prompt_ids).last_hidden_state).sample
    return anatomy.as_picture(pair, pair.shown(batch, noisy, predicted))
