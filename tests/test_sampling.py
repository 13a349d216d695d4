"""Seeded sampling: by hand, and beside the library's."""

import pytest
import torch
from transformers import TopPLogitsWarper

from dfl_utils.models.blip import SeededSampling


def drawn(probabilities, uniform, **options):
    scores = torch.tensor([probabilities]).log()
    out = SeededSampling(torch.tensor([[uniform]]), **options)(torch.zeros(1, 0), scores)
    return out.argmax().item()


def test_nucleus_by_hand():
    # p = 0.9 keeps 0.5, 0.3 and 0.15 (their sum passes 0.9), so uniforms are spread over a mass of 0.95.
    probabilities = [0.05, 0.5, 0.15, 0.3]
    assert drawn(probabilities, 0.52, top_p=0.9) == 1  # 0.494 < 0.5
    assert drawn(probabilities, 0.53, top_p=0.9) == 3  # 0.5035
    assert drawn(probabilities, 0.85, top_p=0.9) == 2  # 0.8075
    assert drawn(probabilities, 0.999, top_p=0.9) == 2  # the token of 0.05 is cut off
    assert drawn(probabilities, 0.999, top_p=1.0) == 0


def test_top_k_and_temperature_by_hand():
    assert drawn([0.05, 0.5, 0.15, 0.3], 0.7, top_k=2) == 3  # 0.625 and 0.375 are left
    assert drawn([0.2, 0.8], 0.5, temperature=1.0) == 1
    assert drawn([0.2, 0.8], 0.75, temperature=1e6) == 0  # two equal halves, in order of their logits: 1, then 0


def test_nucleus_has_the_librarys_support():
    torch.manual_seed(0)
    scores = 3 * torch.randn(8, 2000)
    kept = TopPLogitsWarper(0.9)(None, scores.clone()).isfinite()
    seen = torch.zeros_like(kept)
    for uniform in torch.linspace(0, 0.9999, 3000):
        seen |= SeededSampling(uniform.expand(8, 1), top_p=0.9)(torch.zeros(8, 0), scores.clone()).isfinite()
    assert not (seen & ~kept).any()
    assert (seen & kept).sum() > 0.9 * kept.sum()  # a grid of 3,000 uniforms passes over the rarest


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": 0.0}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="Sampling needs"):
        SeededSampling(torch.zeros(1, 1), **wrong)
