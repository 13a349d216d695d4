"""Checkpoint folders of the published shapes with random weights, and the profile `paper` on them.

What a pass costs depends on shapes. Nothing that such models say or draw is looked at.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import published_models
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import nn
from transformers import AutoTokenizer

from dfl_utils.mini import architectures
from dfl_utils.training import full_size
from dfl_utils.world import profile
from dfl_utils.world.profile import MINI, Profile

WORDS = 12  # tokens of a caption; random weights never end one by themselves
BLIP2_TOKENS = 50_266  # of its published tokenizer; the embedded world's is smaller
# Folder -> whose tokenizer and processor of the embedded world it gets, and the size at which it sees images.
LIKE = {
    "blip-base": ("blip-base", {"height": 384, "width": 384}),
    "blip-large": ("blip-base", {"height": 384, "width": 384}),
    "blip2": ("blip2", {"height": 224, "width": 224}),
    "clip": ("clip", {"shortest_edge": 224}),
    "dino": ("dino", {"height": 224, "width": 224}),
}


def write(root: Path, names: Sequence[str], device: str) -> None:
    """One folder a name: float16 weights, made on the device, in the layout that the profile `paper` loads."""
    for name in names:
        if name == "stable-diffusion":
            _pipeline(root / name, device)
            continue
        _made(name, device).save_pretrained(root / name)
        if name in LIKE:
            _processor(root / name, *LIKE[name])


def _made(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return published_models.SHAPES[name].make().eval().half()


def _pipeline(folder: Path, device: str) -> None:
    tokenizer = architectures.clip_tokenizer()
    tokenizer.model_max_length = full_size.TOKENS
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    parts = {part: _made(part, device) for part in ("vae", "text_encoder", "unet")}
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = DDPMScheduler(**schedule, steps_offset=1)
    StableDiffusionPipeline(tokenizer=tokenizer, scheduler=scheduler, **parts, **unchecked).save_pretrained(folder)


def _processor(folder: Path, like: str, size: dict[str, int]) -> None:
    if like.startswith("blip"):
        tokenizer = AutoTokenizer.from_pretrained(MINI / like, local_files_only=True)
        if like == "blip2":
            tokenizer.add_tokens([f"unused{k}" for k in range(len(tokenizer), BLIP2_TOKENS)])
        tokenizer.save_pretrained(folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (MINI / like / name).is_file():
            settings = json.loads((MINI / like / name).read_text(encoding="utf-8"))
            settings.get("image_processor", settings)["size"] = size
            (folder / name).write_text(json.dumps(settings), encoding="utf-8")


def world(root: Path | None, device: str) -> Profile:
    """The profile `paper` with these folders in place of the hub's; without a root the embedded models."""
    if root is None:
        own = profile.load("mini", device=device, dtype="float16" if device == "cuda" else "float32")
        own = replace(own, captioners=own.captioners | {"blip-large": own.captioners["blip-base"]})
    else:
        own = profile.configured("paper")
        judges = {name: str(root / name) for name in ("clip", "dino", "tiny_decoder")}
        captioners = {name: (str(root / name), prompt) for name, (_, prompt) in own.captioners.items()}
        generators = {"stable-diffusion": (str(root / "stable-diffusion"), *own.generators["stable-diffusion"][1:])}
        own = replace(own, device=device, captioners=captioners, generators=generators, offline=True, **judges)
    return replace(own, min_words=WORDS, max_words=WORDS).pair("blip-large", "stable-diffusion")
