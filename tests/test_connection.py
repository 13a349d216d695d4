"""The differentiable connection: one-hot distributions are the ordinary prompt, all others a mixture of its rows."""

import pytest
import torch
from torch.nn import functional as F

from dfl_utils.training import losses
from dfl_utils.training.finetuned import load_pipeline
from dfl_utils.world import profile

# Different lengths in one batch, and one whose tokens fill every position between [BOS] and [EOS].
PROMPTS = ["a red key", "two small yellow houses left of a big blue cow in the center", "key " * 30]


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(profile.load("mini"))


@pytest.fixture(scope="module")
def of_generator(pipeline):
    """Text encoder, its table, length of a prompt, and the tokens that begin, end and fill one."""
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return encoder, encoder.get_input_embeddings().weight, tokenizer.model_max_length, ends


def prompt_of(pipeline, texts):
    """What Stable Diffusion itself hands to its U-Net."""
    return pipeline.encode_prompt(texts, "cpu", 1, do_classifier_free_guidance=False)[0]


# --- soft path = hard path --------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 1e-6])
def test_one_hot_distributions_give_the_ordinary_prompt(pipeline, of_generator, threshold):
    """Token v of a captioner of 50 words stands for `index[v]`; every word of the prompts is one of them."""
    encoder, table, length, ends = of_generator
    tokens = [torch.tensor(pipeline.tokenizer(text, add_special_tokens=False).input_ids) for text in PROMPTS]
    words = torch.cat(tokens).unique()
    index = torch.cat([words, torch.zeros(50 - len(words), dtype=torch.long)])
    spoken = torch.cat([(row.unsqueeze(1) == words).long().argmax(1) for row in tokens])
    embeds = losses.mapped_embeds(F.one_hot(spoken, 50).float(), index, table, threshold)
    prompt = losses.soft_prompt(encoder, embeds, [len(row) for row in tokens], length, ends)
    torch.testing.assert_close(prompt, prompt_of(pipeline, PROMPTS), atol=1e-6, rtol=0)


def test_the_tokenizers_ends_count_and_its_own_padding(of_generator):
    """A later Stable Diffusion pads with `!`, and v1's published text encoder names two wrong tokens as its ends."""
    (encoder, table, *_), (bos, eos, pad) = of_generator, (49406, 49407, 0)
    ids = torch.tensor([[bos, 5, 6, eos, pad, pad], [bos, 7, eos, pad, pad, pad]])
    found = losses.soft_prompt(encoder, table[torch.tensor([5, 6, 7])], [2, 1], 6, (bos, eos, pad))
    torch.testing.assert_close(found, encoder(ids).last_hidden_state, atol=1e-6, rtol=0)


# --- the vocabulary map as a gather -----------------------------------------------------------------------
def test_the_gather_is_the_product_with_the_dense_map():
    """Four distributions over eleven captioner tokens, a map onto five generator tokens, their embeddings."""
    stream = torch.Generator().manual_seed(0)
    probabilities = (6 * torch.randn(4, 11, generator=stream)).softmax(-1)
    index, table = torch.randint(5, (11,), generator=stream), torch.randn(5, 3, generator=stream)
    dense = F.one_hot(index, 5).float()  # M of Section 4.1
    torch.testing.assert_close(losses.mapped_embeds(probabilities, index, table), probabilities @ dense @ table)
    needed = torch.eye(11)[:2] * 0.9 + torch.eye(11)[[1, 0]] * 0.1  # a column that one row needs is kept for all
    exact = losses.mapped_embeds(needed, index, table)
    torch.testing.assert_close(losses.mapped_embeds(needed, index, table, 0.5), exact, atol=0, rtol=1e-6)


# --- drawn words ------------------------------------------------------------------------------------------
def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_draw_is_one_token():
    logits = torch.randn(200, 30, generator=stream())
    drawn = losses.distributions(logits, "gumbel", generator=stream(1))
    assert torch.equal(drawn.round(), F.one_hot(drawn.argmax(1), 30).float())
    torch.testing.assert_close(drawn, drawn.round(), atol=1e-6, rtol=0)
    assert torch.equal(drawn, losses.distributions(logits, "gumbel", generator=stream(1)))
    assert not torch.equal(drawn, losses.distributions(logits, "gumbel", generator=stream(2)))
    logits = torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])  # where nothing is drawn, it is the softmax
    torch.testing.assert_close(losses.distributions(logits), torch.tensor([[0.25, 0.75]]))


def test_the_gradient_of_a_draw_is_that_of_the_softmax_behind_it():
    logits = torch.randn(6, 9, generator=stream(), dtype=torch.float64).requires_grad_(True)
    upstream = torch.randn(6, 9, generator=stream(3), dtype=torch.float64)
    drawn = losses.distributions(logits, "gumbel", stream(1))
    (found,) = torch.autograd.grad((drawn * upstream).sum(), logits)
    gumbel = -(-torch.rand(6, 9, generator=stream(1)).log()).log()
    soft = (logits.detach() + gumbel).softmax(-1)
    by_hand = soft * (upstream - (soft * upstream).sum(1, keepdim=True))  # the softmax's Jacobian
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=1e-5)
    assert torch.equal(drawn.argmax(1), soft.argmax(1))
