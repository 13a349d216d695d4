"""The generator: a diffusers text-to-image pipeline, drawn from in batches with one seed an image."""

import inspect
import types
from collections.abc import Sequence
from functools import wraps
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import (
    AmusedScheduler,
    AutoencoderTiny,
    DDPMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
)
from diffusers.schedulers.scheduling_amused import AmusedSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from dfl_utils.models import checkpoint
from dfl_utils.models.checkpoint import inference_dtype
from dfl_utils.world.annotations import read_json
from dfl_utils.world.profile import Profile

diffusers_logging.disable_progress_bar()


diffusers_logging.set_verbosity_error()  # it prints the tail of every long prompt; `truncated` counts them


VERSION = 1  # of what any generator draws of the same text, seed and files; part of every key that names one
CONVOLUTIONAL = {"unet", "vae"}  # parts that are faster with their channels last
DENOISERS = {"unet", "transformer"}  # parts that every step runs


# Published with Stable Diffusion, used by nobody here and not fetched.
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


# A caption is drawn as it is written (PixArt and others rewrite it where two more packages are installed), at the size
# that is asked for, not at the nearest of a list.
LITERAL = {"clean_caption": False, "use_resolution_binning": False}


def truncated(profile: Profile, captions: Sequence[str]) -> int:
    """How many captions the text encoder sees only in part, longer than its tokens (SD v1: 77, the mini SD: 32)."""
    folder, revision = profile.provide(profile.generator), profile.revision(profile.generator)
    # For a pipeline's tokenizer, which has no config.json, the library would ask the hub, even where all is cached.
    folder = str(checkpoint.snapshot(folder, revision) or folder)
    options = {"revision": revision, "local_files_only": profile.offline}
    tokenizer = checkpoint.load_tokenizer(folder, "tokenizer", **options)
    ids = tokenizer(list(captions), verbose=False).input_ids
    return sum(len(row) > tokenizer.model_max_length for row in ids)


class SeededAmusedScheduler(AmusedScheduler):
    """aMUSEd's scheduler with one random stream an image.

    The parent draws the codes of a whole batch from one stream, so an image depends on its neighbours. Here `step`
    takes a list of B streams as well and runs the parent's step on one sample after the other.
    """

    def step(self, model_output, timestep, sample, starting_mask_ratio=1.0, generator=None, return_dict=True):
        if not isinstance(generator, list):
            return super().step(model_output, timestep, sample, starting_mask_ratio, generator, return_dict)
        parts = [
            AmusedScheduler.step(
                self, model_output[k : k + 1].float(), timestep, sample[k : k + 1], starting_mask_ratio, stream, False
            )
            for k, stream in enumerate(generator)
        ]
        prev_sample, pred_original_sample = map(torch.cat, zip(*parts, strict=True))
        if not return_dict:
            return prev_sample, pred_original_sample
        return AmusedSchedulerOutput(prev_sample, pred_original_sample)


