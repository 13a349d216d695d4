"""What a step of the finetuning can save, from the equations as they stand on; and where it spends what it does.

A plain step has one loss and trains its own model alone; the joint step has all four and trains both, and so do the
two turns of an alternating finetuning, with two losses each. Steps that only save, and approximate nothing, have the
losses of `losses.TalkingPair`, to rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor, nn

from dfl_utils.models.blip import Captioner
from dfl_utils.training import finetune
from dfl_utils.training.losses import LOSSES, WAYS, Economy, TalkingPair
from dfl_utils.training.pairs import Batch, Caption
from dfl_utils.training.vocabulary import VocabularyMap

# Step -> its losses, and the roles that it trains.
STEPS = {
    "captioning": (("caption_loss",), ("captioner",)),
    "generation": (("generation_loss",), ("generator",)),
    "joint": (LOSSES, finetune.ROLES),
}
TURNS = {
    f"{role}'s turn": (losses, finetune.ROLES)
    for role, losses in zip(("generator", "captioner"), WAYS["alternating"], strict=True)
}


@dataclass(frozen=True)
class Savings:
    """What a step saves; by default nothing."""

    frozen: bool = False  # gradients of the trained weights alone; else of each weight of the models in training
    latents: bool = False  # made once, before the finetuning; else of the images in every step that needs them
    head: bool = False  # the captioner's, at the positions that are targets; else at all
    one_pass: bool = False  # both prompts through the generator together; else one after the other
    threshold: float = 0.0  # threshold, share: see `losses.Economy`
    decoder: str = "vae"  # of the one-step image: `vae` or `tiny`
    share: float = 1.0


DEPENDS = {"captioning": ("frozen", "head"), "generation": ("frozen", "latents")}  # what else changes no plain step


def ladder(threshold: float = 1e-6, share: float = 0.5) -> dict[str, Savings]:
    """One saving after the other, each on top of those before; `ours` is what the finetuning runs."""
    steps = {
        "naive": {},
        "gradient where needed": {"frozen": True},
        "latents precomputed": {"latents": True},
        "head at targets": {"head": True},
        "one generator pass": {"one_pass": True},
        "threshold": {"threshold": threshold},
        "ours": {"decoder": "tiny"},
        f"share {share:g}": {"share": share},
    }
    rungs, savings = {}, Savings()
    for name, more in steps.items():
        rungs[name] = savings = replace(savings, **more)
    return rungs


class Step(TalkingPair):
    """A step of `STEPS` or `TURNS`; its forward takes a batch's images as the autoencoder does."""

    def __init__(
        self,
        captioner: Captioner,
        pipeline: StableDiffusionPipeline,
        vocabulary_map: VocabularyMap,
        tiny: AutoencoderTiny,
        step: str,
        savings: Savings,
    ):
        losses, roles = (STEPS | TURNS)[step]
        super().__init__(
            captioner,
            pipeline,
            vocabulary_map,
            losses,
            decoder=tiny if savings.decoder == "tiny" else None,
            economy=Economy(savings.threshold, savings.share),
            way="alternating" if step in TURNS else "joint",
        )
        self.savings, self.roles, self.vae = savings, roles, pipeline.vae

    def forward(self, batch: Batch, images: Tensor) -> dict[str, Tensor]:
        """As `TalkingPair.forward`; `images` `(B, 3, S, S)` in [-1, 1]."""
        if not self.savings.latents and set(self.losses) & set(LOSSES[1:]):
            batch = replace(batch, latents=self.encode(images))
        return super().forward(batch)

    def _predict_noise(
        self, noisy: Tensor, timesteps: Tensor, prompts: dict[str, tuple[slice, Tensor]]
    ) -> dict[str, Tensor]:
        if self.savings.one_pass:
            return super()._predict_noise(noisy, timesteps, prompts)
        parts = {name: super(Step, self)._predict_noise(noisy, timesteps, {name: one}) for name, one in prompts.items()}
        return {name: part[name] for name, part in parts.items()}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents as `pairs.latents` makes them."""
        return self.vae.encode(images).latent_dist.mean * self.vae.config.scaling_factor

    def predict(self, pixel_values: Tensor, caption: Caption) -> Tensor:
        if self.savings.head:
            return super().predict(pixel_values, caption)
        return self.captioner._logits(self.captioner._encode(pixel_values), caption.input_ids)[caption.places]

    def prepare(self) -> list[nn.Parameter]:
        """Freeze what need not move; returns what the step trains."""
        trained = finetune.unfreeze(self, self.roles)
        if not self.savings.frozen:
            for role in self.roles:
                {"captioner": self.model, "generator": self.unet}[role].requires_grad_(True)
        return list(trained.values())

    def spend(
        self, batch: Batch, images: Tensor, reading: Callable[[], float], update: Callable[[], object] | None = None
    ) -> np.ndarray:
        """One step on the meter: `(parts, 2)` of what `reading` counts, with the weights' update, if any."""
        meter = Meter(reading)
        with meter.watch(
            (self, "encode", LATENTS),
            (self, "predict", IMAGE),
            (self, "soft_prompt", PROMPTS),
            (self.text_encoder, "forward", PROMPTS),
            (self.unet, "forward", GENERATOR),
            (self, "as_pixel_values", DECODING),
        ):
            total = torch.stack(list(self(batch, images).values())).sum()
            meter.switch(REST, "backward")
            total.backward()
            meter.switch(REST, "backward")
            if update:
                update()
            meter.switch(REST)
        self.zero_grad(set_to_none=True)
        return meter.spent


