"""Features of images for the fidelity scores FID, KID and IS, through torch-fidelity's extractors (Section 3.3).

The paper measures with Inception v3, trained on photographs. A profile with a probe, whose categories are those of its
own world, measures with that: torch-fidelity knows it as `dfl-probe`, with `feature_extractor_weights_path` its folder.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor
from torchvision.transforms import functional
from transformers import AutoConfig, AutoModelForImageClassification

from dfl_utils.models import checkpoint
from dfl_utils.world.profile import Profile

VERSION = 1  # of the features that the same image and files give; part of every key that names an extractor
BATCH = 64  # images a forward pass; Inception sees them at 299 pixels
# Role -> name in torch-fidelity, its layer for FID and KID, its layer for IS. `logits_unbiased` leaves out the last
# layer's bias: torch-fidelity's default, and what the first implementation of the score did.
EXTRACTORS = {
    "probe": ("dfl-probe", "pooled", "logits"),
    "inception": ("inception-v3-compat", "2048", "logits_unbiased"),
}
INCEPTION_LOGITS = 1008


class Features(NamedTuple):
    """What the scores read: `pooled` `(..., D)` for FID and KID, `logits` `(..., L)` for IS."""

    pooled: np.ndarray
    logits: np.ndarray


class ProbeExtractor(FeatureExtractorBase):
    """The probe as torch-fidelity wants it: `pooled` before the last layer (D = 192), `logits` of categories (L = 48).

    Note: the probe is a multi-label classifier, and IS wants one distribution an image: the softmax over its category
    logits, where two things of an image share the mass. Such an IS is comparable with others of the same probe alone.

    Args: torch-fidelity's; `feature_extractor_weights_path` is the probe's folder, and any other is ignored.
    """

    def __init__(
        self, name: str, features_list: Sequence[str], feature_extractor_weights_path: str | None = None, **_: object
    ):
        super().__init__(name, list(features_list))
        if feature_extractor_weights_path is None:
            raise ValueError(f"{name} needs feature_extractor_weights_path, the folder of a probe (profile.probe).")
        options = {"dtype": torch.float32, "local_files_only": True}
        self.model = checkpoint.read(
            AutoModelForImageClassification, str(feature_extractor_weights_path), "probe", **options
        )
        self.categories = _count_categories(self.model.config.id2label.values())

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "pooled", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 64, 64, dtype=torch.uint8)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Layers asked for, `(B, D)` and `(B, L)` float32, of uint8 pixels `(B, 3, H, W)`."""
        pixels = input.float() / 127.5 - 1  # as the referee shows them
        pooled = self.model.base_model(pixel_values=pixels).pooler_output
        logits = self.model.classifier(pooled)[:, : self.categories]
        layers = {"pooled": pooled.flatten(1), "logits": logits}
        return tuple(layers[name] for name in self.features_list)


if "dfl-probe" not in FEATURE_EXTRACTORS_REGISTRY:  # this module may be reloaded
    register_feature_extractor("dfl-probe", ProbeExtractor)


def _count_categories(labels: Iterable[str]) -> int:
    """How many of a probe's labels are categories; they come first, then `colour:` and `count:` labels."""
    return sum(":" not in name for name in labels)


class Extractor:
    """A loaded extractor of torch-fidelity; see `load`."""

    def __init__(self, model: FeatureExtractorBase, image_size: int, device: str = "cpu"):
        self.model, self.image_size, self.device = model.to(device), image_size, device

    @torch.no_grad()
    def features(self, images: np.ndarray | Sequence[Image.Image]) -> np.ndarray:
        """Features and logits side by side, `(B, D + L)` float32; `split` takes them apart.

        Args:
            images: uint8 `(B, H, W, 3)` of the profile's image size, or Pillow images, which are brought to it as
                torch-fidelity's `samples_resize_and_crop` does: shorter side, then centre.

        Raises:
            ValueError: no images, or an array of another shape or type.
        """
        if not isinstance(images, np.ndarray):
            images = np.stack([_square(image, self.image_size) for image in images]) if images else np.empty(0)
        if images.dtype != np.uint8 or images.shape[1:] != (self.image_size, self.image_size, 3) or not len(images):
            raise ValueError(
                f"images must be a uint8 array (B, {self.image_size}, {self.image_size}, 3) with B >= 1, "
                f"not {images.dtype} {images.shape}; pass Pillow images to have them resized."
            )
        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH].copy()).permute(0, 3, 1, 2).to(self.device)
            parts.append(torch.cat(self.model(batch), dim=1).float().cpu())
        return torch.cat(parts).numpy()


def _square(image: Image.Image, side: int) -> np.ndarray:
    if image.size != (side, side):
        image = functional.center_crop(functional.resize(image, side), side)
    return np.asarray(image.convert("RGB"))


def role(profile: Profile) -> str:
    """Which extractor a profile measures with: its `probe` where it has one, else `inception`."""
    return "inception" if profile.probe is None else "probe"


def load(profile: Profile) -> Extractor:
    """The profile's extractor, frozen, on its device.

    Raises:
        FileNotFoundError, ValueError: as `weights`; a probe's folder that is not whole.
    """
    name, *layers = EXTRACTORS[role(profile)]
    options = {"feature_extractor_weights_path": weights(profile), "verbose": False}
    return Extractor(create_feature_extractor(name, layers, cuda=False, **options), profile.image_size, profile.device)


def weights(profile: Profile) -> str:
    """The probe's folder, or the file of Inception's weights, fetched by torch's hub if the profile names none.

    torch-fidelity unpickles its file without restraint, so it is first read as tensors alone, which can run nothing.

    Raises:
        FileNotFoundError: an offline profile without weights, or a file that is not there.
        ValueError: a file that holds more than tensors, or is damaged.
    """
    if profile.probe is not None:
        return profile.locate(profile.probe)
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
    """Features and logits of what `Extractor.features` made, `(..., D + L)`; asks the configuration, loads no model.

    Raises:
        ValueError: too few columns.
    """
    count = INCEPTION_LOGITS if role(profile) == "inception" else _count_categories(probe_labels(profile))
    if values.shape[-1] <= count:
        raise ValueError(f"values must hold features and {count} logits an image, not {values.shape[-1]} columns.")
    return Features(values[..., :-count], values[..., -count:])


# --- The referee: a classifier that no loop optimises says whether a drawn image shows what was asked.

PROBE_BATCH = 256


class Referee:
    """The profile's probe: multi-label logits for categories, colours (`colour:red`) and counts (`count:2`)."""

    def __init__(self, model):
        self.model = model
        self.labels = [model.config.id2label[k] for k in range(model.config.num_labels)]

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
        for start in range(0, len(images), PROBE_BATCH):
            pixels = torch.from_numpy(images[start : start + PROBE_BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(self.model(pixel_values=pixels.to(self.model.device)).logits.cpu())
        return torch.cat(parts).numpy()
