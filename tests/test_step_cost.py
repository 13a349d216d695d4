"""What a step costs: every way has the losses that it should, parts add up, and nothing moves or is measured twice."""

import numpy as np
import pytest
import torch
from conftest import plain_map
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dfl_utils.store.store import RunStore
from dfl_utils.training import full_size, step_cost
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import WAYS as WAYS_TO_TRAIN
from dfl_utils.training.losses import TalkingPair
from dfl_utils.training.savings import (
    DECODING,
    GENERATOR,
    LATENTS,
    PARTS,
    PROMPTS,
    REST,
    STEPS,
    TURNS,
    Meter,
    ladder,
)
from dfl_utils.training.step_cost import StepCost
from dfl_utils.world import data

WAYS = ladder()
EXACT = list(WAYS)[: list(WAYS).index("threshold")]  # those that approximate nothing


@pytest.fixture(scope="module")
def finetuner(mini, tmp_path_factory):
    examples = data.load(mini, "coco", "val")[:3]
    made = Finetuner(mini, RunStore(tmp_path_factory.mktemp("store")), examples, progress=False)
    made.vocabulary_map = plain_map(*made._base_models)
    return made


@pytest.fixture(scope="module")
def cost(finetuner):
    return StepCost(finetuner, batch_size=2)


def part(spent, name):
    return spent[..., PARTS.index(name), :]


# --- the ways ---------------------------------------------------------------------------------------------
def test_ways_that_only_save_have_the_losses_and_gradients_of_a_talking_pair(cost):
    bench = cost.bench
    pair = TalkingPair(bench.captioner, bench.pipeline, bench.vocabulary_map)
    with torch.no_grad():
        wanted = {name: loss.item() for name, loss in pair(bench.batch).items()}
    gradients = {}
    for name in EXACT:
        step = bench.step("joint", WAYS[name])
        found = step(bench.batch, bench.images)
        assert {loss: value.item() for loss, value in found.items()} == pytest.approx(wanted, rel=1e-4)
        trained = step.prepare()
        gradients[name] = torch.autograd.grad(sum(found.values()), trained)
    for name in EXACT[1:]:
        for one, other in zip(gradients["naive"], gradients[name], strict=True):
            torch.testing.assert_close(other, one, rtol=2e-3, atol=1e-6)


def test_the_turns_are_those_of_the_alternating_way(cost):
    bench = cost.bench
    pair = TalkingPair(bench.captioner, bench.pipeline, bench.vocabulary_map, way="alternating")
    for name, turn in zip(TURNS, WAYS_TO_TRAIN["alternating"], strict=True):
        found = bench.step(name, WAYS["gradient where needed"])(bench.batch, bench.images)
        assert tuple(found) == turn
        wanted = {loss: value.item() for loss, value in pair(bench.batch, turn).items()}
        assert {loss: value.item() for loss, value in found.items()} == pytest.approx(wanted, rel=1e-4)


# --- the meter --------------------------------------------------------------------------------------------
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)

    def begin(self, x):
        return self.first(x)

    def end(self, x):
        return self.second(x)


def test_the_meter_counts_what_a_hand_would():
    two, x = Two(), torch.randn(3, 4)
    with FlopCounterMode(display=False) as counter:
        meter = Meter(counter.get_total_flops)
        with meter.watch((two, "begin", PROMPTS), (two, "end", DECODING)):
            found = two.end(two.begin(x)).square().sum()
            meter.switch(REST, "backward")
            found.backward()
            meter.switch(REST)
    first, second = 2 * 3 * 4 * 8, 2 * 3 * 8 * 2
    # The input of the first carries no gradient, so it has that of its weight alone.
    assert part(meter.spent, PROMPTS).tolist() == [first, first]
    assert part(meter.spent, DECODING).tolist() == [second, 2 * second]
    assert meter.spent.sum() == counter.get_total_flops()
    assert "begin" not in vars(two)  # and leaves the module as it was


def test_parts_add_up_to_what_an_unwatched_step_costs(cost):
    flops = cost.flops()
    bench = cost.bench
    step = bench.step("joint", WAYS["ours"])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sum(step(bench.batch, bench.images).values()).backward()
    step.zero_grad()
    assert flops.of("joint")[0, list(WAYS).index("ours")] == counter.get_total_flops()


