"""What finetuning leaves: a profile whose captioner or generator is the trained one, in the Hugging Face layout.

Trained weights are a shard of the run store, beside one of losses and digests that travels with the published run. The
folders that chapters load are written when they are first provided, from weights that are trained again if need be.
"""

import copy
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from dfl_utils.game.loops import Game
from dfl_utils.models import captioner, checkpoint
from dfl_utils.models.blip import Captioner
from dfl_utils.models.generator import decoder_folder, load_decoder, load_pipeline
from dfl_utils.store import processes, provenance
from dfl_utils.store.processes import claim
from dfl_utils.store.store import Job, Kind, RunStore
from dfl_utils.training import pairs
from dfl_utils.training.finetune import ROLES, TRAINED, Finetuning, Recipe
from dfl_utils.training.losses import PREFERENCE, TalkingPair
from dfl_utils.training.vocabulary import MEANING_PACKAGES, VocabularyMap
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

WEIGHTS = Kind("weights", travels=False, made_from=(pairs.LATENTS,))
FINETUNING = Kind("finetuning", made_from=(WEIGHTS,))
VOCABULARY_MAP = Kind("vocabulary-map")


@dataclass(frozen=True)
class Finetuned:
    """A finished run."""

    recipe: Recipe  # what was run
    profile: Profile  # with the finetuned checkpoints in place of those that moved
    losses: dict[str, np.ndarray]  # loss -> its value at every step, `(steps,)` float32
    seconds: float  # that the training took, before and after it was resumed; NaN where that is not known any more


