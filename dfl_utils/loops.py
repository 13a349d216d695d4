"""The game image -> text -> image (Section 3.1), played shard by shard through the run store.

A shard holds the work of `SHARD_IMAGES` images. Its key names everything that it depends on (checkpoints, images,
seeds, settings, packages, the code of its module), so a killed run goes on where it was and a second loads no model.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from tqdm import tqdm

from dfl_utils import captioner, data, generator, provenance, similarity
from dfl_utils.data import Example
from dfl_utils.profile import Profile
from dfl_utils.store import Job, RunStore

SHARD_IMAGES = 16
WORDS, NOISE = 1, 2  # purpose of a random stream: no caption shares one with a drawing


def image_seeds(seed: int, image_id: int, count: int) -> list[int]:
    """`count` 63-bit seeds of an image's drawings; seed n is the same for any count."""
    streams = ([NOISE, seed, image_id, n] for n in range(count))
    return [int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> 1) for stream in streams]


def caption_streams(seed: int, image_id: int, count: int) -> list[list[int]]:
    """`count` seeds of an image's sampled captions; seed n is the same for any count."""
    return [[WORDS, seed, image_id, n] for n in range(count)]


def _content_hashes(examples: Sequence[Example]) -> list[str]:
    """SHA-256 of each image file: a key that knows a replaced image."""
    return [hashlib.sha256(data.read_bytes(example.path)).hexdigest() for example in examples]


@dataclass(frozen=True)
class Reconstructions:
    """What came back: similarities now, pictures on demand.

    Attributes:
        examples: the originals, in order.
        captions: their captions, `images` lists of N.
        sim_image: encoder name -> cosine(original, image_hat), `(images, N)` float32.
        load_images: k -> the N drawings of example k, `(N, H, W, 3)` uint8.
    """

    examples: list[Example]
    captions: list[list[str]]
    sim_image: dict[str, np.ndarray]
    load_images: Callable[[int], np.ndarray]


