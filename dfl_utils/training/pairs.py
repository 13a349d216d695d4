"""Image-caption pairs for the finetuning: checked before any work, latents made once, batches fixed by the step."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dfl_utils.models import denoising
from dfl_utils.models.blip import Blip2Captioner, BlipCaptioner, Captioner
from dfl_utils.models.workshop import Workshop, read
from dfl_utils.store import blocks
from dfl_utils.store.store import Job, Kind
from dfl_utils.world.data import Example

LATENT_BLOCK = 256  # images a shard of latents
WHOLE = slice(None)


@dataclass(frozen=True)
class Caption:
    """B captions as a captioner reads them."""

    # input_ids, attention_mask: `(B, T)` [BOS], prompt and caption, padded to the right; 1 where there is a token
    input_ids: Tensor
    attention_mask: Tensor
    places: Tensor  # `(B, T)` bool, the positions whose prediction is a target
    targets: Tensor  # `(N,)` the tokens to be predicted there, row after row, each caption's end with it
    counts: tuple[int, ...]  # B numbers of caption tokens, the end not counted

    @property
    def words(self) -> Tensor:
        """`(N,)` bool on the CPU: which targets are tokens of a caption and no ends."""
        return torch.cat([torch.arange(count + 1) < count for count in self.counts])

    def to(self, device) -> "Caption":
        moved = (t.to(device) for t in (self.input_ids, self.attention_mask, self.places, self.targets))
        return Caption(*moved, self.counts)

    def rows(self, chosen: slice) -> "Caption":
        """Those of the captions in `chosen`, a slice of step 1."""
        keep = torch.zeros(len(self.counts), dtype=torch.bool)
        keep[chosen] = True
        of_target = keep.repeat_interleave(torch.tensor(self.counts) + 1)
        places, ids, mask = (t[chosen] for t in (self.places, self.input_ids, self.attention_mask))
        return Caption(ids, mask, places, self.targets[of_target], self.counts[chosen])


@dataclass(frozen=True)
class Batch:
    """B image-caption pairs, and the noise of their step."""

    pixel_values: Tensor  # `(B, 3, S, S)` the images as the captioner's processor gives them
    caption: Caption  # the captions as the captioner reads them
    prompt_ids: Tensor  # `(B, L)` the captions as the generator reads them
    latents: Tensor  # `(B, C, h, w)` the images as the generator sees them, scaled
    timesteps: Tensor  # `(B,)` uniform over the noise schedule
    noise: Tensor  # noise, step_noise: like `latents`, standard normal; the latter is that of `previous_latents`
    step_noise: Tensor
    seed: int = 0  # of whatever else the step draws
    # tokens, ends not counted, of the captions of the step's batch before these: what is drawn for them is passed over,
    # so that a pair's noise does not depend on how its batch was cut
    words_before: int = 0
    worse: Caption | None = None  # of a preference: the B captions that are liked less
    margin: Tensor | None = None  # `(B,)` log p(caption | image) - log p(worse | image) before any training, nats

    def rows(self, chosen: slice) -> "Batch":
        """The pairs in `chosen`, a slice of step 1."""
        tensors = ("pixel_values", "prompt_ids", "latents", "timesteps", "noise", "step_noise")
        parts = {name: getattr(self, name)[chosen] for name in tensors}
        if self.worse is not None:
            parts |= {"worse": self.worse.rows(chosen), "margin": self.margin[chosen]}
        return replace(self, caption=self.caption.rows(chosen), **parts)


@dataclass(frozen=True)
class Latents:
    """Scaled means of the autoencoder's posterior, `(images, C, h, w)` float32."""

    latents: np.ndarray


LATENTS = Kind("latents", Latents, travels=False)
PUNCTUATION = re.compile(r'[.!"()*#:;~]')
MOST_WORDS = 30


def clean(caption: str, most_words: int | None = None) -> str:
    """A caption as BLIP was trained on (salesforce/BLIP, `pre_caption`): in lower case, without some punctuation, with
    single spaces, at most so many words."""
    return " ".join(PUNCTUATION.sub(" ", caption.lower()).split()[:most_words])


def cleaned(example: Example) -> Example:
    """An example with its captions as BLIP was finetuned on them; one of which nothing is left is dropped."""
    texts = (clean(text, MOST_WORDS) for text in example.references)
    return replace(example, references=tuple(filter(None, texts)))


