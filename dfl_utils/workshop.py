"""The models of a profile beside the store of what they made: a model is loaded when a shard is missing, not before.

A shard's key names everything that it depends on: checkpoint, images, seeds, settings, packages, code of its module.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dfl_utils import captioner, data, fidelity, generator, provenance, similarity
from dfl_utils.data import Example
from dfl_utils.profile import Profile
from dfl_utils.store import Job, RunStore

# The modules that decide what comes out of a model; not those that find its files.
CODE = {
    "captioner": ("captioner", "sampling"),
    "generator": ("generator", "onednn"),
    "clip": ("similarity",),
    "dino": ("similarity",),
    "probe": ("fidelity",),
    "inception": ("fidelity",),
}


class Workshop:
    """Lazily loaded models, a store and the keys that tie them.

    Args:
        profile: names models and sizes.
        store: where shards are kept.
        progress: show bars.
    """

    def __init__(self, profile: Profile, store: RunStore, *, progress: bool = True):
        self.profile, self.store, self.progress = profile, store, progress
        self._encoders: dict[str, similarity.ImageEncoder] = {}
        self._made_by: dict[str, dict] = {}
        self._content: dict[Path, str] = {}

    @cached_property
    def captioner(self) -> captioner.Captioner:
        return captioner.load(self.profile)

    @cached_property
    def generator(self) -> generator.Generator:
        return generator.Generator.load(self.profile)

    @cached_property
    def extractor(self) -> fidelity.Extractor:
        return fidelity.load(self.profile)

    def encoder(self, name: str) -> similarity.ImageEncoder:
        if name not in self._encoders:
            self._encoders[name] = similarity.ENCODERS[name](self.profile)
        return self._encoders[name]

    def made_by(self, role: str) -> dict:
        """The part of a key that names the checkpoint, code and packages behind a shard; the stamp gets them too."""
        if role not in self._made_by:
            self._made_by[role] = {
                "checkpoint": self._checkpoint(role),
                "code": provenance.code_hash(f"dfl_utils.{name}" for name in CODE[role]),
                "packages": provenance.model_packages(),
                "device": self.profile.device,
            }
        return self._made_by[role]

    def _checkpoint(self, role: str) -> str:
        """The hash of a model's folder or file. A hub id or torch-fidelity's own file, not fetched yet, is its name."""
        model = getattr(self.profile, role)
        if role != "inception":
            model = self.profile.locate(model)
            provenance.register(role, model)
            return provenance.used[role]["sha256"] or model
        return Path(fidelity.URL_INCEPTION_V3).name if model is None else _hash(Path(model))

    def captioner_key(self) -> dict:
        """What every sentence of the captioner depends on, beside its images and how it is asked."""
        words = [self.profile.min_words, self.profile.max_words]
        return self.made_by("captioner") | {"prompt": self.profile.captioner_prompt, "words": words}

    def encoder_key(self, name: str) -> dict:
        key = self.made_by(name)
        return key | {"size": self.profile.dino_size} if name == "dino" else key

    def extractor_key(self) -> dict:
        own = {"image_size": self.profile.image_size, "torch-fidelity": version("torch-fidelity")}
        return self.made_by(fidelity.role(self.profile)) | own

    def images_key(self, examples: Sequence[Example]) -> dict:
        """SHA-256 of each image file, read once: a key that knows a replaced image."""
        for path in {example.path for example in examples} - self._content.keys():
            self._content[path] = _hash(path)
        return {"images": [self._content[example.path] for example in examples]}

    def fill(self, jobs: Sequence[Job], what: str) -> list[dict]:
        """The jobs' contents in their order; those that no other process is making are made first."""
        contents: dict[int, dict] = {}
        with tqdm(total=len(jobs), desc=what, unit="shard", disable=not self.progress) as bar:
            for job, content in self.store.fill(jobs):
                contents[id(job)] = content
                bar.update()
        return [contents[id(job)] for job in jobs]

    def originals(self, name: str, examples: Sequence[Example]) -> np.ndarray:
        """Unit embeddings `(images, D)` of one shard's originals by an encoder of `similarity.ENCODERS`."""

        def embed():
            return {"embeddings": self.encoder(name).embed(read(examples))}, len(examples)

        key = self.encoder_key(name) | self.images_key(examples)
        return self.store.get_or_make(f"{name}-originals", key, embed)["embeddings"]


def read(examples: Sequence[Example]) -> list[Image.Image]:
    """The originals, decoded."""
    return [data.read_image(example.path) for example in examples]


def _hash(path: Path) -> str:
    return hashlib.sha256(data.read_bytes(path)).hexdigest()
