"""Drawings of prompts that are given as token ids: what the generator draws of mapped captions, and what models see."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from dfl_utils.game import judges
from dfl_utils.game.drawings import Images
from dfl_utils.models.workshop import Workshop
from dfl_utils.store import blocks
from dfl_utils.store.store import Job, Kind
from dfl_utils.world.data import Example


@dataclass(frozen=True)
class Seen:
    """What a model sees in pictures, a row each."""

    seen: np.ndarray


TOKEN_IMAGES = Kind("token-images", Images, travels=False)
SHOWN = Kind("shown-token-images", Images)
SEEN = {"probe": Kind("probe-labels", Seen), "clip": Kind("clip-embeddings", Seen)}
EXPERIMENTS = {name: Kind(name) for name in ("unknown-token", "one-hot", "soft-prompt")}


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
    whole = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]
    return tokenizer.pad({"input_ids": whole}, padding="max_length", max_length=length, return_tensors="pt").input_ids


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


class Retold:
    """Captions told to the generator in several ways, all drawn from the same noise; equal prompts are drawn once.

    Args:
        workshop: see `draw`.
        examples: the captions' images.
        prompts: way -> token ids of each caption.
        seeds: of the noise, one a caption.
    """

    def __init__(
        self,
        workshop: Workshop,
        examples: Sequence[Example],
        prompts: Mapping[str, Sequence[Sequence[int]]],
        seeds: Sequence[int],
    ):
        pairs = {way: list(zip(map(tuple, rows), seeds, strict=True)) for way, rows in prompts.items()}
        places = {pair: k for k, pair in enumerate(dict.fromkeys(sum(pairs.values(), [])))}
        self._places = {way: [places[pair] for pair in part] for way, part in pairs.items()}
        self._asked = workshop, *map(list, zip(*places, strict=True))
        self._workshop, self._examples, self.number = workshop, examples, len(places)

    def seen(self, role: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What a model sees in the originals, and in the drawings of each way, `(captions, D)`.

        Args:
            role: `probe`, whose logits are given, or `clip`, whose unit embeddings are.
        """
        shop = self._workshop
        made_by, side = shop.made_by(role), shop.profile.image_size

        def look(pictures: np.ndarray) -> tuple[Seen, int]:
            see = shop.referee.logits if role == "probe" else shop.encoder(role).embed
            return Seen(see(pictures)), len(pictures)

        def get(inputs: dict, pictures: Callable[[], np.ndarray]) -> np.ndarray:
            return shop.store.get(SEEN[role], made_by | inputs, lambda: look(pictures())).seen

        originals = get(shop.images_key(self._examples), lambda: judges.squares(self._examples, side))
        drawn = get({"drawings": key(*self._asked)}, lambda: draw(*self._asked))
        return originals, {way: drawn[places] for way, places in self._places.items()}

    def show(self, way: str, count: int) -> np.ndarray:
        """The first drawings of a way, `(count, H, W, 3)` uint8."""
        return show(*self._asked, self._places[way][:count])


def experiment(
    workshop: Workshop, name: str, run: Callable[[], dict[str, Tensor]], examples: Sequence[Example] = (), **inputs
) -> dict[str, np.ndarray]:
    """Tensors of a small experiment on prompts of the generator, from the store or made now.

    Args:
        name: of `EXPERIMENTS`; whoever changes what `run` gives raises the version.
        examples: images that the captioner reads in it.
        inputs: all else that it depends on, beside the generator.
    """
    if examples:
        inputs |= workshop.images_key(examples) | {"reader": workshop.made_by("captioner")}
    asked = workshop.made_by("generator") | inputs
    return workshop.store.get(EXPERIMENTS[name], asked, lambda: ({n: t.numpy() for n, t in run().items()}, 1))


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
