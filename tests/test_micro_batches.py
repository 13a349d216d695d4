"""Steps in micro-batches: parts that add up to the whole batch, and a sum that does not ask who made them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dfl_utils.training import micro_batches
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.losses import Economy


def test_rows_are_cut_as_evenly_as_they_can_be():
    assert micro_batches.cut(8, 4) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    assert micro_batches.cut(4, 3) == [slice(0, 1), slice(1, 2), slice(2, 4)]
    assert micro_batches.cut(5, 1) == [slice(0, 5)]


def test_a_micro_batch_weighs_as_much_as_it_has_terms():
    """Captions of 3, 5, 2 and 4 tokens, and their ends: 4 + 6 and 3 + 5 of 18 targets."""
    found = micro_batches.weights([3, 5, 2, 4], [slice(0, 2), slice(2, 4)], Economy())
    halves = {"image_reconstruction_loss": 0.5, "generation_loss": 0.5}
    assert found == [
        {"caption_loss": 10 / 18, "text_reconstruction_loss": 10 / 18} | halves,
        {"caption_loss": 8 / 18, "text_reconstruction_loss": 8 / 18} | halves,
    ]


def test_with_a_share_the_reconstructed_rows_alone_weigh():
    """Of three rows and a share of a half, two: the first of images, the last of texts."""
    found = micro_batches.weights([3, 5, 2, 4], [slice(0, 3), slice(3, 4)], Economy(share=0.5))
    assert [part["image_reconstruction_loss"] for part in found] == [2 / 3, 1 / 3]
    assert [part["generation_loss"] for part in found] == [3 / 4, 1 / 4]
    assert [part["text_reconstruction_loss"] for part in found] == [(6 + 3) / 14, 5 / 14]


@pytest.mark.parametrize(
    ("count", "processes", "own"),
    [(4, 1, [[0, 1, 2, 3]]), (4, 2, [[0, 1], [2, 3]]), (3, 2, [[0, 1], [2]]), (1, 3, [[0], [], []]),
     (4, 3, [[0, 1], [2, 3], []])],
)  # fmt: skip
def test_every_micro_batch_has_one_rank(count, processes, own):
    world = [SimpleNamespace(num_processes=processes, process_index=rank) for rank in range(processes)]
    sums = [micro_batches.Sum(one, count, ["a"], [nn.Parameter(torch.zeros(1))]) for one in world]
    assert [list(one.own) for one in sums] == own


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_sum_is_that_of_one_order_whoever_made_its_parts(processes):
    """1e8 swallows a 1 that comes after it, so another order is another sum; a parameter that none reached is left."""
    gradients, count = [1e8, 1.0, -1e8, 1.0], 4
    weight, idle = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2, 2))
    rows = []
    for rank in range(processes):
        world = SimpleNamespace(num_processes=processes, process_index=rank, gather=lambda row: rows.append(row))
        part = micro_batches.Sum(world, count, ["a", "b"], [weight, idle])
        for k in part.own:
            weight.grad = torch.tensor([gradients[k]])
            part.add({"a": torch.tensor(float(k)), "b": torch.tensor(0.5)})
        if processes > 1:
            part._gathered(0)
    if processes > 1:
        part.accelerator.gather = lambda row: torch.cat(rows)
    weight.grad = None
    assert part.take(0) == {"a": 0 + 1 + 2 + 3, "b": 2.0}
    assert weight.grad.tolist() == [1.0] and idle.grad is None  # ((1e8 + 1) - 1e8) + 1 in float32


def test_parts_that_cannot_be_are_refused():
    Recipe(micro_batches=2, economy=Economy(share=0.5))  # 4 of 8 pairs are 2 of 4, twice
    with pytest.raises(ValueError, match="A share of 0.375 is 3 of 8 pairs, and in 8 micro_batches it would be 8"):
        Recipe(micro_batches=8, economy=Economy(share=0.375))
    with pytest.raises(ValueError, match="batch_size 8, micro_batches 9, .*at least as many pairs as parts"):
        Recipe(micro_batches=9)
