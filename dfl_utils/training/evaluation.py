"""What the tables of the finetuning measure (Tables 3, 4, 5 and 9): captions, drawings and the losses themselves.

Everything is asked of a `Game` or kept in the store like its shards: a finetuned pair is measured once, and a role that
a finetuning left alone shares the shards of the pair that it started from.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from dfl_utils.game.loops import Game, Reconstructions, references_of
from dfl_utils.game.scorer import Scorer
from dfl_utils.models import captioner, fidelity
from dfl_utils.models.workshop import Workshop
from dfl_utils.scores import intervals, ngrams
from dfl_utils.scores.ranking import SET_RESAMPLES, Estimate
from dfl_utils.store.store import Kind
from dfl_utils.training import finetuned, pairs
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.finetuned import Finetuned, Finetuner
from dfl_utils.training.losses import LOSSES, TalkingPair
from dfl_utils.world import data
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

VALIDATION_LOSSES = Kind("validation-losses", made_from=(pairs.LATENTS,))
NUM_BEAMS = 3  # the paper names beam search and not its width
VALIDATION_BATCH = 8
SUM = "sum of losses"
OF_DRAWINGS = {  # -> what it is of one drawing an image
    "CLIP": lambda run: 1 - run.sim_image["clip"][:, 0],
    "DINO": lambda run: run.sim_image["dino"][:, 0],
    "features": lambda run: fidelity.split(run.drawings.features()[:, 0], run.drawings.workshop.profile).pooled,
}
Answer = TypeVar("Answer")


def held_out(
    finetuner: Finetuner, profiles: Sequence[Profile], examples: Sequence[Example], seed: int = 0
) -> dict[str, np.ndarray]:
    """The four losses of several pairs on examples that they were not trained on, without economy, and their `SUM`.

    One epoch of batches of eight: caption, timestep and noise of an image are fixed by `seed`, the same for every pair.
    The profiles are the finetuner's own, or a `Finetuned.profile` of it.

    Returns:
        Loss -> `(pairs, batches)` float32; nats a token, or squared error a latent value.

    Raises:
        ValueError: a negative seed, a caption that does not fit the models.
    """
    each = [_losses_of(finetuner, profile, examples, seed) for profile in profiles]
    losses = {loss: np.stack([one[loss] for one in each]) for loss in LOSSES}
    return losses | {SUM: np.sum(list(losses.values()), axis=0)}


def _losses_of(finetuner: Finetuner, profile: Profile, examples: Sequence[Example], seed: int) -> dict[str, np.ndarray]:
    shop = Workshop(profile, finetuner.store, progress=False)
    key = finetuner.images_key(examples) | {
        "captions": [list(example.references) for example in examples],
        "seed": seed,
        "batch_size": VALIDATION_BATCH,
        "captioner": shop.captioner_key(),
        "generator": shop.made_by("generator") | {"image_size": profile.image_size},
        "map": finetuner.vocabulary_map.fingerprint(),
    }

    def make():
        # Of a role that was left alone the finetuner's own model, not loaded again.
        start, (model, pipeline) = finetuner.profile, finetuner._base_models
        if profile.captioner != start.captioner:
            model = captioner.load(replace(profile, dtype="float32"))
        if profile.generator != start.generator:
            pipeline = finetuned.load_pipeline(profile)
        pairs.check(model, pipeline, examples)
        # The autoencoder is never trained: latents are those of the pair that the finetuning started from.
        latents = pairs.latents(finetuner, pipeline, examples)
        pair = TalkingPair(model, pipeline, finetuner.vocabulary_map, LOSSES).to(profile.device).eval()
        lessons = pairs.Pairs(model, pipeline, examples, latents, batch_size=VALIDATION_BATCH, seed=seed)
        with torch.no_grad():
            batches = [pair(lessons.batch(step)) for step in range(lessons.steps_per_epoch)]
        values = {name: np.array([losses[name].item() for losses in batches], np.float32) for name in LOSSES}
        return values, len(batches)

    return finetuner.store.get(VALIDATION_LOSSES, key, make)


def mismatched(examples: Sequence[Example]) -> list[Example]:
    """Each image with the references of the next, and so with wrong ones."""
    following = [*examples[1:], *examples[:1]]
    return [replace(one, references=other.references) for one, other in zip(examples, following, strict=True)]


def train(finetuner: Finetuner, recipes: Mapping[str, Recipe], num_seeds: int) -> dict[str, list[Finetuned]]:
    """Each recipe's trainings: its own seed, and those that follow."""
    wanted = [replace(one, seed=one.seed + k) for one in recipes.values() for k in range(num_seeds)]
    done = iter(finetuner.run(wanted))
    return {name: [next(done) for _ in range(num_seeds)] for name in recipes}