# --- what the savings save --------------------------------------------------------------------------------


def test_the_ratio_is_of_one_way_and_one_round():
    spent = np.zeros((2, 1, len(STEPS), len(PARTS), 2))
    spent[:, 0, :, 0, 0] = [[1, 2, 6], [2, 2, 4]]
    found = step_cost.Costs(("naive",), spent, "", "")
    assert found.ratio.tolist() == [[2.0], [1.0]]
    assert found.over_mean("joint")["naive"].value == 3.0  # the median of 4 and 2
    assert found.over_mean("joint", "generation")["naive"].low == 1.5


# --- seconds ----------------------------------------------------------------------------------------------
def test_seconds_move_nothing_and_are_measured_once(cost, finetuner, monkeypatch):
    few = StepCost(finetuner, {name: WAYS[name] for name in ("naive", "ours")}, batch_size=2)
    few.bench = cost.bench
    before = [p.clone() for p in few.bench.step("joint", WAYS["ours"]).parameters()]
    threads = torch.get_num_threads()
    found = few.seconds(1)
    assert found.spent.shape == (1, 2, len(STEPS), len(PARTS), 2)
    assert (found.spent >= 0).all() and (found.of("joint") > 0).all()
    assert torch.get_num_threads() == threads
    after = few.bench.step("joint", WAYS["ours"]).parameters()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    monkeypatch.setattr(step_cost.Bench, "seconds", None)  # a second time needs no models
    again = StepCost(finetuner, few.ways, batch_size=2).seconds(1)
    assert np.array_equal(again.spent, found.spent) and (again.when, again.where) == (found.when, found.where)


# --- the published sizes ----------------------------------------------------------------------------------
def counted(bench, name):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step = bench.step(name, WAYS["gradient where needed"])
        return step.spend(bench.batch, bench.images, counter.get_total_flops)


def test_flops_of_the_published_sizes_are_those_counted_before(cost):
    """Of one pair: 1.12 TFLOP for encoding an image, 0.80 for a pass of the U-Net, counted by another script."""
    own = cost.bench
    models = full_size.models(own.captioner, own.pipeline.tokenizer)
    made = full_size.batch(own.batch.caption.rows(slice(0, 1)))
    bench = step_cost.Bench(models[0], models[1], own.vocabulary_map, models[2], *made)
    for name in ("captioning", "generation"):
        spent = counted(bench, name)
    assert part(spent, LATENTS)[0] == pytest.approx(1.12e12, rel=0.01)
    assert part(spent, GENERATOR)[0] == pytest.approx(0.80e12, rel=0.01)
    assert spent.sum() == pytest.approx(2.81e12, rel=0.01)


class Chain(nn.Module):
    """Two layers on the meta device, as `full_size.peak` wants a step."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(64, 64, bias=False, device="meta") for _ in range(2))
        self.vae = nn.Module()

    def prepare(self):
        self.first.requires_grad_(False)
        return [self.second.weight]

    def forward(self, batch, images):
        return {"sum": self.second(self.first(images)).sum()}


def test_memory_is_that_of_the_tensors_alive_at_once():
    """At the second layer's end: two layers' weights, the input and two outputs, a sum; and AdamW's moments."""
    weights, layer, number = 64 * 64 * 4, 1000 * 64 * 4, 4
    found = full_size.peak(Chain(), None, torch.empty(1000, 64, device="meta"))
    assert found == 2 * weights + 3 * layer + number + 2 * weights


def test_memory_grows_by_a_pair_as_on_a_gpu(cost, finetuner):
    """Peaks of 1 and 2 pairs on an H100 (data/gpu/benchmarks.csv): 18.48 and 27.90 GiB, no more than 6 % above this."""
    few = StepCost(finetuner, {"exact": WAYS["one generator pass"]}, batch_size=2, steps=["joint"])
    few.bench = cost.bench
    one, two = few.published_memory([1, 2]).ravel()
    assert 0.94 * (27.90 - 18.48) < two - one < 27.90 - 18.48
