"""The captioner: BLIP, sampled for candidates (Section 3.1) or read off by beam search."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BlipForConditionalGeneration, LogitsProcessor, LogitsProcessorList

from dfl_utils import checkpoint
from dfl_utils.profile import Profile

NUCLEUS_WIDTH = 256  # tokens looked at first; the whole vocabulary is sorted only where they do not hold the mass


def check_sampling(top_p: float, top_k: int, temperature: float) -> None:
    """ValueError for sampling settings that mean nothing."""
    if not 0 < top_p <= 1 or top_k < 0 or temperature <= 0:
        raise ValueError(
            f"Sampling needs 0 < top_p <= 1, top_k >= 0 and temperature > 0, not top_p={top_p}, top_k={top_k}, "
            f"temperature={temperature}."
        )


class SeededSampling(LogitsProcessor):
    """Top-p, top-k and tempered sampling with one random stream a caption.

    `generate` draws a whole batch from one stream, so a caption depends on its neighbours. Here row r takes its
    uniforms from `uniforms[r]`, and the drawn token is handed to greedy search as the only finite score: a
    caption is the same in any batch and any order.

    Args:
        uniforms: `(B, steps)` in [0, 1), one a token.
        top_p: smallest set of tokens whose probability reaches this is kept; 1 keeps all.
        top_k: only the k likeliest tokens are kept; 0 keeps all.
        temperature: logits are divided by it.
    """

    def __init__(self, uniforms: Tensor, top_p: float = 1.0, top_k: int = 0, temperature: float = 1.0):
        check_sampling(top_p, top_k, temperature)
        self.uniforms, self.top_p, self.top_k, self.temperature = uniforms, top_p, top_k, temperature
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        probabilities = (scores / self.temperature).softmax(-1)
        size = probabilities.shape[-1]
        width = min(self.top_k or NUCLEUS_WIDTH, size)
        likely, tokens = probabilities.topk(width)
        if not self.top_k and (likely.sum(-1) < self.top_p).any():
            likely, tokens = probabilities.topk(size)
        if self.top_k:
            likely = likely / likely.sum(-1, keepdim=True)
        before = likely.cumsum(-1) - likely
        kept = likely * (before < self.top_p)
        target = self.uniforms[:, self.step, None] * kept.sum(-1, keepdim=True)
        choice = (kept.cumsum(-1) <= target).sum(-1, keepdim=True).clamp(max=likely.shape[-1] - 1)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.gather(1, choice), 0.0)


class Captioner:
    """A BLIP checkpoint and its processor.

    Attributes:
        model: `BlipForConditionalGeneration`, in evaluation mode.
        processor: its `BlipProcessor` (Pillow back end in every profile).
        prompt: text that the captions continue, cut from the output.
    """

    def __init__(self, model: BlipForConditionalGeneration, processor, prompt: str, min_words: int, max_words: int):
        self.model, self.processor, self.prompt = model, processor, prompt
        self.min_words, self.max_words = min_words, max_words
        checkpoint.check_vocabulary(model.name_or_path, len(processor.tokenizer), model.config.text_config.vocab_size)

    @classmethod
    def load(cls, profile: Profile) -> "Captioner":
        """Load the profile's captioner, frozen."""
        needs = (checkpoint.TOKENIZER, checkpoint.PROCESSOR)
        model, folder = checkpoint.load(BlipForConditionalGeneration, profile, "captioner", *needs)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=profile.offline, backend="pil")
        return cls(model, processor, profile.captioner_prompt, profile.min_words, profile.max_words)

    @torch.no_grad()
    def image_embeds(self, images: Sequence[Image.Image]) -> Tensor:
        """Vision features `(B, patches + 1, D)` of RGB images."""
        pixels = self.processor.image_processor(list(images), return_tensors="pt").pixel_values
        return self.model.vision_model(pixels.to(self.model.device)).last_hidden_state

    def sample(
        self,
        images: Sequence[Image.Image],
        streams: Sequence[Sequence[Sequence[int]]],
        *,
        top_p: float = 0.9,
        top_k: int = 0,
        temperature: float = 1.0,
    ) -> list[list[str]]:
        """Candidate captions by sampling; the paper: N = 10, top-p with p = 0.9 (Appendix A.2).

        Args:
            images: B RGB images.
            streams: B lists of N seeds, each a sequence of integers; caption (b, n) depends on image b and seed
                (b, n) alone.
            top_p, top_k, temperature: see `SeededSampling`; `top_k=0` switches `generate`'s default of 50 off.

        Returns:
            B lists of N captions without the prompt.
        """
        if not images or len(images) != len(streams):
            raise ValueError(f"{len(images)} images and {len(streams)} lists of seeds: give one list for each image.")
        per_image = len(streams[0])
        uniforms = torch.from_numpy(
            np.stack(
                [
                    np.random.default_rng(list(seed)).random(self.max_words + 1, dtype=np.float32)
                    for seeds in streams
                    for seed in seeds
                ]
            )
        )
        sampling = SeededSampling(uniforms.to(self.model.device), top_p, top_k, temperature)
        embeds = self.image_embeds(images).repeat_interleave(per_image, 0)
        texts = self._generate(embeds, logits_processor=LogitsProcessorList([sampling]))
        return [texts[k : k + per_image] for k in range(0, len(texts), per_image)]

    def describe(self, images: Sequence[Image.Image], *, num_beams: int = 3) -> list[str]:
        """One caption an image by beam search."""
        return self._generate(self.image_embeds(images), num_beams=num_beams)

    @torch.no_grad()
    def _generate(self, image_embeds: Tensor, **options) -> list[str]:
        # The text decoder is called directly, as the model's own `generate` does, so that an image is encoded once
        # for all its candidates.
        tokenizer, text_config = self.processor.tokenizer, self.model.config.text_config
        prompt_ids = tokenizer(self.prompt, return_tensors="pt").input_ids[:, :-1].to(image_embeds.device)
        prompt_ids[:, 0] = text_config.bos_token_id
        ids = self.model.text_decoder.generate(
            input_ids=prompt_ids.repeat(len(image_embeds), 1),
            attention_mask=prompt_ids.new_ones(len(image_embeds), prompt_ids.shape[1]),
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=image_embeds.new_ones(image_embeds.shape[:2], dtype=torch.long),
            eos_token_id=text_config.sep_token_id,
            pad_token_id=text_config.pad_token_id,
            do_sample=False,
            min_new_tokens=self.min_words,
            max_new_tokens=self.max_words,
            **options,
        )
        return [
            text.strip() for text in tokenizer.batch_decode(ids[:, prompt_ids.shape[1] :], skip_special_tokens=True)
        ]
