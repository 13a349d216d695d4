"""The finetuning of captioner and generator on the sum of their losses (Eq. 5, Algorithm 1), on accelerate.

A run is a shard of the run store: its trained weights and its losses at every step, addressed by recipe, checkpoints,
pairs and code. It is resumed where it was killed, and two processes never make the same one.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from dfl_utils.connection import CONNECTIONS
from dfl_utils.losses import LOSSES, Economy, TalkingPair
from dfl_utils.pairs import Pairs

# The paper's choice of what moves (Section 5): BLIP's cross-attention queries, BLIP-2's query tokens, the U-Net's
# cross-attention queries.
TRAINED = {"blip": "crossattention.self.query", "blip-2": "query_tokens", "unet": "attn2.to_q"}
ROLES = ("captioner", "generator")
CHECKPOINT_SECONDS = 60
CLIP_NORM = 1.0  # the paper does not say
EXPLODES = 10.0  # times the largest loss of the first steps


class Diverged(RuntimeError):
    """A loss that is no number, or that exploded."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a run beside its models and pairs.

    Attributes:
        losses: some of `losses.LOSSES`, summed with equal weights (Appendix H).
        train: which of `captioner` and `generator` move.
        steps: optimiser steps.
        lr: of AdamW, constant (paper: 1e-4).
        batch_size: pairs a step (paper: 8).
        seed: order of the pairs and all noise.
        connect: see `connection.distributions`.
        decoder: `vae`, or `tiny` for the profile's `AutoencoderTiny`.
        economy: see `losses.Economy`.
    """

    losses: tuple[str, ...] = LOSSES
    train: tuple[str, ...] = ROLES
    steps: int = 70_000
    lr: float = 1e-4
    batch_size: int = 8
    seed: int = 0
    connect: str = "softmax"
    decoder: str = "vae"
    economy: Economy = field(default_factory=Economy)

    def __post_init__(self):
        if set(self.losses) - set(LOSSES) or not self.losses:
            raise ValueError(f"losses must name some of {', '.join(LOSSES)}, not {', '.join(self.losses) or 'none'}.")
        if set(self.train) - set(ROLES) or not self.train:
            raise ValueError(f"train must name captioner, generator or both, not {', '.join(self.train) or 'none'}.")
        if self.steps < 1 or self.batch_size < 1 or not 0 < self.lr < 1:
            raise ValueError(
                f"steps {self.steps}, batch_size {self.batch_size}, lr {self.lr}: steps and batch_size start at 1, lr "
                "lies between 0 and 1."
            )
        if self.decoder not in ("vae", "tiny"):
            raise ValueError(f"decoder is {self.decoder!r}: choose vae or tiny.")
        if self.connect not in CONNECTIONS:
            raise ValueError(f"connect is {self.connect!r}: choose one of {', '.join(CONNECTIONS)}.")


def unfreeze(pair: TalkingPair, train: Sequence[str] = ROLES) -> dict[str, nn.Parameter]:
    """Freeze the pair but for the paper's trainable sets; returns those, `role.name` -> parameter.

    Raises:
        ValueError: a model without the layers that the paper trains.
    """
    pair.requires_grad_(False)
    parts = {
        "captioner": (pair.model, TRAINED[pair.model.config.model_type]),
        "generator": (pair.unet, TRAINED["unet"]),
    }
    found = {}
    for role in train:
        model, pattern = parts[role]
        own = {f"{role}.{name}": p.requires_grad_(True) for name, p in model.named_parameters() if pattern in name}
        if not own:
            raise ValueError(f"The {role} has no parameters named {pattern}, which the paper trains.")
        found |= own
    return found


class Finetuning:
    """One run in progress, checkpointed in `folder`; afterwards `pair` holds the trained weights.

    Args:
        folder: where the state lies; made if missing.
        pair: its parameters named by `unfreeze` are trained in place.
        pairs: the batches.
        recipe: see `Recipe`.
        key: all that the run depends on; a state of another key is refused.
        progress: show a bar.

    Raises:
        ValueError: the folder holds the state of another run, or a damaged one.
    """

    def __init__(
        self,
        folder: Path,
        pair: TalkingPair,
        pairs: Pairs,
        recipe: Recipe,
        key: Mapping,
        *,
        progress: bool = True,
    ):
        self.folder, self.pairs, self.recipe, self.progress = folder, pairs, recipe, progress
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.parameters = unfreeze(pair, recipe.train)
        self.step = 0
        self.curves = {name: np.full(recipe.steps, np.nan, np.float32) for name in recipe.losses}
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=recipe.lr)
        self.accelerator = Accelerator(cpu=pair.model.device.type == "cpu")
        self.pair, self.optimizer = self.accelerator.prepare(pair.eval(), optimizer)
        folder.mkdir(parents=True, exist_ok=True)
        self._load()

    @property
    def state_file(self) -> Path:
        return self.folder / "state.safetensors"

    def run(self, until: int | None = None) -> "Finetuning":
        """Train to the recipe's end (or to step `until`); the state is saved every minute and at the end.

        Raises:
            Diverged: a loss is no finite number or has exploded; the last good state is kept.
        """
        end, saved = min(until or self.recipe.steps, self.recipe.steps), time.monotonic()
        with tqdm(total=end, initial=self.step, unit="step", mininterval=5, disable=not self.progress) as bar:
            while self.step < end:
                found = self.pair(self.pairs.batch(self.step))
                self._check(found)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:  # of weights whose losses have just been seen
                    self._save()
                    saved = time.monotonic()
                self.optimizer.zero_grad(set_to_none=True)
                total = torch.stack(list(found.values())).sum()
                if total.requires_grad:  # a loss may reach nothing that moves
                    self.accelerator.backward(total)
                    norm = self.accelerator.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
                    self._check({"the norm of the gradient": norm})
                    self.optimizer.step()
                for name, loss in found.items():
                    self.curves[name][self.step] = loss.item()
                self.step += 1
                bar.update()
            self._save()
        return self

    def _check(self, found: dict[str, Tensor]) -> None:
        for name, loss in found.items():
            value, first = loss.item(), self.curves.get(name, np.empty(0))[:10]
            bound = EXPLODES * np.nanmax(first) if 0 < len(first) <= self.step else math.inf
            if math.isfinite(value) and value <= bound:
                continue
            kept = f"the state of step {self._saved_step} is kept in {self.state_file}" if self._saved_step else (
                "no state had been saved yet")  # fmt: skip
            raise Diverged(
                f"{name} is {value:.4g} at step {self.step} (lr {self.recipe.lr:g}): the finetuning diverged and "
                f"stops, and {kept}; run again with a smaller lr."
            )

    @property
    def _saved_step(self) -> int:
        if not self.state_file.exists():
            return 0
        with safe_open(self.state_file, "pt") as state:
            return int(state.metadata()["step"])

    def _save(self) -> None:
        tensors = {f"curve.{name}": torch.from_numpy(curve) for name, curve in self.curves.items()}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach().contiguous()
            for moment, value in self.optimizer.state[parameter].items():
                if moment != "step":  # counted by the run itself
                    tensors[f"{moment}.{name}"] = value.contiguous()
        partial = self.state_file.with_suffix(".partial")
        save_file(tensors, partial, metadata={"step": str(self.step), "key": self.key})
        partial.replace(self.state_file)  # a kill leaves the old state or the new one

    def _load(self) -> None:
        if not self.state_file.exists():
            return
        try:
            with safe_open(self.state_file, "pt") as state:
                metadata = state.metadata() or {}
                if metadata.get("key") != self.key:
                    raise ValueError(
                        f"{self.state_file} is the checkpoint of another run (other recipe, models or pairs): "
                        "choose another folder, or remove it."
                    )
                tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118, no mapping
        except SafetensorError as error:
            raise ValueError(f"{self.state_file} is damaged ({error}): remove it, and the run starts anew.") from error
        self.step = int(metadata["step"])
        for name, curve in self.curves.items():
            curve[:] = tensors[f"curve.{name}"].numpy()
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
                }
