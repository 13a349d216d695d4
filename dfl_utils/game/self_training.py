"""Self-training on the winner of the reconstruction game: a discrete alternative to the differentiable connection.

The paper sends token distributions to the generator and leaves discrete captions to future work (Section 4.1). Here a
caption stays a sentence: the captioner samples N of an image, the generator draws them, and the sentence whose drawing
is most like the image becomes its only reference. `caption_loss` (Eq. 1) on such examples rewards what the game ranks
first; no gradient passes through the generator, and it is drawn with before the training and never during it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dfl_utils.game.loops import Game
from dfl_utils.scores import ranking
from dfl_utils.store import blocks
from dfl_utils.world.data import Example

PICKS = ("best", "worst", "random")


def winners(
    game: Game,
    examples: Sequence[Example],
    num_candidates: int = 10,
    *,
    judge: str = "clip",
    top_p: float = 0.9,
    seed: int = 0,
    pick: str = "best",
) -> list[Example]:
    """Examples whose references give way to one caption of the captioner's own, chosen by the i2t2i loop.

    Args:
        game: the frozen pair and its store; drawings that other chapters made are used again.
        examples: B training images.
        num_candidates: captions N >= 1 sampled of each.
        judge: key of `similarity.ENCODERS`; compares drawing and image.
        top_p: of the sampling (paper: 0.9).
        seed: starts captions, noise and random picks.
        pick: `best`, the caption whose drawing is most similar (the first of several equally similar); `worst`, least
            similar; `random`, any, by `blocks.pick`, for which nothing is drawn.

    Returns:
        At most B examples, in order; see `retold`.

    Raises:
        ValueError: before any work, no images, fewer than one candidate, a negative seed.
    """
    if pick == "random":
        rows = game.sample_captions(examples, num_candidates, top_p=top_p, seed=seed)
        chosen = [blocks.pick(seed, example.image_id, row) for example, row in zip(examples, rows, strict=True)]
    else:
        run = game.i2t2i(examples, num_candidates, top_p=top_p, seed=seed, similarities=(judge,))
        ranks = ranking.ranks(run.sim_image[judge])
        places = np.argmin(ranks if pick == "best" else -ranks, axis=1)
        chosen = [row[place] for row, place in zip(run.captions, places, strict=True)]
    return retold(examples, chosen)


def preferences(examples: Sequence[Example], captions: Sequence[Sequence[str]], sim: np.ndarray) -> list[Example]:
    """Examples whose references give way to two of their candidates: the one that a judge ranks first, and the last.

    Args:
        examples: B images.
        captions: B lists of N >= 2 candidates.
        sim: `(B, N)`, higher is better.

    Returns:
        At most B examples, in order: an image is left out where the two say the same, or one of them nothing.

    Raises:
        ValueError: a judge that gives NaN; no image is left.
    """
    ranks = ranking.ranks(sim)
    ends = zip(examples, captions, np.argmin(ranks, axis=1), np.argmax(ranks, axis=1), strict=True)
    pairs = [(one, texts[best].strip(), texts[worst].strip()) for one, texts, best, worst in ends]
    kept = [replace(one, references=(a, b)) for one, a, b in pairs if a and b and a != b]
    if not kept:
        raise ValueError("No image has two candidates that differ: there is nothing to prefer. Sample more of each.")
    return kept


def retold(examples: Sequence[Example], captions: Sequence[str]) -> list[Example]:
    """Examples with one caption in place of their references; an image with an empty caption is left out.

    How many were left out is the difference of the two lengths.

    Raises:
        ValueError: not one caption an image, or none that says anything.
    """
    pairs = zip(examples, map(str.strip, captions), strict=True)
    kept = [replace(example, references=(caption,)) for example, caption in pairs if caption]
    if not kept:
        raise ValueError(f"None of the {len(captions)} captions says anything: there is nothing to learn from.")
    return kept