def in_float32(kind: type[SchedulerMixin]) -> type[SchedulerMixin]:
    """The same scheduler, whose steps are float32 whatever the model predicts in.

    torch draws other numbers of the same seed in another type, so that a drawing in half precision would be another
    drawing; with the noise of every step drawn in float32 it is the same one, rounded. `Generator` uses it for Stable
    Diffusion; other pipelines draw their own noise, in their own type.
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


def _pipeline_class(folder: str, revision: str | None, offline: bool) -> type[DiffusionPipeline]:
    """The class of diffusers that a pipeline folder or hub id names; ValueError where it draws no images of texts."""
    if Path(folder).is_dir() and not (Path(folder) / "model_index.json").is_file():
        raise ValueError(
            f"{folder} is no pipeline: it has no model_index.json; give the folder of a diffusers pipeline."
        )
    if Path(folder).is_dir():
        _refuse_code(folder, read_json(Path(folder) / "model_index.json"))
    checkpoint.check(folder, "generator", revision=revision)
    config = DiffusionPipeline.load_config(folder, revision=revision, local_files_only=offline)
    _refuse_code(folder, config)
    name = config.get("_class_name", "")
    kind = getattr(diffusers, name, None)
    arguments = inspect.signature(kind.__call__).parameters if isinstance(kind, type) else {}
    if not {"prompt", "generator", "output_type"} <= arguments.keys() or "image" in arguments:
        raise ValueError(
            f"{folder} is a {name or 'nameless pipeline'}, which is no text-to-image pipeline of diffusers; "
            "give one such as StableDiffusionPipeline or AmusedPipeline."
        )
    return kind


def _refuse_code(folder: str, index: dict) -> None:
    if isinstance(index.get("_class_name"), list):  # [module of the checkpoint, class]
        raise ValueError(f"{folder} is drawn by code that lies in it, which is never run: give another pipeline.")


def _scheduler(name: str) -> type[SchedulerMixin]:
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"scheduler is {name!r}, which is none of diffusers: give one such as DDPMScheduler.")
    return kind


def _check_vocabularies(folder: str, pipeline: DiffusionPipeline) -> None:
    """Each text encoder embeds what its tokenizer writes; a pipeline has up to three of each."""
    for end in ("", "_2", "_3"):
        tokenizer, encoder = (getattr(pipeline, f"{name}{end}", None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is not None and encoder is not None:
            checkpoint.check_vocabulary(folder, len(tokenizer), encoder.get_input_embeddings().num_embeddings)


class Generator:
    """A frozen text-to-image pipeline and its sampling settings.

    Any such pipeline of diffusers will do that takes one random stream an image, by folder or hub id, such as Stable
    Diffusion XL, PixArt or a latent consistency model; the profile names it. Stable Diffusion is the paper's
    (DDPM, 50 steps, guidance 7.5; Appendix A.2). For its second generator, LAFITE (Table 8), stands aMUSEd, a
    transformer that writes the codes of a discrete autoencoder: LAFITE's weights are a pickle that runs code when it is
    opened, and no pipeline of diffusers.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        num_inference_steps: int,
        guidance_scale: float,
        image_size: int,
        draw_batch: int = 64,
    ):
        self.pipeline = pipeline
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.image_size, self.draw_batch = image_size, draw_batch
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, profile: Profile) -> "Generator":
        """Load the profile's pipeline in its `dtype`; safetensors only.

        Stable Diffusion v1-4 is published with another sampler; the paper draws with DDPM (Appendix A.2), which is the
        profile's `scheduler`. Any other pipeline keeps its own, aMUSEd with one random stream an image.

        Raises:
            FileNotFoundError, ValueError: as `checkpoint.check`; a folder that holds no text-to-image pipeline; a
                tokenizer and a text encoder of two vocabularies; an unknown scheduler; a `dtype` that the device
                cannot do.
        """
        dtype, scheduler = inference_dtype(profile), _scheduler(profile.scheduler)
        folder, revision = profile.provide(profile.generator), profile.revision(profile.generator)
        kind = _pipeline_class(folder, revision, profile.offline)
        stable_diffusion = issubclass(kind, StableDiffusionPipeline)
        pipeline = kind.from_pretrained(
            folder,
            revision=revision,
            variant=checkpoint.variant(folder),
            dtype=dtype,
            local_files_only=profile.offline,
            use_safetensors=True,
            **checkpoint.of_pipeline(folder),
            **(UNCHECKED if stable_diffusion else {}),
        ).to(profile.device)
        _check_vocabularies(folder, pipeline)
        if stable_diffusion:
            # v1-4's first configurations had neither; the defaults would clip latents and shift the steps.
            scheduler = scheduler if dtype == torch.float32 else in_float32(scheduler)
            pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, clip_sample=False, steps_offset=1)
        elif isinstance(pipeline.scheduler, AmusedScheduler):
            pipeline.scheduler = SeededAmusedScheduler.from_config(pipeline.scheduler.config)
        parts = pipeline.components
        for name in CONVOLUTIONAL & parts.keys():
            parts[name].to(memory_format=torch.channels_last)
        for name in DENOISERS & parts.keys() if dtype == torch.float32 else ():
            use_onednn(parts[name])
        return cls(
            pipeline, profile.num_inference_steps, profile.guidance_scale, profile.image_size, profile.draw_batch
        )

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """One image a caption, `(B, size, size, 3)` uint8; image b depends on caption b and seed b alone.

        An empty caption is drawn like any other (it is what guidance calls the unconditional prompt).
        """
        if not captions or len(captions) != len(seeds):
            raise ValueError(f"{len(captions)} captions and {len(seeds)} seeds: give one seed for each caption.")
        parts = [
            self._draw(captions[k : k + self.draw_batch], seeds[k : k + self.draw_batch])
            for k in range(0, len(captions), self.draw_batch)
        ]
        return np.concatenate(parts)

    def _draw(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        # On the CPU, so that a seed draws the same noise on every device.
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "height": self.image_size,
            "width": self.image_size,
            "generator": streams,
            "output_type": "np",
            **LITERAL,
        }
        if isinstance(self.pipeline, StableDiffusionPipeline):
            options["latents"] = self._noise(streams)
        taken = inspect.signature(self.pipeline.__call__).parameters
        images = self.pipeline(list(captions), **{name: options[name] for name in options if name in taken}).images
        return (images * 255).round().astype(np.uint8)

    def _noise(self, streams: list[torch.Generator]) -> Tensor:
        # The noise that the pipeline would draw; its memory format decides that of every activation after it.
        unet, side = self.pipeline.unet, self.image_size // self.pipeline.vae_scale_factor
        noise = randn_tensor((len(streams), unet.config.in_channels, side, side), streams, unet.device)
        return noise.to(unet.dtype, memory_format=torch.channels_last)


