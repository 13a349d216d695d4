"""The generator: a diffusers text-to-image pipeline, drawn from in batches with one seed an image."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from dfl_utils import checkpoint
from dfl_utils.profile import Profile

diffusers_logging.disable_progress_bar()
diffusers_logging.set_verbosity_error()  # it prints the tail of every long prompt; `Generator.truncated` counts them
DRAW_BATCH = 64  # images a call; above this a CPU gains nothing and memory grows


class Generator:
    """A frozen pipeline and the sampling settings of Appendix A.2 (DDPM, 50 steps, guidance 7.5 in the paper)."""

    def __init__(self, pipeline: DiffusionPipeline, num_inference_steps: int, guidance_scale: float, image_size: int):
        self.pipeline = pipeline
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.image_size = image_size
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, profile: Profile) -> "Generator":
        """Load the profile's pipeline in fp32 on a CPU, fp16 on a GPU; safetensors only.

        Stable Diffusion v1-4 is published with another sampler; the paper draws with DDPM (Appendix A.2).
        """
        folder = profile.locate(profile.generator)
        checkpoint.check(folder, "generator")
        dtype = torch.float16 if profile.device.startswith("cuda") else torch.float32
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=profile.offline,
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
        ).to(profile.device)
        checkpoint.check_vocabulary(
            folder, len(pipeline.tokenizer), pipeline.text_encoder.get_input_embeddings().num_embeddings
        )
        pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
        return cls(pipeline, profile.num_inference_steps, profile.guidance_scale, profile.image_size)

    def truncated(self, captions: Sequence[str]) -> int:
        """How many captions the text encoder sees only in part, longer than its tokens (SD v1: 77, the mini SD: 32)."""
        ids = self.pipeline.tokenizer(list(captions), verbose=False).input_ids
        return sum(len(row) > self.pipeline.tokenizer.model_max_length for row in ids)

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """One image a caption, `(B, size, size, 3)` uint8; image b depends on caption b and seed b alone.

        An empty caption is drawn like any other (it is what guidance calls the unconditional prompt).
        """
        if len(captions) != len(seeds):
            raise ValueError(f"{len(captions)} captions and {len(seeds)} seeds: give one seed a caption.")
        parts = [
            self._draw(captions[k : k + DRAW_BATCH], seeds[k : k + DRAW_BATCH])
            for k in range(0, len(captions), DRAW_BATCH)
        ]
        return np.concatenate(parts)

    def _draw(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        # On the CPU, so that a seed draws the same noise on every device.
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = self.pipeline(
            list(captions),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            height=self.image_size,
            width=self.image_size,
            generator=streams,
            output_type="np",
        ).images
        return (images * 255).round().astype(np.uint8)
