"""What the finetuning's tables measure: equal to the parts it is made of, shared between pairs, kept in the store."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dfl_utils.game.loops import Game
from dfl_utils.game.scorer import Scorer
from dfl_utils.models import captioner, similarity
from dfl_utils.scores import ngrams
from dfl_utils.store.store import RunStore
from dfl_utils.training import evaluation, finetune, finetuned, pairs
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import LOSSES, TalkingPair
from dfl_utils.world import data, profile

METRICS = ("CIDEr", "SBERT")


@pytest.fixture(scope="module")
def models():
    models = profile.load("mini", num_inference_steps=2).pair(captioner="blip-base")
    data.ensure(models)
    return models


@pytest.fixture(scope="module")
def examples(models):
    return data.subset(data.load(models, "nocaps", "overall"), 4, seed=0)


@pytest.fixture(scope="module")
def lessons(models):
    return data.subset(data.load(models, "coco", "val"), 9, seed=0)  # a batch of eight and one of one


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def game(models, store):
    return Game(models, store, progress=False)


@pytest.fixture(scope="module")
def finetuner(models, store, lessons):
    return Finetuner(models, store, lessons, progress=False)


@pytest.fixture(scope="module")
def losses(finetuner, models, lessons):
    return evaluation.validation_losses(finetuner, models, lessons, seed=3)


@pytest.fixture(scope="module")
def trained(finetuner):
    """The captioner alone, one large step."""
    recipe = finetune.Recipe(losses=("caption_loss",), train=("captioner",), steps=1, lr=1e-2, batch_size=4)
    return finetuner.run([recipe])[0]


def test_caption_scores_are_those_of_beam_search(game, models, store, examples):
    scorer = Scorer(models, store, examples)
    found = evaluation.caption_scores(game, scorer, examples, METRICS)
    assert found.captions == game.describe(examples, num_beams=3)
    rows = [[text] for text in found.captions]
    assert tuple(found.scores) == METRICS
    for metric, values in scorer.score(examples, rows, METRICS).items():
        np.testing.assert_array_equal(found.scores[metric], values[:, 0])
    totals = ngrams.corpus_bleu(found.bleu.sum(axis=0))
    own = ngrams.bleu(found.captions, [example.references for example in examples])
    assert totals == pytest.approx(list(own.values()))


def test_image_scores_are_a_distance_to_the_original_whatever_the_subset(game, examples):
    found = evaluation.image_scores(game, examples, seed=1)
    assert all(text in example.references for text, example in zip(found.captions, examples, strict=True))
    assert found.captions == game.t2i2t(examples, 1, seed=1).captions
    clip = game.encoder("clip")
    originals = clip.embed([data.read_image(example.path) for example in examples])
    hats = clip.embed(np.concatenate([found.run.load_images(k) for k in range(len(examples))]))
    np.testing.assert_allclose(found.clip, 1 - similarity.cosine(originals, hats[:, None])[:, 0], atol=1e-6)
    assert found.features.shape == found.original_features.shape == (4, 192)
    assert not np.allclose(found.features, found.original_features)
    few = evaluation.image_scores(game, examples[2:], seed=1)
    assert few.captions == found.captions[2:]
    np.testing.assert_allclose(few.clip, found.clip[2:], atol=2e-2)


def test_a_captioner_that_was_trained_leaves_the_drawings_shared(game, trained, models, examples):
    own = Game(trained.profile, RunStore(game.store.root), progress=False, judges=game)
    assert own.encoder("clip") is game.encoder("clip") and own.extractor is game.extractor
    before, after = (evaluation.image_scores(each, examples, seed=1) for each in (game, own))
    assert "images" not in own.store.spent or own.store.spent["images"].made == 0
    np.testing.assert_array_equal(before.clip, after.clip)
    with pytest.raises(ValueError, match="another dino_size"):
        Game(replace(models, dino_size=32), game.store, judges=game)


def test_validation_losses_are_those_of_the_plain_pair(losses, finetuner, models, lessons):
    model, pipeline = captioner.load(models), finetuned.load_pipeline(models)
    pair = TalkingPair(model, pipeline, finetuner.vocabulary_map)
    latents = pairs.latents(finetuner, pipeline, lessons)
    taught = pairs.Pairs(model, pipeline, lessons, latents, batch_size=8, seed=3)
    with torch.no_grad():
        slow = [pair(taught.batch(step)) for step in (0, 1)]
    assert tuple(losses) == LOSSES
    for name, values in losses.items():
        np.testing.assert_allclose(values, [one[name].item() for one in slow], rtol=1e-5)


def test_validation_losses_are_computed_once_and_see_the_weights(
    losses, finetuner, models, lessons, trained, monkeypatch
):
    other = evaluation.validation_losses(finetuner, trained.profile, lessons, seed=3)
    assert abs(other["caption_loss"] - losses["caption_loss"]).min() > 1e-3
    np.testing.assert_array_equal(other["generation_loss"], losses["generation_loss"])  # the generator is the same
    monkeypatch.setattr(captioner, "load", lambda profile: pytest.fail("a model was loaded"))
    again = evaluation.validation_losses(finetuner, models, lessons, seed=3)
    for name, values in losses.items():
        np.testing.assert_array_equal(again[name], values)


def test_bad_input_is_said_before_a_model_is_loaded(game, finetuner, models, examples, monkeypatch):
    monkeypatch.setattr(captioner, "load", lambda profile: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="has no references"):
        evaluation.image_scores(game, [replace(examples[0], references=())])
    with pytest.raises(ValueError, match="SEED is -1"):
        evaluation.image_scores(game, examples, seed=-1)
    with pytest.raises(ValueError, match="NUM_VAL_IMAGES"):
        evaluation.validation_losses(finetuner, models, [])