class Finetuner(Game):
    """Runs recipes on one profile's pair and one set of training images with captions, `pairs.cleaned`, through the
    store."""

    def __init__(self, profile: Profile, store: RunStore, examples: Sequence[Example], *, progress: bool = True):
        super().__init__(profile, store, progress=progress)
        self._like: Finetuner | None = None
        self.examples = [pairs.cleaned(example) for example in examples]
        self.captions = [text for example in self.examples for text in example.references]
        digest = hashlib.sha256("\n".join(self.captions).encode()).hexdigest()
        self.examples_key = self.images_key(self.examples) | {"captions": digest}

    def on(self, examples: Sequence[Example]) -> "Finetuner":
        """The same pair on other examples: its models, which no run trains, are not loaded again."""
        other = Finetuner(self.profile, self.store, examples, progress=self.progress)
        other._like = self
        return other

    def models_key(self) -> dict:
        """What depends on the pair and its map; beside the examples, in most keys of the training."""
        return {
            "captioner": self.captioner_key(),
            "generator": self.made_by("generator") | {"image_size": self.profile.image_size},
            "map": self.vocabulary_map.fingerprint(),
        }

    @property
    def vocabulary_map(self) -> VocabularyMap:
        """The map of the pair's tokenizers, learned from the examples' captions."""
        return self._while_same("map", self._checkpoints, self._find_map)

    @vocabulary_map.setter
    def vocabulary_map(self, chosen: VocabularyMap) -> None:
        """A map in place of the learned one, for as long as the models stay these."""
        self._loaded["map"] = self._checkpoints, chosen

    def _find_map(self) -> VocabularyMap:
        def make():
            model, pipeline = self._base_models
            pair, size = (model.processor.tokenizer, pipeline.tokenizer), model.model.config.text_config.vocab_size
            return VocabularyMap.make(*pair, self.captions, vocab_size=size).to_content()

        packages = {name: provenance.release(name) for name in (*MEANING_PACKAGES, "tokenizers", "transformers")}
        key = {"models": self._checkpoints, "captions": self.examples_key["captions"], "packages": packages}
        return VocabularyMap.from_content(self.store.get(VOCABULARY_MAP, key, make))

    @property
    def _checkpoints(self) -> list[str]:
        return [self._checkpoint(role) for role in ROLES]

    @property
    def _base_models(self) -> tuple[Captioner, StableDiffusionPipeline]:
        """Loaded once and never trained; a run trains copies, in float32 whatever the profile infers in."""

        def load():
            return captioner.load(replace(self.profile, dtype="float32")), load_pipeline(self.profile)

        return self._like._base_models if self._like else self._while_same("pair", self._checkpoints, load)

    @property
    def _latents(self) -> torch.Tensor:
        def find():
            model, pipeline = self._base_models
            pairs.check(model, pipeline, self.examples)
            return pairs.latents(self, pipeline, self.examples)

        return self._while_same("latents", self._checkpoints, find)

    def pair(self, recipe: Recipe) -> tuple[TalkingPair, StableDiffusionPipeline]:
        """Models as they were before any training, in one module; what no recipe trains is shared."""
        model, pipeline = map(copy.copy, self._base_models)
        model.model = _copied(model.model, TRAINED.get(model.model.config.model_type, ""))
        pipeline.unet = _copied(pipeline.unet, TRAINED["unet"])
        decoder = load_decoder(self.profile) if recipe.decoder == "tiny" else None
        options = {name: getattr(recipe, name) for name in ("connect", "economy", "way", "beta")}
        made = TalkingPair(model, pipeline, self.vocabulary_map, recipe.losses, decoder=decoder, **options)
        return made.to(self.profile.device), pipeline

    def pairs(self, pair: TalkingPair, pipeline: StableDiffusionPipeline, recipe: Recipe) -> pairs.Pairs:
        """The batches of a recipe."""
        options = {"batch_size": recipe.batch_size, "seed": recipe.seed}
        if PREFERENCE in recipe.losses:
            options["margins"] = self._margins()
        return pairs.Pairs(pair.captioner, pipeline, self.examples, self._latents, **options)

    def _margins(self) -> np.ndarray:
        """By how much the captioner prefers the first of each image's captions before any training, `(images,)`.

        ValueError: an image that has not two.
        """
        if few := [one.image_id for one in self.examples if len(one.references) != 2]:
            raise ValueError(f"Image {few[0]} has not two captions, of which one is preferred: leave it out.")
        captions = [list(one.references) for one in self.examples]
        better, worse = self.log_likelihood(self.examples, captions, summed=True).T
        return better - worse

    def run(self, recipes: Sequence[Recipe]) -> list[Finetuned]:
        """Every recipe's result, found or made now; ranks share them, but for those with micro-batches.

        Raises:
            ValueError: what `pairs.check` finds, before anything is trained.
            finetune.Diverged, processes.RankLost: a run went astray, or lost a rank; those before it are kept.
        """
        several = processes.place().world_size > 1
        jobs = [self._job(recipe) for recipe in recipes]
        joint = [several and recipe.micro_batches > 1 for recipe in recipes]
        try:
            alone = iter(
                self.fill([self._curves(job) for job, j in zip(jobs, joint, strict=True) if not j], "finetuning")
            )
            contents = [self._together(job) if j else next(alone) for job, j in zip(jobs, joint, strict=True)]
        finally:  # the states of runs whose weights are stored
            for path in (self.store.path(job.kind, job.key) for job in jobs):
                if path.exists():
                    shutil.rmtree(path.with_suffix(".training"), ignore_errors=True)
        for job in jobs:  # its cost belongs to this run also where only its losses were read
            self.store.count(job.kind, job.key)
        return list(map(self._finetuned, recipes, jobs, contents))

    def _curves(self, job: Job) -> Job:
        """What travels of a run: its losses, and the digests of the weights that it left."""

        def make():
            content = self.store.get(job.kind, job.key, job.make)
            roles = sorted({name.split(".")[1] for name in content if name.startswith("weight.")})
            losses = {name: value for name, value in content.items() if name.startswith("loss.")}
            return losses | {"roles": roles, "digests": [weights_digest(_weights(content, role)) for role in roles]}

        return Job(FINETUNING, job.key, make)

    def _job(self, recipe: Recipe) -> Job:
        key = self.models_key() | {"recipe": recipe.key(), "examples": self.examples_key}
        if recipe.decoder == "tiny":
            folder, commit = Path(decoder_folder(self.profile)), self.profile.revision(self.profile.tiny_decoder)
            key["decoder"] = provenance.checkpoint_hash(folder) if folder.is_dir() else f"{folder}@{commit}"

        def make():
            pair, pipeline = self.pair(recipe)
            folder = self.store.path(WEIGHTS, key).with_suffix(".training")
            lessons = self.pairs(pair, pipeline, recipe)
            training = Finetuning(folder, pair, lessons, recipe, key, progress=self.progress).run()
            weights = {f"weight.{name}": p.detach().cpu().numpy() for name, p in training.parameters.items()}
            curves = {f"loss.{name}": curve for name, curve in training.curves.items()}
            return weights | curves, recipe.steps, training.seconds

        return Job(WEIGHTS, key, make)

    def _together(self, job: Job) -> dict:
        """The losses of a run that all ranks make step by step; rank 0 holds the weights' claim, and alone writes."""
        losses = self._curves(job)
        processes.join(self.profile.device == "cpu")
        if processes.place().rank:
            if processes.gathered(0)[0]:
                made = job.make()
                self.store.get(job.kind, job.key, lambda: made)  # what rank 0 has written
            return self.store.get(losses.kind, losses.key, losses.make)
        asked = []

        def make_with_all():
            asked.append(processes.gathered(1))
            return job.make()

        losses = self._curves(replace(job, make=make_with_all))
        content = self.store.get(losses.kind, losses.key, losses.make)
        if not asked:  # it was there
            processes.gathered(0)
        return content

    def _finetuned(self, recipe: Recipe, job: Job, content: dict) -> Finetuned:
        stem = self.store.path(job.kind, job.key).stem
        made = {}
        for role, digest in zip(content["roles"], content["digests"], strict=True):
            folder = str(self.store.root / "finetuned" / f"{role}-{stem.rpartition('-')[2][:8]}{digest[:8]}")
            trained = f"{self.made_by(role)['checkpoint']} trained as {stem} to {digest}"
            made[role] = folder, (trained, partial(self._write, role, job))
        losses = {name.removeprefix("loss."): value for name, value in content.items() if name.startswith("loss.")}
        seconds, _ = self.store.cost(job.kind, job.key) or (np.nan, 0)
        return Finetuned(recipe, TrainedProfile.of(self.profile, made), losses, seconds)

    def _write(self, role: str, job: Job, place: Path) -> None:
        """A checkpoint's folder: what lies in the base's beside the weights, and the trained model's."""
        weights = _weights(self.store.get(job.kind, job.key, job.make), role)
        model, pipeline = self._base_models
        name = getattr(self.profile, role)
        base = checkpoint.snapshot(self.profile.provide(name), self.profile.revision(name))
        if role == "captioner":
            shutil.copytree(base, place, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin*"))
            _with(model.model, weights).save_pretrained(place)
        else:
            shutil.copytree(base, place, ignore=shutil.ignore_patterns("unet", "*.bin", "*.ckpt"))
            # Under names like those of the other parts: a pipeline is loaded in one variant.
            _with(pipeline.unet, weights).save_pretrained(place / "unet", variant=checkpoint.variant(base))


def _weights(content: dict, role: str) -> dict[str, np.ndarray]:
    """The trained weights of a role, by their names in its model."""
    prefix = f"weight.{role}."
    return {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of weights by name, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {weights[name].shape}".encode() + weights[name].tobytes())
    return digest.hexdigest()


def _copied(model: nn.Module, trained: str) -> nn.Module:
    """A copy whose frozen weights are the original's: only those whose names hold `trained` take memory twice."""
    return copy.deepcopy(model, {id(p): p for name, p in model.named_parameters() if trained not in name})


# --- A profile of finetuned models, whose checkpoint folders are written when a loader first asks for them.

Writer = Callable[[Path], None]


@dataclass(frozen=True)
class TrainedProfile(Profile):
    """A profile some of whose models are folders that can be written."""

    # folder -> what stands for it in keys (what it was trained from, its weights' digest), and what writes it into a
    # place that is moved there afterwards
    made: Mapping[str, tuple[str, Writer]] = field(default_factory=dict, compare=False, repr=False)
    bases: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # folder -> see `base`

    @classmethod
    def of(cls, profile: Profile, made: Mapping[str, tuple[str, tuple[str, Writer]]]) -> "TrainedProfile":
        """A profile with other models in some roles: role -> its folder, and what the attribute `made` says of that."""
        values = {one.name: getattr(profile, one.name) for one in fields(profile)}
        folders = {role: folder for role, (folder, _) in made.items()}
        bases = {folder: profile.base(getattr(profile, role)) for role, folder in folders.items()}
        values["made"] = values.get("made", {}) | dict(made.values())
        values["bases"] = values.get("bases", {}) | bases
        return cls(**values | folders)

    def base(self, model: str) -> str:
        return self.bases.get(model, model)

    def trained(self, model: str) -> str | None:
        return self.made[model][0] if model in self.made else None

    def provide(self, model: str) -> str:
        _, write = self.made.get(model, (None, None))
        if write and not Path(model).is_dir():
            _atomically(Path(model), write)
        return self.locate(model)

    def __reduce__(self):
        """Another process gets the folders, written, and not the models that write them."""
        made = {self.provide(folder): (trained, None) for folder, (trained, _) in self.made.items()}
        return type(self), tuple(made if one.name == "made" else getattr(self, one.name) for one in fields(self))


def _with(model: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
    model = copy.deepcopy(model)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    return model


def _atomically(folder: Path, write: Writer) -> None:
    """Written by one process at a time; a kill leaves no folder, or a whole one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with claim(folder.with_suffix(".claim")):
        if folder.is_dir():
            return
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write(partial)
            partial.rename(folder)
        except (OSError, SafetensorError) as error:  # the latter of weights that find no room
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"{folder} cannot be written ({error}): free some space, or set DFL_STORE.") from error
