"""Pretraining of the generator's U-Net on precomputed latents of web scenes, text encoder frozen."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dfl_utils.mini import architectures, web
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import scenes

NUM_SCENES = 49_152  # precomputed once; captions are drawn anew at each visit
BATCH = 96
DROP_CAPTION = 0.1  # classifier-free guidance is trained in
SNR_GAMMA = 5.0  # min-SNR loss weights (Hang et al. 2023); converge in about a third of the steps


@torch.no_grad()
def precompute_latents(file: Path, vae: AutoencoderKL, num_scenes: int = NUM_SCENES) -> Tensor:
    """Scaled posterior means of the first web scenes, `(num_scenes, 8, 8, 8)` float16; kept in `file`."""
    if file.exists():
        return load_file(file)["latents"]
    vae = vae.eval().to(memory_format=torch.channels_last)
    parts = []
    for start in tqdm(range(0, num_scenes, 128), desc="latents", mininterval=5):
        images = pixels([scenes.render(web.scene(k)) for k in range(start, min(start + 128, num_scenes))])
        parts.append((vae.encode(images).latent_dist.mean * vae.config.scaling_factor).half())
    latents = torch.cat(parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"latents": latents.contiguous()}, file.with_suffix(".partial"))
    file.with_suffix(".partial").replace(file)
    return latents


def web_captions(step: int, indices: list[int], generator: torch.Generator) -> list[str]:
    """One fresh web caption a scene; a tenth are empty."""
    dropped = (torch.rand(len(indices), generator=generator) < DROP_CAPTION).tolist()
    return ["" if drop else scenes.web_caption(web.scene(k), f"unet/{step}/{k}")
            for k, drop in zip(indices, dropped, strict=True)]  # fmt: skip


def train(
    folder: Path,
    vae: AutoencoderKL,
    text_encoder: nn.Module,
    steps: int = 4200,
    unet=None,
    *,
    until: int | None = None,
    batch: int = BATCH,
    num_scenes: int = NUM_SCENES,
):
    """Noise prediction with classifier-free dropout; returns the U-Net with its averaged weights.

    `until` leaves a schedule of `steps` early: the next call goes on from there.
    """
    torch.manual_seed(4)
    unet = (unet or architectures.unet()).to(memory_format=torch.channels_last)
    tokenizer, scheduler = architectures.clip_tokenizer(), architectures.scheduler()
    text_encoder = text_encoder.eval().requires_grad_(False)
    latents = precompute_latents(folder / "latents.safetensors", vae, num_scenes)

    def loss(step: int):
        generator = torch.Generator().manual_seed(step)
        indices = torch.randint(num_scenes, (batch,), generator=generator)
        clean = latents[indices].float()
        texts = web_captions(step, indices.tolist(), generator)
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            encoder_hidden_states = text_encoder(tokens).last_hidden_state
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
        error = (unet(noisy, timesteps, encoder_hidden_states).sample - noise).square().mean((1, 2, 3))
        snr = compute_snr(scheduler, timesteps)
        weight = snr.clamp(max=SNR_GAMMA) / snr
        return (weight * error).mean(), {"mse": error.detach().mean().item()}

    Training(folder, unet, loss, Schedule(steps, lr=1.2e-3, warmup=200, ema_decay=0.999)).run(until)
    return unet
