"""Features of images for the fidelity scores FID, KID and IS (Section 3.3), and the probe that is a referee too.

The paper measures with Inception v3, trained on photographs, here torch-fidelity's. A profile with a probe, whose
categories are those of its own world, measures with that. Beside both, KID can be measured `by="efficientnet"`, which
learned from photographs as Inception did: it is called EfficientNet-KID then, and compares with itself alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.utils import create_feature_extractor
from torchvision.transforms import functional
from transformers import AutoConfig, AutoModelForImageClassification

from dfl_utils.models import checkpoint
from dfl_utils.world.profile import Profile

VERSION = 1  # of the features that the same image and files give; part of every key that names an extractor
BATCH = 64  # images a forward pass; Inception sees them at 299 pixels
PROBE_BATCH = 256
# Name in torch-fidelity, layer for FID and KID, layer for IS. `logits_unbiased` leaves out the last layer's bias:
# torch-fidelity's default, and what the first implementation of the score did.
INCEPTION = "inception-v3-compat", ["2048", "logits_unbiased"]
INCEPTION_LOGITS = 1008


class Features(NamedTuple):
    """What the scores read: `pooled` `(..., D)` for FID and KID, `logits` `(..., L)` for IS."""

    pooled: np.ndarray
    logits: np.ndarray


class Referee:
    """The profile's probe, which no loop optimises: logits for categories, colours (`colour:red`), counts (`count:2`).

    As an extractor it gives what is `pooled` before the last layer (D = 192) and the categories' logits (L = 48), of
    which IS takes the softmax: an IS comparable with others of the same probe alone.
    """

    def __init__(self, model):
        self.model = model
        self.labels = [model.config.id2label[k] for k in range(model.config.num_labels)]

    @classmethod
    def load(cls, profile: Profile) -> "Referee":
        """Load the probe; ValueError where the profile has none."""
        if profile.probe is None:
            raise ValueError(f"Profile {profile.name!r} has no probe: set its field `probe` to a classifier's folder.")
        return cls(checkpoint.load(AutoModelForImageClassification, profile, "probe")[0])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, D)` and logits of categories `(B, L)` of uint8 pixels `(B, 3, H, W)`."""
        pooled = self.model.base_model(pixel_values=images.float() / 127.5 - 1).pooler_output
        return pooled.flatten(1), self.model.classifier(pooled)[:, : _count_categories(self.labels)]

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits `(B, labels)` of uint8 images `(B, H, W, 3)`."""
        parts = []
        for start in range(0, len(images), PROBE_BATCH):
            pixels = torch.from_numpy(images[start : start + PROBE_BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(self.model(pixel_values=pixels.to(self.model.device)).logits.cpu())
        return checkpoint.require_finite(torch.cat(parts).numpy(), "What is seen in an image", self.model.name_or_path)


def _count_categories(labels: Sequence[str]) -> int:
    """How many of a probe's labels are categories; they come first, then `colour:` and `count:` labels."""
    return sum(":" not in name for name in labels)


class Extractor:
    """The probe, or torch-fidelity's Inception; see `load`."""

    def __init__(self, model, profile: Profile):
        self.model, self.profile = model, profile

    @torch.no_grad()
    def features(self, images: np.ndarray | Sequence[Image.Image]) -> np.ndarray:
        """Features and logits side by side, `(B, D + L)` float32; `split` takes them apart.

        Args:
            images: uint8 `(B, H, W, 3)` of the profile's image size, or Pillow images, which are brought to it as
                torch-fidelity's `samples_resize_and_crop` does: shorter side, then centre. A profile that says
                `squeeze` has all of them squeezed to that many pixels a side. At least one.
        """
        side = self.profile.squeeze or self.profile.image_size
        if self.profile.squeeze:
            images = _squeezed(images, side)
        elif not isinstance(images, np.ndarray):
            images = np.stack([_square(image, side) for image in images])
        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH].copy()).permute(0, 3, 1, 2).to(self.profile.device)
            parts.append(torch.cat(self.model(batch), dim=1).float().cpu())
        values, name = torch.cat(parts).numpy(), getattr(self.model, "name_or_path", "the feature extractor")
        return checkpoint.require_finite(values, "What is seen in an image", name)


def _square(image: Image.Image, side: int) -> np.ndarray:
    if image.size != (side, side):
        image = functional.center_crop(functional.resize(image, side), side)
    return np.asarray(image.convert("RGB"))


def _squeezed(images: np.ndarray | Sequence[Image.Image], side: int) -> np.ndarray:
    whole = (image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images)
    resized = [image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for image in whole]
    return np.stack([np.asarray(image) for image in resized])


def role(profile: Profile, by: str | None = None) -> str:
    """Which extractor a profile measures with: its `probe` where it has one, else `inception`; or `efficientnet`."""
    if by not in (None, "efficientnet"):
        raise ValueError(f"by={by!r} is no extractor: None takes the profile's own, 'efficientnet' the other one.")
    if by:
        return by
    return "inception" if profile.probe is None else "probe"


def load(profile: Profile) -> Extractor:
    """The profile's extractor, frozen, on its device; FileNotFoundError, ValueError: as of `weights` and `Referee`."""
    if role(profile) == "probe":
        return Extractor(Referee.load(profile), profile)
    options = {"feature_extractor_weights_path": weights(profile), "verbose": False}
    model = create_feature_extractor(*INCEPTION, cuda=False, **options)
    return Extractor(model.to(profile.device), profile)


def weights(profile: Profile) -> str:
    """The file of Inception's weights, fetched by torch's hub if the profile names none.

    torch-fidelity unpickles its file without restraint, so it is first read as tensors alone, which can run nothing.
    FileNotFoundError: an offline profile without weights. ValueError: a file that is damaged or holds more.
    """
    if profile.inception is None and not profile.offline:
        torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, progress=False, check_hash=True, weights_only=True)
        return str(Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name)
    if profile.inception is None or not Path(profile.inception).is_file():
        raise FileNotFoundError(
            f"Profile {profile.name!r} is offline and has neither a probe nor Inception's weights: set its field "
            f"`inception` (now {profile.inception}) to a copy of {URL_INCEPTION_V3}."
        )
    try:
        torch.load(profile.inception, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler, the archive reader and the file itself each have their own
        raise ValueError(f"{profile.inception} is no plain file of tensors; copy {URL_INCEPTION_V3} again.") from error
    return profile.inception


def probe_labels(profile: Profile) -> list[str]:
    """The probe's labels: categories, then such as `colour:red` and `count:2`; none without a probe. Loads no model."""
    if profile.probe is None:
        return []
    folder, place = checkpoint.source(profile, profile.probe)
    config = AutoConfig.from_pretrained(folder, **place)
    return [config.id2label[k] for k in range(config.num_labels)]


def split(values: np.ndarray, profile: Profile) -> Features:
    """Features and logits of what the profile's extractor made, `(..., D + L)`; asks the configuration alone."""
    count = INCEPTION_LOGITS if role(profile) == "inception" else _count_categories(probe_labels(profile))
    return Features(values[..., :-count], values[..., -count:])
