"""Where a step spends what can be read off a clock or a counter: part by part, forward and backward apart.

Each part's method is watched while a step runs. Its output, and those of its inputs that carry a gradient, pass
through a mark that does nothing but tell the meter when the backward pass comes by.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

# The captioner is watched once and is two parts, told apart by whether its image carries a gradient.
LATENTS, IMAGE, PROMPTS, GENERATOR, DECODING, IMAGE_HAT, REST = PARTS = (
    "latents",
    "captioner on image",
    "prompts",
    "generator",
    "decoding",
    "captioner on image_hat",
    "rest",
)
DIRECTIONS = ("forward", "backward")


class Meter:
    """Sums what a reading advances by, for the part that is open.

    Args:
        reading: a number that never falls, such as seconds passed or FLOPs counted.

    Attributes:
        spent: `(parts, 2)`, in the order of `PARTS` and `DIRECTIONS`.
    """

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
            own = IMAGE_HAT if part == IMAGE and any(carries) else part
            arguments = [
                _Mark.apply(value, self, REST) if carried else value
                for value, carried in zip(arguments, carries, strict=True)
            ]
            self.switch(own)
            found = method(*arguments)
            self.switch(REST)
            if isinstance(found, Tensor):
                return _Mark.apply(found, self, own)
            if "sample" in found:
                found.sample = _Mark.apply(found.sample, self, own)
            return found

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
