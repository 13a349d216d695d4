"""The referee: a classifier that no loop optimises says whether a drawn image shows what was asked."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForImageClassification

from dfl_utils import checkpoint
from dfl_utils.profile import Profile

BATCH = 256


class Referee:
    """The profile's probe: multi-label logits for categories, colours (`colour:red`) and counts (`count:2`)."""

    def __init__(self, model):
        self.model = model
        names = [model.config.id2label[k] for k in range(model.config.num_labels)]
        self.categories = [name for name in names if ":" not in name]
        self.colours = [name.removeprefix("colour:") for name in names if name.startswith("colour:")]

    @classmethod
    def load(cls, profile: Profile) -> "Referee":
        """Load the probe; ValueError where the profile has none."""
        if profile.probe is None:
            raise ValueError(f"Profile {profile.name!r} has no probe: set its field `probe` to a classifier's folder.")
        model, _ = checkpoint.load(AutoModelForImageClassification, profile, "probe")
        return cls(model)

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits `(B, labels)` of uint8 images `(B, H, W, 3)`."""
        parts = []
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(self.model(pixel_values=pixels.to(self.model.device)).logits.cpu())
        return torch.cat(parts).numpy()

    def categories_right(self, images: np.ndarray, truth: Sequence[Sequence[str]]) -> np.ndarray:
        """Whether the k likeliest categories are exactly the k true ones, `(B,)` bool."""
        scores = self.logits(images)[:, : len(self.categories)]
        return _top_k_right(scores, self.categories, truth)

    def colours_right(self, images: np.ndarray, truth: Sequence[Sequence[str]]) -> np.ndarray:
        """Whether the k likeliest colours are exactly the k true ones, `(B,)` bool."""
        start = len(self.categories)
        scores = self.logits(images)[:, start : start + len(self.colours)]
        return _top_k_right(scores, self.colours, truth)


def _top_k_right(scores: np.ndarray, names: Sequence[str], truth: Sequence[Sequence[str]]) -> np.ndarray:
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.array(
        [{names[k] for k in row[: len(set(true))]} == set(true) for row, true in zip(order, truth, strict=True)]
    )
