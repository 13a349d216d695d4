"""What finetuning leaves: a profile whose captioner or generator is the trained one, in the Hugging Face layout.

The trained weights lie in the run store as a shard; the folders that other chapters load are written from it when they
are missing, and are never committed.
"""

import copy
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline
from huggingface_hub import snapshot_download

from dfl_utils import captioner, checkpoint, finetune, pairs, provenance, shards
from dfl_utils.data import Example
from dfl_utils.finetune import Finetuning, Recipe
from dfl_utils.losses import TalkingPair
from dfl_utils.profile import Profile
from dfl_utils.store import Job, RunStore
from dfl_utils.vocabulary import VocabularyMap
from dfl_utils.workshop import Workshop

CODE = ("finetune", "losses", "connection", "teacher_forcing", "pairs")
MAP_CODE = ("vocabulary", "alignment", "synonyms")


@dataclass(frozen=True)
class Finetuned:
    """A finished run.

    Attributes:
        recipe: what was run.
        profile: the profile with the finetuned checkpoints in place of those that moved.
        losses: loss -> its value at every step, `(steps,)` float32.
        seconds: that the training took when it was run.
    """

    recipe: Recipe
    profile: Profile
    losses: dict[str, np.ndarray]
    seconds: float


def load_pipeline(profile: Profile) -> StableDiffusionPipeline:
    """The profile's Stable Diffusion for training: fp32, frozen, its linear layers with gradients.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.check`; a pipeline of another kind, whose losses Section 4 does
            not define.
    """
    folder = profile.locate(profile.generator)
    checkpoint.check(folder, "generator")
    kind = StableDiffusionPipeline.load_config(folder, local_files_only=profile.offline).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ValueError(f"{folder} is a {kind}, and the finetuning needs a StableDiffusionPipeline: give one.")
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=profile.offline,
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    ).to(profile.device)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    return pipeline


def load_decoder(profile: Profile) -> AutoencoderTiny:
    """The profile's small decoder of latents; ValueError where it has none."""
    folder = _decoder_folder(profile)
    checkpoint.check(folder, "tiny decoder")
    decoder = AutoencoderTiny.from_pretrained(
        folder, dtype=torch.float32, local_files_only=profile.offline, use_safetensors=True
    )
    return decoder.to(profile.device, memory_format=torch.channels_last).requires_grad_(False).eval()


def _decoder_folder(profile: Profile) -> str:
    if profile.tiny_decoder is None:
        raise ValueError(f"Profile {profile.name!r} has no tiny decoder: set its field `tiny_decoder`, or choose vae.")
    return profile.locate(profile.tiny_decoder)


