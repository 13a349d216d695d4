"""The training loop: what moves and what stays, resume to the bit, a stop that loses nothing, micro-batches."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import plain_map
from torch import nn

from dfl_utils.store.store import RunStore
from dfl_utils.training import finetune
from dfl_utils.training.finetune import Diverged, Finetuning, Recipe
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import LOSSES, WAYS, Economy
from dfl_utils.world import data, profile

KEY = {"run": "of a test"}


# --- the real pair ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Begins a run of fresh weights on nine images."""
    models = profile.load("mini").pair(captioner="blip-base")
    data.ensure(models)
    examples = data.load(models, "coco", "val")[:9]
    finetuner = Finetuner(models, RunStore(tmp_path_factory.mktemp("store")), examples, progress=False)
    finetuner.vocabulary_map = plain_map(*finetuner._base_models)

    def begin(folder, recipe):
        pair, pipeline = finetuner.pair(recipe)
        return Finetuning(folder, pair, finetuner.pairs(pair, pipeline, recipe), recipe, KEY, progress=False)

    return begin


QUICK = Recipe(steps=4, batch_size=2, decoder="tiny", economy=Economy(threshold=1e-6), lr=1e-3)


@pytest.fixture(scope="module", params=WAYS)
def whole(start, tmp_path_factory, request):
    """A run of each way that nobody disturbed, and the weights of its pair before."""
    run = start(tmp_path_factory.mktemp("whole"), replace(QUICK, way=request.param))
    before = {name: value.clone() for name, value in run.pair.state_dict().items()}
    return run.run(), before


def same(one, other):
    """Weights and curves, to the bit."""
    return all(torch.equal(weight, other.parameters[name]) for name, weight in one.parameters.items()) and all(
        curve.tobytes() == other.curves[name].tobytes() for name, curve in one.curves.items()
    )


# --- what moves -------------------------------------------------------------------------------------------
def test_only_the_trained_weights_move_and_every_loss_is_kept(whole):
    run, before = whole
    after, trained = run.pair.state_dict(), [weight.data_ptr() for weight in run.parameters.values()]
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name, value in after.items() if value.data_ptr() in trained}
    assert len(moved) == 6 + 4
    assert list(run.curves) == list(LOSSES) and run.step == 4
    for name, curve in run.curves.items():
        known = [name in run.recipe.turn(step) for step in range(4)]
        assert np.array_equal(curve > 0, known) and np.array_equal(np.isnan(curve), np.logical_not(known))


def test_turns_change_with_every_step():
    joint, turns = Recipe(), Recipe(way="alternating")
    assert joint.turn(0) == joint.turn(1) == LOSSES
    assert turns.turn(0) == turns.turn(2) == ("generation_loss", "text_reconstruction_loss")
    assert turns.turn(1) == turns.turn(3) == ("caption_loss", "image_reconstruction_loss")
    assert "way" not in joint.key() and turns.key() == joint.key() | {"way": "alternating"}


# --- resume -----------------------------------------------------------------------------------------------
def test_a_run_in_two_parts_is_the_run_in_one(start, whole, tmp_path):
    recipe = whole[0].recipe
    half = start(tmp_path, recipe).run(until=3)
    assert half.step == 3 and not same(half, whole[0])
    second = start(tmp_path, recipe)
    assert second.step == 3 and same(second, half)
    assert same(second.run(), whole[0])
    assert start(tmp_path, recipe).step == 4  # and a finished one is there, too


# --- micro-batches ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("step", "options"), [(0, {}), (0, {"connect": "gumbel"}), (0, {"way": "alternating"}), (1, {"way": "alternating"})]
)
def test_a_step_in_micro_batches_has_the_losses_and_the_gradient_of_the_whole(start, tmp_path, step, options):
    """To what floats leave of a sum in another order; captions and noise are the same."""
    recipe = Recipe(steps=2, batch_size=4, decoder="tiny", **options)
    whole, parts = (start(tmp_path / str(n), replace(recipe, micro_batches=n)) for n in (1, 3))
    whole.step = parts.step = step
    losses = whole._learn(), parts._learn()
    assert tuple(losses[0]) == tuple(losses[1]) == recipe.turn(step)
    for name in losses[0]:
        torch.testing.assert_close(losses[1][name], losses[0][name].detach(), atol=1e-5, rtol=1e-4)
    for name, weight in whole.parameters.items():
        largest = weight.grad.abs().max().item()
        torch.testing.assert_close(parts.parameters[name].grad, weight.grad, atol=1e-3 * largest, rtol=1e-3)


