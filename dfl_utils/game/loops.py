"""The two games, image -> text -> image and text -> image -> text (Section 3.1), played through the run store.

Work is kept in shards of some images and candidates (`blocks`), so a killed run goes on where it was, a
larger one starts from a smaller, and a second loads no model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from dfl_utils.game.drawings import Drawings, Features, Likelihoods, Sentences
from dfl_utils.models import blip
from dfl_utils.models.workshop import Workshop, read
from dfl_utils.store import blocks
from dfl_utils.store.blocks import caption_streams, image_seeds
from dfl_utils.store.store import Job, Kind, RunStore
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

# --- What the two games bring back.


@dataclass(frozen=True)
class Reconstructions:
    """What came back of images: similarities now, pictures on demand."""

    examples: list[Example]  # the originals, in order
    captions: list[list[str]]  # their captions, `images` lists of N
    sim_image: dict[str, np.ndarray]  # encoder name -> cosine(original, image_hat), `(images, N)` float32
    drawings: Drawings

    def load_images(self, k: int) -> np.ndarray:
        """The N drawings of example k, `(N, H, W, 3)` uint8."""
        return self.drawings.load(k)


@dataclass(frozen=True)
class Readings(Reconstructions):
    """What came back of texts: N drawings of each and what the captioner reads in them.

    Their `sim_image` is with the image that the text was written of: the quality of a drawing (Section 3.3), never used
    to rank.
    """

    captions: list[str]  # the original texts, one an image
    captions_hat: list[list[str]]  # read in each drawing, `images` lists of N; compared with the text, it ranks


CAPTIONS, DESCRIPTIONS = Kind("captions", Sentences), Kind("descriptions", Sentences)
LIKELIHOOD, ORIGINAL_FEATURES = Kind("likelihood", Likelihoods), Kind("original-features", Features)
GREY = Image.new("RGB", (64, 64), (128, 128, 128))


class Game(Workshop):
    """Two models, their judges and a store: a `Workshop` that plays.

    Args:
        num_inference_steps: replaces the profile's where given.
        profile, store, options: as of `Workshop`.
    """

    def __init__(self, profile: Profile, store: RunStore, *, num_inference_steps: int | None = None, **options):
        steps = profile.num_inference_steps if num_inference_steps is None else num_inference_steps
        super().__init__(replace(profile, num_inference_steps=steps), store, **options)

    def sample_captions(
        self,
        examples: Sequence[Example],
        num_candidates: int = 10,
        *,
        top_p: float = 0.9,
        top_k: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[list[str]]:
        """N sampled captions an image. Arguments as of `Captioner.sample`, `top_k=None` is the profile's; `seed` starts
        every stream.

        Raises:
            ValueError: no images, fewer than one candidate, a negative seed or impossible sampling.
        """
        _check(examples, num_candidates, seed)
        top_k = self.profile.top_k if top_k is None else top_k
        blip.check_sampling(top_p, top_k, temperature)
        options = {"top_p": top_p, "top_k": top_k, "temperature": temperature}
        streams = [caption_streams(seed, example.image_id, num_candidates) for example in examples]

        def sample(examples: Sequence[Example], streams: list) -> tuple[Sentences, int]:
            texts = sum(self.captioner.sample(read(examples), streams, **options), [])
            return Sentences(texts), len(texts)

        key = self.sampling_key() | options
        contents = self._fill(CAPTIONS, key, examples, sample, "captions", streams=streams)
        return blocks.join_texts([content.captions for content in contents], num_candidates)

    def describe(self, examples: Sequence[Example], num_beams: int = 3) -> list[str]:
        """One caption an image, by beam search: how the paper decodes in its Table 3 (ValueError: no images)."""
        _check(examples)

        def describe(examples: Sequence[Example]) -> tuple[Sentences, int]:
            return Sentences(self.captioner.describe(read(examples), num_beams=num_beams)), len(examples)

        key = self.beam_key(num_beams)
        contents = self._fill(DESCRIPTIONS, key, examples, describe, "descriptions")
        return [text for content in contents for text in content.captions]

    def log_likelihood(
        self,
        examples: Sequence[Example],
        captions: Sequence[Sequence[str]],
        *,
        summed: bool = False,
        unseen: bool = False,
    ) -> np.ndarray:
        """Mean log-probability a token that the captioner gives to captions of the originals: `(images, N)` float32.

        Args:
            examples: originals.
            captions: the same number N >= 1 for each.
            summed: the sum over tokens instead of their mean.
            unseen: of a grey image in the place of each original: what the captioner would say anyway, a prior (Lin
                et al., "Revisiting the Role of Language Priors in Vision-Language Models", ICML 2024).
        """
        count = _check_captions("log_likelihood", examples, captions)
        options = {name: True for name, asked in (("summed", summed), ("unseen", unseen)) if asked}
        make = partial(self._weigh, summed, unseen)
        key = self.captioner_key() | options
        contents = self._fill(LIKELIHOOD, key, examples, make, "likelihood", captions=captions)
        return blocks.join([content.log_likelihood for content in contents], count)

    def _weigh(self, summed: bool, unseen: bool, examples: Sequence[Example], captions: list[list[str]]):
        images = [GREY] * len(examples) if unseen else read(examples)
        likelihoods = self.captioner.log_likelihood(images, captions, summed=summed)
        return Likelihoods(likelihoods), likelihoods.size

    def reconstruct(
        self,
        examples: Sequence[Example],
        captions: Sequence[Sequence[str]],
        *,
        similarities: Sequence[str] = ("clip", "dino"),
        seed: int = 0,
        shared_noise: bool = False,
    ) -> Reconstructions:
        """Draw one image a caption and compare it with its original.

        Args:
            examples: originals.
            captions: the same number N >= 1 for each; any text, also an empty one.
            similarities: keys of `similarity.ENCODERS`.
            seed: starts the noise; candidate n of image i is drawn from `image_seeds(seed, i, N)[n]`.
            shared_noise: all candidates of an image are drawn from the noise of its first: they differ in words alone.
        """
        count = _check_captions("reconstruct", examples, captions)
        blocks.check_seed(seed)
        examples, captions = list(examples), [list(row) for row in captions]
        seeds = [image_seeds(seed, example.image_id, count) for example in examples]
        seeds = [row[:1] * count for row in seeds] if shared_noise else seeds
        drawings = Drawings(self, examples, captions, seeds)
        return Reconstructions(examples, captions, drawings.compare(similarities), drawings)

    def i2t2i(
        self, examples: Sequence[Example], num_candidates: int = 10, *, top_p: float = 0.9, seed: int = 0, **options
    ) -> Reconstructions:
        """The whole loop: sample N captions an image, draw them, compare (paper: N = 10, p = 0.9)."""
        captions = self.sample_captions(examples, num_candidates, top_p=top_p, seed=seed)
        return self.reconstruct(examples, captions, seed=seed, **options)

    def t2i2t(
        self,
        examples: Sequence[Example],
        num_candidates: int = 10,
        *,
        num_beams: int = 3,
        similarities: Sequence[str] = ("clip", "dino"),
        seed: int = 0,
    ) -> Readings:
        """The other loop: draw N images of one reference of each image, read them, compare (Sections 3.1 and 3.3).

        Args:
            examples: images with their references; one reference is drawn at random, by seed and image id alone.
            num_candidates: drawings N >= 1 a text (paper: 10), of noise that i2t2i never uses.
            num_beams: of the captioner's beam search.
            similarities: keys of `similarity.ENCODERS`; how a drawing's quality is measured.
            seed: starts all draws.

        Raises:
            ValueError: no images, an image without references, fewer than one candidate, a negative seed.
        """
        _check(examples, num_candidates, seed)
        examples, texts = list(examples), references_of(examples, seed)
        purpose = blocks.NOISE_OF_TEXT
        seeds = [image_seeds(seed, example.image_id, num_candidates, purpose) for example in examples]
        drawings = Drawings(self, examples, [[text] * num_candidates for text in texts], seeds)
        quality = drawings.compare(similarities)
        return Readings(examples, texts, quality, drawings, drawings.describe(num_beams))

    def original_features(self, examples: Sequence[Example], by: str | None = None) -> np.ndarray:
        """What the fidelity scores read of originals: `(images, D)` float32; `by` as of `Drawings.features`."""

        def measure(examples: Sequence[Example]) -> tuple[Features, int]:
            return Features(self.extractor(by).features(read(examples))), len(examples)

        _check(examples)
        contents = self._fill(ORIGINAL_FEATURES, self.extractor_key(by), examples, measure, "features")
        return np.concatenate([content.features for content in contents])

    def _fill(self, kind: Kind, key: dict, examples: Sequence[Example], make: Callable, what: str, **rows) -> list:
        """The shards of images, or of images and candidates: `make` gets a block's images and its part of the `rows`.

        What each shard holds depends on `key`, its images and its part of the rows, each a list of N an image.
        """
        jobs = []
        for block in blocks.cut(len(examples), *{len(values[0]) for values in rows.values()}):
            part, inputs = examples[block.images], {name: block.of(values) for name, values in rows.items()}
            jobs.append(Job(kind, key | inputs | self.images_key(part), partial(make, part, **inputs)))
        return self.fill(jobs, what, images=len(examples))


def references_of(examples: Sequence[Example], seed: int) -> list[str]:
    """One reference of each image, drawn at random by seed and image id alone.

    ValueError: an image without references, a negative seed.
    """
    blocks.check_seed(seed)
    bare = [example.image_id for example in examples if not example.references]
    if bare:
        raise ValueError(f"Image {bare[0]} has no references, and one is drawn: leave out images without.")
    return [blocks.pick(seed, example.image_id, example.references) for example in examples]


def _check(examples: Sequence[Example], num_candidates: int = 1, seed: int = 0) -> None:
    if not examples or num_candidates < 1:
        raise ValueError(
            f"The game needs images and candidates, not {len(examples)} images x {num_candidates} candidates: "
            "raise NUM_IMAGES or NUM_CANDIDATES."
        )
    blocks.check_seed(seed)


def _check_captions(name: str, examples: Sequence[Example], captions: Sequence[Sequence[str]]) -> int:
    counts = {len(row) for row in captions}
    if not examples or len(captions) != len(examples) or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"{name} takes the same number of captions (at least one) for each of the {len(examples)} images, "
            f"not {len(captions)} lists of lengths {sorted(counts)}."
        )
    return counts.pop()
