"""Pretraining of the autoencoder: first on 32-pixel crops around things, then on whole scenes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfl_utils.mini import architectures
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import scenes

KL_WEIGHT = 1e-4  # per latent; keeps the decoder tolerant of the generator's small errors
CROP_CELLS = 4
CROP_STEPS, CROP_BATCH = 1700, 96  # crops first: icons, little ground
SCENE_STEPS, SCENE_BATCH = 500, 32


def pixels(images: list[np.ndarray]) -> Tensor:
    """Stack uint8 `(H, W, 3)` images into `(B, 3, H, W)` float32 in [-1, 1], channels last."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return batch.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def crop(scene: scenes.Scene, image: np.ndarray) -> np.ndarray:
    """The 32-pixel window on the grid that starts at the scene's first thing: icons, little ground."""
    x, y = (min(corner, scenes.GRID - CROP_CELLS) * scenes.CELL for corner in (scene.things[0].x, scene.things[0].y))
    return image[y : y + 32, x : x + 32]


def reconstruction_loss(model, images: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    posterior = model.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    error = model.decode(posterior.mean + posterior.std * noise).sample - images
    mse = error.square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    psnr = -10 * torch.log10(mse.detach() / 4).item()
    return error.abs().mean() + mse + KL_WEIGHT * kl, {"psnr": psnr, "kl": kl.item()}


def train(folder: Path, crop_steps: int = CROP_STEPS, scene_steps: int = SCENE_STEPS):
    """Train from nothing; returns the model with its scaling factor set to 1 / std of the latents."""
    torch.manual_seed(0)
    model = architectures.autoencoder().to(memory_format=torch.channels_last)

    def loss(step: int):
        generator = torch.Generator().manual_seed(step)
        if step < crop_steps:
            batch = [scenes.sample(f"web/{CROP_BATCH * step + k}") for k in range(CROP_BATCH)]
            images = [crop(scene, scenes.render(scene)) for scene in batch]
        else:
            images = [scenes.render(scenes.sample(f"web/{SCENE_BATCH * step + k}")) for k in range(SCENE_BATCH)]
        return reconstruction_loss(model, pixels(images), generator)

    Training(folder, model, loss, Schedule(crop_steps + scene_steps, lr=2e-3, ema_decay=0.998)).run()
    images = pixels([scenes.render(scenes.sample(f"web/{k}")) for k in range(256)])
    with torch.no_grad():
        latents = torch.cat([model.encode(part).latent_dist.mean for part in images.split(64)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return model