class Trials:
    """Methods that are compared, by what the trainings of each say and draw of the same images.

    Args:
        finetuner: of the pair before any training; its encoders look at all drawings.
        reference_set: see `Scorer`.
        examples: images that are captioned; the first `num_drawn`, at least 2, have a reference drawn, too.
        seed, num_resamples: of the drawings; for intervals of FID and KID.

    Attributes:
        profiles: method -> the pair that each of its trainings left. A method is measured when it is first asked for.
    """

    def __init__(
        self,
        finetuner: Finetuner,
        reference_set: Sequence[Example],
        examples: Sequence[Example],
        *,
        num_drawn: int,
        seed: int = 0,
        num_resamples: int = SET_RESAMPLES,
    ):
        self.finetuner, self.examples, self.num_drawn = finetuner, list(examples), num_drawn
        self.seed, self.num_resamples = seed, num_resamples
        self.scorer = Scorer(finetuner.profile, finetuner.store, reference_set)
        self.profiles: dict[str, Sequence[Profile]] = {}
        self._known: dict[tuple[str, str], Any] = {}  # what was asked, method -> the answer
        self._counted, self._weights = np.full(len(examples), True), 1.0

    def add(self, runs: Mapping[str, Sequence[Finetuned]]) -> None:
        """Take up what the trainings of each method left."""
        self.profiles |= {method: [run.profile for run in part] for method, part in runs.items()}

    def within(self, domain: str) -> "Trials":
        """The same trials, of which the images of one domain count."""
        part = copy.copy(self)
        part._counted = np.array([example.domain == domain for example in self.examples])
        return part

    def weighted(self) -> "Trials":
        """The same trials, whose images count by the shares of NoCaps' domains: see `data.nocaps_weights`."""
        part = copy.copy(self)
        part._weights = data.nocaps_weights(self.examples)
        return part

    def said(self, method: str) -> list[list[str]]:
        """What each training's captioner says of the images, by beam search."""
        return self._each("said", method, lambda game: game.describe(self.examples, NUM_BEAMS))

    def drawn(self, method: str) -> list[Reconstructions]:
        """What each training's generator draws of one reference of each image, that of `Game.t2i2t`.

        Text and noise depend on `seed` and the image alone, so that two generators are compared in pairs. ValueError:
        an image without references, a negative seed.
        """
        examples = self.examples[: self.num_drawn]
        texts = [[text] for text in references_of(examples, self.seed)]
        return self._each("drawn", method, lambda game: game.reconstruct(examples, texts, seed=self.seed))

    def _each(self, what: str, method: str, ask: Callable[[Game], Answer]) -> list[Answer]:
        """What is asked of the pair that each training left, once."""
        if (what, method) not in self._known:
            options = {"progress": False, "judges": self.finetuner}
            games = (Game(profile, self.finetuner.store, **options) for profile in self.profiles[method])
            self._known[what, method] = list(map(ask, games))
        return self._known[what, method]

    def values(self, method: str, metric: str) -> np.ndarray:
        """`(trainings, images)` scores, scaled as in `scores.quality`; of drawings `CLIP`, a distance in [0, 2], and
        `DINO`, a cosine. Counts for BLEU and features for FID and KID have a third axis."""
        shared = {**dict.fromkeys(ngrams.BLEU_NAMES, "BLEU"), **dict.fromkeys(intervals.SETS, "features")}
        what = shared.get(metric, metric)
        if (what, method) not in self._known:
            self._known[what, method] = np.stack(self._measured(what, method))
        values = self._known[what, method]
        if what not in ("BLEU", *OF_DRAWINGS):
            values = self._weights * values
        return values[:, self._counted[: values.shape[1]]]

    def _measured(self, what: str, method: str) -> list[np.ndarray]:
        if what in OF_DRAWINGS:
            return [OF_DRAWINGS[what](run) for run in self.drawn(method)]
        each = [[[text] for text in captions] for captions in self.said(method)]
        if what == "BLEU":
            return [self.scorer.bleu_statistics(self.examples, rows)[:, 0] for rows in each]
        return [self.scorer.score(self.examples, rows, [what])[what][:, 0] for rows in each]

    @cached_property
    def _originals(self) -> np.ndarray:
        features = self.finetuner.original_features(self.examples[: self.num_drawn])
        return fidelity.split(features, self.finetuner.profile).pooled

    def level(self, method: str, metric: str) -> Estimate:
        """A method's mean over trainings and images, or that of its corpora and sets; with its interval."""
        return intervals.level(metric, self.values(method, metric), **self._of_sets(metric))

    def change(self, metric: str, after: str, before: str) -> Estimate:
        """`after` minus `before`, paired by image, and by seed where both have several."""
        pair = self.values(after, metric), self.values(before, metric)
        return intervals.change(metric, *pair, **self._of_sets(metric))

    def by_seed(self, method: str, metric: str) -> list[float]:
        """The level of each training by itself."""
        options = self._of_sets(metric) | {"num_resamples": 2}
        return [intervals.level(metric, one[None], **options).value for one in self.values(method, metric)]

    def _of_sets(self, metric: str) -> dict:
        if metric not in intervals.SETS:
            return {}
        return {"reference": self._originals, "num_resamples": self.num_resamples}