# --- the loop, on two weights and nothing else ------------------------------------------------------------
class Toy(nn.Module):
    """In place of a pair: `losses(weights, step)` are its losses."""

    def __init__(self, losses):
        super().__init__()
        self.model, self.unet = nn.Module(), nn.Module()
        self.model.config, self.model.device = SimpleNamespace(model_type="blip-2"), torch.device("cpu")
        self.model.query_tokens = nn.Parameter(torch.tensor([0.5, -0.25]))
        self.unet.attn2 = nn.Module()
        self.unet.attn2.to_q = nn.Linear(1, 1, bias=False)
        self.losses = losses

    def forward(self, step, turn):
        return {"caption_loss": self.losses(self.model.query_tokens, step)}


STEPS = SimpleNamespace(batch=lambda step: step)


def toy(folder, losses, steps=20, key=KEY, **options):
    recipe = Recipe(losses=("caption_loss",), train=("captioner",), steps=steps, **{"lr": 0.1} | options)
    return Finetuning(folder, Toy(losses), STEPS, recipe, key, progress=False)


def bowl(weights, step):
    return (weights - 1 - step % 3).square().sum()


def test_a_step_is_adamws_on_a_gradient_of_norm_one_at_most(tmp_path):
    found = toy(tmp_path, bowl, steps=5).run().parameters["captioner.query_tokens"]
    weights, first, second = torch.tensor([0.5, -0.25]), torch.zeros(2), torch.zeros(2)
    for step in range(5):
        gradient = 2 * (weights - 1 - step % 3)
        gradient = gradient / max(1.0, gradient.norm().item())
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights = weights * (1 - 0.1 * 0.01)
        root = (second / (1 - 0.999 ** (step + 1))).sqrt()
        weights = weights - 0.1 * first / (1 - 0.9 ** (step + 1)) / (root + 1e-8)
    torch.testing.assert_close(found.detach(), weights, atol=1e-5, rtol=1e-4)


def test_losses_are_summed_with_equal_weights(tmp_path):
    class Two(Toy):
        def forward(self, step, turn):
            return {"caption_loss": self.losses(self.model.query_tokens, 0), "generation_loss": torch.tensor(7.0)}

    recipe = Recipe(losses=("caption_loss", "generation_loss"), train=("captioner",), steps=3, lr=0.1)
    both = Finetuning(tmp_path / "two", Two(bowl), STEPS, recipe, KEY, progress=False).run()
    one = toy(tmp_path / "one", lambda weights, _: bowl(weights, 0), steps=3).run()
    assert torch.equal(*(run.parameters["captioner.query_tokens"] for run in (both, one)))
    assert both.curves["generation_loss"].tolist() == [7.0] * 3


def good_until(step, then):
    """The bowl's losses, at `step` another's."""
    return lambda weights, now: then(weights) if now == step else bowl(weights, now)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_state(tmp_path, value):
    kept = toy(tmp_path, bowl).run(until=6)
    weights = kept.parameters["captioner.query_tokens"].detach().clone()
    with pytest.raises(Diverged) as error:
        toy(tmp_path, good_until(9, lambda weights: weights.sum() * value)).run()
    told = str(error.value)
    assert told.startswith(f"caption_loss is {value} at step 9 (lr 0.1): the finetuning diverged")
    assert f"the state of step 6 is kept in {tmp_path / 'state.safetensors'}" in told and "smaller lr" in told
    again = toy(tmp_path, bowl)
    assert again.step == 6 and torch.equal(again.parameters["captioner.query_tokens"], weights)
    again.run()
    assert torch.equal(
        again.parameters["captioner.query_tokens"],
        toy(tmp_path / "whole", bowl).run().parameters["captioner.query_tokens"],
    )


def test_a_gradient_that_is_no_number_never_enters_the_weights(tmp_path):
    """The root of zero is zero, and its slope is not."""
    toy(tmp_path, bowl).run(until=2)
    run = toy(tmp_path, good_until(4, lambda weights: (0 * weights).sum().sqrt()))
    with pytest.raises(Diverged, match="norm of the gradient is nan at step 4 .*the state of step 2 is kept"):
        run.run()
    assert run.parameters["captioner.query_tokens"].isfinite().all()


