"""Image-caption pairs for the finetuning: checked before any work, latents made once, batches fixed by the step."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from dfl_utils.models import denoising
from dfl_utils.models.blip import Blip2Captioner, BlipCaptioner, Captioner
from dfl_utils.models.workshop import Workshop, read
from dfl_utils.store import blocks
from dfl_utils.store.store import Job, Kind
from dfl_utils.training import teacher_forcing
from dfl_utils.training.losses import Batch
from dfl_utils.world.data import Example

LATENT_BLOCK = 256  # images a shard of latents
WHOLE = slice(None)


@dataclass(frozen=True)
class Latents:
    """Scaled means of the autoencoder's posterior, `(images, C, h, w)` float32."""

    latents: np.ndarray


LATENTS = Kind("latents", Latents, travels=False)


PUNCTUATION = re.compile(r'[.!"()*#:;~]')
MOST_WORDS = 30


def cleaned(example: Example) -> Example:
    """An example with its captions as BLIP was finetuned on them (salesforce/BLIP, `pre_caption`): in lower case,
    without some punctuation, at most 30 words; one of which nothing is left is dropped."""
    texts = (" ".join(PUNCTUATION.sub(" ", text.lower()).split()[:MOST_WORDS]) for text in example.references)
    return replace(example, references=tuple(filter(None, texts)))


def latents(workshop: Workshop, pipeline: StableDiffusionPipeline, examples: Sequence[Example]) -> Tensor:
    """What the generator sees of images, `(images, C, h, w)`: scaled means of the autoencoder's posterior.

    Of an image that is not square its middle is seen, as the references of FID are. The paper does not say whether the
    posterior is sampled or its mean taken; the mean makes a step depend on its seed alone.
    Nothing that is trained changes them, so they are made once and kept in the store.
    """
    size, jobs = workshop.profile.image_size, []
    for start in range(0, len(examples), LATENT_BLOCK):
        part = examples[start : start + LATENT_BLOCK]
        key = workshop.made_by("generator") | {"image_size": size} | workshop.images_key(part)
        jobs.append(Job(LATENTS, key, partial(_encode, pipeline, part, size)))
    return torch.from_numpy(np.concatenate([content.latents for content in workshop.fill(jobs, "latents")]))


@torch.no_grad()
def _encode(pipeline: StableDiffusionPipeline, examples: Sequence[Example], size: int) -> tuple[Latents, int]:
    return Latents(denoising.latents(pipeline, read(examples), size).float().cpu().numpy()), len(examples)


class Pairs:
    """Batches of images with one of their captions, shuffled anew each epoch; a batch depends on seed and step alone.

    Args:
        captioner, pipeline: the models that will read the pairs.
        examples: images with captions (their `references`), held to `check`; one at least.
        latents: of the images, see `latents`.
        batch_size: pairs a step (paper: 8).
        seed: of order, choice of captions, timesteps and noise; ValueError where it is negative.
    """

    def __init__(
        self,
        captioner: Captioner,
        pipeline: StableDiffusionPipeline,
        examples: Sequence[Example],
        latents: Tensor,
        *,
        batch_size: int = 8,
        seed: int = 0,
    ):
        blocks.check_seed(seed)
        self.captioner, self.pipeline = captioner, pipeline
        self.examples, self.batch_size, self.seed = list(examples), batch_size, seed
        self.latents = latents
        self.steps_per_epoch = -(-len(self.examples) // batch_size)

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """The pairs of a step, or some rows of them; an epoch's last batch is filled up from the epoch's beginning."""
        pairs, latents, seed = self._drawn(step)
        return self.make(pairs, latents, seed, rows)

    def counts(self, step: int) -> tuple[int, ...]:
        """Tokens of each caption of a step's batch, the end not counted."""
        return self._read([pair.references[0] for pair in self._drawn(step)[0]]).counts

    def _drawn(self, step: int) -> tuple[list[Example], Tensor, int]:
        """Images with the caption chosen of each, their latents and the seed of the step's noise."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        chosen = np.resize(np.roll(order, -place * self.batch_size), self.batch_size)
        stream = np.random.default_rng([self.seed, epoch, place + 1])  # with a 0 at its end it were the order's stream
        pairs = [self.examples[k] for k in chosen]
        pairs = [replace(e, references=(e.references[stream.integers(len(e.references))],)) for e in pairs]
        return pairs, self.latents[chosen], int(stream.integers(2**31))

    def make(self, pairs: Sequence[Example], latents: Tensor, seed: int, rows: slice = WHOLE) -> Batch:
        """One batch of examples with their first caption, noised by `seed`; of its `rows` alone, if these are given.

        The noise of a row is that which it has in the whole batch.
        """
        captions = [example.references[0] for example in pairs]
        images = self.captioner.processor.image_processor(read(pairs[rows]), return_tensors="pt").pixel_values
        stream = torch.Generator().manual_seed(seed)
        steps = self.pipeline.scheduler.config.num_train_timesteps
        timesteps = torch.randint(steps, (len(pairs),), generator=stream)
        noise, step_noise = (torch.randn(latents.shape, generator=stream)[rows] for _ in range(2))
        device = self.captioner.model.device
        before = captions[: rows.start or 0]
        words_before = sum(self._read(before).counts) if before else 0
        caption = self._read(captions[rows]).to(device)
        ids = prompt_ids(self.pipeline, captions[rows])
        images, *others = (t.to(device) for t in (images, ids, latents[rows], timesteps[rows], noise, step_noise))
        return Batch(images, caption, *others, seed, words_before)

    def _read(self, captions: Sequence[str]) -> teacher_forcing.Caption:
        return teacher_forcing.read(self.captioner, captions, image_tokens(self.captioner))


def prompt_ids(pipeline: StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Captions as the generator's own pipeline tokenises a prompt, `(B, positions)`."""
    tokenizer = pipeline.tokenizer
    return tokenizer(
        list(captions), padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def image_tokens(captioner: Captioner) -> int:
    """Places that an image takes in the text side's positions: BLIP-2's queries; none with BLIP's cross-attention."""
    return getattr(captioner.model.config, "num_query_tokens", 0)


def check(captioner: Captioner, pipeline: StableDiffusionPipeline, examples: Sequence[Example]) -> None:
    """Every caption fits both models; ValueError names the first image that has none, or one that does not."""
    if not isinstance(captioner, BlipCaptioner | Blip2Captioner):
        raise ValueError(
            f"{captioner.model.name_or_path} is a {type(captioner.model).__name__}, and the finetuning needs a BLIP or "
            "BLIP-2 captioner (Section 5 names what moves in those): give one."
        )
    room = pipeline.tokenizer.model_max_length
    for example in examples:
        if not example.references:
            raise ValueError(f"Image {example.image_id} has no caption to learn from: leave it out.")
        try:
            caption = teacher_forcing.read(captioner, example.references, image_tokens(captioner))
        except ValueError as error:
            raise ValueError(f"Image {example.image_id}: {error}") from None
        lengths = [len(row) for row in pipeline.tokenizer(list(example.references), verbose=False).input_ids]
        longest = max(*lengths, *(count + 2 for count in caption.counts))
        if longest > room:
            raise ValueError(
                f"Image {example.image_id} has a caption of {longest} tokens, and the generator reads {room}: "
                "shorten it or leave it out."
            )
