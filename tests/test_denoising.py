"""The generator's loss as a judge: against a slow loop, in any batch, with shared noise, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from layouts import change

from dfl_utils.game import denoising, judges
from dfl_utils.game.loops import Game
from dfl_utils.models import denoising as asked
from dfl_utils.store.store import RunStore
from dfl_utils.world import data

CAPTIONS = [["a red dog", "a blue cup", "a red dog"], ["a small yellow star", "", "a black umbrella"]]
TIMESTEPS = (40, 300, 900)
SEEDS = [[1, 2, 3], [4, 5, 6]]


@pytest.fixture(scope="module")
def hall(mini, tmp_path_factory):
    models = replace(mini, num_inference_steps=1)
    return Game(models, RunStore(tmp_path_factory.mktemp("hall")), progress=False)


@pytest.fixture(scope="module")
def examples(mini):
    return data.load(mini, "nocaps", "overall")[:2]


@torch.no_grad()
def slow(pipeline, image, caption, timestep, seed, predicts):
    """By the formulas of Ho et al. (2020) and Salimans and Ho (2022), one caption at one timestep."""
    pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 127.5 - 1
    clean = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = (1 - betas).cumprod(0)[timestep]
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed))[None]
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    ids = pipeline.tokenizer([caption], padding="max_length", max_length=32, return_tensors="pt").input_ids
    states = pipeline.text_encoder(ids).last_hidden_state
    predicted = pipeline.unet(noisy, timestep, encoder_hidden_states=states).sample
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
    wanted = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[predicts]
    return ((predicted - wanted) ** 2).mean().item()


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_losses_are_those_of_a_slow_loop(hall, examples, predicts, monkeypatch):
    pipeline, images = hall.generator.pipeline, [data.read_image(example.path) for example in examples]
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=predicts)
    monkeypatch.setattr(pipeline, "scheduler", schedule)
    found = asked.losses(hall.generator, images, CAPTIONS, TIMESTEPS, SEEDS)
    assert found.shape == (2, 3, 3) and found.dtype == np.float32
    for (b, n, k), loss in np.ndenumerate(found):
        expected = slow(pipeline, images[b], CAPTIONS[b][n], TIMESTEPS[k], SEEDS[b][k], predicts)
        assert loss == pytest.approx(expected, rel=1e-4)


def test_neither_batch_nor_order_nor_company_changes_a_loss(hall, examples, tmp_path, monkeypatch):
    together = denoising.losses(hall, examples, CAPTIONS, timesteps=TIMESTEPS)
    np.testing.assert_array_equal(together[0, 0], together[0, 2])  # the same words, the same noise
    monkeypatch.setattr(hall, "store", RunStore(tmp_path))
    monkeypatch.setattr(hall.generator, "draw_batch", 1)
    turned = [row[::-1] for row in CAPTIONS[::-1]]
    other = denoising.losses(hall, examples[::-1], turned, timesteps=TIMESTEPS[::-1])
    np.testing.assert_allclose(other[::-1, ::-1, ::-1], together, rtol=1e-4)
    alone = denoising.losses(hall, examples[1:], [CAPTIONS[1][:1]], timesteps=(300, 300))
    np.testing.assert_allclose(alone[0, 0, 0], together[1, 0, 1], rtol=1e-4)
    assert abs(alone[0, 0, 1] / alone[0, 0, 0] - 1) > 1e-3  # another noise at the same timestep
    assert not np.allclose(denoising.losses(hall, examples, CAPTIONS, timesteps=TIMESTEPS, seed=1), together)


def test_scores_are_higher_where_the_loss_is_lower(hall, examples):
    losses = denoising.losses(hall, examples, CAPTIONS, timesteps=TIMESTEPS)
    scores = denoising.scores(hall, examples, CAPTIONS, timesteps=TIMESTEPS)
    np.testing.assert_allclose(scores, -losses.mean(axis=2), rtol=1e-6)
    from_nothing = denoising.scores(hall, examples, CAPTIONS, timesteps=TIMESTEPS, unconditional=True)
    assert from_nothing[1, 1] == pytest.approx(0, abs=1e-6)  # no words
    np.testing.assert_allclose(np.diff(from_nothing), np.diff(scores), atol=1e-6)


def test_a_drawing_is_asked_as_an_original_is(hall, examples):
    run = hall.reconstruct(examples, [["a red dog", "a cup"]] * 2, similarities=["clip"])
    pictures = [[*map(asked.Image.fromarray, run.load_images(k))] for k in range(2)]
    seeds = denoising._seeds(examples, TIMESTEPS, 3)
    found = denoising.drawing_losses(run.drawings, ["a dog", "a cup"], timesteps=TIMESTEPS, seed=3)
    for k, text in enumerate(["a dog", "a cup"]):
        alone = asked.losses(hall.generator, pictures[k], [[text]] * 2, TIMESTEPS, [seeds[k]] * 2)
        np.testing.assert_allclose(found[k], alone[:, 0], rtol=1e-4)
        weighed = hall.captioner.log_likelihood(pictures[k], [run.captions[k]] * 2)
        np.testing.assert_allclose(judges.likelihood(run.drawings)[k], weighed.diagonal(), atol=1e-4)


def test_an_unseen_image_leaves_the_captioners_habit(hall, examples):
    unseen = hall.log_likelihood(examples, [CAPTIONS[0]] * 2, unseen=True, summed=True)
    np.testing.assert_allclose(unseen[0], unseen[1], atol=1e-4)
    seen = hall.log_likelihood(examples, [CAPTIONS[0]] * 2, summed=True)
    assert not np.allclose(seen[0], seen[1], atol=1e-2)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_a_right_prediction_implies_the_clean_latents(predicts):
    schedule = DDPMScheduler(prediction_type=predicts)
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    at = torch.tensor([40, 900])
    noisy, wanted = schedule.add_noise(clean, noise, at), asked._target(schedule, clean, noise, at)
    torch.testing.assert_close(asked._clean(schedule, noisy, wanted, at), clean, atol=1e-4, rtol=1e-4)


def test_one_step_images_look_like_their_originals(hall, examples):
    captions = [[example.references[0], "a black umbrella"] for example in examples]
    found = denoising.one_step(hall, examples, captions, timestep=40)
    other = denoising.one_step(hall, examples, captions, timestep=900)
    assert found.shape == (2, 2) and found.min() > 0.9 and (found[:, 0] > other[:, 0]).all()


def test_timesteps_are_spread_in_equal_steps():
    assert denoising.spread(9) == tuple(range(100, 1000, 100))
    assert denoising.spread(1) == (500,) and denoising.spread(0) == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prediction_type": "flow_prediction"}, "predicts flow_prediction, so that its denoising loss is not known"),
        ({"beta_start": None, "_class_name": "FlowMatch"}, r"has no noise schedule \(FlowMatch\), so that"),
        ({"num_train_timesteps": 200}, r"timesteps is \[300\]: give one at least, each a whole number from 0 to 199"),
    ],
)
def test_a_schedule_that_has_no_such_loss_is_refused(mini, copy, changed, said):
    folder = copy("stable-diffusion")
    change(folder / "scheduler/scheduler_config.json", **changed)
    with pytest.raises(ValueError, match=said):
        asked.check(replace(mini, generator=str(folder)), (300,))
