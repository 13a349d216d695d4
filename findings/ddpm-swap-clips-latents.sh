#!/usr/bin/env bash
# Guess, before it was run: a pipeline's scheduler can be exchanged for the paper's DDPM by `DDPMScheduler.from_config(
# pipeline.scheduler.config)`, diffusers' own recipe, and the drawing differs by the sampler alone.
# Seen (diffusers 0.42.1, torch 2.14.1, Linux, CPU): of five samplers that Stable Diffusion is saved with, only DDIM's
# configuration has the field `clip_sample`. From the other four DDPM takes its own default, True, and clips what it
# takes for the clean image to [-1, 1]: right for pixels, wrong for latents, which reach 4 here. A single step, told the
# true noise, then misses the latents by two fifths of their size; with clip_sample=False it finds them to 1e-3. No warning.
# The schedule's spacing is lost likewise: each sampler's default is not handed on, only what its file says.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.14.1 transformers==5.23.0
"$folder/env/bin/python" - <<'PY'
import diffusers
import torch
from diffusers import DDPMScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's
SAVED = ("PNDM", "DPMSolverMultistep", "EulerDiscrete", "UniPCMultistep", "DDIM")
stream = torch.Generator().manual_seed(0)
latents, noise = (torch.randn(1, 4, 64, 64, generator=stream) for _ in range(2))  # scaled latents have deviation 1


def missed(scheduler):
    """How far the clean latents of one step are from the true ones, as a part of these."""
    timestep = torch.tensor([100])
    noisy = scheduler.add_noise(latents, noise, timestep)
    found = scheduler.step(noise, 100, noisy, generator=stream).pred_original_sample
    return ((found - latents).norm() / latents.norm()).item()


print("diffusers", diffusers.__version__, "| largest latent", round(latents.abs().max().item(), 1))
for name in SAVED:
    saved = getattr(diffusers, f"{name}Scheduler")(**BETAS, steps_offset=1)
    swapped = DDPMScheduler.from_config(saved.config)
    told = DDPMScheduler.from_config(saved.config, clip_sample=False)
    print(f"{name:20} clip_sample in its file: {'clip_sample' in saved.config!s:6}after the swap: "
          f"{swapped.config.clip_sample}, misses by {missed(swapped):.2f}; told not to clip by {missed(told):.4f}")
    assert swapped.config.clip_sample is True and missed(swapped) > 0.3 and missed(told) < 1e-3
    assert ("clip_sample" in saved.config) == (name == "DDIM")
PY
echo "as seen"
