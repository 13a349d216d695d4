"""Generators that draw worse than the shipped one: stopped early in a training from nothing, or with noisy weights.

All stand on the shipped autoencoder and text encoder. The U-Nets' weights stay in the run store and are made again
where they are asked for and not there; what travels of them is a digest.
"""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from dfl_utils.mini import architectures, diffusion
from dfl_utils.models import checkpoint
from dfl_utils.models.generator import load_pipeline
from dfl_utils.models.workshop import Workshop
from dfl_utils.store.processes import claim
from dfl_utils.store.store import Job, Kind
from dfl_utils.training.finetuned import TrainedProfile, weights_digest
from dfl_utils.world.profile import Profile

WEIGHTS = Kind("unet-weights", travels=False)
DIGEST = Kind("unet-digest", made_from=(WEIGHTS,))
SCHEDULE = 4200  # of the learning rate, the shipped generator's: its length stays, so that all are of one training


def stopped(workshop: Workshop, steps: Sequence[int], *, batch: int, num_scenes: int) -> dict[int, Profile]:
    """Step -> the profile whose generator's training stopped there; found, or trained now in one go.

    A kill loses at most two minutes of training; a longer one goes on from a shorter one's end.

    Args:
        workshop: its profile's generator gives autoencoder, text encoder and tokenizer.
        steps: rising, 1 to `SCHEDULE`.
        batch: pairs a step; the shipped generator's: 96.
        num_scenes: of the web, met again and again; the shipped generator's: 49,152.

    Raises:
        ValueError: no such steps, or a generator that is not the embedded Stable Diffusion.
    """
    if list(steps) != sorted({step for step in steps if 1 <= step <= SCHEDULE}):
        raise ValueError(f"steps {list(steps)} are no snapshots: name rising numbers from 1 to {SCHEDULE}.")
    recipe = {"schedule": SCHEDULE, "batch": batch, "scenes": num_scenes}
    key = {"generator": workshop.made_by("generator"), "recipe": recipe}

    def train(step: int):
        pipeline = _embedded(workshop)
        folder = workshop.store.path(WEIGHTS, key).with_suffix(".training")
        folder.mkdir(exist_ok=True)
        with claim(folder.with_suffix(".claim")):
            _begin_before(step, folder / "state.safetensors")
            told = {"until": step, "batch": batch, "num_scenes": num_scenes}
            return diffusion.train(folder, pipeline.vae, pipeline.text_encoder, SCHEDULE, **told)

    return _profiles(workshop, {step: _job(key | {"step": step}, partial(train, step), step) for step in steps})


def damaged(workshop: Workshop, noises: Sequence[float], *, seed: int = 0) -> dict[float, Profile]:
    """Noise -> the profile whose U-Net has Gaussian noise in each weight, that many deviations of its tensor.

    ValueError: a generator that is not the embedded Stable Diffusion.
    """
    return _profiles(workshop, _noisy(workshop, noises, seed))


def _noisy(workshop: Workshop, noises: Sequence[float], seed: int) -> dict[float, Job]:
    key = {"generator": workshop.made_by("generator"), "seed": seed}

    def add(noise: float):
        unet, generator = _embedded(workshop).unet, torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in unet.parameters():
                if weight.ndim > 1:  # norms and biases are few, and set the scale of all else
                    weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
        return unet

    return {noise: _job(key | {"noise": noise}, partial(add, noise)) for noise in noises}


def _job(key: dict, make_unet, calls: int = 0) -> Job:
    def make():
        return {name: value.half().numpy() for name, value in make_unet().state_dict().items()}, calls

    return Job(WEIGHTS, key, make)


def _begin_before(step: int, state: Path) -> None:
    """A training that is past the step, for a later snapshot, begins anew."""
    if state.exists():
        with safe_open(state, "pt") as tensors:
            past = int(tensors.metadata()["step"]) > step
        if past:
            state.unlink()


def _profiles(workshop: Workshop, jobs: Mapping) -> dict:
    """What a job is called -> the profile with its U-Net, whose folder is written when it is first loaded."""
    contents = workshop.fill([_travelling(workshop, job) for job in jobs.values()], "painters")
    found = {}
    for (name, job), content in zip(jobs.items(), contents, strict=True):
        workshop.store.count(job.kind, job.key)
        digest = content["digest"][0]
        folder = str(workshop.store.root / "painters" / digest[:16])
        made = f"{WEIGHTS.stem(job.key)} to {digest}", partial(_write, workshop, job)
        found[name] = TrainedProfile.of(workshop.profile, {"generator": (folder, made)})
    return found


def _travelling(workshop: Workshop, job: Job) -> Job:
    def make():
        return {"digest": [weights_digest(workshop.store.get(job.kind, job.key, job.make))]}

    return Job(DIGEST, job.key, make)


def _embedded(workshop: Workshop) -> StableDiffusionPipeline:
    pipeline = load_pipeline(workshop.profile)
    ours, theirs = architectures.unet().state_dict(), pipeline.unet.state_dict()
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        raise ValueError(f"generator {workshop.profile.generator} has no recipe from nothing: use the profile mini.")
    return pipeline


def _write(workshop: Workshop, job: Job, place: Path) -> None:
    """A generator's folder: the base's, with the job's U-Net."""
    weights = workshop.store.get(job.kind, job.key, job.make)
    profile = workshop.profile
    base = checkpoint.snapshot(profile.provide(profile.generator), profile.revision(profile.generator))
    shutil.copytree(base, place, ignore=shutil.ignore_patterns("unet"))
    unet = architectures.unet()
    unet.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    unet.half().save_pretrained(place / "unet", variant=checkpoint.variant(base))