def test_a_loss_ten_times_the_first_ones_has_exploded(tmp_path):
    largest = max(bowl(torch.tensor([0.5, -0.25]), step).item() for step in range(3))

    def spike(height, at):
        return lambda weights, step: 0 * weights.sum() + (height if step == at else largest)

    assert toy(tmp_path / "high", spike(9.9 * largest, 15)).run().step == 20
    assert toy(tmp_path / "early", spike(50 * largest, 3)).run().step == 20  # nothing yet to compare it with
    with pytest.raises(Diverged, match=r"at step 15 \(lr 0.1\).*no state had been saved yet; run again"):
        toy(tmp_path / "exploded", spike(10.1 * largest, 15)).run()


# --- states that are none of this run's ---------------------------------------------------------------------
def test_the_state_of_another_run_is_refused_and_left_alone(tmp_path):
    state = toy(tmp_path, bowl, steps=2).run().state_file
    before = state.read_bytes()
    with pytest.raises(ValueError, match="state.safetensors is the checkpoint of another run.*choose another folder"):
        toy(tmp_path, bowl, steps=2, key={"run": "of another test"})
    assert state.read_bytes() == before


def flipped(whole):
    return whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]


@pytest.mark.parametrize("damage", [lambda whole: whole[:-3], flipped])
def test_a_damaged_state_is_named(tmp_path, damage):
    state = toy(tmp_path, bowl, steps=2).run().state_file
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(ValueError, match="state.safetensors is damaged .*remove it, and the run starts anew"):
        toy(tmp_path, bowl, steps=2)


# --- recipes ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"losses": ("caption_loss", "style_loss")}, "losses must name some of caption_loss, .*style_loss"),
        ({"steps": 0}, "steps 0, .*start at 1"),
        ({"lr": math.nan}, "lr nan, .*lr lies between 0 and 1"),
        ({"connect": "argmax"}, "connect is 'argmax': choose one of softmax, gumbel"),
        ({"way": "by turns"}, "way is 'by turns': choose one of joint, alternating"),
        ({"way": "alternating", "losses": LOSSES[1:]}, "losses leaves out caption_loss: name all four, or take the"),
    ],
)
def test_a_wrong_recipe_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        Recipe(**wrong)


# --- micro-batches: parts that add up to the whole, whoever made them ----------------------------------------


def test_a_micro_batch_weighs_as_much_as_it_has_terms():
    """Captions of 3, 5, 2 and 4 tokens, and their ends: 4 + 6 and 3 + 5 of 18 targets."""
    found = finetune.shares([3, 5, 2, 4], [slice(0, 2), slice(2, 4)], Economy())
    halves = dict.fromkeys(("image_reconstruction_loss", "generation_loss", "preference_loss"), 0.5)
    assert found == [
        {"caption_loss": 10 / 18, "text_reconstruction_loss": 10 / 18} | halves,
        {"caption_loss": 8 / 18, "text_reconstruction_loss": 8 / 18} | halves,
    ]


def test_with_a_share_the_reconstructed_rows_alone_weigh():
    """Of three rows and a share of a half, two: the first of images, the last of texts."""
    found = finetune.shares([3, 5, 2, 4], [slice(0, 3), slice(3, 4)], Economy(share=0.5))
    assert [part["image_reconstruction_loss"] for part in found] == [2 / 3, 1 / 3]
    assert [part["generation_loss"] for part in found] == [3 / 4, 1 / 4]
    assert [part["text_reconstruction_loss"] for part in found] == [(6 + 3) / 14, 5 / 14]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_sum_is_that_of_one_order_whoever_made_its_parts(processes):
    """1e8 swallows a 1 that comes after it, so another order is another sum; a parameter that none reached is left."""
    gradients, count = [1e8, 1.0, -1e8, 1.0], 4
    weight, idle = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2, 2))
    rows = []
    for rank in range(processes):
        world = SimpleNamespace(num_processes=processes, process_index=rank, gather=lambda row: rows.append(row))
        part = finetune.Sum(world, count, ["a", "b"], [weight, idle])
        for k in part.mine:
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
