"""FLOPs of passes over tensors that have a shape and no numbers, by torch's formulas, each shape worked out once.

On the meta device torch finds the shape of every result in Python, which is most of a count's time. A network repeats
its layers, and so does this counter its answers. `torch.utils.flop_counter` counts the same on any device; a test holds
the two equal.
"""

from functools import cache

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Numbers(Exception):
    """A tensor that has some: what is made of it may depend on them."""


class ShapeCounter(TorchDispatchMode):
    """Counts while it is entered, again and again if need be: what it has learned of shapes, it keeps."""

    def __init__(self):
        super().__init__()
        self._total, self._known = 0, {}

    def get_total_flops(self) -> int:
        """All that were counted since it was made."""
        return self._total

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = self._run(func, args, kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self._total += formula(*args, **kwargs, out_val=found)
        return found

    def _run(self, func: OpOverload, args: tuple, kwargs: dict):
        if not _makes_new(func):
            return func(*args, **kwargs)
        try:
            key = func, _described(args), _described(tuple(kwargs.items()))
        except _Numbers:
            return func(*args, **kwargs)
        if key in self._known:
            made = tuple(shape and _made(*shape) for shape in self._known[key])
            return made if len(made) > 1 else made[0]
        found = func(*args, **kwargs)
        results = found if isinstance(found, tuple) else (found,)
        if all(result is None or result.device.type == "meta" for result in results):
            self._known[key] = [None if result is None else _shape(result) for result in results]
        return found


@cache
def _makes_new(func: OpOverload) -> bool:
    """Whether its results are tensors of their own: no view of an input, and no input that it changes."""
    schema = func._schema
    aliased = any(value.alias_info is not None for value in (*schema.arguments, *schema.returns))
    return not aliased and bool(schema.returns) and all(str(value.type) == "Tensor" for value in schema.returns)


def _shape(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype


def _made(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _described(value):
    """What a result's shape depends on; types too, as 1 equals True and 1.0."""
    if isinstance(value, Tensor):
        if value.device.type != "meta":
            raise _Numbers
        return _shape(value)
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return type(value), value