class Game:
    """Two models, their judges and a store. Models are loaded when a shard is missing, not before.

    Args:
        profile: names models and sizes.
        store: where shards are kept.
        num_inference_steps, guidance_scale: replace the profile's where given.
        progress: show bars.
    """

    def __init__(
        self,
        profile: Profile,
        store: RunStore,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        progress: bool = True,
    ):
        given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        self.profile = replace(profile, **{name: value for name, value in given.items() if value is not None})
        self.store, self.progress = store, progress
        self._encoders: dict[str, similarity.ImageEncoder] = {}

    @cached_property
    def captioner(self) -> captioner.Captioner:
        return captioner.Captioner.load(self.profile)

    @cached_property
    def generator(self) -> generator.Generator:
        return generator.Generator.load(self.profile)

    def encoder(self, name: str) -> similarity.ImageEncoder:
        if name not in self._encoders:
            self._encoders[name] = similarity.ENCODERS[name](self.profile)
        return self._encoders[name]

    def sample_captions(
        self,
        examples: Sequence[Example],
        num_candidates: int = 10,
        *,
        top_p: float = 0.9,
        top_k: int = 0,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[list[str]]:
        """N sampled captions an image. Same arguments as `Captioner.sample`; `seed` starts every stream.

        Raises:
            ValueError: no images, fewer than one candidate, a negative seed or impossible sampling.
        """
        if not examples or num_candidates < 1:
            raise ValueError(
                f"The game needs images and candidates, not {len(examples)} images x {num_candidates} candidates: "
                "raise NUM_IMAGES or NUM_CANDIDATES."
            )
        _check_seed(seed)
        captioner.check_sampling(top_p, top_k, temperature)
        options = {"top_p": top_p, "top_k": top_k, "temperature": temperature}

        def job(part: Sequence[Example]) -> Job:
            streams = [caption_streams(seed, example.image_id, num_candidates) for example in part]
            words = [self.profile.min_words, self.profile.max_words]
            key = {"streams": streams, "prompt": self.profile.captioner_prompt, "words": words}

            def make():
                images = [data.read_image(example.path) for example in part]
                rows = self.captioner.sample(images, streams, **options)
                return {"captions": [text for row in rows for text in row]}, len(part) * num_candidates

            images = {"images": _content_hashes(part)}
            return "captions", self._made_by("captioner", captioner) | options | key | images, make

        jobs = [job(examples[shard]) for shard in _shards(examples)]
        flat = [text for content in self._fill(jobs, "captions") for text in content["captions"]]
        return [flat[k : k + num_candidates] for k in range(0, len(flat), num_candidates)]

    def reconstruct(
        self,
        examples: Sequence[Example],
        captions: Sequence[Sequence[str]],
        *,
        similarities: Sequence[str] = ("clip", "dino"),
        seed: int = 0,
    ) -> Reconstructions:
        """Draw one image a caption and compare it with its original.

        Args:
            examples: originals.
            captions: the same number N >= 1 for each; any text, also an empty one.
            similarities: keys of `similarity.ENCODERS`.
            seed: starts the noise; candidate n of image i is drawn from `image_seeds(seed, i, N)[n]`.
        """
        counts = {len(row) for row in captions}
        if not examples or len(captions) != len(examples) or len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"reconstruct takes the same number of captions (at least one) for each of the {len(examples)} images, "
                f"not {len(captions)} lists of lengths {sorted(counts)}."
            )
        unknown = set(similarities) - similarity.ENCODERS.keys()
        if unknown or not similarities:
            raise ValueError(f"similarities must name some of {', '.join(similarity.ENCODERS)}, not {similarities}.")
        _check_seed(seed)
        parts = [(examples[shard], captions[shard]) for shard in _shards(examples)]
        # Shard after shard, not encoder after encoder: a kill then leaves finished images, not half-compared ones.
        jobs = [self._comparison(name, part, texts, seed) for part, texts in parts for name in similarities]
        contents = [content["sim"] for content in self._fill(jobs, "reconstructions")]
        for part, texts in parts:  # the drawings' cost belongs to this run also where only their cosines were read
            self.store.count("images", self._drawing_key(part, texts, seed))
        return Reconstructions(
            list(examples),
            [list(row) for row in captions],
            {name: np.concatenate(contents[k :: len(similarities)]) for k, name in enumerate(similarities)},
            lambda k: self._draw(*parts[k // SHARD_IMAGES], seed)[k % SHARD_IMAGES],
        )

    def i2t2i(
        self, examples: Sequence[Example], num_candidates: int = 10, *, top_p: float = 0.9, seed: int = 0, **options
    ) -> Reconstructions:
        """The whole loop: sample N captions an image, draw them, compare (paper: N = 10, p = 0.9)."""
        captions = self.sample_captions(examples, num_candidates, top_p=top_p, seed=seed)
        return self.reconstruct(examples, captions, seed=seed, **options)

    def _fill(self, jobs: list[Job], what: str) -> list[dict]:
        """The jobs' contents in their order; those that no other process is making are made first."""
        contents: dict[int, dict] = {}
        with tqdm(total=len(jobs), desc=what, unit="shard", disable=not self.progress) as bar:
            for job, content in self.store.fill(jobs):
                contents[id(job)] = content
                bar.update()
        return [contents[id(job)] for job in jobs]

    def _made_by(self, role: str, module: object) -> dict:
        """The part of a key that names the checkpoint, code and packages behind a shard; the stamp gets them too."""
        model = self.profile.locate(getattr(self.profile, role))
        provenance.register(role, model)
        return {
            # The hash names a folder's content; a hub id has none yet and stands for itself.
            "checkpoint": provenance.used[role]["sha256"] or model,
            "code": provenance.code_hash([module.__name__]),
            "packages": provenance.model_packages(),
            "device": self.profile.device,
        }

    def _drawing_key(self, part: Sequence[Example], texts: Sequence[Sequence[str]], seed: int) -> dict:
        return self._made_by("generator", generator) | {
            "captions": [list(row) for row in texts],
            "seeds": [image_seeds(seed, example.image_id, len(texts[0])) for example in part],
            "num_inference_steps": self.profile.num_inference_steps,
            "guidance_scale": self.profile.guidance_scale,
            "image_size": self.profile.image_size,
        }

    def _draw(self, part: Sequence[Example], texts: Sequence[Sequence[str]], seed: int) -> np.ndarray:
        """`(images, N, H, W, 3)` uint8 from the store, or drawn now."""
        key = self._drawing_key(part, texts, seed)

        def make():
            images = self.generator.draw([t for row in texts for t in row], [s for row in key["seeds"] for s in row])
            return {"images_hat": images.reshape(len(part), -1, *images.shape[1:])}, len(images)

        return self.store.get_or_make("images", key, make)["images_hat"]

    def _comparison(self, name: str, part: Sequence[Example], texts: Sequence[Sequence[str]], seed: int) -> Job:
        seen = self._made_by(name, similarity) | {"images": _content_hashes(part)}
        if name == "dino":
            seen["size"] = self.profile.dino_size

        def embed_originals():
            images = [data.read_image(example.path) for example in part]
            return {"embeddings": self.encoder(name).embed(images)}, len(part)

        def compare():
            original = self.store.get_or_make(f"{name}-originals", seen, embed_originals)["embeddings"]
            images = self._draw(part, texts, seed)
            hats = self.encoder(name).embed(images.reshape(-1, *images.shape[2:]))
            return {"sim": similarity.cosine(original, hats.reshape(*images.shape[:2], -1))}, hats.shape[0]

        return f"{name}-similarity", seen | {"drawings": self._drawing_key(part, texts, seed)}, compare


def _shards(examples: Sequence[Example]) -> list[slice]:
    return [slice(k, k + SHARD_IMAGES) for k in range(0, len(examples), SHARD_IMAGES)]


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"SEED is {seed}: give a seed of 0 or more.")
