"""Seconds of calls on this machine, predicted from FLOPs and a few measured steps.

A few calls of each kind are measured with a profile's own models; that gives FLOP/s for the kind, and FLOPs over it the
seconds of any other work of the kind: more steps, another captioner, other losses. What a training costs before its
first step is told from its steps by measuring two lengths.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dfl_utils.build import workload
from dfl_utils.build.unit_flops import UnitFlops, judge_of
from dfl_utils.build.workload import Training, Work
from dfl_utils.build.world_shapes import Shapes
from dfl_utils.game.loops import Game
from dfl_utils.game.scorer import Scorer
from dfl_utils.models.workshop import read
from dfl_utils.store.blocks import caption_streams
from dfl_utils.store.store import RunStore
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

IMAGES, EACH = 16, 4  # a shard's images, and candidates enough to fill a call of 64 drawings
SHORT, LONG = 1, 3  # denoising steps, and steps of a training
CAPTIONER = "blip-large"  # the name in `Profile.captioners` of what is measured
PEAK_SIDE = 1024  # of the square matrices whose product tells a machine's peak


@dataclass(frozen=True)
class Calibration:
    """FLOP/s of a machine by kind of work.

    Attributes:
        rates: kind of measurement -> FLOP/s.
        start: seconds that a training takes before its first step.
        peak: FLOP/s of a product of large matrices, on the same thread.
    """

    rates: dict[str, float]
    start: float
    peak: float

    def seconds(self, works: Sequence[Work], units: UnitFlops) -> dict[Work, float]:
        """Predicted seconds of works, each with what they share counted once."""
        return {work: self._of(work, count, units) for work, count in workload.calls(works).items()}

    @property
    def utilisation(self) -> dict[str, float]:
        """FLOP/s by kind as a share of the peak."""
        return {kind: rate / self.peak for kind, rate in self.rates.items()}

    def _of(self, work: Work, count: int, units: UnitFlops) -> float:
        if work.kind == "images":
            drawn = units.steps(work) * units.denoising(work) / self.rates["denoising"]
            return count * (drawn + units.decoding(work) / self.rates["decoding"])
        flops = units.of(work)
        seconds = count * flops / self.rates[rate_of(work.kind)] if flops else 0.0
        return seconds + (self.start if work.kind == "finetuning" else 0.0)


def rate_of(kind: str) -> str:
    """Which measurement speaks for a kind of shard."""
    if kind in ("captions", "likelihood"):
        return "captions"
    if kind in ("descriptions", "readings"):
        return "readings"
    if kind in ("finetuning", "anatomy", "validation-losses"):
        return "training"
    return "decoding" if kind == "latents" else judge_of(kind)  # the autoencoder, the other way round


class Meter:
    """Measures the calls of a profile's models, anew each time.

    Args:
        world: a profile whose models are at hand.
        examples: images with references: at least 16.
        train: pairs for the steps of a training: at least 8.
        clock: seconds that never fall; by default those of this process on its processors, one thread, so that other
            programs of the machine count little.

    Raises:
        ValueError: too few examples.
    """

    def __init__(
        self,
        world: Profile,
        examples: Sequence[Example],
        train: Sequence[Example],
        clock: Callable[[], float] = time.process_time,
    ):
        if len(examples) < IMAGES or len(train) < 8:
            raise ValueError(
                f"A calibration needs {IMAGES} images and 8 pairs, not {len(examples)} and {len(train)}: give more."
            )
        self.world, self.examples, self.clock = world.pair(captioner=CAPTIONER), list(examples[:IMAGES]), clock
        self.units = UnitFlops(Shapes(self.world))
        self._scratch = tempfile.TemporaryDirectory()
        self._runs = 0
        self.game = Game(self.world, RunStore(self._scratch.name), progress=False)
        self.scorer = Scorer(self.world, self.game.store, self.examples)
        self.finetuner = Finetuner(self.world, self.game.store, train, progress=False)
        self.measure()  # loads and warms up

    def measure(self, rounds: int = 1) -> Calibration:
        """Medians over rounds; every round measures each kind once, so that a busy moment falls on all."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = [self._round() for _ in range(rounds)]
        finally:
            torch.set_num_threads(before)
        middle = {name: float(np.median([one[name] for one in found])) for name in found[0]}
        start, peak = middle.pop("start"), middle.pop("peak")
        return Calibration(middle, start, peak)

    def _round(self) -> dict[str, float]:
        game, size = self.game, self.world.image_size
        originals = read(self.examples)
        streams = [caption_streams(0, example.image_id, EACH) for example in self.examples]
        rows, said = self._timed(lambda: game.captioner.sample(originals, streams))
        texts = [text for row in rows for text in row]
        drawings, short = self._timed(lambda: self._draw(texts, SHORT))
        _, long = self._timed(lambda: self._draw(texts, LONG))
        step = max((long - short) / (LONG - SHORT), 1e-9)
        many = len(texts)
        drawing = Work("images", "", 1, 1, "stable-diffusion", SHORT, size)
        spent = {
            "captions": (Work("captions", "", 1, EACH, CAPTIONER), many, said),
            "readings": (Work("readings", "", 1, 1, CAPTIONER), IMAGES, self._of(game.captioner.describe, originals)),
            "clip": (Work("clip-similarity", "", 1), many, self._of(game.encoder("clip").embed, drawings)),
            "dino": (Work("dino-similarity", "", 1), many, self._of(game.encoder("dino").embed, drawings)),
            "features": (Work("features", "", 1), many, self._of(game.extractor.features, drawings)),
            "clip-text": (Work("quality-clip-text", "", 1), many, self._of(self.scorer._clip_text, texts)),
            "sbert": (Work("quality-sbert", "", 1), many, self._of(self.scorer._sbert, texts)),
        }
        rates = {name: self.units.of(work) * count / seconds for name, (work, count, seconds) in spent.items()}
        rates["denoising"] = self.units.denoising(drawing) * many / step
        rates["decoding"] = self.units.decoding(drawing) * many / max(short - SHORT * step, 1e-9)
        return rates | self._training() | {"peak": self._peak()}

    def _training(self) -> dict[str, float]:
        """FLOP/s of joint steps, and the seconds before the first of them."""
        short, long = (self._timed(lambda n=n: self._train(n))[1] for n in (SHORT, LONG))
        step = max((long - short) / (LONG - SHORT), 1e-9)
        work = Work("finetuning", "", 1, 1, CAPTIONER, 0, self.world.image_size, Training(decoder="tiny"))
        return {"training": self.units.of(work) / step, "start": max(short - SHORT * step, 0.0)}

    def _train(self, steps: int) -> None:
        self._runs += 1  # another seed: a run that is in the store would cost nothing
        self.finetuner.run([Recipe(steps=steps, decoder="tiny", seed=10_000 + self._runs)])

    def _draw(self, texts: list[str], steps: int) -> np.ndarray:
        generator = self.game.generator
        before, generator.num_inference_steps = generator.num_inference_steps, steps
        try:
            return generator.draw(texts, list(range(len(texts))))
        finally:
            generator.num_inference_steps = before

    def _peak(self) -> float:
        one = torch.ones(PEAK_SIDE, PEAK_SIDE)
        return 2 * PEAK_SIDE**3 / min(self._of(torch.mm, one, one) for _ in range(5))

    def _of(self, call: Callable, *arguments: object) -> float:
        return self._timed(lambda: call(*arguments))[1]

    def _timed(self, work: Callable[[], object]) -> tuple[object, float]:
        began = self.clock()
        found = work()
        return found, max(self.clock() - began, 1e-9)


def joint(steps: int, captioner: str = CAPTIONER, size: int = 64) -> Work:
    """A training on the sum of the losses with the tiny decoder."""
    return replace(Work("finetuning", "joint", steps, model=captioner, size=size), training=Training(decoder="tiny"))
