"""Dense pretraining of a vision transformer: which thing, colour and ground lies in each patch?

Stands for the ImageNet pretraining that the real CLIP-like towers and BLIP's ViT start from: a few minutes of it
spare the contrastive and captioning losses most of their work. DINO and the probe never see it.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfl_utils.mini import web
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import scenes

NOTHING = 0  # label of a patch without a thing


def patch_labels(scene: scenes.Scene) -> np.ndarray:
    """Labels of the 8 x 8 patches, `(3, 64)` int64: category + 1, colour + 1 (0: nothing there), ground."""
    labels = np.zeros((3, scenes.GRID, scenes.GRID), np.int64)
    for thing in scene.things:
        box = (slice(thing.y, thing.y + thing.cells), slice(thing.x, thing.x + thing.cells))
        labels[0][box] = scenes.CATEGORIES.index(thing.category) + 1
        labels[1][box] = tuple(scenes.COLOURS).index(thing.colour) + 1
    labels[2] = tuple(scenes.GROUNDS).index(scene.ground)
    return labels.reshape(3, -1)


class Grounded(nn.Module):
    """A vision tower with one linear head a kind of label."""

    def __init__(self, tower: nn.Module, width: int):
        super().__init__()
        self.tower = tower
        sizes = (len(scenes.CATEGORIES) + 1, len(scenes.COLOURS) + 1, len(scenes.GROUNDS))
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, images: Tensor) -> list[Tensor]:
        hidden = self.tower(pixel_values=images).last_hidden_state[:, 1:]
        return [head(hidden).transpose(1, 2) for head in self.heads]


def train(folder: Path, tower: nn.Module, width: int, steps: int, seed: int) -> None:
    """Train `tower` (any module with `pixel_values` -> `last_hidden_state (B, 65, width)`) in place."""
    torch.manual_seed(seed)
    model = Grounded(tower, width)

    def loss(step: int):
        batch = [web.scene(64 * step + k) for k in range(64)]
        labels = torch.from_numpy(np.stack([patch_labels(scene) for scene in batch]))
        logits = model(pixels([scenes.render(scene) for scene in batch]))
        errors = [F.cross_entropy(part, labels[:, k]) for k, part in enumerate(logits)]
        on_thing = labels[:, 0] != NOTHING
        accuracy = (logits[0].argmax(1) == labels[:, 0])[on_thing].float().mean().item()
        return sum(errors), {"accuracy": accuracy}

    Training(folder, model, loss, Schedule(steps, lr=1e-3)).run()
