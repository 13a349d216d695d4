"""What the finetuning's tables measure, and one joint step taken apart: equal to the parts that they are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dfl_utils.game.loops import Game
from dfl_utils.game.scorer import Scorer
from dfl_utils.models import captioner, similarity
from dfl_utils.scores import ngrams
from dfl_utils.store.store import RunStore
from dfl_utils.training import anatomy, evaluation, finetune, finetuned, pairs
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import LOSSES, WAYS, TalkingPair
from dfl_utils.world import data, profile


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
def trained(finetuner):
    """The captioner alone, one large step."""
    recipe = finetune.Recipe(losses=("caption_loss",), train=("captioner",), steps=1, lr=1e-2, batch_size=4)
    return finetuner.run([recipe])[0]


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
    assert own.encoder("clip") is game.encoder("clip") and own.extractor() is game.extractor()
    before, after = (evaluation.image_scores(each, examples, seed=1) for each in (game, own))
    assert "images" not in own.store.spent or own.store.spent["images"].made == 0
    np.testing.assert_array_equal(before.clip, after.clip)
    with pytest.raises(ValueError, match="another dino_size"):
        Game(replace(models, dino_size=32), game.store, judges=game)


def test_validation_losses_are_those_of_the_plain_pair(finetuner, models, lessons):
    losses = evaluation.validation_losses(finetuner, models, lessons, seed=3)
    model, pipeline = captioner.load(models), finetuned.load_pipeline(models)
    pair = TalkingPair(model, pipeline, finetuner.vocabulary_map)
    latents = pairs.latents(finetuner, pipeline, lessons)
    taught = pairs.Pairs(model, pipeline, lessons, latents, batch_size=8, seed=3)
    with torch.no_grad():
        slow = [pair(taught.batch(step)) for step in (0, 1)]
    assert tuple(losses) == LOSSES
    for name, values in losses.items():
        np.testing.assert_allclose(values, [one[name].item() for one in slow], rtol=1e-5)


def test_trials_are_what_each_training_says_and_draws(finetuner, trained, models, examples, game):
    everything = data.load(models, "nocaps", "overall")
    options = {"num_drawn": 2, "metrics": ("CIDEr",), "seed": 1}
    trials = evaluation.Trials(finetuner, everything, examples, **options)
    trials.profiles["before"] = [models]
    trials.add({"after": [trained, trained]})
    cider, clip = (trials.values("after", metric) for metric in ("CIDEr", "CLIP"))
    rows = [[text] for text in game.describe(examples, num_beams=3)]
    scores = Scorer(models, game.store, everything).score(examples, rows, ["CIDEr"])["CIDEr"][:, 0]
    np.testing.assert_array_equal(trials.values("before", "CIDEr")[0], scores)
    counts = ngrams.bleu_statistics(rows, [e.references for e in examples])[:, 0]
    np.testing.assert_array_equal(trials.values("before", "B@4")[0], counts)
    np.testing.assert_array_equal(clip[0], evaluation.image_scores(game, examples[:2], seed=1).clip)
    assert cider.shape == (2, 4)
    assert trials.level("after", "CIDEr").value == pytest.approx(cider.mean())
    assert trials.change("FID", "after", "before").value == 0  # the generator was left alone
    assert trials.by_seed("after", "CIDEr") == pytest.approx(cider.mean(axis=1))
    part = trials.within(examples[1].domain)
    kept = [example.domain == examples[1].domain for example in examples]
    np.testing.assert_array_equal(part.values("after", "CIDEr"), cider[:, kept])
    assert trials.values("after", "CIDEr").shape == cider.shape


def test_an_image_without_references_is_said_before_a_model_is_loaded(game, examples, monkeypatch):
    monkeypatch.setattr(captioner, "load", lambda profile: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="has no references"):
        evaluation.image_scores(game, [replace(examples[0], references=())])


# --- one joint step taken apart ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def recipe():
    return finetune.Recipe(steps=1, batch_size=3)


@pytest.fixture(scope="module")
def pair(finetuner, recipe):
    return finetuner.pair(recipe)


@pytest.fixture(scope="module")
def found(finetuner, recipe):
    return anatomy.dissect(finetuner, recipe)


def test_the_walk_is_the_step_that_is_trained(pair, found, finetuner, recipe):
    batch = finetuner.pairs(*pair, recipe).batch(0)
    tensors, words = anatomy.walk(pair[0], batch)
    targets = batch.caption.targets
    slow = {
        "caption_loss": F.cross_entropy(tensors["logits"], targets),
        "image_reconstruction_loss": F.mse_loss(tensors["noise prediction"], batch.noise),
        "generation_loss": F.mse_loss(tensors["noise prediction of the caption"], batch.noise),
        "text_reconstruction_loss": F.cross_entropy(tensors["logits of the decoded image"], targets),
    }
    with torch.no_grad():
        whole = pair[0](batch)
    for name in LOSSES:
        assert slow[name].item() == pytest.approx(whole[name].item(), rel=1e-4)
        assert found.losses[name] == pytest.approx(whole[name].item(), rel=1e-4)
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert found.told == words and len(words.split()) > 2


def test_each_loss_reaches_what_appendix_h_says(found):
    assert found.reaches() == anatomy.REACHES
    assert found.gradients["caption_loss"]["generator"] == found.gradients["generation_loss"]["captioner"] == 0
    assert all(count > 0 for count in found.trained.values())


# --- what the captioner is shown in each way -----------------------------------------------------------------
def test_a_norm_is_that_of_the_gradient_that_a_step_of_the_way_leaves(finetuner):
    ways = anatomy.compare_ways(finetuner, (0, 999), 2, seed=5)
    for way in WAYS:
        pair, batch = anatomy.one_batch(finetuner, finetune.Recipe(batch_size=2, seed=5, way=way))
        weights = finetune.unfreeze(pair, ("generator",)).values()
        one = replace(batch.rows(slice(1, 2)), timesteps=torch.tensor([999]))
        for name in WAYS["alternating"][0]:
            loss = pair(one)[name]
            loss.backward()
            norm = torch.cat([weight.grad.flatten() for weight in weights]).norm().item()
            # At t = 999 the one-step image divides by a small number, and with it what a batch of another size rounds.
            assert ways.norms[way][name][1, 1] == pytest.approx(norm, rel=1e-3)
            assert ways.losses[way][name][1, 1] == pytest.approx(loss.item(), rel=1e-4)
            pair.zero_grad(set_to_none=True)
