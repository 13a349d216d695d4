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

from dfl_utils import captioner, data, fidelity, generator, provenance, ranks, similarity
from dfl_utils.data import Example
from dfl_utils.profile import Profile
from dfl_utils.store import Job, RunStore

# The modules that decide what comes out of a model; not those that find its files.
CODE = {
    "captioner": ("captioner", "own_captioner", "sampling"),
    "generator": ("generator", "onednn"),
    "clip": ("similarity",),
    "dino": ("similarity",),
    "probe": ("fidelity",),
    "inception": ("fidelity",),
}
# What a profile says of encoders and extractor.
JUDGING = ("clip", "dino", "dino_size", "probe", "inception", "image_size", "device")
# What a profile says of a model's inference, in its keys only where it is not this: so the mini profile's keys stay.
USUAL = {
    "captioner": {"dtype": "float32"},
    "generator": {"dtype": "float32", "scheduler": "DDPMScheduler"},
}


class Workshop:
    """Lazily loaded models, a store and the keys that tie them.

    Args:
        profile: names models and sizes.
        store: where shards are kept.
        progress: show bars.
        judges: whose encoders and extractor are taken, so that pairs which are compared load them once; of a profile
            with the same ones.

    Raises:
        ValueError: judges of a profile with others.
    """

    def __init__(self, profile: Profile, store: RunStore, *, progress: bool = True, judges: "Workshop | None" = None):
        others = [name for name in JUDGING if judges and getattr(profile, name) != getattr(judges.profile, name)]
        if others:
            raise ValueError(
                f"judges are of a profile with another {others[0]}: give those of the same profile, or none."
            )
        self._judges = judges
        ranks.use_device(profile.device)
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
        return self._judges.extractor if self._judges else fidelity.load(self.profile)

    def encoder(self, name: str) -> similarity.ImageEncoder:
        if self._judges:
            return self._judges.encoder(name)
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
            } | self._unusual(role)
        return self._made_by[role]

    def _unusual(self, role: str) -> dict:
        found = {name: getattr(self.profile, name) for name in USUAL.get(role, {})}
        return {name: value for name, value in found.items() if value != USUAL[role][name]}

    def _checkpoint(self, role: str) -> str:
        """The hash of a model's folder or file.

        A hub id that is not fetched yet is its name and commit, torch-fidelity's own file its name.
        """
        model = getattr(self.profile, role)
        if role != "inception":
            place = self.profile.locate(model)
            commit = self.profile.revision(model)
            provenance.register(role, place, revision=commit)
            return provenance.used[role]["sha256"] or (f"{place}@{commit}" if commit else place)
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

    def fill(self, jobs: Sequence[Job], what: str, group: int = 1) -> list[dict]:
        """The jobs' contents in their order; this rank's and those that no other process is making are made first.

        Args:
            jobs: see `store.Job`.
            what: names the bar.
            group: neighbours that are made from the same shard, so that one rank makes them all.
        """
        contents: dict[int, dict] = {}
        with tqdm(total=len(jobs), desc=what, unit="shard", disable=not self.progress) as bar:
            for job, content in self.store.fill(ranks.own_first(jobs, group)):
                contents[id(job)] = content
                bar.update()
        return [contents[id(job)] for job in jobs]

    def originals_key(self, name: str, examples: Sequence[Example]) -> dict:
        """What the embeddings of one shard's originals depend on."""
        return self.encoder_key(name) | self.images_key(examples)

    def originals(self, name: str, examples: Sequence[Example]) -> np.ndarray:
        """Unit embeddings `(images, D)` of one shard's originals by an encoder of `similarity.ENCODERS`."""

        def embed():
            return {"embeddings": self.encoder(name).embed(read(examples))}, len(examples)

        key = self.originals_key(name, examples)
        return self.store.get_or_make(f"{name}-originals", key, embed)["embeddings"]


def read(examples: Sequence[Example]) -> list[Image.Image]:
    """The originals, decoded."""
    return [data.read_image(example.path) for example in examples]


def _hash(path: Path) -> str:
    return hashlib.sha256(data.read_bytes(path)).hexdigest()
