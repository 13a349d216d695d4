"""The second generator's codes and the second captioner's targets, by hand; both load as the paper's would."""

import pytest
import torch
from diffusers import AmusedPipeline, AutoencoderKL
from transformers import AutoTokenizer

from dfl_utils.mini import blip2, discrete, web
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.world import scenes
from dfl_utils.world.profile import MINI


@pytest.fixture(scope="module")
def amused() -> AmusedPipeline:
    return AmusedPipeline.from_pretrained(MINI / "amused", dtype=torch.float32)


@pytest.fixture
def shipped_tokenizer(monkeypatch):
    """Learning the vocabulary anew from 414,113 captions takes half a minute."""
    tokenizer = AutoTokenizer.from_pretrained(MINI / "blip2")
    monkeypatch.setattr(blip2, "tokenizer", lambda: tokenizer)
    return tokenizer


def test_a_share_of_the_codes_is_masked_and_the_rest_untouched():
    codes = torch.arange(4 * 64).reshape(4, 8, 8)
    inputs = discrete.masked(codes, torch.Generator().manual_seed(0))
    hidden = inputs == discrete.MASK
    assert hidden.flatten(1).any(1).all()  # a step without a masked code would teach nothing
    assert torch.equal(inputs[~hidden], codes[~hidden])
    assert torch.equal(inputs, discrete.masked(codes, torch.Generator().manual_seed(0)))


@torch.no_grad()
def test_the_discrete_autoencoder_is_the_continuous_one_with_a_codebook(amused):
    """Its encoder gives the same latents, and its decoder the same images at half the scale and shifted."""
    vae = AutoencoderKL.from_pretrained(MINI / "stable-diffusion" / "vae", dtype=torch.float32)
    images = pixels([scenes.render(web.scene(k, "second")) for k in range(2)])
    latents = vae.encode(images).latent_dist.mean
    torch.testing.assert_close(amused.vqvae.encode(images).latents, latents, atol=0.02, rtol=0.01)  # fp16 on disk
    book = amused.vqvae.quantize.embedding.weight
    codes = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 8), book).argmin(1)
    drawn = amused.vqvae.decode(codes, force_not_quantize=True, shape=(2, 8, 8, 8)).sample
    quantised = book[codes].reshape(2, 8, 8, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(drawn, vae.decode(quantised).sample / 2 + 0.5, atol=0.01, rtol=0.01)


def test_its_conditions_are_those_of_the_pipeline(amused, monkeypatch):
    seen = {}

    def record(input_ids, micro_conds, **_):
        seen["conditions"] = micro_conds
        return torch.zeros(len(input_ids), discrete.CODES, 8, 8)

    monkeypatch.setattr(amused.transformer, "forward", record)
    amused(["a red key"], num_inference_steps=1, guidance_scale=0.0, output_type="np")
    assert torch.equal(seen["conditions"], discrete.micro_conditions(1))


def test_captions_end_and_prompt_and_padding_are_no_targets(shipped_tokenizer):
    end, pad = shipped_tokenizer.eos_token_id, shipped_tokenizer.pad_token_id
    ids, mask, targets = blip2.tokens(["a red key", "a key"], "a photo of")
    head = shipped_tokenizer("a photo of").input_ids
    assert head[0] == shipped_tokenizer.bos_token_id == end
    assert ids[1].tolist() == [*head, *shipped_tokenizer(" a key", add_special_tokens=False).input_ids, end, pad]
    assert mask[1].tolist() == [1] * (len(head) + 3) + [0]
    assert targets[1].tolist() == [-100] * len(head) + ids[1, len(head) : -1].tolist() + [-100]


def test_the_vocabulary_reads_back_any_caption(shipped_tokenizer):
    for text in ("a red key left of a small house", "ein grünes Häuschen", "naïve café"):
        ids = shipped_tokenizer(f" {text}", add_special_tokens=False).input_ids
        assert shipped_tokenizer.decode(ids) == f" {text}"
    assert len(shipped_tokenizer) == blip2.VOCABULARY


def test_the_image_reaches_the_queries_and_the_vision_tower_is_left_alone(shipped_tokenizer):
    torch.manual_seed(0)
    model = blip2.model()
    loss = blip2.caption_loss(model, torch.randn(2, 3, 64, 64), ["a red key", "a blue house"])
    loss.backward()
    assert model.query_tokens.grad.abs().sum() > 0 and model.language_projection.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.vision_model.parameters())