def latents(workshop: Workshop, pipeline: StableDiffusionPipeline, examples: Sequence[Example]) -> Tensor:
    """What the generator sees of images, or of their middle squares: scaled means of the autoencoder's posterior,
    `(images, C, h, w)`, made once and kept in the store.

    The paper does not say whether the posterior is sampled; its mean makes a step depend on its seed alone.
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
        seed: of order, choice of captions, timesteps and noise; ValueError where it is negative.
        margins: of preferences, see `Batch.margin`, `(images,)`: each image has two captions, the better one first.
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
        margins: np.ndarray | None = None,
    ):
        blocks.check_seed(seed)
        self.captioner, self.pipeline = captioner, pipeline
        self.examples, self.batch_size, self.seed = list(examples), batch_size, seed
        self.latents, self.margins = latents, margins
        self.steps_per_epoch = -(-len(self.examples) // batch_size)

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """The pairs of a step, or some rows of them; an epoch's last batch is filled up from the epoch's beginning."""
        places, pairs, seed = self._drawn(step)
        batch = self.make(pairs, self.latents[places], seed, rows)
        if self.margins is None:
            return batch
        worse = [self.examples[k].references[1] for k in places[rows]]
        margin = torch.from_numpy(self.margins[places[rows]])
        device = self.captioner.model.device
        return replace(batch, worse=read_captions(self.captioner, worse).to(device), margin=margin.to(device))

    def counts(self, step: int) -> tuple[int, ...]:
        """Tokens of each caption of a step's batch, the end not counted."""
        return read_captions(self.captioner, [pair.references[0] for pair in self._drawn(step)[1]]).counts

    def _drawn(self, step: int) -> tuple[np.ndarray, list[Example], int]:
        """Places of a step's images, the images with the caption chosen of each, and the seed of the step's noise."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        chosen = np.resize(np.roll(order, -place * self.batch_size), self.batch_size)
        stream = np.random.default_rng([self.seed, epoch, place + 1])  # with a 0 at its end it were the order's stream
        pairs = [self.examples[k] for k in chosen]
        if self.margins is None:
            pairs = [replace(e, references=(e.references[stream.integers(len(e.references))],)) for e in pairs]
        return chosen, pairs, int(stream.integers(2**31))

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
        words_before = sum(read_captions(self.captioner, before).counts) if before else 0
        caption = read_captions(self.captioner, captions[rows]).to(device)
        ids = prompt_ids(self.pipeline, captions[rows])
        images, *others = (t.to(device) for t in (images, ids, latents[rows], timesteps[rows], noise, step_noise))
        return Batch(images, caption, *others, seed, words_before)


def read_captions(captioner: Captioner, captions: Sequence[str]) -> Caption:
    """Tokens and targets of captions, without the prompt; whether they fit is said by `check`."""
    prompt = captioner._prompt_ids()
    targets = [captioner._caption_ids(text) for text in captions]
    rows = [torch.cat([torch.tensor(prompt), ids[:-1]]) for ids in targets]
    pad = captioner.model.config.text_config.pad_token_id
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    places = attention_mask.bool() & (torch.arange(attention_mask.shape[1]) >= len(prompt) - 1)
    return Caption(
        pad_sequence(rows, batch_first=True, padding_value=pad),
        attention_mask,
        places,
        torch.cat(targets),
        tuple(len(ids) - 1 for ids in targets),
    )


def prompt_ids(pipeline: StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Captions as the generator's own pipeline tokenises a prompt, `(B, positions)`."""
    tokenizer = pipeline.tokenizer
    return tokenizer(
        list(captions), padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def check(captioner: Captioner, pipeline: StableDiffusionPipeline, examples: Sequence[Example]) -> None:
    """Every caption fits both models; ValueError names the first image that has none, or one that does not."""
    if not isinstance(captioner, BlipCaptioner | Blip2Captioner):
        raise ValueError(
            f"{captioner.model.name_or_path} is a {type(captioner.model).__name__}, and the finetuning needs a BLIP or "
            "BLIP-2 captioner (Section 5 names what moves in those): give one."
        )
    rooms = captioner._positions() - len(captioner._prompt_ids()), pipeline.tokenizer.model_max_length
    for example in examples:
        texts = list(example.references)
        if not texts or not all(map(str.strip, texts)):
            raise ValueError(f"Image {example.image_id} has no caption to learn from, or an empty one: leave it out.")
        words = max(read_captions(captioner, texts).counts)  # the generator is told one row for each, between two ends
        prompt = max(map(len, pipeline.tokenizer(texts, verbose=False).input_ids))
        lengths = {"captioner": words + 1, "generator": max(prompt, words + 2)}
        for (model, length), room in zip(lengths.items(), rooms, strict=True):
            if length > room:
                raise ValueError(
                    f"Image {example.image_id} has a caption of {length} tokens, and the {model} reads {room}: shorten "
                    "it or leave it out."
                )
