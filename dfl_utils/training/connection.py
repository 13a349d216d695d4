"""The differentiable connection: token distributions of the captioner become the generator's prompt (Section 4.1).

A distribution over the captioner's vocabulary is mixed from the generator's own token embeddings, looked up through the
vocabulary map (Appendix G). The result stands between [BOS] and [EOS] as the tokens of a prompt do, and the frozen text
encoder reads it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import create_causal_mask

CONNECTIONS = ("softmax", "gumbel")


def soft_encode(text_encoder: nn.Module, inputs_embeds: Tensor) -> Tensor:
    """`encoder_hidden_states` `(B, L, D)` of token embeddings `(B, L, D)` without positions.

    What `CLIPTextModel` makes of token ids, from the embeddings on: it takes no `inputs_embeds` itself.
    """
    hidden = text_encoder.embeddings(inputs_embeds=inputs_embeds)
    mask = create_causal_mask(
        config=text_encoder.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    encoded = text_encoder.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    return text_encoder.final_layer_norm(encoded)


def distributions(logits: Tensor, connection: str = "softmax", generator: torch.Generator | None = None) -> Tensor:
    """Token distributions `(N, V)` of logits `(N, V)`, one row a token of the caption.

    Args:
        logits: the captioner's.
        connection: `softmax` as in the paper; `gumbel`: one token drawn a row, one-hot forward, and backward the
            gradient of the softmax that it was drawn from (straight-through Gumbel-softmax, Jang et al. 2017).
        generator: random stream of the draw, on the CPU.
    """
    if connection == "softmax":
        return logits.softmax(-1)
    uniforms = torch.rand(logits.shape, generator=generator).clamp(min=1e-20).to(logits.device)
    soft = (logits - (-uniforms.log()).log()).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + soft - soft.detach()


def mapped_embeds(probabilities: Tensor, index: Tensor, table: Tensor, threshold: float = 0.0) -> Tensor:
    """Expected generator embeddings `(N, D)`: distributions times the rows that the vocabulary map names.

    Args:
        probabilities: `(N, V_captioner)`, rows sum to 1.
        index: `(V_captioner,)` generator token of each captioner token.
        table: `(V_generator, D)` token embeddings of the generator.
        threshold: columns whose probability is at most this in every row are left out, which saves nearly all of the
            product's cost, as a caption is sure of most of its words; 0 is exact.
    """
    if threshold > 0:
        active = (probabilities.detach().amax(0) > threshold).nonzero().squeeze(-1)
        probabilities, index = probabilities[:, active], index[active]
    return probabilities @ table[index]


def soft_prompt(
    text_encoder: nn.Module, token_embeds: Tensor, counts: Sequence[int], length: int, ends: tuple[int, int, int]
) -> Tensor:
    """`encoder_hidden_states` `(B, length, D)` of prompts given as token embeddings.

    Args:
        text_encoder: CLIP's, as in Stable Diffusion: [BOS], the tokens, [EOS], then padding up to `length`.
        token_embeds: `(sum(counts), D)`, the tokens of all captions one after the other.
        counts: tokens of each of the B captions.
        length: positions that the generator reads (SD v1: 77).
        ends: the tokenizer's [BOS], [EOS] and padding; those of the published text encoder's configuration are wrong.

    Raises:
        ValueError: a caption that does not fit.
    """
    if max(counts) > length - 2:
        raise ValueError(
            f"A caption of {max(counts)} tokens does not fit the generator, which reads {length} with [BOS] and "
            "[EOS]: leave it out or shorten it."
        )
    table, (bos, eos, pad) = text_encoder.get_input_embeddings().weight, ends
    inputs_embeds = table[pad].repeat(len(counts), length, 1)
    inputs_embeds[:, 0] = table[bos]
    inputs_embeds[torch.arange(len(counts)), torch.tensor(counts) + 1] = table[eos]
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    places = torch.cat([torch.arange(1, count + 1) for count in counts])
    inputs_embeds = inputs_embeds.index_put((rows.to(table.device), places.to(table.device)), token_embeds)
    return soft_encode(text_encoder, inputs_embeds)
