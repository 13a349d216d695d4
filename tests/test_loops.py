"""The game through the store: resume, no model work on a second run, independence of the subset's size."""

import numpy as np
import pytest

from dfl_utils import data, loops, profile, scores
from dfl_utils.loops import Game
from dfl_utils.store import RunStore


@pytest.fixture(scope="module")
def mini():
    models = profile.load("mini", num_inference_steps=2)
    data.ensure(models)
    return models


@pytest.fixture(scope="module")
def examples(mini):
    return data.subset(data.load(mini, "nocaps", "overall"), 18, seed=0)  # two shards


@pytest.fixture(scope="module")
def played(mini, examples, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    game = Game(mini, RunStore(root), progress=False)
    return root, game.i2t2i(examples, 2)


class Idle(Game):
    """A game whose models may not be touched."""

    captioner = generator = property(lambda self: pytest.fail("a model was loaded"))

    def encoder(self, name):
        pytest.fail("an encoder was loaded")


def test_shapes_and_ranges(played, examples):
    _, run = played
    assert len(run.captions) == len(examples) and {len(row) for row in run.captions} == {2}
    for sim in run.sim_image.values():
        assert sim.shape == (18, 2) and (np.abs(sim) <= 1 + 1e-6).all()
    assert run.load_images(17).shape == (2, 64, 64, 3)


def test_a_second_run_does_no_model_work(played, mini, examples):
    root, run = played
    store = RunStore(root)
    again = Idle(mini, store, progress=False).i2t2i(examples, 2)
    assert again.captions == run.captions
    for name, sim in run.sim_image.items():
        np.testing.assert_array_equal(again.sim_image[name], sim)
    assert all(spent.made == 0 for spent in store.spent.values())
    assert store.spent["images"].calls == store.spent["captions"].calls == 36  # the first run's cost, not none
    np.testing.assert_array_equal(again.load_images(3), run.load_images(3))


def test_a_lost_shard_alone_is_made_again(played, mini, examples):
    root, run = played
    next(root.glob("clip-similarity-*")).unlink()
    store = RunStore(root)
    again = Game(mini, store, progress=False).i2t2i(examples, 2)
    assert store.spent["clip-similarity"].made == 1
    assert store.spent["captions"].made == 0
    np.testing.assert_array_equal(again.sim_image["clip"], run.sim_image["clip"])


def test_an_image_scores_the_same_in_a_smaller_subset(played, mini, examples, tmp_path):
    _, run = played
    small = Game(mini, RunStore(tmp_path), progress=False).i2t2i(examples[:3], 2)
    assert small.captions == run.captions[:3]
    np.testing.assert_allclose(small.sim_image["dino"], run.sim_image["dino"][:3], atol=2e-2)


def test_fewer_candidates_are_the_first_of_more(mini, examples, tmp_path):
    game = Game(mini, RunStore(tmp_path), progress=False)
    many, few = game.sample_captions(examples[:2], 4), game.sample_captions(examples[:2], 2)
    assert [row[:2] for row in many] == few


def test_other_parameters_are_another_shard(mini, examples, tmp_path):
    store = RunStore(tmp_path)
    game = Game(mini, store, progress=False)
    game.sample_captions(examples[:1], 2, seed=0)
    game.sample_captions(examples[:1], 2, seed=1)
    game.sample_captions(examples[:1], 2, seed=0, top_p=0.5)
    assert store.spent["captions"].made == 3


def test_seeds_are_stable_and_prefixes():
    assert loops.image_seeds(0, 7, 3)[:2] == loops.image_seeds(0, 7, 2)
    assert len(set(loops.image_seeds(0, 7, 50)) | set(loops.image_seeds(0, 8, 50))) == 100
    assert all(0 <= seed < 2**63 for seed in loops.image_seeds(3, 4, 50))


def test_words_and_noise_share_no_stream():
    assert loops.caption_streams(0, 7, 2) == [[loops.WORDS, 0, 7, 0], [loops.WORDS, 0, 7, 1]]
    assert loops.WORDS != loops.NOISE


def test_the_size_that_dino_sees_is_part_of_a_shard(mini, examples, tmp_path):
    store = RunStore(tmp_path)
    for side in (64, 128):
        models = profile.load("mini", num_inference_steps=1, dino_size=side)
        Game(models, store, progress=False).reconstruct(examples[:1], [["a red dog"]], similarities=["dino"])
    assert store.spent["dino-similarity"].made == 2
    assert store.spent["images"].made == 1


def test_bad_games_are_refused_in_one_sentence(mini, examples, tmp_path):
    game = Idle(mini, RunStore(tmp_path), progress=False)
    with pytest.raises(ValueError, match="not 0 images x 3 candidates"):
        game.sample_captions([], 3)
    with pytest.raises(ValueError, match="18 images x 0 candidates"):
        game.sample_captions(examples, 0)
    with pytest.raises(ValueError, match="SEED is -1"):
        game.sample_captions(examples, 2, seed=-1)
    with pytest.raises(ValueError, match="0 < top_p <= 1"):
        game.sample_captions(examples, 2, top_p=2.0)
    with pytest.raises(ValueError, match="name some of clip, dino"):
        game.reconstruct(examples[:1], [["a"]], similarities=["sbert"])
    with pytest.raises(ValueError, match="lengths \\[1, 2\\]"):
        game.reconstruct(examples[:2], [["a"], ["a", "b"]])
    with pytest.raises(ValueError, match="lengths \\[0\\]"):
        game.reconstruct(examples[:2], [[], []])


def test_a_missing_image_is_named_before_any_work(mini, examples, tmp_path):
    lost = examples[0].__class__(1, tmp_path / "lost.png", ("a dog",), None)
    with pytest.raises(FileNotFoundError, match="lost.png is missing"):
        Idle(mini, RunStore(tmp_path), progress=False).sample_captions([examples[0], lost], 2)


def test_scores_come_from_the_store_the_second_time(mini, examples, tmp_path, monkeypatch):
    captions = [[example.references[0], "a red dog on a white background"] for example in examples[:4]]
    first = scores.Scorer(mini, RunStore(tmp_path), examples).score(examples[:4], captions)
    monkeypatch.setattr(scores.quality, "caption_quality", lambda *_, **__: pytest.fail("scored again"))
    store = RunStore(tmp_path)
    second = scores.Scorer(mini, store, examples).score(examples[:4], captions)
    assert set(first) == {"CIDEr", "WMD", "CLIP-text", "SBERT"}
    for metric, values in first.items():
        np.testing.assert_array_equal(values, second[metric])
    assert (first["CIDEr"][:, 0] > first["CIDEr"][:, 1]).all()
