"""Drawings of prompts that are given as token ids: what the generator draws of mapped captions."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from dfl_utils.game.drawings import Images
from dfl_utils.models.workshop import Workshop
from dfl_utils.store import blocks
from dfl_utils.store.store import Job, Kind

TOKEN_IMAGES = Kind("token-images", Images, travels=False)
SHOWN = Kind("shown-token-images", Images)


def prompt_ids(tokenizer, rows: Sequence[Sequence[int]]) -> Tensor:
    """Content tokens as the pipeline pads a prompt: start-of-text, the tokens, end-of-text to the end, `(B, L)` int64.

    Raises:
        ValueError: a row longer than the L - 2 tokens that the generator reads between the two.
    """
    length = tokenizer.model_max_length
    longest = max(map(len, rows), default=0)
    if longest > length - 2:
        raise ValueError(
            f"A prompt has {longest} tokens, and the generator reads {length} with start-of-text and end-of-text: "
            "leave it out or shorten it."
        )
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row) + 2] = torch.tensor([tokenizer.bos_token_id, *row, tokenizer.eos_token_id])
    return ids


def draw(workshop: Workshop, rows: Sequence[Sequence[int]], seeds: Sequence[int]) -> np.ndarray:
    """One image a row of token ids, `(B, H, W, 3)` uint8, from the store or drawn now.

    A row that is the generator's own tokens of a caption gives the drawing that `Generator.draw` makes of the caption
    with that seed, for the noise is the same.

    Args:
        workshop: models and store; the generator must be a Stable Diffusion.
        rows: token ids of the generator without start-of-text and end-of-text.
        seeds: one for each row.

    Raises:
        ValueError: no rows, other than one seed a row, a row that is too long, a generator of another kind.
    """
    contents = workshop.fill(_jobs(workshop, rows, seeds), "drawings")
    return np.concatenate([content.images_hat for content in contents])


def _jobs(workshop: Workshop, rows: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Job[Images]]:
    whole = key(workshop, rows, seeds)
    del whole["kind"], whole["version"]  # the store adds them
    jobs = []
    for start in range(0, len(rows), blocks.SHARD_IMAGES):
        part, drawn = (whole[name][start : start + blocks.SHARD_IMAGES] for name in ("tokens", "seeds"))
        jobs.append(Job(TOKEN_IMAGES, whole | {"tokens": part, "seeds": drawn}, partial(_draw, workshop, part, drawn)))
    return jobs


def show(workshop: Workshop, rows: Sequence[Sequence[int]], seeds: Sequence[int], places: Sequence[int]) -> np.ndarray:
    """Those of the images of `draw` that a page shows, `(places, H, W, 3)` uint8."""
    places = list(places)

    def take():
        return Images(draw(workshop, rows, seeds)[places])

    for job in _jobs(workshop, rows, seeds):  # their cost belongs to this run also where they are not read
        workshop.store.count(job.kind, job.key)
    asked = {"drawings": key(workshop, rows, seeds), "places": places}
    return workshop.store.get(SHOWN, asked, take).images_hat


def key(workshop: Workshop, rows: Sequence[Sequence[int]], seeds: Sequence[int]) -> dict:
    """What the images of `draw` depend on, for the keys of what is made from them.

    Raises:
        ValueError: no rows, or other than one seed a row.
    """
    if not rows or len(rows) != len(seeds):
        raise ValueError(f"{len(rows)} prompts and {len(seeds)} seeds: give one seed for each prompt.")
    profile = workshop.profile
    return TOKEN_IMAGES.key(
        **workshop.made_by("generator"),
        num_inference_steps=profile.num_inference_steps,
        guidance_scale=profile.guidance_scale,
        image_size=profile.image_size,
        tokens=[list(map(int, row)) for row in rows],
        seeds=list(seeds),
    )


@torch.no_grad()
def _draw(workshop: Workshop, rows: list[list[int]], seeds: list[int]) -> tuple[Images, int]:
    generator = workshop.generator
    pipeline = generator.pipeline
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise ValueError(f"{type(pipeline).__name__} takes no token ids: choose a generator that is Stable Diffusion.")
    images = []
    for start in range(0, len(rows), generator.draw_batch):
        ids = prompt_ids(pipeline.tokenizer, rows[start : start + generator.draw_batch])
        streams = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + generator.draw_batch]]
        drawn = pipeline(
            prompt_embeds=pipeline.text_encoder(ids.to(pipeline.text_encoder.device))[0],
            num_inference_steps=generator.num_inference_steps,
            guidance_scale=generator.guidance_scale,
            height=generator.image_size,
            width=generator.image_size,
            latents=generator._noise(streams),
            generator=streams,
            output_type="np",
        )
        images.append((drawn.images * 255).round().astype(np.uint8))
    return Images(np.concatenate(images)), len(rows)
