"""The finetuning of captioner and generator on the sum of their losses (Eq. 5, Algorithm 1), on accelerate.

A run is resumed where it was killed; several ranks can make it together, and their weights are those of one process
(see the micro-batches below).
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dfl_utils.store import processes, shards
from dfl_utils.training.losses import CONNECTIONS, LOSSES, PREFERENCE, WAYS, Economy, TalkingPair
from dfl_utils.training.pairs import Pairs

if TYPE_CHECKING:
    from accelerate import Accelerator

ROLES = ("captioner", "generator")


def cut(batch_size: int, count: int) -> list[slice]:
    """The rows of each of `count` micro-batches, as even as whole rows allow."""
    ends = [batch_size * k // count for k in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


@dataclass(frozen=True)
class Recipe:
    """All that decides a run beside its models and pairs."""

    losses: tuple[str, ...] = LOSSES  # some of them, summed with equal weights (Appendix H); or `PREFERENCE` alone
    train: tuple[str, ...] = ROLES  # which of `captioner` and `generator` move
    steps: int = 70_000  # optimiser steps
    lr: float = 1e-4  # of AdamW, constant (paper: 1e-4)
    batch_size: int = 8  # pairs a step (paper: 8)
    seed: int = 0  # order of the pairs and all noise
    connect: str = "softmax"  # see `losses.distributions`
    decoder: str = "vae"  # `vae`, or `tiny` for the profile's `AutoencoderTiny`
    economy: Economy = field(default_factory=Economy)  # see `losses.Economy`
    micro_batches: int = 1  # parts in which a batch is worked on, by one process or several
    beta: float = 0.1  # of the preference loss
    way: str = "joint"  # one of `losses.WAYS`

    def __post_init__(self):
        if PREFERENCE in self.losses and (self.losses, self.train) != ((PREFERENCE,), ("captioner",)):
            raise ValueError(f"{PREFERENCE} teaches the captioner alone: losses and train must name nothing else.")
        for name, known in (("losses", (*LOSSES, PREFERENCE)), ("train", ROLES)):
            if set(named := getattr(self, name)) - set(known) or not named:
                raise ValueError(f"{name} must name some of {', '.join(known)}, not {', '.join(named) or 'none'}.")
        for name, known in (("decoder", ("vae", "tiny")), ("connect", CONNECTIONS), ("way", WAYS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(known)}.")
        whole = 1 <= self.micro_batches <= self.batch_size and self.steps >= 1
        if not (whole and 0 < self.lr < 1 and self.beta > 0):
            raise ValueError(
                f"steps {self.steps}, batch_size {self.batch_size}, micro_batches {self.micro_batches}, lr {self.lr}, "
                f"beta {self.beta}: whole numbers start at 1, a batch has at least as many pairs as parts, lr lies "
                "between 0 and 1, beta above 0."
            )
        if self.way != "joint" and (missing := [loss for loss in LOSSES if loss not in self.losses]):
            raise ValueError(
                f"The way {self.way} takes turns of two losses, and losses leaves out {', '.join(missing)}: name all "
                "four, or take the way joint."
            )
        parts = [len(range(self.batch_size)[rows]) for rows in cut(self.batch_size, self.micro_batches)]
        if (parted := sum(map(self.economy.rows, parts))) != (rows := self.economy.rows(self.batch_size)):
            raise ValueError(
                f"A share of {self.economy.share:g} is {rows} of {self.batch_size} pairs, and in {self.micro_batches} "
                f"micro_batches it would be {parted}: take fewer of these, or another share."
            )

    def turn(self, step: int) -> tuple[str, ...]:
        """The losses of a step, in the order of `losses`."""
        turns = (self.losses,) if self.way == "joint" else WAYS[self.way]
        return tuple(loss for loss in self.losses if loss in turns[step % len(turns)])

    def key(self) -> dict:
        """What it adds to the key of a run; whole batches and the way `joint` go without saying."""
        key = asdict(self) | {"losses": sorted(self.losses), "train": sorted(self.train)}
        silent = {"micro_batches": 1, "way": "joint", "beta": 0.1}
        return {name: value for name, value in key.items() if name not in silent or value != silent[name]}


# The paper's choice of what moves (Section 5): BLIP's cross-attention queries, BLIP-2's query tokens, the U-Net's
# cross-attention queries.
TRAINED = {"blip": "crossattention.self.query", "blip-2": "query_tokens", "unet": "attn2.to_q"}
CHECKPOINT_SECONDS = 60
CLIP_NORM = 1.0  # the paper does not say
EXPLODES = 10.0  # times the largest loss of the first steps


class Diverged(RuntimeError):
    """A loss that is no number, or that exploded."""


def unfreeze(pair: TalkingPair, train: Sequence[str] = ROLES) -> dict[str, nn.Parameter]:
    """Freeze the pair but for the paper's trainable sets; returns those, `role.name` -> parameter."""
    pair.requires_grad_(False)
    parts = {
        "captioner": (pair.model, TRAINED[pair.model.config.model_type]),
        "generator": (pair.unet, TRAINED["unet"]),
    }
    trainable = {}
    for role in train:
        model, pattern = parts[role]
        named = model.named_parameters()
        trainable |= {f"{role}.{name}": weight.requires_grad_(True) for name, weight in named if pattern in name}
    return trainable


