"""The models of a profile beside the store of what they made: a model is loaded when a shard is missing, not before."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dfl_utils.models import blip, captioner, checkpoint, fidelity, generator, similarity
from dfl_utils.store import processes, provenance
from dfl_utils.store.store import Held, Job, Kind, RunStore
from dfl_utils.world import data
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of images, `(images, D)`."""

    embeddings: np.ndarray


ORIGINALS = {name: Kind(f"{name}-originals", Embeddings) for name in similarity.ENCODERS}
# How each model is asked, counted from 1: raised when other words, pixels or numbers come out of the same files.
ASKED = {
    "captioner": captioner.VERSION,
    "generator": generator.VERSION,
    **dict.fromkeys(similarity.ENCODERS, similarity.VERSION),
    **dict.fromkeys(("probe", "inception"), fidelity.VERSION),
}
# What a profile says of encoders and extractor.
JUDGING = (
    *("clip", "clip_projected", "dino", "dino_size", "efficientnet"),
    *("probe", "inception", "image_size", "squeeze", "device"),
)
# What a profile says of a model's inference, in its keys only where it is not this: so the mini profile's keys stay.
USUAL = {
    "captioner": {"dtype": "float32", "limits_count_prompt": False},
    "generator": {"dtype": "float32", "scheduler": "DDPMScheduler"},
    "clip": {"clip_projected": True},
    **dict.fromkeys(("probe", "inception"), {"squeeze": None}),
}