# --- Where a step spends what can be read off a clock or a counter: part by part, forward and backward apart.
#
# The output of a watched method, and those of its inputs that carry a gradient, pass through a mark that tells the
# meter when the backward pass comes by. The captioner is two parts, told apart by whether its image carries a gradient.

LATENTS, IMAGE, PROMPTS, GENERATOR, DECODING, IMAGE_HAT, REST = PARTS = (
    *("latents", "captioner on image", "prompts", "generator", "decoding"),
    *("captioner on image_hat", "rest"),
)
DIRECTIONS = ("forward", "backward")


class Meter:
    """Sums what a reading that never falls, such as seconds or FLOPs, advances by, for the part that is open: `spent`
    `(parts, 2)`, in the order of `PARTS` and `DIRECTIONS`."""

    def __init__(self, reading: Callable[[], float]):
        self.reading, self.spent = reading, np.zeros((len(PARTS), len(DIRECTIONS)))
        self._open, self._since = (PARTS.index(REST), 0), reading()

    def switch(self, part: str, direction: str = "forward") -> None:
        """Close the open part and open another."""
        now = self.reading()
        self.spent[self._open] += now - self._since
        self._open, self._since = (PARTS.index(part), DIRECTIONS.index(direction)), now

    @contextmanager
    def watch(self, *watched: tuple[nn.Module, str, str]) -> Iterator[None]:
        """Watch methods while the block runs: `(owner, name of the method, part)` each; none may call another."""
        for owner, name, part in watched:
            setattr(owner, name, self._watched(getattr(owner, name), part))
        try:
            yield
        finally:
            for owner, name, _ in watched:
                delattr(owner, name)  # the class's own method shows again

    def _watched(self, method: Callable, part: str) -> Callable:
        def run(*arguments):
            carries = [isinstance(value, Tensor) and value.requires_grad for value in arguments]
            opened = IMAGE_HAT if part == IMAGE and any(carries) else part
            arguments = [
                _Mark.apply(value, self, REST) if carried else value
                for value, carried in zip(arguments, carries, strict=True)
            ]
            self.switch(opened)
            made = method(*arguments)
            self.switch(REST)
            if isinstance(made, Tensor):
                return _Mark.apply(made, self, opened)
            if "sample" in made:
                made.sample = _Mark.apply(made.sample, self, opened)
            return made

        return run


class _Mark(torch.autograd.Function):
    """The identity; its backward opens a part: that which made the tensor, or `rest` where the tensor went into one."""

    @staticmethod
    def forward(ctx, tensor: Tensor, meter: Meter, part: str) -> Tensor:
        ctx.meter, ctx.part = meter, part
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.meter.switch(ctx.part, "backward")
        return gradient, None, None
