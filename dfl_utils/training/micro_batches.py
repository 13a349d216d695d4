"""A step in micro-batches: parts of its batch whose losses and gradients are added up in one order, whoever made them.

One process or several then take the same step to the bit: what a part is, what noise it sees and in which order the
parts are summed does not depend on who works on them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfl_utils.store import processes
from dfl_utils.training.losses import Economy

if TYPE_CHECKING:
    from accelerate import Accelerator


def cut(batch_size: int, count: int) -> list[slice]:
    """The rows of each of `count` micro-batches, as even as whole rows allow."""
    ends = [batch_size * k // count for k in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def weights(counts: Sequence[int], cuts: Sequence[slice], economy: Economy) -> list[dict[str, float]]:
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
        self.own = range(min(start, count), min(start + self.slots, count))
        self._sizes = [len(self.losses), len(self.parameters), *(p.numel() for p in self.parameters)]
        self._rows: list[Tensor] = []

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Keep one micro-batch of `own`, in order: its weighted losses, 0 for one whose turn it is not, and the
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
        mine = torch.zeros(self.slots, sum(self._sizes), device=device)
        for k, row in enumerate(self._rows):
            mine[k] = row
        with processes.answering(f"step {step} was added up"):
            return self.accelerator.gather(mine)
