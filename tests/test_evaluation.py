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


@pytest.fixture
def trials(finetuner, trained, models, examples):
    """Of the captioner before, and of two trainings that left the generator alone."""
    everything = data.load(models, "nocaps", "overall")
    made = evaluation.Trials(finetuner, everything, examples, num_drawn=2, seed=1)
    made.profiles["before"] = [models]
    made.add({"after": [trained, trained]})
    return made


def test_values_are_those_of_what_is_said(trials, game, models, examples):
    rows = [[text] for text in game.describe(examples, num_beams=3)]
    scores = Scorer(models, game.store, data.load(models, "nocaps", "overall")).score(examples, rows, ["CIDEr"])
    np.testing.assert_array_equal(trials.values("before", "CIDEr")[0], scores["CIDEr"][:, 0])
    counts = ngrams.bleu_statistics(rows, [e.references for e in examples])[:, 0]
    np.testing.assert_array_equal(trials.values("before", "B@4")[0], counts)


def test_values_of_drawings_are_those_of_one_reference_each(trials, game, examples):
    (run,) = trials.drawn("before")
    assert [text for (text,) in run.captions] == game.t2i2t(examples[:2], 1, seed=1).captions
    clip = game.encoder("clip")
    originals = clip.embed([data.read_image(example.path) for example in examples[:2]])
    hats = clip.embed(np.concatenate([run.load_images(k) for k in range(2)]))
    np.testing.assert_allclose(
        trials.values("before", "CLIP")[0], 1 - similarity.cosine(originals, hats[:, None])[:, 0], atol=1e-6
    )
    assert trials.values("before", "FID").shape == (1, 2, 192)


def test_a_captioner_that_was_trained_leaves_the_drawings_shared(trials, finetuner, trained, models):
    own = Game(trained.profile, RunStore(finetuner.store.root), progress=False, judges=finetuner)
    assert own.encoder("clip") is finetuner.encoder("clip") and own.extractor() is finetuner.extractor()
    before, after = (trials.values(method, "CLIP") for method in ("before", "after"))
    np.testing.assert_array_equal(before[0], after[1])
    assert trials.change("FID", "after", "before").value == 0
    with pytest.raises(ValueError, match="another dino_size"):
        Game(replace(models, dino_size=32), finetuner.store, judges=finetuner)


def test_validation_losses_are_those_of_the_plain_pair(finetuner, models, lessons):
    losses = evaluation.held_out(finetuner, [models], lessons, seed=3)
    model, pipeline = captioner.load(models), finetuned.load_pipeline(models)
    pair = TalkingPair(model, pipeline, finetuner.vocabulary_map)
    latents = pairs.latents(finetuner, pipeline, lessons)
    taught = pairs.Pairs(model, pipeline, lessons, latents, batch_size=8, seed=3)
    with torch.no_grad():
        slow = [pair(taught.batch(step)) for step in (0, 1)]
    for name in LOSSES:
        np.testing.assert_allclose(losses[name], [[one[name].item() for one in slow]], rtol=1e-5)


def test_trials_of_a_domain_and_of_each_seed(trials, examples):
    cider = trials.values("after", "CIDEr")
    assert cider.shape == (2, 4)
    assert trials.level("after", "CIDEr").value == pytest.approx(cider.mean())
    assert trials.by_seed("after", "CIDEr") == pytest.approx(cider.mean(axis=1))
    part = trials.within(examples[1].domain)
    kept = [example.domain == examples[1].domain for example in examples]
    np.testing.assert_array_equal(part.values("after", "CIDEr"), cider[:, kept])
    assert trials.values("after", "CIDEr").shape == cider.shape


def test_an_image_without_references_is_said_before_a_model_is_loaded(finetuner, models, examples, monkeypatch):
    monkeypatch.setattr(captioner, "load", lambda profile: pytest.fail("a model was loaded"))
    trials = evaluation.Trials(finetuner, examples, [replace(examples[0], references=())], num_drawn=1)
    with pytest.raises(ValueError, match="has no references"):
        trials.drawn("before")


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