# --- Linear layers through oneDNN on a CPU, as a model's convolutions go already.
#
# torch sends them through MKL, which on an AMD processor is half as fast. The operator is the one of torch.compile, and
# the pinned torch has it without gradients only: this is for models that are frozen.


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


# --- The generator as the finetuning needs it: in float32 whatever the profile infers in, frozen, with gradients.


def load_pipeline(profile: Profile) -> StableDiffusionPipeline:
    """The profile's Stable Diffusion for training: fp32, frozen, its linear layers with gradients.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.check`; a pipeline of another kind, whose losses Section 4 does
            not define.
    """
    folder = profile.provide(profile.generator)
    revision = profile.revision(profile.generator)
    checkpoint.check(folder, "generator", revision=revision)
    options = {"revision": revision, "local_files_only": profile.offline}
    kind = StableDiffusionPipeline.load_config(folder, **options).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ValueError(f"{folder} is a {kind}, and the finetuning needs a StableDiffusionPipeline: give one.")
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        dtype=torch.float32,
        variant=checkpoint.variant(folder),
        revision=revision,
        local_files_only=profile.offline,
        use_safetensors=True,
        **checkpoint.of_pipeline(folder),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(profile.device)
    # Two fields that the oldest published configurations lack.
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, steps_offset=1)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    return pipeline


def load_decoder(profile: Profile) -> AutoencoderTiny:
    """The profile's small decoder of latents; ValueError where it has none."""
    folder, revision = decoder_folder(profile), profile.revision(profile.tiny_decoder)
    checkpoint.check(folder, "tiny decoder", revision=revision)
    decoder = AutoencoderTiny.from_pretrained(
        folder,
        dtype=torch.float32,
        variant=checkpoint.variant(folder),
        revision=revision,
        local_files_only=profile.offline,
        use_safetensors=True,
    )
    return decoder.to(profile.device, memory_format=torch.channels_last).requires_grad_(False).eval()


def decoder_folder(profile: Profile) -> str:
    """Folder or hub id of the small decoder; ValueError where the profile has none."""
    if profile.tiny_decoder is None:
        raise ValueError(f"Profile {profile.name!r} has no tiny decoder: set its field `tiny_decoder`, or choose vae.")
    return profile.locate(profile.tiny_decoder)