# --- A step in micro-batches. One process or several take the same step to the bit: what a part is, what noise it sees
# and in which order losses and gradients are summed does not depend on who works on them.


def shares(counts: Sequence[int], cuts: Sequence[slice], economy: Economy) -> list[dict[str, float]]:
    """Loss -> the share of each micro-batch in the batch's mean: its part of the tokens, or of the rows.

    Args:
        counts: tokens of each caption of the batch, the end not counted.
        cuts: see `cut`.
        economy: says how many rows of a micro-batch are reconstructed: its first, of images, and its last, of texts.
    """
    terms = []
    for rows in cuts:
        tokens = [count + 1 for count in counts[rows]]
        share = economy.rows(len(tokens))
        terms.append(
            {
                "caption_loss": sum(tokens),
                "image_reconstruction_loss": share,
                "generation_loss": len(tokens),
                PREFERENCE: len(tokens),
                "text_reconstruction_loss": sum(tokens[-share:]),
            }
        )
    return [{loss: part[loss] / sum(other[loss] for other in terms) for loss in part} for part in terms]


class Sum:
    """The losses, in the order of their names, and gradients of a step's `count` micro-batches.

    They are made by this process or by all ranks of the accelerator; the gradients are left in the parameters.
    """

    def __init__(
        self, accelerator: "Accelerator", count: int, losses: Sequence[str], parameters: Sequence[nn.Parameter]
    ):
        self.accelerator, self.count = accelerator, count
        self.losses, self.parameters = list(losses), list(parameters)
        self.slots = -(-count // accelerator.num_processes)  # the last ranks may have fewer, or none
        start = accelerator.process_index * self.slots
        self.mine = range(min(start, count), min(start + self.slots, count))
        self._sizes = [len(self.losses), len(self.parameters), *(p.numel() for p in self.parameters)]
        self._rows: list[Tensor] = []

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Keep one micro-batch of `mine`, in order: its weighted losses, 0 for one whose turn it is not, and the
        gradients that it left."""
        reached = [parameter.grad is not None for parameter in self.parameters]
        nothing = self.parameters[0].new_zeros(())
        values = torch.stack([losses.get(name, nothing).detach().float() for name in self.losses])
        gradients = [p.grad.float().flatten() if has else p.new_zeros(p.numel(), dtype=torch.float32)
                     for p, has in zip(self.parameters, reached, strict=True)]  # fmt: skip
        self._rows.append(torch.cat([values, values.new_tensor(reached), *gradients]))

    def take(self, step: int) -> dict[str, Tensor]:
        """The step's losses; its gradients lie in the parameters, None where no loss reached one (RankLost)."""
        rows = self._gathered(step)
        self._rows = []
        total = rows[0].clone()
        for row in rows[1 : self.count]:  # not `sum`, which may add in any order
            total += row
        values, reached, *gradients = total.split(self._sizes)
        for parameter, number, gradient in zip(self.parameters, reached, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if number > 0 else None
        return dict(zip(self.losses, values, strict=True))

    def _gathered(self, step: int) -> Tensor | list[Tensor]:
        if self.accelerator.num_processes == 1:
            return self._rows
        device = self.parameters[0].device
        rows = torch.zeros(self.slots, sum(self._sizes), device=device)
        for k, row in enumerate(self._rows):
            rows[k] = row
        with processes.answering(f"step {step} was added up"):
            return self.accelerator.gather(rows)


# --- The run.


class Finetuning:
    """One run in progress, checkpointed in `folder`; afterwards `pair` holds the trained weights.

    With micro-batches, and under `torchrun`, all ranks run it together; rank 0 alone writes.

    Args:
        folder: where the state lies; made if missing.
        pair: its parameters named by `unfreeze` are trained in place, on `pairs` by the `recipe`.
        key: all that the run depends on; a state of another key is refused.

    Attributes:
        step: steps that are done.
        curves: loss -> `(steps,)` float32, NaN where a step is not done, or had its turn with other losses.
        seconds: that the steps before the state took from which this process started.

    Raises:
        ValueError: the folder holds the state of another run, or a damaged one; ranks that see different folders.
        processes.RankLost: not all ranks came.
    """

    def __init__(
        self, folder: Path, pair: TalkingPair, pairs: Pairs, recipe: Recipe, key: Mapping, *, progress: bool = True
    ):
        self.state_file, self.pairs, self.recipe, self.progress = folder / "state.safetensors", pairs, recipe, progress
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.parameters = unfreeze(pair, recipe.train)
        self.step, self._saved, self.seconds, self._began = 0, 0, 0.0, time.monotonic()
        self.curves = {name: np.full(recipe.steps, np.nan, np.float32) for name in recipe.losses}
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=recipe.lr)
        together = recipe.micro_batches > 1 and processes.place().world_size > 1
        self.accelerator = processes.accelerator(pair.model.device.type == "cpu", together)
        with processes.answering("all began") if together else contextlib.nullcontext():
            self.pair, self.optimizer = self.accelerator.prepare(pair.eval(), optimizer)
        options = recipe.micro_batches, recipe.losses, self.parameters.values()
        self._sum = Sum(self.accelerator, *options)
        folder.mkdir(parents=True, exist_ok=True)
        self._load()
        if together and len(seen := set(processes.gathered(self.step))) > 1:
            raise ValueError(
                f"The ranks find states of steps {', '.join(map(str, sorted(seen)))} in {folder}: give all ranks one "
                "run store, on a file system that they share."
            )

    def run(self, until: int | None = None) -> "Finetuning":
        """Train to the recipe's end (or to step `until`); the state is saved every minute and at the end.

        Raises:
            Diverged: a loss is no finite number or has exploded; the last good state is kept.
            processes.RankLost: another rank is gone; the state is kept.
        """
        end, saved = min(until or self.recipe.steps, self.recipe.steps), time.monotonic()
        quiet = not self.progress or not self.accelerator.is_main_process
        with tqdm(total=end, initial=self.step, unit="step", mininterval=5, disable=quiet) as bar:
            while self.step < end:
                self.optimizer.zero_grad(set_to_none=True)
                losses = self._learn()
                self._check(losses)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:  # of weights whose losses have just been seen
                    self._save()
                    saved = time.monotonic()
                if any(weight.grad is not None for weight in self.parameters.values()):
                    norm = self.accelerator.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
                    self._check({"the norm of the gradient": norm})
                    self.optimizer.step()
                for name, loss in losses.items():
                    self.curves[name][self.step] = loss.item()
                self.step += 1
                bar.update()
            self._save()
        return self

    def _learn(self) -> dict[str, Tensor]:
        """The losses of this step; the gradient of their sum is left in the parameters."""
        turn = self.recipe.turn(self.step)
        if self.recipe.micro_batches == 1:
            return self._backward(self.pair(self.pairs.batch(self.step), turn))
        cuts = cut(self.recipe.batch_size, self.recipe.micro_batches)
        parts = shares(self.pairs.counts(self.step), cuts, self.recipe.economy)
        for k in self._sum.mine:
            with self.accelerator.no_sync(self.pair):  # gradients are added up in one order, not as they come
                losses = self.pair(self.pairs.batch(self.step, cuts[k]), turn)
                losses = self._backward({name: loss * parts[k][name] for name, loss in losses.items()})
            self._sum.add(losses)
            self.optimizer.zero_grad(set_to_none=True)
        losses = self._sum.take(self.step)
        return {name: losses[name] for name in turn}

    def _backward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        total = torch.stack(list(losses.values())).sum()
        if total.requires_grad:  # a loss may reach nothing that moves
            self.accelerator.backward(total)
        return losses

    def _check(self, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            value, first = loss.item(), self.curves.get(name, np.empty(0))[:10]
            bound = EXPLODES * np.nanmax(first) if 0 < len(first) <= self.step else math.inf
            if math.isfinite(value) and value <= bound:
                continue
            kept = f"the state of step {self._saved} is kept in {self.state_file}" if self._saved else (
                "no state had been saved yet")  # fmt: skip
            raise Diverged(
                f"{name} is {value:.4g} at step {self.step} (lr {self.recipe.lr:g}): the finetuning diverged and "
                f"stops, and {kept}; run again with a smaller lr."
            )

    def _save(self) -> None:
        self._saved = self.step
        if not self.accelerator.is_main_process:
            return
        content: shards.Content = {f"curve.{name}": curve for name, curve in self.curves.items()}
        for name, parameter in self.parameters.items():
            content[f"weight.{name}"] = parameter.detach().cpu().numpy()
        for place, state in self.optimizer.state_dict()["state"].items():
            content |= {f"optimizer.{place}.{name}": value.cpu().numpy() for name, value in state.items()}
        seconds = self.seconds + time.monotonic() - self._began
        metadata = {"step": str(self.step), "key": self.key, "seconds": f"{seconds:.3f}"}
        shards.write(self.state_file, content, metadata)  # a kill leaves the old state or the new one

    def _load(self) -> None:
        try:
            content, metadata = shards.read(self.state_file)
        except FileNotFoundError:
            return
        except shards.Broken as error:
            raise ValueError(f"{self.state_file} is damaged ({error}): remove it, and the run starts anew.") from error
        if metadata.get("key") != self.key:
            raise ValueError(
                f"{self.state_file} is the checkpoint of another run (other recipe, models or pairs): choose another "
                "folder, or remove it."
            )
        self.step = self._saved = int(metadata["step"])
        self.seconds = float(metadata["seconds"])
        for name, curve in self.curves.items():
            curve[:] = content[f"curve.{name}"]
        tensors = {name: torch.from_numpy(value) for name, value in content.items()}
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
        optimizer = self.optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, place, moment = name.split(".")
                optimizer["state"].setdefault(int(place), {})[moment] = value
        self.optimizer.load_state_dict(optimizer)
