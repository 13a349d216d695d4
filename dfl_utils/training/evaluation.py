"""What the tables of the finetuning measure (Tables 3, 4, 5 and 9): captions, drawings and the losses themselves.

Everything is asked of a `Game` or kept in the store like its shards, so that a finetuned pair is measured once, and a
role that a finetuning left alone shares the shards of the pair that it started from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dfl_utils.game.loops import Game, Reconstructions
from dfl_utils.game.scorer import Scorer
from dfl_utils.models import captioner, fidelity
from dfl_utils.models.workshop import Workshop
from dfl_utils.scores import quality
from dfl_utils.store import blocks
from dfl_utils.store.store import Kind
from dfl_utils.training import finetuned, pairs
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import LOSSES, TalkingPair
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

VALIDATION_LOSSES = Kind("validation-losses", made_from=(pairs.LATENTS,))
NUM_BEAMS = 3  # the paper names beam search and not its width
VALIDATION_BATCH = 8


@dataclass(frozen=True)
class CaptionScores:
    """One caption an image, and what it is worth (Tables 3, 5 and 9)."""

    captions: list[str]
    scores: dict[str, np.ndarray]  # metric -> `(images,)`, scaled as in `scores.quality`
    bleu: np.ndarray  # `(images, 10)` counts whose means go to `ngrams.corpus_bleu`


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
    """Captions by beam search of three beams, scored against the references.

    Args:
        game: of the profile whose captioner is asked.
        scorer: of the whole split that `examples`, images with references, are of.
        metrics: some of `quality.METRICS`; an unknown one is refused before a caption is made.
    """
    quality.check(metrics)
    captions = game.describe(examples, num_beams=NUM_BEAMS)
    rows = [[caption] for caption in captions]
    scores = {metric: values[:, 0] for metric, values in scorer.score(examples, rows, metrics).items()}
    return CaptionScores(captions, scores, scorer.bleu_statistics(examples, rows)[:, 0])


def image_scores(game: Game, examples: Sequence[Example], seed: int = 0) -> ImageScores:
    """One drawing of one reference of each image.

    The reference is drawn at random as in `Game.t2i2t`. Text and noise depend on `seed` and the image alone, so two
    generators draw the same texts from the same noise and may be compared in pairs.

    Raises:
        ValueError: an image without references, a negative seed.
    """
    blocks.check_seed(seed)
    bare = [example.image_id for example in examples if not example.references]
    if bare:
        raise ValueError(f"Image {bare[0]} has no references, and one is drawn: leave out images without.")
    captions = [blocks.pick(seed, example.image_id, example.references) for example in examples]
    run = game.reconstruct(examples, [[caption] for caption in captions], seed=seed)
    drawn = fidelity.split(game.features(run)[:, 0], game.profile).pooled
    originals = fidelity.split(game.original_features(run.examples), game.profile).pooled
    clip, dino = (run.sim_image[name][:, 0] for name in ("clip", "dino"))
    return ImageScores(captions, 1 - clip, dino, drawn, originals, run)


def validation_losses(
    finetuner: Finetuner, profile: Profile, examples: Sequence[Example], seed: int = 0
) -> dict[str, np.ndarray]:
    """The four losses of a pair on pairs that it was not trained on, as the paper defines them: no economy, its VAE.

    One epoch of batches of eight: caption, timestep and noise of an image are fixed by `seed`, the same for every pair.

    Args:
        finetuner: gives the vocabulary map, the frozen parts and the store.
        profile: whose models are measured: the finetuner's own, or a `Finetuned.profile` of it.
        examples: images with captions, apart from the training images.

    Returns:
        Loss -> `(batches,)` float32; nats a token, or squared error a latent value.

    Raises:
        ValueError: no images, a negative seed, a caption that does not fit the models.
    """
    if not examples:
        raise ValueError("examples holds no images, and a loss needs some: raise NUM_VAL_IMAGES.")
    workshop = Workshop(profile, finetuner.store, progress=False)
    key = finetuner.images_key(examples) | {
        "captions": [list(example.references) for example in examples],
        "seed": seed,
        "batch_size": VALIDATION_BATCH,
        "captioner": workshop.captioner_key(),
        "generator": workshop.made_by("generator") | {"image_size": profile.image_size},
        "map": finetuner.vocabulary_map.fingerprint(),
    }

    def make():
        # Of a role that was left alone the finetuner's own model, not loaded again.
        own, (model, pipeline) = finetuner.profile, finetuner._base_models
        if profile.captioner != own.captioner:
            model = captioner.load(replace(profile, dtype="float32"))
        if profile.generator != own.generator:
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
