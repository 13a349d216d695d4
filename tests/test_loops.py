"""The games through the store: resume, no model work on a second run, independence of the run's size."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dfl_utils.game.loops import Game
from dfl_utils.models import fidelity, workshop
from dfl_utils.store import blocks
from dfl_utils.store.store import RunStore
from dfl_utils.world import data, profile


@pytest.fixture(scope="module")
def mini():
    models = profile.load("mini", num_inference_steps=2)
    data.ensure(models)
    return models


@pytest.fixture(scope="module", autouse=True)
def shards_of_four():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "SHARD_IMAGES", 4)
        yield


@pytest.fixture(scope="module")
def examples(mini):
    return data.subset(data.load(mini, "nocaps", "overall"), 6, seed=0)  # two shards


@pytest.fixture(scope="module")
def hall(mini, tmp_path_factory):
    """The game whose loaded models all others borrow."""
    return Game(mini, RunStore(tmp_path_factory.mktemp("hall")), progress=False)


@pytest.fixture
def game(hall, tmp_path):
    """A game of an empty store."""
    return borrow(hall, tmp_path)


def borrow(hall, root, models=None):
    game = Game(models or hall.profile, RunStore(root), progress=False)
    assert hall.captioner and hall.generator and hall.extractor()  # loaded
    game._loaded = hall._loaded
    return game


@pytest.fixture(scope="module")
def played(hall, examples):
    run = hall.i2t2i(examples, 2)
    other = hall.t2i2t(examples[:3], 2)
    return run, other


class Idle(Game):
    """A game whose models may not be touched."""

    captioner = generator = extractor = property(lambda self: pytest.fail("a model was loaded"))

    def encoder(self, name):
        pytest.fail("an encoder was loaded")


def test_a_second_run_does_no_model_work(played, hall, mini, examples):
    run, other = played
    captions = [list(row) for row in run.captions]
    first = [hall.describe(examples), hall.log_likelihood(examples, captions), hall.original_features(examples)]
    first += [run.drawings.features(), other.drawings.features()]
    store = RunStore(hall.store.root)
    idle = Idle(mini, store, progress=False)
    again, other_again = idle.i2t2i(examples, 2), idle.t2i2t(examples[:3], 2)
    assert again.captions == run.captions and other_again.captions_hat == other.captions_hat
    for name, sim in run.sim_image.items():
        np.testing.assert_array_equal(again.sim_image[name], sim)
        np.testing.assert_array_equal(other_again.sim_image[name], other.sim_image[name])
    run.load_images(3)  # what a page shows is kept by itself
    np.testing.assert_array_equal(again.load_images(3), run.load_images(3))
    assert store.spent["images"].calls == 12 + 6 and store.spent["captions"].calls == 12  # the first run's cost
    second = [idle.describe(examples), idle.log_likelihood(examples, captions), idle.original_features(examples)]
    second += [again.drawings.features(), other_again.drawings.features()]
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before, after)
    assert all(spent.made == 0 for spent in store.spent.values())


def test_an_image_scores_the_same_in_a_smaller_subset(played, game, examples):
    run, other = played
    small = game.i2t2i(examples[:3], 2)
    assert small.captions == run.captions[:3]
    np.testing.assert_allclose(small.sim_image["dino"], run.sim_image["dino"][:3], atol=2e-2)
    assert game.t2i2t(examples[1:3], 1).captions == other.captions[1:]


def test_more_candidates_start_from_the_shards_of_ten(game, examples):
    few = game.i2t2i(examples[:1], 10)
    many = game.i2t2i(examples[:1], 12)
    assert [row[:10] for row in many.captions] == few.captions
    np.testing.assert_array_equal(many.sim_image["clip"][:, :10], few.sim_image["clip"])
    assert many.load_images(0).shape[0] == 12
    np.testing.assert_array_equal(many.load_images(0)[:10], few.load_images(0))
    for kind in ("captions", "images", "clip-similarity"):
        assert game.store.spent[kind].made == 2  # ten candidates and two
    assert game.store.spent["images"].calls == 12 and game.store.spent["clip-originals"].made == 1


def test_t2i2t_draws_one_reference_and_reads_every_drawing(played, hall, examples):
    run, other = played
    assert all(text in example.references for text, example in zip(other.captions, examples[:3], strict=True))
    images = other.load_images(2)
    assert images.shape == (2, 64, 64, 3)
    assert other.captions_hat[2] == hall.captioner.describe([Image.fromarray(image) for image in images])
    assert not np.array_equal(
        images, hall.reconstruct(examples[:3], [[text] * 2 for text in other.captions]).load_images(2)
    )


def test_shared_noise_leaves_the_words_to_differ(hall, examples):
    texts = [["a red dog", "a red dog", "a cup"]]
    own, shared = (hall.reconstruct(examples[:1], texts, similarities=["clip"], shared_noise=s) for s in (False, True))
    np.testing.assert_allclose(shared.sim_image["clip"][0, :2], own.sim_image["clip"][0, 0], atol=1e-4)
    assert np.ptp(own.sim_image["clip"][0, :2]) > 1e-3 and np.ptp(shared.sim_image["clip"]) > 1e-3


def test_descriptions_and_likelihoods_are_the_captioners(played, hall, examples):
    images = [data.read_image(example.path) for example in examples[4:]]
    assert hall.describe(examples, 2)[4:] == hall.captioner.describe(images, num_beams=2)
    captions = [[example.references[0], "a red dog", ""] for example in examples]
    found = hall.log_likelihood(examples, captions)
    assert found.shape == (6, 3) and (found < 0).all()
    np.testing.assert_allclose(found[4:], hall.captioner.log_likelihood(images, captions[4:]), atol=1e-5)
    assert found[:, 0].mean() > found[:, 1].mean()  # what people wrote of the image, and what nobody did


def test_features_are_the_extractors(played, hall, examples):
    run, _ = played
    drawn, original = run.drawings.features(), hall.original_features(examples)
    assert drawn.shape == (6, 2, original.shape[1]) and original.shape[0] == 6
    assert fidelity.split(drawn, hall.profile).pooled.shape[:2] == (6, 2)
    np.testing.assert_allclose(drawn[5], hall.extractor().features(run.load_images(5)), atol=1e-3)
    image = data.read_image(examples[5].path)
    np.testing.assert_allclose(original[5:], hall.extractor().features([image]), atol=1e-3)
    of_photographs = hall.original_features(examples, "efficientnet")
    assert of_photographs.shape == (6, 1280) and run.drawings.features("efficientnet").shape == (6, 2, 1280)
    unit = of_photographs[5] / np.linalg.norm(of_photographs[5])
    np.testing.assert_allclose(unit, hall.encoder("efficientnet").embed([image])[0], atol=1e-5)
    with pytest.raises(ValueError, match="by='clip' is no extractor: None takes the profile's own"):
        hall.original_features(examples, "clip")


def test_a_folder_that_is_written_anew_is_another_model_at_once(mini, tmp_path, monkeypatch):
    """As in a notebook that stays open: neither an old key nor an old model answers for the new files."""
    folder = shutil.copytree(mini.clip, tmp_path / "clip")
    game = Game(replace(mini, clip=str(folder)), RunStore(tmp_path / "store"), progress=False)
    key, model = game.encoder_key("clip"), game.encoder("clip")
    assert game.encoder("clip") is model
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert game.encoder_key("clip")["checkpoint"] != key["checkpoint"] and game.encoder("clip") is not model


def test_bad_games_are_refused_before_any_work(mini, examples, tmp_path):
    game = Idle(mini, RunStore(tmp_path), progress=False)
    with pytest.raises(ValueError, match="not 0 images x 3 candidates"):
        game.sample_captions([], 3)
    with pytest.raises(ValueError, match="log_likelihood takes the same number.*lengths \\[1, 2\\]"):
        game.log_likelihood(examples[:2], [["a"], ["a", "b"]])
    bare = [examples[0], replace(examples[1], references=())]
    with pytest.raises(ValueError, match=f"Image {examples[1].image_id} has no references, and one is drawn"):
        game.t2i2t(bare, 2)
    lost = [examples[0], replace(examples[1], path=tmp_path / "lost.png")]
    for play in (game.sample_captions, game.describe, game.t2i2t, game.original_features):
        with pytest.raises(FileNotFoundError, match="lost.png is missing"):
            play(lost)
    assert not list(tmp_path.iterdir())


def test_an_unusual_type_or_scheduler_is_part_of_a_key(hall, mini):
    """And the usual one is not: so shards of the small profile stay where they are."""

    def keys(**changes):
        shop = workshop.Workshop(replace(mini, **changes), hall.store, progress=False)
        return [shop.made_by(role) for role in ("captioner", "generator", "clip")]

    usual, half, other = keys(), keys(dtype="float16"), keys(scheduler="DDIMScheduler")
    assert all("dtype" not in key and "scheduler" not in key for key in usual)
    assert half == [usual[0] | {"dtype": "float16"}, usual[1] | {"dtype": "float16"}, usual[2]]
    assert other == [usual[0], usual[1] | {"scheduler": "DDIMScheduler"}, usual[2]]
