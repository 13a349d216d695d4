"""Self-training on the winner of the reconstruction game: a discrete alternative to the differentiable connection.

The paper leaves discrete captions to future work (Section 4.1). Here the sentence whose drawing is most like the image
becomes its only reference: `caption_loss` (Eq. 1) then rewards what the game ranks first, and no gradient passes
through the generator.
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
    """Examples whose references give way to one caption of the captioner's own, chosen by the i2t2i loop; see `retold`.

    Args:
        game, examples, num_candidates, top_p, seed: as of `Game.i2t2i`, with its errors.
        judge: key of `similarity.ENCODERS`; compares drawing and image.
        pick: `best`, the caption whose drawing is most similar (the first of several equally similar); `worst`, least
            similar; `random`, any, by `blocks.pick`, for which nothing is drawn.
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
    """Examples whose references give way to two of their N >= 2 candidates: the first and the last by `sim` `(B, N)`.

    An image is left out where the two say the same, or one of them nothing. ValueError: NaN; no image is left.
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

    ValueError: not one caption an image, or none that says anything.
    """
    pairs = zip(examples, map(str.strip, captions), strict=True)
    kept = [replace(example, references=(caption,)) for example, caption in pairs if caption]
    if not kept:
        raise ValueError(f"None of the {len(captions)} captions says anything: there is nothing to learn from.")
    return kept
