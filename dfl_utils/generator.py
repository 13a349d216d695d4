"""The generator: a diffusers text-to-image pipeline, drawn from in batches with one seed an image."""

import types
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import AutoTokenizer

from dfl_utils import checkpoint
from dfl_utils.profile import Profile

diffusers_logging.disable_progress_bar()
diffusers_logging.set_verbosity_error()  # it prints the tail of every long prompt; `truncated` counts them


def truncated(profile: Profile, captions: Sequence[str]) -> int:
    """How many captions the text encoder sees only in part, longer than its tokens (SD v1: 77, the mini SD: 32)."""
    folder = profile.locate(profile.generator)
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=profile.offline)
    ids = tokenizer(list(captions), verbose=False).input_ids
    return sum(len(row) > tokenizer.model_max_length for row in ids)


def _onednn_linear(self: nn.Linear, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def _use_onednn(model: nn.Module) -> None:
    """Send a model's linear layers through oneDNN, as its convolutions go already.

    torch sends them through MKL, which on an AMD processor is half as fast (a fifth of a drawing's time; see
    benchmarks/README.md). The operator is the one that torch.compile uses; the pinned torch has it without gradients
    only, and a generator draws.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = types.MethodType(_onednn_linear, module)


class Generator:
    """A frozen pipeline and the sampling settings of Appendix A.2 (DDPM, 50 steps, guidance 7.5 in the paper)."""

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
        if profile.device == "cpu":
            _use_onednn(pipeline.unet)
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