class Finetuner(Workshop):
    """Runs recipes on one profile's pair and one set of examples, through the run store.

    Args:
        profile: the pair to start from.
        store: where runs are kept.
        examples: training images with their captions.
        progress: show bars.
    """

    def __init__(self, profile: Profile, store: RunStore, examples: Sequence[Example], *, progress: bool = True):
        super().__init__(profile, store, progress=progress)
        self.examples = list(examples)
        captions = "\n".join(text for example in self.examples for text in example.references)
        self._examples_key = self.images_key(self.examples) | {
            "captions": hashlib.sha256(captions.encode()).hexdigest()
        }

    @cached_property
    def vocabulary_map(self) -> VocabularyMap:
        """The map of the pair's tokenizers, learned from the examples' captions."""

        def make():
            texts = [text for example in self.examples for text in example.references]
            model, tokenizer = self._base_models[0], self._base_models[1].tokenizer
            size = model.model.config.text_config.vocab_size
            made = VocabularyMap.make(model.processor.tokenizer, tokenizer, texts, vocab_size=size)
            names = [made.captioner, made.generator, str(made.generator_size)]
            return {"index": made.index.numpy(), "how": list(made.how), "names": names}

        models = [self.made_by(role)["checkpoint"] for role in finetune.ROLES]
        code = provenance.code_hash(f"dfl_utils.{name}" for name in MAP_CODE)
        key = {"models": models, "captions": self._examples_key["captions"], "code": code}
        found = self.store.get_or_make("vocabulary-map", key, make)
        captioner_print, generator_print, size = found["names"]
        index = torch.from_numpy(found["index"])
        return VocabularyMap(index, tuple(found["how"]), captioner_print, generator_print, int(size))

    @cached_property
    def _base_models(self) -> tuple[captioner.Captioner, StableDiffusionPipeline]:
        """Loaded once and never trained; a run trains copies."""
        return captioner.load(self.profile), load_pipeline(self.profile)

    @cached_property
    def _latents(self) -> torch.Tensor:
        model, pipeline = self._base_models
        pairs.check(model, pipeline, self.examples)
        return pairs.latents(self, pipeline, self.examples)

    def pair(self, recipe: Recipe) -> tuple[TalkingPair, StableDiffusionPipeline]:
        """Models as they were before any training, in one module; what no recipe trains is shared."""
        model, pipeline = map(copy.copy, self._base_models)
        model.model, pipeline.unet = copy.deepcopy(model.model), copy.deepcopy(pipeline.unet)
        decoder = load_decoder(self.profile) if recipe.decoder == "tiny" else None
        made = TalkingPair(
            model,
            pipeline,
            self.vocabulary_map,
            recipe.losses,
            decoder=decoder,
            connect=recipe.connect,
            economy=recipe.economy,
        )
        return made.to(self.profile.device), pipeline

    def pairs(self, pair: TalkingPair, pipeline: StableDiffusionPipeline, recipe: Recipe) -> pairs.Pairs:
        """The batches of a recipe."""
        options = {"batch_size": recipe.batch_size, "seed": recipe.seed}
        return pairs.Pairs(pair.captioner, pipeline, self.examples, self._latents, **options)

    def run(self, recipes: Sequence[Recipe]) -> list[Finetuned]:
        """Every recipe's result, found or made now.

        Raises:
            ValueError: what `pairs.check` finds, before anything is trained.
            finetune.Diverged: a run went astray; those before it are kept.
        """
        jobs = [self._job(recipe) for recipe in recipes]
        contents = self.fill(jobs, "finetuning")
        return [
            self._finetuned(recipe, job, content) for recipe, job, content in zip(recipes, jobs, contents, strict=True)
        ]

    def _job(self, recipe: Recipe) -> Job:
        key = {
            "recipe": asdict(recipe) | {"losses": sorted(recipe.losses), "train": sorted(recipe.train)},
            "captioner": self.captioner_key(),
            "generator": self.made_by("generator") | {"image_size": self.profile.image_size},
            "code": provenance.code_hash(f"dfl_utils.{name}" for name in CODE),
            "examples": self._examples_key,
            "map": self.vocabulary_map.fingerprint(),
        }
        if recipe.decoder == "tiny":
            folder = Path(_decoder_folder(self.profile))
            key["decoder"] = provenance.checkpoint_hash(folder) if folder.is_dir() else str(folder)

        def make():
            pair, pipeline = self.pair(recipe)
            folder = self.store.path("finetuning", key).with_suffix(".training")
            lessons = self.pairs(pair, pipeline, recipe)
            training = Finetuning(folder, pair, lessons, recipe, key, progress=self.progress).run()
            weights = {f"weight.{name}": p.detach().cpu().numpy() for name, p in training.parameters.items()}
            curves = {f"loss.{name}": curve for name, curve in training.curves.items()}
            shutil.rmtree(folder)
            return weights | curves, recipe.steps

        return "finetuning", key, make

    def _finetuned(self, recipe: Recipe, job: Job, content: dict) -> Finetuned:
        path = self.store.path(*job[:2])
        folders = {}
        for role in recipe.train:
            prefix = f"weight.{role}."
            own = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
            folder = self.store.root / "finetuned" / f"{role}-{path.stem.rpartition('-')[2][:16]}"
            if not folder.is_dir():
                write = self._write_captioner if role == "captioner" else self._write_generator
                _atomically(folder, lambda place, write=write, own=own: write(place, own))
            folders[role] = str(folder)
        losses = {name.removeprefix("loss."): value for name, value in content.items() if name.startswith("loss.")}
        return Finetuned(recipe, replace(self.profile, **folders), losses, shards.cost(path)[0])

    def _write_captioner(self, place: Path, weights: dict[str, np.ndarray]) -> None:
        model = copy.deepcopy(self._base_models[0].model)
        shutil.copytree(self._base("captioner"), place, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin*"))
        _set(model, weights)
        model.save_pretrained(place)

    def _write_generator(self, place: Path, weights: dict[str, np.ndarray]) -> None:
        unet = copy.deepcopy(self._base_models[1].unet)
        shutil.copytree(self._base("generator"), place, ignore=shutil.ignore_patterns("unet", "*.bin", "*.ckpt"))
        _set(unet, weights)
        unet.save_pretrained(place / "unet")

    def _base(self, role: str) -> str:
        folder = self.profile.locate(getattr(self.profile, role))
        return folder if Path(folder).is_dir() else snapshot_download(folder, local_files_only=True)


def _set(model: torch.nn.Module, weights: dict[str, np.ndarray]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(torch.from_numpy(value))


def _atomically(folder: Path, write: Callable[[Path], None]) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write(partial)
    partial.rename(folder)
