"""One training loop for every embedded model: AdamW, warm-up and cosine decay, EMA, exact resume.

A loss is a function of the step alone (its batch and its noise are drawn from the step number), so a run
that was killed and resumed ends with the same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_SECONDS = 120


@dataclass(frozen=True)
class Schedule:
    """`lr` is the peak; it rises over `warmup` steps and falls along a cosine to a hundredth."""

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clip_norm: float = 1.0

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Training:
    """Trains `model` in place, checkpointed in `folder`; afterwards `model` holds the EMA weights.

    Args:
        folder: where `state.safetensors` and the log `losses.jsonl` live; made if missing.
        model: its parameters that require gradients are trained.
        loss: step -> (scalar loss to minimise, named numbers to log).
        carried: tensors that the loss changes in place without gradients (a teacher, a running centre); they are
            checkpointed with the rest.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        loss: Callable[[int], tuple[Tensor, dict[str, float]]],
        schedule: Schedule,
        carried: dict[str, Tensor] | None = None,
    ):
        self.folder, self.model, self.loss, self.schedule = folder, model, loss, schedule
        self.carried = carried or {}
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=schedule.lr, betas=(0.9, 0.98), weight_decay=schedule.weight_decay
        )
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._load()

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.safetensors"

    def _load(self) -> None:
        if not self._state_file.exists():
            return
        with safe_open(self._state_file, "pt") as state:
            metadata = state.metadata()
            self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
            stored = set(state.keys())
            with torch.no_grad():
                for name, tensor in self.carried.items():
                    tensor.copy_(state.get_tensor(f"carried.{name}"))
                for name, parameter in self.parameters.items():
                    parameter.copy_(state.get_tensor(f"model.{name}"))
                    self.ema[name].copy_(state.get_tensor(f"ema.{name}"))
                    if f"exp_avg.{name}" not in stored:
                        continue
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.step)),
                        "exp_avg": state.get_tensor(f"exp_avg.{name}"),
                        "exp_avg_sq": state.get_tensor(f"exp_avg_sq.{name}"),
                    }

    def _save(self) -> None:
        tensors = {f"carried.{name}": tensor.detach().contiguous() for name, tensor in self.carried.items()}
        for name, parameter in self.parameters.items():
            tensors[f"model.{name}"] = parameter.detach().contiguous()
            tensors[f"ema.{name}"] = self.ema[name].contiguous()
            for key, moment in self.optimizer.state[parameter].items():
                if key != "step":  # a parameter the loss never reaches has no moments
                    tensors[f"{key}.{name}"] = moment.contiguous()
        partial = self._state_file.with_suffix(".partial")
        save_file(tensors, partial, metadata={"step": str(self.step), "seconds": f"{self.seconds:.0f}"})
        partial.replace(self._state_file)  # atomic: a kill leaves the old state or the new one

    def run(self, until: int | None = None) -> "Training":
        """Train to the end of the schedule (or to step `until`), saving every two minutes."""
        schedule, last_save, began = self.schedule, time.monotonic(), time.monotonic()
        end = min(until or schedule.steps, schedule.steps)
        log = (self.folder / "losses.jsonl").open("a", encoding="utf-8")
        self.model.train()
        bar = tqdm(total=schedule.steps, initial=self.step, desc=self.folder.name, mininterval=5)
        while self.step < end:
            for group in self.optimizer.param_groups:
                group["lr"] = schedule.rate(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            loss, numbers = self.loss(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters.values(), schedule.clip_norm)
            self.optimizer.step()
            self.step += 1
            decay = min(schedule.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)
            bar.update()
            if self.step % 25 == 0:
                numbers = {"step": self.step, "loss": round(loss.item(), 5)} | {
                    k: round(v, 5) for k, v in numbers.items()
                }
                bar.set_postfix(numbers)
                log.write(json.dumps(numbers) + "\n")
                log.flush()
            if time.monotonic() - last_save > CHECKPOINT_SECONDS or self.step == end:
                self.seconds += time.monotonic() - began
                began = last_save = time.monotonic()
                self._save()
        bar.close()
        log.close()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.ema[name])
        self.model.eval()
        return self
