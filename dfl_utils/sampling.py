"""Sampling of tokens with one random stream a caption, so that a caption does not depend on its batch."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

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
