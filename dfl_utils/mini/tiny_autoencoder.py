"""Pretraining of the tiny autoencoder: a cheap decoder of the autoencoder's scaled latents, as TAESD is of SD's.

Inside the finetuning it decodes one-step estimates of clean latents, blurred or wild where the noise was strong. Half
of each batch are therefore such estimates, whose target is what the real decoder makes of them; taught on noisy
latents with clean targets, it would learn to denoise, which the decoder that it replaces does not. The other half are
clean latents, whose target is the picture itself.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dfl_utils.mini import architectures, diffusion, web
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.training.losses import one_step_image
from dfl_utils.world import scenes

NUM_ESTIMATES = 4096  # with their decodings, 100 MB; precomputed once
BATCH = 16  # of each half


@torch.no_grad()
def one_step_estimates(
    clean: Tensor, texts: list[str], text_encoder: nn.Module, unet: UNet2DConditionModel, generator: torch.Generator
) -> Tensor:
    """What the U-Net takes the clean latents to be, `(B, 8, 8, 8)`, seeing them at uniform timesteps and the texts."""
    tokenizer, scheduler = architectures.clip_tokenizer(), architectures.scheduler()
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=generator)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    predicted = unet(noisy, timesteps, text_encoder(tokens).last_hidden_state).sample
    return one_step_image(scheduler, noisy, timesteps, predicted)


@torch.no_grad()
def precompute_estimates(
    file: Path, latents: Tensor, vae: AutoencoderKL, text_encoder: nn.Module, unet: UNet2DConditionModel
) -> dict[str, Tensor]:
    """`estimates` `(N, 8, 8, 8)` of the first N latents, `images` `(N, 3, 64, 64)` the real decoder's of them.

    Both float16 and kept in `file`; N is `NUM_ESTIMATES`; the images are not cut to [-1, 1].
    """
    if file.exists():
        return load_file(file)
    parts = {"estimates": [], "images": []}
    for start in tqdm(range(0, NUM_ESTIMATES, 64), desc="estimates", mininterval=5):
        generator = torch.Generator().manual_seed(start)
        indices = list(range(start, start + 64))
        texts = diffusion.web_captions(start, indices, generator)
        estimates = one_step_estimates(latents[indices].float(), texts, text_encoder, unet, generator)
        parts["estimates"].append(estimates.half())
        parts["images"].append(vae.decode(estimates / vae.config.scaling_factor).sample.half())
    tensors = {name: torch.cat(part).contiguous() for name, part in parts.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file.with_suffix(".partial"))
    file.with_suffix(".partial").replace(file)
    return tensors


def reconstruction_loss(
    model: AutoencoderTiny, clean: Tensor, images: Tensor, estimates: Tensor, decodings: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """L1 + MSE of both halves, and the encoder's MSE; encoder and decoder share no weight and no gradient."""
    error = model.decode(torch.cat([clean, estimates])).sample - torch.cat([images, decodings])
    latent_mse = (model.encode(images).latents - clean).square().mean()
    psnr = -10 * torch.log10(error[: len(clean)].detach().square().mean() / 4).item()
    return error.abs().mean() + error.square().mean() + latent_mse, {"psnr": psnr, "latent_mse": latent_mse.item()}


def train(
    folder: Path, vae: AutoencoderKL, text_encoder: nn.Module, unet: UNet2DConditionModel, steps: int = 3600
) -> AutoencoderTiny:
    """Train from nothing on the autoencoder's latents of web scenes; the three given models stay as they are."""
    torch.manual_seed(8)
    model = architectures.tiny_autoencoder().to(memory_format=torch.channels_last)
    latents = diffusion.precompute_latents(folder.parent / "unet" / "latents.safetensors", vae)
    frozen = (part.eval().requires_grad_(False) for part in (vae, text_encoder, unet))
    pool = precompute_estimates(folder / "estimates.safetensors", latents, *frozen)

    def loss(step: int):
        generator = torch.Generator().manual_seed(step)
        indices = torch.randint(len(latents), (BATCH,), generator=generator)
        images = pixels([scenes.render(web.scene(k)) for k in indices.tolist()])
        rows = torch.randint(len(pool["estimates"]), (BATCH,), generator=generator)
        estimates, decodings = pool["estimates"][rows].float(), pool["images"][rows].float()
        return reconstruction_loss(model, latents[indices].float(), images, estimates, decodings)

    Training(folder, model, loss, Schedule(steps, lr=2e-3, ema_decay=0.998)).run()
    return model
