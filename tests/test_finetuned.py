"""What finetuning leaves: runs of the store that are found again, and folders that the libraries load."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import plain_map
from diffusers import StableDiffusionPipeline
from transformers import AutoProcessor, BlipForConditionalGeneration

from dfl_utils.models import captioner as captioners
from dfl_utils.models.generator import Generator
from dfl_utils.models.workshop import Workshop
from dfl_utils.store import provenance
from dfl_utils.store.store import RunStore
from dfl_utils.training import finetuned
from dfl_utils.training.finetune import Finetuning, Recipe
from dfl_utils.training.finetuned import Finetuner, load_pipeline
from dfl_utils.world import data

JOINT = Recipe(steps=2, batch_size=2, lr=1e-2, decoder="tiny")
ALONE = Recipe(("generation_loss",), ("generator",), steps=2, batch_size=2, lr=1e-2)


@pytest.fixture(scope="module")
def examples(mini):
    return data.subset(data.load(mini, "coco", "val"), 6, seed=0)


@pytest.fixture(scope="module")
def make(mini, examples):
    vocabulary_map = plain_map(captioners.load(mini), load_pipeline(mini))

    def finetuner(root, models=mini, chosen=examples):
        found = Finetuner(models, RunStore(root), chosen, progress=False)
        found.vocabulary_map = vocabulary_map
        return found

    return finetuner


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def base_hashes(mini):
    return [provenance.files_hash(Path(folder)) for folder in (mini.captioner, mini.generator, mini.tiny_decoder)]


@pytest.fixture(scope="module")
def runs(make, root, mini):
    before = base_hashes(mini)
    found = make(root).run([JOINT, ALONE])
    assert base_hashes(mini) == before  # what was trained is a copy
    return found


def located(run, role):
    """The folder of a role, written if it was not there."""
    return run.profile.provide(getattr(run.profile, role))


# --- folders ----------------------------------------------------------------------------------------------
def weights(content, role):
    """Trained weights of a shard, by their names in the model."""
    prefix = f"weight.{role}."
    return {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def contents(make, root, runs):
    """The two runs' shards."""
    finetuner = make(root)
    jobs = [finetuner._job(run.recipe) for run in runs]
    return [finetuner.store.get(job.kind, job.key, job.make) for job in jobs]


def assert_moved(after, before, trained):
    """Of the weights of two models, `trained` are other ones and as they were trained, the rest the same."""
    assert after.keys() == before.keys()
    for name, value in after.items():
        if name in trained:
            np.testing.assert_array_equal(value, trained[name])
        assert torch.equal(value, before[name]) == (name not in trained)


def test_the_captioners_folder_loads_in_transformers(runs, contents, mini):
    places = located(runs[0], "captioner"), mini.captioner
    options = {"local_files_only": True, "dtype": torch.float32}
    model, base = (BlipForConditionalGeneration.from_pretrained(place, **options) for place in places)
    trained = weights(contents[0], "captioner")
    assert len(trained) == 6
    assert_moved(model.state_dict(), base.state_dict(), trained)
    processors = [AutoProcessor.from_pretrained(place, local_files_only=True) for place in places]
    texts = [processor(text="a picture of a red key").input_ids for processor in processors]
    assert texts[0] == texts[1]


def test_the_generators_folder_loads_in_diffusers(runs, contents, mini):
    places = located(runs[0], "generator"), mini.generator
    options = {"local_files_only": True, "dtype": torch.float32}
    pipeline, base = (StableDiffusionPipeline.from_pretrained(place, **options) for place in places)
    trained = weights(contents[0], "generator")
    assert len(trained) == 4
    assert_moved(pipeline.unet.state_dict(), base.unet.state_dict(), trained)
    for part in ("vae", "text_encoder"):
        assert_moved(getattr(pipeline, part).state_dict(), getattr(base, part).state_dict(), {})
    models = replace(runs[0].profile, num_inference_steps=1)  # and the game loads both
    assert captioners.load(models).describe([Generator.load(models).draw(["a red key"], [0])[0]], num_beams=1)


