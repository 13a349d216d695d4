"""A profile of finetuned models, whose checkpoint folders are written when somebody first asks where they are."""

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from dfl_utils import checkpoint
from dfl_utils.claims import claim
from dfl_utils.profile import Profile

Writer = Callable[[Path], None]


@dataclass(frozen=True)
class TrainedProfile(Profile):
    """A profile some of whose models are folders that can be written.

    Attributes:
        contents: folder -> what stands for it in keys: what it was trained from, and the digest of its weights.
        writers: folder -> what writes it into a place that is moved there afterwards.
    """

    contents: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    writers: Mapping[str, Writer] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls, base: Profile, folders: Mapping[str, str], contents: Mapping[str, str], writers: Mapping[str, Writer]
    ) -> "TrainedProfile":
        """`base` with other models: role -> folder."""
        same = {one.name: getattr(base, one.name) for one in fields(base) if one.name not in ("contents", "writers")}
        own = {"contents": contents, "writers": writers}
        return cls(**same | folders, **{name: getattr(base, name, {}) | value for name, value in own.items()})

    def trained(self, model: str) -> str | None:
        return self.contents.get(model)

    def locate(self, model: str) -> str:
        """As `Profile.locate`; a folder of `writers` that is not there is written first."""
        if model in self.writers and not Path(model).is_dir():
            _atomically(Path(model), self.writers[model])
        return super().locate(model)

    def __reduce__(self):
        """Another process gets the folders, written, and not the models that write them."""
        for folder in self.writers:
            self.locate(folder)
        return type(self), tuple(getattr(self, one.name) for one in fields(self) if one.name != "writers")


def write_captioner(place: Path, base: str, model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """A captioner's folder: what lies in `base` beside its weights, and those of `model` with `weights` set."""
    shutil.copytree(base, place, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin*"))
    _with(model, weights).save_pretrained(place)


def write_generator(place: Path, base: str, unet: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """A pipeline's folder: the other parts of `base`, and `unet` with `weights` set."""
    shutil.copytree(base, place, ignore=shutil.ignore_patterns("unet", "*.bin", "*.ckpt"))
    # Under names like those of the other parts: a pipeline is loaded in one variant.
    _with(unet, weights).save_pretrained(place / "unet", variant=checkpoint.variant(base))


def _with(model: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(torch.from_numpy(value))
    return model


def _atomically(folder: Path, write: Writer) -> None:
    """Written by one process at a time; a kill leaves no folder, or a whole one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with claim(folder.with_suffix(".claim")):
        if folder.is_dir():
            return
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write(partial)
            partial.rename(folder)
        except (OSError, SafetensorError) as error:  # the latter of weights that find no room
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"{folder} cannot be written ({error}): free some space, or set DFL_STORE.") from error
