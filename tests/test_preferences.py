"""A captioner that learns from preferences: the loss by hand, whom it favours, and what it is given."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfl_utils.game import self_training
from dfl_utils.game.loops import Game
from dfl_utils.store.store import RunStore
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import PREFERENCE
from dfl_utils.world import data
from dfl_utils.world.data import Example

RECIPE = Recipe(losses=(PREFERENCE,), train=("captioner",), steps=6, lr=3e-4, batch_size=2, decoder="tiny", beta=0.5)
CHOICES = [("a red dog", "two blue cats on a hill"), ("a green car", "a car"), ("a fish", "a fish beside a tree")]


@pytest.fixture(scope="module")
def told(mini, tmp_path_factory):
    """Three images, each with a caption that is liked and one that is liked less."""
    originals = data.load(mini, "coco", "val")[:3]
    examples = [replace(one, references=pair) for one, pair in zip(originals, CHOICES, strict=True)]
    return Finetuner(mini, RunStore(tmp_path_factory.mktemp("store")), examples, progress=False)


def log_likelihood(finetuner, models):
    captions = [list(one.references) for one in finetuner.examples]
    game = Game(models, finetuner.store, progress=False)
    return game.log_likelihood(finetuner.examples, captions, summed=True)


def test_the_loss_is_that_of_the_definition(told):
    pair, pipeline = told.pair(RECIPE)
    batch = told.pairs(pair, pipeline, RECIPE).batch(0)
    assert pair(batch)[PREFERENCE].item() == pytest.approx(math.log(2), abs=1e-5)  # nothing has moved
    better, worse = log_likelihood(told, told.profile).T
    shifted = replace(batch, margin=batch.margin - 3.0)  # as if 3 nats had been won
    assert pair(shifted)[PREFERENCE].item() == pytest.approx(math.log(1 + math.exp(-0.5 * 3)), abs=1e-5)
    by_image = dict(zip([one.references[0] for one in told.examples], better - worse, strict=True))
    drawn = [told.pairs(pair, pipeline, RECIPE)._drawn(0)[1][k].references[0] for k in range(2)]
    np.testing.assert_allclose(batch.margin, [by_image[text] for text in drawn], atol=1e-5)


def test_a_part_of_a_batch_has_its_own_pairs(told):
    pair, pipeline = told.pair(RECIPE)
    lessons = told.pairs(pair, pipeline, RECIPE)
    whole = pair(lessons.batch(1))[PREFERENCE]
    parts = [pair(lessons.batch(1, rows))[PREFERENCE] for rows in (slice(0, 1), slice(1, 2))]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), abs=1e-5)
    cut = pair(lessons.batch(1).rows(slice(1, 2)))[PREFERENCE]
    assert cut.item() == pytest.approx(parts[1].item(), abs=1e-5)


def test_training_widens_the_preference(told):
    (done,) = told.run([RECIPE])
    before, after = (log_likelihood(told, models) for models in (told.profile, done.profile))
    won = (after[:, 0] - after[:, 1]) - (before[:, 0] - before[:, 1])
    assert won.sum() > 1.0
    assert done.losses[PREFERENCE][0] == pytest.approx(math.log(2), abs=1e-5)
    assert done.losses[PREFERENCE][-1] < done.losses[PREFERENCE][0]


def test_it_is_refused_beside_other_losses_and_without_pairs(told):
    with pytest.raises(ValueError, match="teaches the captioner alone"):
        Recipe(losses=(PREFERENCE, "caption_loss"), train=("captioner",))
    with pytest.raises(ValueError, match="beta 0: .*above 0"):
        replace(RECIPE, beta=0)
    with pytest.raises(ValueError, match="has not two captions"):
        told.on([replace(told.examples[0], references=("a dog",))]).run([RECIPE])


def test_the_first_and_the_last_of_a_ranking_are_told():
    examples = [Example(k, Path(f"{k}.png"), ("people's",)) for k in range(3)]
    captions = [["a", "b", "c"], ["d", " d", "e"], ["g", "h", ""]]
    sim = np.array([[0.1, 0.9, 0.5], [0.9, 0.2, 0.5], [0.3, 0.1, 0.2]])
    assert [one.references for one in self_training.preferences(examples, captions, sim)] == [("b", "a"), ("g", "h")]
    with pytest.raises(ValueError, match="No image has two candidates that differ"):
        self_training.preferences(examples[:1], [["a", "a", "a"]], sim[:1])
