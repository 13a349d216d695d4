"""The generator: a diffusers text-to-image pipeline, drawn from in batches with one seed an image."""

import copy
import inspect
import logging
import re
import types
from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import (
    AmusedScheduler,
    AutoencoderKL,
    AutoencoderTiny,
    ConfigMixin,
    DDPMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers.scheduling_amused import AmusedSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dfl_utils.models import checkpoint
from dfl_utils.world.profile import Profile, check_way

diffusers_logging.disable_progress_bar()
diffusers_logging.set_verbosity_error()  # it prints the tail of every long prompt; `truncated` counts them

_log = logging.getLogger(__name__)

VERSION = 1  # of what any generator draws of the same text, seed and files; part of every key that names one
CONVOLUTIONAL = {"unet", "vae"}  # parts that are faster with their channels last
STEP = ["model_output", "timestep", "sample"]  # what a sampler's step is told
# What a pipeline is told that starts from a picture, or makes videos, sounds or bodies.
OTHER_INPUT = re.compile("^(control_|mask_|reference_)?images?$|video|audio|frames?$|^frame_size$|^source_embeds$")
DENOISERS = {"unet", "transformer"}  # parts that every step runs
# Published with Stable Diffusion, used by nobody here and not fetched: a drawing that is blackened ranks by chance.
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
# A caption is drawn as it is written (PixArt and others rewrite it where two more packages are installed), at the size
# that is asked for, not at the nearest of a list.
LITERAL = {"clean_caption": False, "use_resolution_binning": False}


def truncated(profile: Profile, captions: Sequence[str]) -> int:
    """How many captions the text encoder sees only in part, longer than its tokens (SD v1: 77, the mini SD: 32)."""
    return len(checkpoint.too_long(tokenizer(profile), captions))


def tokenizer(profile: Profile) -> PreTrainedTokenizerBase:
    """The tokenizer of the profile's pipeline."""
    folder, place = checkpoint.source(profile, profile.generator)
    # For a pipeline's tokenizer, which has no config.json, the library would ask the hub, even where all is cached.
    return checkpoint.load_tokenizer(checkpoint.snapshot(folder, place["revision"]), "tokenizer", **place)


class SeededAmusedScheduler(AmusedScheduler):
    """aMUSEd's scheduler, whose `step` also takes B streams, a list, and runs the parent's on each sample."""

    def step(self, model_output, timestep, sample, starting_mask_ratio=1.0, generator=None, return_dict=True):
        if not isinstance(generator, list):
            return super().step(model_output, timestep, sample, starting_mask_ratio, generator, return_dict)
        parts = [
            AmusedScheduler.step(
                self, model_output[k : k + 1].float(), timestep, sample[k : k + 1], starting_mask_ratio, stream, False
            )
            for k, stream in enumerate(generator)
        ]
        return AmusedSchedulerOutput(*map(torch.cat, zip(*parts, strict=True)))


def in_float32(kind: type[SchedulerMixin]) -> type[SchedulerMixin]:
    """The same scheduler, whose steps are float32 whatever the model predicts in.

    torch draws other numbers of the same seed in another type: so a drawing in half precision is the same one, rounded.
    """

    class Float32Steps(kind):
        @wraps(kind.step)  # pipelines look at its signature for what they may pass
        def step(self, model_output, timestep, sample, *arguments, return_dict=True, **options):
            stepped = super().step(
                model_output.float(), timestep, sample.float(), *arguments, return_dict=False, **options
            )
            rounded = tuple(part.to(sample.dtype) for part in stepped)
            return SchedulerOutput(rounded[0]) if return_dict else rounded

    return Float32Steps


def pipeline_class(profile: Profile, folder: str, place: dict) -> type[DiffusionPipeline]:
    """The class of diffusers that a checkpoint names; ValueError where it draws no images of texts or fits no way."""
    if (Path(folder) / "config.json").is_file() and not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"{folder} is a single model, no pipeline of diffusers: give one such as Stable Diffusion.")
    with checkpoint.opening(folder, place["revision"]):
        name = DiffusionPipeline.load_config(folder, **place).get("_class_name", "")
    if isinstance(name, list):  # [module of the checkpoint, class]
        raise ValueError(f"{folder} is drawn by code that lies in it, which is never run: give another pipeline.")
    kind = getattr(diffusers, name, None)
    arguments = inspect.signature(kind.__call__).parameters if isinstance(kind, type) else {}
    known = {"prompt", "generator", "output_type"} <= arguments.keys()
    named = [one for one in arguments.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    known &= {one.name for one in named if one.default is one.empty} <= {"self", "prompt"}
    if not known or any(map(OTHER_INPUT.search, arguments)) or "Prior" in name:
        raise ValueError(
            f"{folder} is a {name or 'nameless pipeline'}, which is no text-to-image pipeline of diffusers; "
            "give one such as StableDiffusionPipeline or AmusedPipeline."
        )
    check_way(profile, "generator", name)
    return kind


def _without_checker(kind: type[DiffusionPipeline]) -> dict[str, object]:
    """What leaves a pipeline's safety checker out, where its class can do without."""
    if "safety_checker" not in kind._optional_components:
        return {}
    taken = {*kind._optional_components, "requires_safety_checker"} & inspect.signature(kind.__init__).parameters.keys()
    return {name: value for name, value in UNCHECKED.items() if name in taken}


def _open(profile: Profile, scheduler: type[SchedulerMixin] | None, dtype: torch.dtype) -> DiffusionPipeline:
    """The profile's pipeline; Stable Diffusion with that scheduler, if there is one, any other with its own."""
    folder, place = checkpoint.source(profile, profile.generator)
    kind = pipeline_class(profile, folder, place)
    stable_diffusion = issubclass(kind, StableDiffusionPipeline)
    options = place | checkpoint.of_pipeline(folder) | _without_checker(kind)
    options |= {"variant": checkpoint.variant(folder), "use_safetensors": True, "dtype": dtype}
    with checkpoint.opening(folder, place["revision"], "generator"):
        pipeline = kind.from_pretrained(folder, **options)
    pipeline.to(profile.device)
    for end in ("", "_2", "_3"):  # a pipeline has up to three of each
        tokenizer, encoder = (getattr(pipeline, f"{name}{end}", None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is not None and encoder is not None:
            checkpoint.check_vocabulary(folder, len(tokenizer), encoder.get_input_embeddings().num_embeddings)
    if stable_diffusion:
        pipeline.scheduler = _sampler(scheduler, pipeline.scheduler.config, dtype)
    elif isinstance(pipeline.scheduler, AmusedScheduler):
        pipeline.scheduler = SeededAmusedScheduler.from_config(pipeline.scheduler.config)
    for name in CONVOLUTIONAL & pipeline.components.keys():
        pipeline.components[name].to(memory_format=torch.channels_last)
    return pipeline


def _sampler(scheduler: type[SchedulerMixin] | None, saved: Mapping, dtype: torch.dtype) -> SchedulerMixin:
    """Stable Diffusion's sampler: of that class, or of the one that was saved; ValueError where it is none."""
    # v1-4's first configurations had neither; the defaults would clip latents and shift the steps.
    settings = {"clip_sample": False, "steps_offset": 1} if scheduler else {}
    kind = scheduler or getattr(diffusers, saved["_class_name"])
    kind = kind if dtype == torch.float32 else in_float32(kind)
    try:
        made = kind.from_config(saved, **settings)
    except TypeError:  # it wants more than the checkpoint says
        made = None
    if not hasattr(made, "init_noise_sigma") or [*inspect.signature(made.step).parameters][:3] != STEP:
        raise ValueError(f"{kind.__name__} is no sampler of Stable Diffusion: take one such as DDPMScheduler.")
    return made


def check(profile: Profile) -> None:
    """What `Generator.load` refuses, as far as it is seen without weights: class, tokenizers, sampler, steps."""
    folder, place = checkpoint.source(profile, profile.generator)
    scheduler, kind = scheduler_class(profile.scheduler), pipeline_class(profile, folder, place)
    checkpoint.of_pipeline(folder)
    if issubclass(kind, StableDiffusionPipeline):
        with checkpoint.opening(folder, place["revision"]):
            saved = DDPMScheduler.load_config(folder, subfolder="scheduler", **place)
            unet = UNet2DConditionModel.load_config(folder, subfolder="unet", **place)
            vae = AutoencoderKL.load_config(folder, subfolder="vae", **place)
        if (taken := unet.get("in_channels", 4)) != (made := vae.get("latent_channels", 4)):
            raise ValueError(
                f"The U-Net of {folder} takes {taken} channels and its VAE makes {made}, as where one paints into an "
                "image: give a pipeline that draws from text alone."
            )
        _check_steps(_sampler(scheduler, saved, torch.float32), profile.num_inference_steps)


class Generator:
    """A frozen text-to-image pipeline of diffusers that takes one random stream an image, and its sampling settings.

    Stable Diffusion is the paper's (DDPM, 50 steps, guidance 7.5; Appendix A.2). For its second generator, LAFITE
    (Table 8), whose weights are a pickle, stands aMUSEd, a transformer that writes codes of a discrete autoencoder.
    """

    def __init__(
        self, pipeline, num_inference_steps: int, guidance_scale: float, image_size: int, draw_batch: int = 64
    ):
        self.pipeline = pipeline
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.image_size, self.draw_batch = image_size, draw_batch
        if isinstance(pipeline, StableDiffusionPipeline):
            _check_steps(pipeline.scheduler, num_inference_steps)
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, profile: Profile) -> "Generator":
        """Load the profile's pipeline in its `dtype`; safetensors only.

        Stable Diffusion v1-4 is published with another sampler; the paper draws with DDPM (Appendix A.2), which is the
        profile's `scheduler`. A pipeline of one's own keeps the sampler that it was saved with.

        Raises:
            FileNotFoundError, ValueError: as `checkpoint.opening`; no text-to-image pipeline; a tokenizer and a text
                encoder of two vocabularies; an unknown scheduler, or steps that it cannot do; a `dtype` that the device
                cannot do.
        """
        dtype = checkpoint.inference_dtype(profile)
        pipeline = _open(profile, scheduler_class(profile.scheduler), dtype)
        for name in DENOISERS & pipeline.components.keys() if dtype == torch.float32 else ():
            use_onednn(pipeline.components[name])
        return cls(
            pipeline, profile.num_inference_steps, profile.guidance_scale, profile.image_size, profile.draw_batch
        )

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """One image a caption, `(B, size, size, 3)` uint8; image b depends on caption b and seed b alone.

        ValueError: NaN or infinity among the pixels, or a drawing that a safety checker took away.
        """
        parts = [
            self._draw(captions[k : k + self.draw_batch], seeds[k : k + self.draw_batch])
            for k in range(0, len(captions), self.draw_batch)
        ]
        return np.concatenate(parts)

    def _draw(self, captions: Sequence[str], seeds: Sequence[int], **prompt: object) -> np.ndarray:
        """Of captions, or of a `prompt` in the pipeline's own words; errors name the captions."""
        # On the CPU, so that a seed draws the same noise on every device.
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale, **LITERAL}
        options |= {"height": self.image_size, "width": self.image_size, "generator": streams, "output_type": "np"}
        if isinstance(self.pipeline, StableDiffusionPipeline):
            options["latents"] = self._noise(streams)
        taken = inspect.signature(self.pipeline.__call__).parameters
        prompt = prompt or {"prompt": list(captions)}
        drawn = self.pipeline(**prompt, **{name: options[name] for name in options if name in taken})
        blackened = np.flatnonzero(getattr(drawn, "nsfw_content_detected", None) or [])
        if len(blackened):
            raise ValueError(
                f"The safety checker of {self.pipeline.name_or_path} took the drawing of {captions[blackened[0]]!r} "
                "away: leave that caption out, or give a pipeline without a safety checker."
            )
        images = getattr(drawn, "images", None)
        if not isinstance(images, np.ndarray) or images.shape[0] != len(captions) or images.shape[3:] != (3,):
            kind = type(self.pipeline).__name__
            raise ValueError(f"{self.pipeline.name_or_path} is a {kind}, which makes no image a caption: give another.")
        for caption, image in zip(captions, images, strict=True):
            checkpoint.require_finite(image, f"The drawing of {caption!r}", self.pipeline.name_or_path)
        images = (images * 255).round().astype(np.uint8)
        if bare := [text for text, image in zip(captions, images, strict=True) if not np.ptp(image, axis=(0, 1)).any()]:
            said = "%d drawings by %s are of one colour throughout, such as that of %r: look whether it works"
            _log.warning(said, len(bare), self.pipeline.name_or_path, bare[0])
        return images

    def _noise(self, streams: list[torch.Generator]) -> Tensor:
        # The noise that the pipeline would draw; its memory format decides that of every activation after it.
        unet, side = self.pipeline.unet, self.image_size // self.pipeline.vae_scale_factor
        noise = randn_tensor((len(streams), unet.config.in_channels, side, side), streams, unet.device)
        return noise.to(unet.dtype, memory_format=torch.channels_last)


def scheduler_class(name: str | None) -> type[SchedulerMixin] | None:
    """A scheduler of diffusers by its name, None of None; ValueError where there is none of that name."""
    kind = getattr(diffusers, name, None) if name else None
    if name and not (isinstance(kind, type) and issubclass(kind, SchedulerMixin) and issubclass(kind, ConfigMixin)):
        raise ValueError(f"scheduler is {name!r}, which is none of diffusers: give one such as DDPMScheduler.")
    return kind


def _check_steps(scheduler: SchedulerMixin, steps: int) -> None:
    """ValueError where a sampler cannot draw in that many steps, before anything is drawn."""
    name, trained = type(scheduler).__name__, scheduler.config.num_train_timesteps
    trial = copy.deepcopy(scheduler)
    try:
        trial.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError) as error:
        raise ValueError(f"num_inference_steps is {steps}, which {name} cannot do ({error}): give another.") from error
    if trial.timesteps.max() >= trained:
        raise ValueError(f"num_inference_steps is {steps}, and {name} draws in at most {trained - 1}: give fewer.")


