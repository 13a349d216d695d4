"""The tiny autoencoder: a decoder of the shipped autoencoder's scaled latents that passes gradients on."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor

from dfl_utils.mini import diffusion, tiny_autoencoder
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.mini.training import Training
from dfl_utils.world import scenes, splits
from dfl_utils.world.profile import MINI

PSNR_BAR = 25.0  # dB, against the originals and against the real decoder; written down at step 350 of 3,600, at 20 dB
WRONG_SCALE = 6.0  # dB that latents of another scale must lose at least


def psnr(a: Tensor, b: Tensor) -> float:
    """Of images in [-1, 1]."""
    return -10 * torch.log10((a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean() / 4).item()


@pytest.fixture(scope="module")
def tiny() -> AutoencoderTiny:
    return AutoencoderTiny.from_pretrained(MINI / "taesd", dtype=torch.float32).requires_grad_(False)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MINI / "stable-diffusion", dtype=torch.float32)


@pytest.fixture(scope="module")
def items():
    return list(splits.items("coco", "val"))[:64]


@pytest.fixture(scope="module")
def images(items) -> Tensor:
    return pixels([scenes.render(item.scene) for item in items])


@pytest.fixture(scope="module")
def latents(pipeline, images) -> Tensor:
    with torch.no_grad():
        return pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor


def test_it_decodes_held_out_scenes_from_latents_of_this_autoencoder_at_this_scale(tiny, pipeline, latents, images):
    right = psnr(tiny.decode(latents).sample, images)
    assert right > PSNR_BAR
    unscaled = tiny.decode(latents / pipeline.vae.config.scaling_factor).sample
    shuffled = tiny.decode(latents.roll(1, dims=1)).sample
    assert psnr(unscaled, images) < right - WRONG_SCALE
    assert psnr(shuffled, images) < right - WRONG_SCALE


def test_of_one_step_estimates_it_makes_what_the_real_decoder_makes(tiny, pipeline, items, latents, images):
    estimates = tiny_autoencoder.one_step_estimates(
        latents,
        [item.captions[0] for item in items],
        pipeline.text_encoder,
        pipeline.unet,
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        theirs = pipeline.vae.decode(estimates / pipeline.vae.config.scaling_factor).sample
    ours = tiny.decode(estimates).sample
    assert psnr(ours, theirs) > PSNR_BAR
    assert psnr(ours, theirs) > psnr(ours, images)  # it copies, it does not denoise


def test_every_latent_gets_a_gradient(tiny, latents):
    leaf = latents[:4].clone().requires_grad_()
    tiny.decode(leaf).sample.square().mean().backward()
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad != 0).all()


def test_a_unet_that_knows_the_noise_gives_the_clean_latents_back(pipeline, latents):
    known = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    estimates = tiny_autoencoder.one_step_estimates(
        latents,
        ["a red dog"] * len(latents),
        pipeline.text_encoder,
        lambda *_: SimpleNamespace(sample=known),
        torch.Generator().manual_seed(3),
    )
    torch.testing.assert_close(estimates, latents, atol=1e-4, rtol=0)


def test_a_training_cut_in_two_ends_with_the_same_weights(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "NUM_SCENES", 128)
    monkeypatch.setattr(tiny_autoencoder, "NUM_ESTIMATES", 64)
    monkeypatch.setattr(tiny_autoencoder, "BATCH", 2)
    models = (pipeline.vae, pipeline.text_encoder, pipeline.unet)
    whole = tiny_autoencoder.train(tmp_path / "whole" / "taesd", *models, steps=6)

    class Killed(Training):
        def run(self):
            return super().run(until=3)

    with monkeypatch.context() as killed:
        killed.setattr(tiny_autoencoder, "Training", Killed)
        tiny_autoencoder.train(tmp_path / "cut" / "taesd", *models, steps=6)
    resumed = tiny_autoencoder.train(tmp_path / "cut" / "taesd", *models, steps=6)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
