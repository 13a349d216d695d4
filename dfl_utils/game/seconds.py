"""Seconds that captions take to say and to judge, side by side in one process, as a chapter asks it: no shard is found.

They are a shard of the run store, which names the day and the machine, and are not measured again.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch

from dfl_utils.game import denoising
from dfl_utils.game.loops import Game
from dfl_utils.game.scorer import Scorer
from dfl_utils.scores.ranking import Estimate
from dfl_utils.store import provenance
from dfl_utils.store.blocks import SHARD_IMAGES
from dfl_utils.store.store import Kind, RunStore
from dfl_utils.world.data import Example

JUDGING = Kind("judging-seconds")
JUDGES = ("likelihood", "CLIPScore", "consensus", "denoising", "drawing")
WORKS = ("one caption", "candidates", "beam search", *JUDGES)
DRAWN = 2  # images a round whose candidates are drawn: a drawing takes hundreds of times as long as a judgement


@dataclass(frozen=True)
class Seconds:
    """Work -> seconds of each round, `(rounds,)`: of an image where captions are said, of a caption where it is judged.

    `when` and `where`: the day, and processor, threads and torch.
    """

    of: dict[str, np.ndarray]
    when: str
    where: str

    def estimate(self, work: str) -> Estimate:
        """The median of the rounds, from the fastest to the slowest."""
        rounds = self.of[work]
        return Estimate(np.median(rounds), rounds.min(), rounds.max(), len(rounds))


def measure(
    game: Game,
    examples: Sequence[Example],
    reference_set: Sequence[Example],
    *,
    num_candidates: int = 10,
    top_p: float = 0.9,
    num_beams: int = 3,
    rounds: int = 3,
) -> Seconds:
    """What each of `WORKS` takes, by the game's models; one round more before the others warms up.

    On a CPU all threads of the process count, elsewhere the time that passes.

    Args:
        examples: one shard of images a round and one to warm up; where there are fewer, the rounds share them.
        reference_set: as of `Scorer`.
        num_candidates, top_p, num_beams: of the captioner; `one caption` is sampled alone.

    Raises:
        ValueError: fewer images than rounds.
    """
    each = min(SHARD_IMAGES, len(examples) // (rounds + 1))
    if not each:
        raise ValueError(f"{rounds} rounds and one to warm up need as many images, not {len(examples)}: give more.")
    shown = examples[: each * (rounds + 1)]
    asked = {"works": list(WORKS), "candidates": num_candidates, "top_p": top_p, "beams": num_beams, "rounds": rounds}
    asked |= {"captioner": game.sampling_key()} | {role: game.made_by(role) for role in ("generator", "clip")}
    drawing = {name: getattr(game.profile, name) for name in ("num_inference_steps", "guidance_scale", "image_size")}
    asked |= drawing | {"drawn": DRAWN} | game.images_key(shown)

    def make():
        spent = _rounds(game, shown, reference_set, each, num_candidates, top_p, num_beams)
        machine = provenance.machine()
        where = f"{machine['cpu']}, {torch.get_num_threads()} of {machine['cores']} cores, torch {torch.__version__}"
        return {"seconds": spent, "noted": [date.today().isoformat(), where]}, spent.size

    content = game.store.get(JUDGING, asked, make)
    return Seconds(dict(zip(WORKS, content["seconds"].T, strict=True)), *content["noted"])


def _rounds(game: Game, examples, reference_set, each: int, count: int, top_p: float, num_beams: int) -> np.ndarray:
    """`(rounds, works)`, without the one that warms up."""
    clock = time.process_time if game.profile.device == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        empty = RunStore(folder)
        fresh = Game(game.profile, empty, progress=False)
        scorer = Scorer(game.profile, empty, reference_set)
        spent = []
        for start in range(0, len(examples), each):
            works = _works(fresh, scorer, examples[start : start + each], count, top_p, num_beams)
            spent.append([_timed(clock, *works[name]) for name in WORKS])
    return np.array(spent[1:])


def _works(
    game: Game, scorer: Scorer, examples: Sequence[Example], count: int, top_p: float, num_beams: int
) -> dict[str, tuple[Callable[[], object], int]]:
    """Work -> what does it, and of how many images or captions; candidates come first, and the judges see them."""
    captions: list[list[str]] = []
    few, judged = examples[:DRAWN], count * len(examples)

    def say() -> None:
        captions[:] = game.sample_captions(examples, count, top_p=top_p)

    return {
        "one caption": (lambda: game.sample_captions(examples, 1, top_p=top_p, seed=1), len(examples)),
        "candidates": (say, len(examples)),
        "beam search": (lambda: game.describe(examples, num_beams=num_beams), len(examples)),
        "likelihood": (lambda: game.log_likelihood(examples, captions), judged),
        "CLIPScore": (lambda: scorer.clip_score(examples, captions), judged),
        "consensus": (lambda: scorer.consensus(captions), judged),
        "denoising": (lambda: denoising.losses(game, examples, captions), judged),
        "drawing": (lambda: game.reconstruct(few, captions[: len(few)], similarities=("clip",)), count * len(few)),
    }


def _timed(clock: Callable[[], float], work: Callable[[], object], count: int) -> float:
    began = clock()
    work()
    return (clock() - began) / count