# --- Linear layers through oneDNN on a CPU, as convolutions go already: MKL, torch's own, is half as fast on AMD's.
# The operator is torch.compile's, and has no gradients.


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def use_onednn(model: nn.Module) -> nn.Module:
    """Reroute every linear layer of a frozen fp32 model; a model on another device, or a torch without it, stays.

    Results differ from MKL's in the last bits.
    """
    if torch.backends.mkldnn.is_available():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
                module.forward = types.MethodType(_linear, module)
    return model


# --- The generator as the finetuning needs it.


def load_pipeline(profile: Profile) -> StableDiffusionPipeline:
    """The profile's Stable Diffusion for training: float32, frozen, its linear layers with gradients, DDPM.

    Raises:
        FileNotFoundError, ValueError: as `Generator.load`; a pipeline whose losses Section 4 does not define.
    """
    kind = pipeline_class(profile, *checkpoint.source(profile, profile.generator))
    if kind is not StableDiffusionPipeline:
        raise ValueError(
            f"{profile.generator} is a {kind.__name__}, and the finetuning needs a StableDiffusionPipeline: give one."
        )
    pipeline = _open(profile, DDPMScheduler, torch.float32)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    return pipeline


def load_decoder(profile: Profile) -> AutoencoderTiny:
    """The profile's small decoder of latents; ValueError where it has none."""
    folder, (_, place) = decoder_folder(profile), checkpoint.source(profile, profile.tiny_decoder)
    checkpoint.check_kind(folder, "tiny_decoder", checkpoint.KINDS["tiny_decoder"], **place)
    options = place | {"variant": checkpoint.variant(folder), "use_safetensors": True, "dtype": torch.float32}
    with checkpoint.opening(folder, place["revision"], "tiny decoder"):
        decoder = AutoencoderTiny.from_pretrained(folder, **options)
    return decoder.to(profile.device, memory_format=torch.channels_last).requires_grad_(False).eval()


def decoder_folder(profile: Profile) -> str:
    """Folder or hub id of the small decoder; ValueError where the profile has none."""
    if profile.tiny_decoder is None:
        raise ValueError(f"Profile {profile.name!r} has no tiny decoder: set its field `tiny_decoder`, or choose vae.")
    return profile.locate(profile.tiny_decoder)
