"""The generator: a diffusers text-to-image pipeline, drawn from in batches with one seed an image."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AmusedScheduler, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.schedulers.scheduling_amused import AmusedSchedulerOutput
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import AutoTokenizer

from dfl_utils import checkpoint
from dfl_utils.onednn import use_onednn
from dfl_utils.profile import Profile

diffusers_logging.disable_progress_bar()
diffusers_logging.set_verbosity_error()  # it prints the tail of every long prompt; `truncated` counts them

CONVOLUTIONAL = {"unet", "vae"}  # parts that are faster with their channels last
DENOISERS = {"unet", "transformer"}  # parts that every step runs


def truncated(profile: Profile, captions: Sequence[str]) -> int:
    """How many captions the text encoder sees only in part, longer than its tokens (SD v1: 77, the mini SD: 32)."""
    folder = profile.locate(profile.generator)
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=profile.offline)
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
                self, model_output[k : k + 1], timestep, sample[k : k + 1], starting_mask_ratio, stream, False
            )
            for k, stream in enumerate(generator)
        ]
        prev_sample, pred_original_sample = map(torch.cat, zip(*parts, strict=True))
        if not return_dict:
            return prev_sample, pred_original_sample
        return AmusedSchedulerOutput(prev_sample, pred_original_sample)


def _pipeline_class(folder: str, offline: bool) -> type[DiffusionPipeline]:
    """The class of diffusers that a pipeline folder or hub id names; ValueError where it draws no images of texts."""
    if Path(folder).is_dir() and not (Path(folder) / "model_index.json").is_file():
        raise ValueError(
            f"{folder} is no pipeline: it has no model_index.json; give the folder of a diffusers pipeline."
        )
    checkpoint.check(folder, "generator")
    name = DiffusionPipeline.load_config(folder, local_files_only=offline).get("_class_name", "")
    kind = getattr(diffusers, name, None)
    arguments = inspect.signature(kind.__call__).parameters if isinstance(kind, type) else {}
    if not {"prompt", "generator", "output_type"} <= arguments.keys() or "image" in arguments:
        raise ValueError(
            f"{folder} is a {name or 'nameless pipeline'}, which is no text-to-image pipeline of diffusers; "
            "give one such as StableDiffusionPipeline or AmusedPipeline."
        )
    return kind


class Generator:
    """A frozen text-to-image pipeline and its sampling settings.

    Any such pipeline of diffusers will do, by folder or hub id; the profile names it. Stable Diffusion is the paper's
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
        """Load the profile's pipeline in fp32 on a CPU, fp16 on a GPU; safetensors only.

        Stable Diffusion v1-4 is published with another sampler; the paper draws with DDPM (Appendix A.2). Any other
        pipeline keeps its scheduler, aMUSEd with one random stream an image.

        Raises:
            FileNotFoundError, ValueError: as `checkpoint.check`; a folder that holds no text-to-image pipeline; a
                tokenizer and a text encoder of two vocabularies.
        """
        folder = profile.locate(profile.generator)
        kind = _pipeline_class(folder, profile.offline)
        stable_diffusion = issubclass(kind, StableDiffusionPipeline)
        pipeline = kind.from_pretrained(
            folder,
            dtype=torch.float16 if profile.device.startswith("cuda") else torch.float32,
            local_files_only=profile.offline,
            use_safetensors=True,
            **({"safety_checker": None, "requires_safety_checker": False} if stable_diffusion else {}),
        ).to(profile.device)
        checkpoint.check_vocabulary(
            folder, len(pipeline.tokenizer), pipeline.text_encoder.get_input_embeddings().num_embeddings
        )
        if stable_diffusion:
            pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        elif isinstance(pipeline.scheduler, AmusedScheduler):
            pipeline.scheduler = SeededAmusedScheduler.from_config(pipeline.scheduler.config)
        parts = pipeline.components
        for name in CONVOLUTIONAL & parts.keys():
            parts[name].to(memory_format=torch.channels_last)
        for name in DENOISERS & parts.keys():
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
        }
        if isinstance(self.pipeline, StableDiffusionPipeline):
            options["latents"] = self._noise(streams)
        taken = inspect.signature(self.pipeline.__call__).parameters
        images = self.pipeline(list(captions), **{name: options[name] for name in options if name in taken}).images
        return (images * 255).round().astype(np.uint8)

    def _noise(self, streams: list[torch.Generator]) -> Tensor:
        # The noise that the pipeline would draw; its memory format decides that of every activation after it.
        unet, side = self.pipeline.unet, self.image_size // self.pipeline.vae_scale_factor
        noise = randn_tensor((len(streams), unet.config.in_channels, side, side), streams, unet.device, unet.dtype)
        return noise.contiguous(memory_format=torch.channels_last)