class Workshop:
    """Lazily loaded models, a store and the keys that tie them.

    Args:
        profile: names models and sizes.
        store: where shards are kept.
        progress: show bars, unless `DFL_PROGRESS` is 0, as where chapters run side by side.
        judges: whose encoders and extractor are taken, so that pairs which are compared load them once; ValueError
            where they are of a profile with others.
    """

    def __init__(self, profile: Profile, store: RunStore, *, progress: bool = True, judges: "Workshop | None" = None):
        others = [name for name in JUDGING if judges and getattr(profile, name) != getattr(judges.profile, name)]
        if others:
            raise ValueError(
                f"judges are of a profile with another {others[0]}: give those of the same profile, or none."
            )
        self._judges = judges
        processes.use_device(profile.device)
        self.profile, self.store = profile, store
        self.progress = progress and os.environ.get("DFL_PROGRESS") != "0"
        self._loaded: dict[str, tuple[object, object]] = {}

    @property
    def captioner(self) -> blip.Captioner:
        return self._model("captioner", captioner.load)

    @property
    def generator(self) -> generator.Generator:
        return self._model("generator", generator.Generator.load)

    def extractor(self, by: str | None = None) -> fidelity.Extractor | similarity.ImageEncoder:
        """What the fidelity scores look through: the profile's own, or `by` another role's model."""
        role = fidelity.role(self.profile, by)
        if role in similarity.ENCODERS:
            return self.encoder(role)
        return (self._judges or self)._model(role, fidelity.load)

    @property
    def referee(self) -> fidelity.Referee:
        shop = self._judges or self
        return shop._while_same("referee", [shop._checkpoint("probe")], lambda: fidelity.Referee.load(shop.profile))

    def encoder(self, name: str) -> similarity.ImageEncoder:
        return (self._judges or self)._model(name, similarity.ENCODERS[name])

    def _model(self, role: str, load: Callable[[Profile], object]):
        """A model, loaded once, and anew when its files have changed: a key names the files as they are now."""
        return self._while_same(role, [self._checkpoint(role)], lambda: load(self.profile))

    def _while_same(self, name: str, depends: object, make: Callable[[], object]):
        """What `make` gave when it was first asked with these dependencies."""
        if name not in self._loaded or self._loaded[name][0] != depends:
            self._loaded[name] = depends, make()
        return self._loaded[name][1]

    def made_by(self, role: str) -> dict:
        """The part of a key that names the checkpoint behind a shard, how it is asked, and the packages that decide."""
        asked = {name: getattr(self.profile, name) for name in USUAL.get(role, {})}
        return {
            "checkpoint": self._checkpoint(role),
            "asked": ASKED[role],
            "packages": provenance.model_packages(),
            "device": self.profile.device,
        } | {name: value for name, value in asked.items() if value != USUAL[role][name]}

    def _checkpoint(self, role: str) -> str:
        """The hash of a model's folder or file; of one that is not fetched, its name and commit."""
        model = getattr(self.profile, role)
        if trained := self.profile.trained(model):
            return trained
        if role != "inception":
            place, commit = self.profile.locate(model), self.profile.revision(model)
            provenance.register(role, place, revision=commit)
            return provenance.used[role]["sha256"] or (f"{place}@{commit}" if commit else place)
        return Path(fidelity.URL_INCEPTION_V3).name if model is None else _hash(Path(model))

    def captioner_key(self) -> dict:
        """What every sentence of the captioner depends on, beside its images and how it is sampled."""
        words = [self.profile.min_words, self.profile.max_words]
        return self.made_by("captioner") | {"prompt": self.profile.captioner_prompt, "words": words}

    def sampling_key(self) -> dict:
        """As `captioner_key`, of sentences that are sampled."""
        penalty = self.profile.repetition_penalty
        return self.captioner_key() | ({} if penalty == 1 else {"repetition_penalty": penalty})

    def beam_key(self, num_beams: int) -> dict:
        """As `captioner_key`, of sentences by beam search."""
        penalty = self.profile.beam_penalty
        return self.captioner_key() | {"num_beams": num_beams} | ({} if penalty == 1 else {"beam_penalty": penalty})

    def drawing_key(self) -> dict:
        """What every drawing of the generator depends on, beside its text and its noise."""
        names = ("num_inference_steps", "guidance_scale", "image_size")
        return self.made_by("generator") | {name: getattr(self.profile, name) for name in names}

    def encoder_key(self, name: str) -> dict:
        own = {"dino": {"size": self.profile.dino_size}, "efficientnet": {"timm": provenance.release("timm")}}
        return self.made_by(name) | own.get(name, {})

    def extractor_key(self, by: str | None = None) -> dict:
        role = fidelity.role(self.profile, by)
        if role in similarity.ENCODERS:
            return self.encoder_key(role)
        own = {"image_size": self.profile.image_size, "torch-fidelity": provenance.release("torch-fidelity")}
        return self.made_by(role) | own

    def images_key(self, examples: Sequence[Example]) -> dict:
        """SHA-256 of each image file, read once while it stays as it is: a key that knows a replaced image."""
        return {"images": [_hash(example.path) for example in examples]}

    def fill(self, jobs: Sequence[Job[Held]], what: str, group: int = 1, images: int = 0) -> list[Held]:
        """The jobs' contents in their order; this rank's and those that no other process is making are made first.

        `what` names the bar, which counts the `images` that the jobs are of, or the jobs where that is 0; `group`
        neighbours are made from the same shard, so that one rank makes them all.
        """
        order = processes.own_first(range(len(jobs)), group)
        filled = self.store.fill([jobs[k] for k in order])
        total, contents = images or len(jobs), {}
        options = {"total": total, "desc": what, "unit": " images" if images else " shards", "delay": 1, "leave": False}
        with tqdm(**options, disable=not self.progress) as bar:
            for place, content in filled:
                contents[order[place]] = content
                bar.update(round(total * len(contents) / len(jobs)) - bar.n)
        return [contents[k] for k in range(len(jobs))]

    def originals_key(self, name: str, examples: Sequence[Example]) -> dict:
        """What the embeddings of one shard's originals depend on."""
        return self.encoder_key(name) | self.images_key(examples)

    def originals(self, name: str, examples: Sequence[Example]) -> np.ndarray:
        """Unit embeddings `(images, D)` of one shard's originals by an encoder of `similarity.ENCODERS`."""

        def embed():
            return Embeddings(self.encoder(name).embed(read(examples))), len(examples)

        return self.store.get(ORIGINALS[name], self.originals_key(name, examples), embed).embeddings


def check(profile: Profile, role: str) -> None:
    """Raise what loading this model of the profile would, as far as its configuration tells: no weights are read.

    FileNotFoundError, ValueError: as the loaders of `captioner`, `generator` and `checkpoint`, and `require_weights`.
    """
    if role in ("captioner", "generator"):
        (captioner.check if role == "captioner" else generator.check)(profile)
    else:
        folder, place = checkpoint.source(profile, getattr(profile, role))
        checkpoint.check_kind(folder, role, checkpoint.KINDS[role], **place)
    folder = Path(profile.locate(getattr(profile, role)))
    if folder.is_dir():  # others are of the hub
        provenance.require_weights(folder)


def read(examples: Sequence[Example]) -> list[Image.Image]:
    """The originals, decoded."""
    return [data.read_image(example.path) for example in examples]


def _hash(path: Path) -> str:
    try:
        return provenance.file_hash(path)
    except OSError:
        return hashlib.sha256(data.read_bytes(path)).hexdigest()  # it says what is wrong with the file