# --- the store --------------------------------------------------------------------------------------------
def test_what_was_trained_is_not_trained_again(runs, make, root, mini, monkeypatch):
    monkeypatch.setattr(finetuned, "Finetuning", lambda *_, **__: pytest.fail("a model was trained"))
    monkeypatch.setattr(finetuned, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    finetuner = make(root)
    twin = replace(ALONE, train=("generator",), losses=("generation_loss",))
    again = finetuner.run([twin, JOINT])
    assert finetuner.store.spent["finetuning"].made == 0
    assert [run.profile for run in again] == [runs[1].profile, runs[0].profile]
    assert again[0].profile.captioner == mini.captioner != again[1].profile.captioner  # alone, it was not trained
    for run, recipe in zip(again, (twin, JOINT), strict=True):
        assert run.recipe == recipe and run.seconds > 0 and list(run.losses) == list(recipe.losses)
        assert all(curve.shape == (2,) and np.isfinite(curve).all() for curve in run.losses.values())
    np.testing.assert_array_equal(again[1].losses["caption_loss"], runs[0].losses["caption_loss"])


def test_losses_that_travelled_name_what_was_trained_and_weights_are_trained_again_where_they_are_asked_for(
    runs, make, root, tmp_path, monkeypatch
):
    """As in a clone: of a run it finds the losses and the digests, and not the weights."""
    elsewhere = make(tmp_path / "clone")
    for job in map(elsewhere._job, (JOINT, ALONE)):
        losses = elsewhere._curves(job)
        places = [finetuner.store.path(losses.kind, losses.key) for finetuner in (make(root), elsewhere)]
        shutil.copy(*places)
    with monkeypatch.context() as patch:
        patch.setattr(finetuned, "Finetuning", lambda *_, **__: pytest.fail("a model was trained"))
        again = elsewhere.run([JOINT, ALONE])
        keys = [Workshop(run.profile, elsewhere.store, progress=False).captioner_key() for run in (*runs, *again)]
        assert keys[:2] == keys[2:] and keys[0] != keys[1]
        assert all(np.isnan(run.seconds) for run in again)  # the published run's index would know
        with pytest.raises(pytest.fail.Exception):
            again[1].profile.provide(again[1].profile.generator)
    folder = Path(located(again[1], "generator"))
    assert provenance.files_hash(folder) == provenance.files_hash(Path(located(runs[1], "generator")))


class Interrupted(Exception):
    pass


def test_a_run_that_broke_off_is_taken_up_by_the_store(runs, make, tmp_path, monkeypatch):
    run = Finetuning.run

    def broken(self, until=None):
        run(self, until=1)
        raise Interrupted

    finetuner = make(tmp_path)
    monkeypatch.setattr(Finetuning, "run", broken)
    with pytest.raises(Interrupted):
        finetuner.run([ALONE])
    monkeypatch.setattr(Finetuning, "run", run)
    steps = []
    batch = finetuned.pairs.Pairs.batch
    monkeypatch.setattr(finetuned.pairs.Pairs, "batch", lambda self, step: steps.append(step) or batch(self, step))
    found = make(tmp_path).run([ALONE])[0]
    assert steps == [1] and not list(tmp_path.glob("*.training"))
    for name, curve in runs[1].losses.items():
        np.testing.assert_array_equal(found.losses[name], curve)
    folders = [Path(located(run, "generator")) for run in (found, runs[1])]
    assert provenance.files_hash(folders[0]) == provenance.files_hash(folders[1])


# --- bad input --------------------------------------------------------------------------------------------
def test_captions_are_checked_before_a_step_is_made(make, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuned, "Finetuning", lambda *_, **__: pytest.fail("a model was trained"))
    long = replace(examples[2], references=("key, " * 15 + "key",))  # 31 tokens, and the ends
    with pytest.raises(ValueError, match=f"Image {long.image_id} has a caption of 33 tokens, .* reads 32"):
        make(tmp_path, chosen=[*examples[:2], long]).run([ALONE])
    assert not list(tmp_path.glob("latents-*"))


def test_models_that_cannot_be_finetuned_are_refused(make, mini, tmp_path):
    with pytest.raises(
        ValueError, match="Profile 'mini' has no tiny decoder: set its field `tiny_decoder`, or choose vae"
    ):
        make(tmp_path, replace(mini, tiny_decoder=None)).run([JOINT])
    with pytest.raises(ValueError, match="amused is a AmusedPipeline, and the finetuning needs a StableDiffusion"):
        load_pipeline(mini.pair(generator="amused"))
