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
Rows = Sequence[Sequence[int]]  # token ids, a prompt each
EXPERIMENTS = {name: Kind(name) for name in ("unknown-token", "one-hot", "soft-prompt")}


def prompt_ids(tokenizer, rows: Rows) -> Tensor:
    """Content tokens as the pipeline pads a prompt: start-of-text, the tokens, end-of-text to the end, `(B, L)` int64.

    ValueError for a row longer than the L - 2 tokens that the generator reads between the two.
    """
    length = tokenizer.model_max_length
    if (longest := max(map(len, rows), default=0)) > length - 2:
        raise ValueError(f"A prompt has {longest} tokens, and the generator reads {length} with both ends: shorten it.")
    whole = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]
    return tokenizer.pad({"input_ids": whole}, padding="max_length", max_length=length, return_tensors="pt").input_ids


class Retold:
    """Captions told to the generator in several ways, all drawn from the same noise; equal prompts are drawn once.

    Args:
        workshop: models and store; the generator must be a Stable Diffusion.
        examples: the captions' images.
        prompts: way -> token ids of each caption without start-of-text and end-of-text.
        seeds: of the noise, one a caption.
    """

    def __init__(self, workshop: Workshop, examples: Sequence[Example], prompts: Mapping[str, Rows], seeds: list[int]):
        self._workshop, self._examples = workshop, examples
        pairs = {way: list(zip(map(tuple, rows), seeds, strict=True)) for way, rows in prompts.items()}
        places = {pair: k for k, pair in enumerate(dict.fromkeys(sum(pairs.values(), [])))}
        self._places = {way: [places[pair] for pair in part] for way, part in pairs.items()}
        self.number = len(places)
        self._inputs = workshop.drawing_key() | {
            "tokens": [list(map(int, row)) for row, _ in places],
            "seeds": [seed for _, seed in places],
        }
        self._key = {"drawings": TOKEN_IMAGES.key(**self._inputs)}

    def draw(self) -> np.ndarray:
        """The different drawings, `(number, H, W, 3)` uint8, from the store or drawn now.

        ValueError for a prompt that is too long, or a generator of another kind.
        """
        contents = self._workshop.fill(self._jobs(), "drawings")
        return np.concatenate([content.images_hat for content in contents])

    def _jobs(self) -> list[Job[Images]]:
        jobs = []
        for block in blocks.cut(self.number):
            part = {name: self._inputs[name][block.images] for name in ("tokens", "seeds")}
            jobs.append(Job(TOKEN_IMAGES, self._inputs | part, partial(_draw, self._workshop, **part)))
        return jobs

    def show(self, way: str, count: int) -> np.ndarray:
        """The first drawings of a way, which a page shows, `(count, H, W, 3)` uint8."""
        places, store = self._places[way][:count], self._workshop.store
        for job in self._jobs():  # their cost belongs to this run also where they are not read
            store.count(job.kind, job.key)
        return store.get(SHOWN, self._key | {"places": places}, lambda: Images(self.draw()[places])).images_hat

    def seen(self, role: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What `probe` (logits) or `clip` (embeddings) sees, `(captions, D)`: in originals, in each way's drawings."""
        shop, made_by = self._workshop, self._workshop.made_by(role)

        def look(pictures: np.ndarray) -> tuple[Seen, int]:
            see = shop.referee.logits if role == "probe" else shop.encoder(role).embed
            return Seen(see(pictures)), len(pictures)

        key = made_by | shop.images_key(self._examples)
        originals = shop.store.get(
            SEEN[role], key, lambda: look(judges.squares(self._examples, shop.profile.image_size))
        )
        drawn = shop.store.get(SEEN[role], made_by | self._key, lambda: look(self.draw()))
        return originals.seen, {way: drawn.seen[places] for way, places in self._places.items()}


@torch.no_grad()
def _draw(workshop: Workshop, tokens: list[list[int]], seeds: list[int]) -> tuple[Images, int]:
    generator, parts = workshop.generator, []
    pipeline = generator.pipeline
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise ValueError(f"{type(pipeline).__name__} takes no token ids: choose a generator that is Stable Diffusion.")
    for start in range(0, len(tokens), generator.draw_batch):
        batch = slice(start, start + generator.draw_batch)
        ids = prompt_ids(pipeline.tokenizer, tokens[batch])
        states = pipeline.text_encoder(ids.to(pipeline.text_encoder.device))[0]
        parts.append(generator._draw(tokens[batch], seeds[batch], prompt_embeds=states))
    return Images(np.concatenate(parts)), len(tokens)


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
