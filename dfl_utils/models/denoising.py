"""How well a generator takes noise from an image when it is told a caption: the loss that it was trained on (Eq. 3),
evaluated and not trained on. Nothing is drawn: a caption costs one pass of the U-Net a timestep.

A classifier by these losses: Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier" (ICCV 2023); for
pairs of image and text: Krojer et al., "Are Diffusion Models Vision-And-Language Reasoners?" (NeurIPS 2023).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from dfl_utils.models import checkpoint
from dfl_utils.models.generator import Generator, pipeline_class
from dfl_utils.world.profile import Profile

PREDICTED = ("epsilon", "v_prediction", "sample")  # what a U-Net may predict of noise and latents: diffusers' names
ENCODE_BATCH = 32
MEND = "give a Stable Diffusion that predicts noise, velocity or the sample, or judge by drawing"


@torch.no_grad()
def losses(
    generator: Generator,
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    timesteps: Sequence[int],
    seeds: Sequence[Sequence[int]],
) -> np.ndarray:
    """Squared error a latent value, `(B, N, K)` float32, of what the U-Net predicts of an image's noised latents.

    A caption longer than the text encoder's tokens is read in part.

    Args:
        generator: a Stable Diffusion, held to `check`.
        images: B RGB images; of one that is not square the middle is seen.
        captions: N >= 1 of each.
        timesteps: K places in the noise schedule.
        seeds: of the noise, K for each image. All captions of an image have the same noise, and differ in words alone.

    Raises:
        ValueError: NaN or infinity among the losses.
    """
    asked = _asked(generator, images, captions, timesteps, seeds)
    parts = [(each.predicted - each.wanted).square().mean((1, 2, 3)) for each in asked]
    values = torch.cat(parts).reshape(len(captions), len(captions[0]), len(timesteps)).numpy()
    return checkpoint.require_finite(values, "The denoising loss of a caption", generator.pipeline.name_or_path)


@torch.no_grad()
def one_step_images(
    generator: Generator,
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    timestep: int,
    seeds: Sequence[Sequence[int]],
) -> np.ndarray:
    """The clean image that one noise prediction implies of a noised original, `(B, N, size, size, 3)` uint8.

    Arguments and errors as of `losses`, at one timestep: one pass of the U-Net and one of the decoder a caption.
    """
    vae, parts = generator.pipeline.vae, []
    processor = VaeImageProcessor(vae_scale_factor=generator.pipeline.vae_scale_factor)
    for each in _asked(generator, images, captions, [timestep], seeds):
        clean = each.clean.to(vae.device, vae.dtype, memory_format=torch.channels_last) / vae.config.scaling_factor
        pixels = processor.postprocess(vae.decode(clean).sample, output_type="np")
        checkpoint.require_finite(pixels, "The one-step image of a caption", generator.pipeline.name_or_path)
        parts.append((pixels * 255).round().astype(np.uint8))
    shown = np.concatenate(parts)
    return shown.reshape(len(captions), len(captions[0]), *shown.shape[1:])


@dataclass(frozen=True)
class _Asked:
    """A batch of passes of the U-Net: what it predicts, what it was trained to, and the latents that this implies."""

    predicted: Tensor
    wanted: Tensor
    clean: Tensor


def _asked(generator: Generator, images, captions, timesteps, seeds) -> Iterator[_Asked]:
    """Image after image, caption after caption, timestep after timestep."""
    pipeline = generator.pipeline
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    clean = latents(pipeline, images, generator.image_size).float().cpu()
    noise = torch.stack([torch.stack([_noise(clean.shape[1:], seed) for seed in row]) for row in seeds])
    at = torch.tensor(timesteps)
    noisy = torch.stack([schedule.add_noise(row.expand_as(e), e, at) for row, e in zip(clean, noise, strict=True)])
    wanted = torch.stack([_target(schedule, row.expand_as(e), e, at) for row, e in zip(clean, noise, strict=True)])
    texts = {text: k for k, text in enumerate(dict.fromkeys(text for row in captions for text in row))}
    states = _states(pipeline, list(texts), generator.draw_batch)
    words = torch.tensor([[texts[text] for text in row] for row in captions])
    grid = torch.cartesian_prod(torch.arange(len(clean)), torch.arange(words.shape[1]), torch.arange(len(at)))
    for image, candidate, place in (rows.T for rows in grid.split(2 * generator.draw_batch)):
        sample = noisy[image, place].to(pipeline.unet.device, pipeline.unet.dtype, memory_format=torch.channels_last)
        predicted = pipeline.unet(sample, at[place].to(sample.device), states[words[image, candidate]]).sample
        predicted = predicted.float().cpu()
        implied = _clean(schedule, noisy[image, place], predicted, at[place])
        yield _Asked(predicted, wanted[image, place], implied)


def _clean(schedule: DDPMScheduler, noisy: Tensor, predicted: Tensor, timesteps: Tensor) -> Tensor:
    """The clean latents that a prediction implies of noised ones, by the scheduler's definition."""
    if schedule.config.prediction_type == "sample":
        return predicted
    kept = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    if schedule.config.prediction_type == "v_prediction":
        return kept.sqrt() * noisy - (1 - kept).sqrt() * predicted
    return (noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()


def latents(pipeline: StableDiffusionPipeline, images: Sequence[Image.Image], size: int) -> Tensor:
    """What the generator sees of images' middles, `(B, C, h, w)`: scaled means of the autoencoder's posterior."""
    vae, means = pipeline.vae, []
    processor = VaeImageProcessor(vae_scale_factor=pipeline.vae_scale_factor, resample="bicubic")
    for start in range(0, len(images), ENCODE_BATCH):
        pixels = processor.preprocess(list(images[start : start + ENCODE_BATCH]), size, size, resize_mode="crop")
        pixels = pixels.to(vae.device, vae.dtype, memory_format=torch.channels_last)
        means.append(vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(means).contiguous()


def check(profile: Profile, timesteps: Sequence[int]) -> None:
    """ValueError where the profile's generator cannot be asked for its loss at those timesteps; no weights are read."""
    folder, place = checkpoint.source(profile, profile.base(profile.generator))  # the folder itself need not be written
    kind = pipeline_class(profile, folder, place)
    if not issubclass(kind, StableDiffusionPipeline):
        raise ValueError(f"{folder} is a {kind.__name__}, which cannot be asked for its denoising loss here: {MEND}.")
    with checkpoint.opening(folder, place["revision"]):
        saved = DDPMScheduler.load_config(folder, subfolder="scheduler", **place)
    _check_schedule(folder, saved)
    _check_timesteps(timesteps, saved.get("num_train_timesteps", 1000))


def _check_schedule(folder: str, saved: Mapping) -> None:
    predicted = saved.get("prediction_type", "epsilon")
    if "beta_start" not in saved or predicted not in PREDICTED:
        said = f"predicts {predicted}" if "beta_start" in saved else f"has no noise schedule ({saved['_class_name']})"
        raise ValueError(f"{folder} {said}, so that its denoising loss is not known here: {MEND}.")


def _check_timesteps(timesteps: Sequence[int], count: int) -> None:
    if not timesteps or not all(isinstance(t, int) and 0 <= t < count for t in timesteps):
        raise ValueError(
            f"timesteps is {list(timesteps)}: give one at least, each a whole number from 0 to {count - 1}, the "
            "generator's noise schedule."
        )


def _noise(shape: Sequence[int], seed: int) -> Tensor:
    # On the CPU and in float32, so that a seed draws the same noise on every device.
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _target(schedule: DDPMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the U-Net was trained to predict of noised latents, by the scheduler's definition."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(clean, noise, timesteps)
    return noise if schedule.config.prediction_type == "epsilon" else clean


def _states(pipeline: StableDiffusionPipeline, texts: Sequence[str], batch: int) -> Tensor:
    """`encoder_hidden_states` of captions, `(B, positions, D)`, as the pipeline reads prompts."""
    parts = [
        pipeline.encode_prompt(list(texts[k : k + batch]), pipeline.device, 1, False)[0]
        for k in range(0, len(texts), batch)
    ]
    return torch.cat(parts)
