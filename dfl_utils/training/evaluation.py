"""What the tables of the finetuning measure (Tables 3, 4, 5 and 9): captions, drawings and the losses themselves.

Everything is asked of a `Game` or kept in the store like its shards: a finetuned pair is measured once, and a role that
a finetuning left alone shares the shards of the pair that it started from.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from dfl_utils.game.loops import Game, Reconstructions, references_of
from dfl_utils.game.scorer import Scorer
from dfl_utils.models import captioner, fidelity
from dfl_utils.models.workshop import Workshop
from dfl_utils.scores import intervals, ngrams, quality
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
OF_DRAWINGS = {"CLIP": "clip", "DINO": "dino", "FID": "features", "KID": "features"}  # metric -> what it is read from


@dataclass(frozen=True)
class CaptionScores:
    """One caption an image, and what it is worth (Tables 3, 5 and 9)."""

    captions: list[str]
    scores: dict[str, np.ndarray]  # metric -> `(images,)`, scaled as in `scores.quality`
    count: Callable[[], np.ndarray]  # see `bleu`, for which Java is started

    @cached_property
    def bleu(self) -> np.ndarray:
        """`(images, 10)` counts whose means go to `ngrams.corpus_bleu`."""
        return self.count()


@dataclass(frozen=True)
class ImageScores:
    """What a generator draws of references, and how it compares with the images that they were written of (Table 4)."""

    captions: list[str]  # the reference drawn of each image
    clip: np.ndarray  # `(images,)` 1 - cosine of CLIP, of drawing and original: a distance, in [0, 2]
    dino: np.ndarray  # `(images,)` the cosine of DINO
    features: np.ndarray  # `(images, D)` of the drawings, for FID
    original_features: np.ndarray  # `(images, D)` of the originals
    run: Reconstructions  # the drawings


def caption_scores(
    game: Game, scorer: Scorer, examples: Sequence[Example], metrics: Sequence[str] = quality.FIGURE3
) -> CaptionScores:
    """Captions by beam search of three beams, scored against the references by a scorer of the whole split.

    ValueError, before a caption is made: `metrics` that are none of `quality.METRICS`.
    """
    quality.check_metrics(metrics)
    captions = game.describe(examples, num_beams=NUM_BEAMS)
    rows = [[caption] for caption in captions]
    scores = {metric: values[:, 0] for metric, values in scorer.score(examples, rows, metrics).items()}
    return CaptionScores(captions, scores, lambda: scorer.bleu_statistics(examples, rows)[:, 0])


def image_scores(game: Game, examples: Sequence[Example], seed: int = 0) -> ImageScores:
    """One drawing of one reference of each image, that of `Game.t2i2t`.

    Text and noise depend on `seed` and the image alone, so that two generators may be compared in pairs. ValueError: an
    image without references, a negative seed.
    """
    captions = references_of(examples, seed)
    run = game.reconstruct(examples, [[caption] for caption in captions], seed=seed)
    drawn = fidelity.split(run.drawings.features()[:, 0], game.profile).pooled
    originals = fidelity.split(game.original_features(run.examples), game.profile).pooled
    clip, dino = (run.sim_image[name][:, 0] for name in ("clip", "dino"))
    return ImageScores(captions, 1 - clip, dino, drawn, originals, run)


def validation_losses(
    finetuner: Finetuner, profile: Profile, examples: Sequence[Example], seed: int = 0
) -> dict[str, np.ndarray]:
    """The four losses of a profile's models on examples that they were not trained on, without economy, by their VAE.

    One epoch of batches of eight: caption, timestep and noise of an image are fixed by `seed`, the same for every pair.
    The profile is the finetuner's own, or a `Finetuned.profile` of it.

    Returns:
        Loss -> `(batches,)` float32; nats a token, or squared error a latent value.

    Raises:
        ValueError: a negative seed, a caption that does not fit the models.
    """
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


def held_out(
    finetuner: Finetuner, profiles: Sequence[Profile], examples: Sequence[Example], seed: int = 0
) -> dict[str, np.ndarray]:
    """`validation_losses` of several pairs, and their `SUM`: loss -> `(pairs, batches)`."""
    each = [validation_losses(finetuner, profile, examples, seed) for profile in profiles]
    losses = {loss: np.stack([one[loss] for one in each]) for loss in LOSSES}
    return losses | {SUM: np.sum(list(losses.values()), axis=0)}


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
        metrics: of captions, beside BLEU.
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
        metrics: Sequence[str],
        seed: int = 0,
        num_resamples: int = SET_RESAMPLES,
    ):
        self.finetuner, self.examples, self.num_drawn = finetuner, list(examples), num_drawn
        self.metrics, self.seed, self.num_resamples = metrics, seed, num_resamples
        self.scorer = Scorer(finetuner.profile, finetuner.store, reference_set)
        self.profiles: dict[str, Sequence[Profile]] = {}
        self._said, self._drawn = {}, {}
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

    def said(self, method: str) -> list[CaptionScores]:
        """What each training's captioner says of the images."""
        if method not in self._said:
            games = self._games(method)
            self._said[method] = [caption_scores(game, self.scorer, self.examples, self.metrics) for game in games]
        return self._said[method]

    def drawn(self, method: str) -> list[ImageScores]:
        """What each training's generator draws of their references."""
        if method not in self._drawn:
            examples = self.examples[: self.num_drawn]
            self._drawn[method] = [image_scores(game, examples, self.seed) for game in self._games(method)]
        return self._drawn[method]

    def _games(self, method: str) -> list[Game]:
        options = {"progress": False, "judges": self.finetuner}
        return [Game(profile, self.finetuner.store, **options) for profile in self.profiles[method]]

    def values(self, method: str, metric: str) -> np.ndarray:
        """`(trainings, images)` scores; counts for BLEU and features for FID and KID have a third axis."""
        if metric in OF_DRAWINGS:
            values = [getattr(one, OF_DRAWINGS[metric]) for one in self.drawn(method)]
        elif metric in ngrams.BLEU_NAMES:
            values = [one.bleu for one in self.said(method)]
        else:
            values = [self._weights * one.scores[metric] for one in self.said(method)]
        return np.stack(values)[:, self._counted[: len(values[0])]]

    def level(self, method: str, metric: str) -> Estimate:
        """A method's mean over trainings and images, or that of its corpora and sets; with its interval."""
        return intervals.level(metric, self.values(method, metric), **self._of_sets(method, metric))

    def change(self, metric: str, after: str, before: str) -> Estimate:
        """`after` minus `before`, paired by image, and by seed where both have several."""
        pair = self.values(after, metric), self.values(before, metric)
        return intervals.change(metric, *pair, **self._of_sets(before, metric))

    def by_seed(self, method: str, metric: str) -> list[float]:
        """The level of each training by itself."""
        options = self._of_sets(method, metric) | {"num_resamples": 2}
        return [intervals.level(metric, one[None], **options).value for one in self.values(method, metric)]

    def _of_sets(self, method: str, metric: str) -> dict:
        if metric not in intervals.SETS:
            return {}
        return {"reference": self.drawn(method)[0].original_features, "num_resamples": self.num_resamples}
