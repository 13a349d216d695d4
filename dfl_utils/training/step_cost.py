"""What a joint step costs beside a captioning step and a generation step: FLOPs counted, seconds measured, by part.

A step is a forward and a backward pass; in seconds also AdamW's update. Both are shards of the run store: seconds name
the day and the machine that they were measured on, and are not measured again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dfl_utils.models.blip import Captioner
from dfl_utils.models.workshop import read
from dfl_utils.scores.ranking import Estimate
from dfl_utils.store import provenance
from dfl_utils.store.store import Kind
from dfl_utils.training import full_size, pairs
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import LOSSES
from dfl_utils.training.pairs import Batch
from dfl_utils.training.savings import DEPENDS, DIRECTIONS, PARTS, STEPS, Savings, Step, ladder
from dfl_utils.training.vocabulary import VocabularyMap

LOSSES_OF_WAYS, FLOPS, PUBLISHED_FLOPS = Kind("step-losses"), Kind("step-flops"), Kind("step-flops-published")
SECONDS, PUBLISHED_MEMORY = Kind("step-seconds"), Kind("step-memory-published")
SEED = 0  # of the batch's timesteps and noise


@dataclass(frozen=True)
class Costs:
    """What a step costs in each way."""

    ways: tuple[str, ...]  # their names
    # `(rounds, ways, steps, parts, 2)`, the last two in the order of `savings.PARTS` and `DIRECTIONS`; seconds, or
    # FLOPs, which have one round
    spent: np.ndarray
    when: str  # when, where: the day, and processor, cores, threads and torch
    where: str
    steps: tuple[str, ...] = tuple(STEPS)

    def of(self, step: str) -> np.ndarray:
        """`(rounds, ways)` of one of `steps`."""
        return self.spent[:, :, self.steps.index(step)].sum((-1, -2))

    @property
    def ratio(self) -> np.ndarray:
        """`(rounds, ways)`: a joint step over a captioning and a generation step of the same round and way."""
        return self.of("joint") / (self.of("captioning") + self.of("generation"))

    @property
    def ratios(self) -> dict[str, Estimate]:
        """Way -> `ratio`: the median of the rounds, from the smallest to the largest."""
        return self._by_way(self.ratio)

    def over_mean(self, *steps: str) -> dict[str, Estimate]:
        """Way -> the mean of some steps over the mean of a captioning and a generation step, as `ratios`."""
        some, plain = (np.mean(list(map(self.of, names)), axis=0) for names in (steps, ("captioning", "generation")))
        return self._by_way(some / plain)

    def _by_way(self, ratio: np.ndarray) -> dict[str, Estimate]:
        rounds = zip(self.ways, ratio.T, strict=True)
        return {way: Estimate(np.median(of), of.min(), of.max(), len(of)) for way, of in rounds}

    @property
    def medians(self) -> pd.DataFrame:
        """Of the rounds, each of `steps` by way."""
        return pd.DataFrame({step: np.median(self.of(step), axis=0) for step in self.steps}, index=list(self.ways))

    @property
    def parts(self) -> pd.Series:
        """Of a joint step, medians of the rounds by way, part and direction."""
        names = {"way": self.ways, "part": PARTS, "direction": DIRECTIONS}
        medians = np.median(self.spent[:, :, self.steps.index("joint")], axis=0)
        return pd.Series(medians.ravel(), pd.MultiIndex.from_product(names.values(), names=names))

    @property
    def shares(self) -> pd.DataFrame:
        """Per cent of a joint step, by way and part."""
        by_part = self.parts.groupby(["way", "part"], sort=False).sum().unstack("part")
        return 100 * by_part.div(by_part.sum(axis=1), axis=0).loc[list(self.ways), list(PARTS)]


@dataclass(frozen=True)
class Bench:
    """Models, which all steps share, and one batch; `images` are the batch's as the autoencoder takes them."""

    captioner: Captioner
    pipeline: StableDiffusionPipeline
    vocabulary_map: VocabularyMap
    tiny: AutoencoderTiny
    batch: Batch
    images: Tensor
    steps: tuple[str, ...] = tuple(STEPS)

    def step(self, name: str, savings: Savings) -> Step:
        """A step, ready to run until the next is asked for: this freezes what it freezes."""
        step = Step(self.captioner, self.pipeline, self.vocabulary_map, self.tiny, name, savings)
        step.prepare()
        return step.to(self.images.device).eval()

    @torch.no_grad()
    def losses(self, tried: Mapping[str, Savings]) -> np.ndarray:
        """`(ways, 4)` losses of the joint step, in the order of `LOSSES`."""
        each = [self.step("joint", savings)(self.batch, self.images) for savings in tried.values()]
        return np.array([[losses[name].item() for name in LOSSES] for losses in each])

    def flops(self, tried: Mapping[str, Savings]) -> np.ndarray:
        """`(1, ways, steps, parts, 2)`: what torch counts of matrix products and convolutions.

        Attention is counted as the products that it consists of: of its kernel for a CPU torch knows no count.
        """
        counter = FlopCounterMode(display=False)

        def count(name: str, savings: Savings) -> np.ndarray:
            with sdpa_kernel(SDPBackend.MATH), counter:
                return self.step(name, savings).spend(self.batch, self.images, counter.get_total_flops)

        return self._each(tried, count)[None]

    def seconds(self, tried: Mapping[str, Savings], rounds: int) -> np.ndarray:
        """`(rounds, ways, steps, parts, 2)` on one thread: every round does all, and one more before them warms up."""
        updates: dict = {}

        def measure(name: str, savings: Savings) -> np.ndarray:
            step = self.step(name, savings)
            if (name, savings) not in updates:
                updates[name, savings] = torch.optim.AdamW(step.prepare(), lr=0.0).step  # it costs, and moves nothing
            return step.spend(self.batch, self.images, self._clock, updates[name, savings])

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return np.array([self._each(tried, measure) for _ in range(rounds + 1)])[1:]
        finally:
            torch.set_num_threads(threads)

    def _each(self, tried: Mapping[str, Savings], cost: Callable[[str, Savings], np.ndarray]) -> np.ndarray:
        """`(ways, steps, parts, 2)`; a plain step that a saving does not touch is not done again."""
        known: dict = {}
        for savings in tried.values():
            for name in self.steps:
                if (work := _work(name, savings)) not in known:
                    known[work] = cost(name, savings)
        return np.array([[known[_work(name, savings)] for name in self.steps] for savings in tried.values()])

    def _clock(self) -> float:
        if self.images.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class StepCost:
    """Counts and measures ways, all of `savings.ladder()` by default, on a profile's own models and at published sizes.

    The batch is the finetuner's first examples, each with its first caption. `steps` are some of `savings.STEPS` and
    `TURNS`, measured side by side.
    """

    def __init__(
        self,
        finetuner: Finetuner,
        tried: Mapping[str, Savings] | None = None,
        *,
        batch_size: int = 8,
        steps: Sequence[str] = tuple(STEPS),
    ):
        self.finetuner, self.ways = finetuner, dict(ladder() if tried is None else tried)
        self.examples, self.steps = finetuner.examples[:batch_size], tuple(steps)

    def losses(self) -> np.ndarray:
        """`(ways, 4)` losses of the batch, in the order of `losses.LOSSES`: what the ways approximate shows here."""

        def measured():
            return {"losses": self.bench.losses(self.ways)}, len(self.ways)

        return self.finetuner.store.get(LOSSES_OF_WAYS, self._key(), measured)["losses"]

    def flops(self) -> Costs:
        """FLOPs of a step of the profile's models."""
        return self._kept(FLOPS, lambda: self.bench.flops(self.ways))

    def seconds(self, rounds: int) -> Costs:
        """Seconds of a step of the profile's models, as they were when this was first asked; `rounds` at least 1."""
        return self._kept(SECONDS, lambda: self.bench.seconds(self.ways, rounds), rounds=rounds)

    def published_flops(self) -> Costs:
        """FLOPs of a step at the paper models' sizes (`full_size`), without a threshold, which needs numbers."""
        return self._kept(PUBLISHED_FLOPS, lambda: self.published.flops(self._exact))

    def published_memory(self, sizes: Sequence[int]) -> np.ndarray:
        """`(sizes, ways, steps)` GiB that a step of so many pairs of those sizes holds at most: `full_size.peak`."""

        def count():
            bench, caption = self.published, self.bench.batch.caption
            batches = [full_size.batch(caption.rows(slice(size))) for size in sizes]
            every = [bench.step(name, savings) for savings in self._exact.values() for name in self.steps]
            peaks = np.array([[full_size.peak(step, *batch) for step in every] for batch in batches])
            return {"gib": peaks.reshape(len(sizes), len(self._exact), -1) / 2**30}, len(sizes)

        return self.finetuner.store.get(PUBLISHED_MEMORY, self._key() | {"sizes": list(sizes)}, count)["gib"]

    @property
    def _exact(self) -> dict[str, Savings]:
        return {name: replace(way, threshold=0.0) for name, way in self.ways.items()}

    @cached_property
    def published(self) -> Bench:
        """The paper models' sizes and the batch's captions, of which there are shapes alone."""
        model, pipeline, tiny = full_size.models(self.bench.captioner, self.bench.pipeline.tokenizer)
        batch, images = full_size.batch(self.bench.batch.caption)
        return Bench(model, pipeline, self.bench.vocabulary_map, tiny, batch, images, self.steps)

    @cached_property
    def bench(self) -> Bench:
        """The profile's models and the batch."""
        finetuner, size = self.finetuner, self.finetuner.profile.image_size
        pair, pipeline = finetuner.pair(Recipe(decoder="tiny"))
        processor = VaeImageProcessor(vae_scale_factor=pipeline.vae_scale_factor, resample="bicubic")
        images = processor.preprocess(read(self.examples), size, size)
        images = images.to(finetuner.profile.device, memory_format=torch.channels_last)
        models = (pair.captioner, pipeline, finetuner.vocabulary_map, pair.decoder)
        with torch.no_grad():
            latents = Step(*models, "joint", Savings()).encode(images).contiguous().cpu()
        lessons = pairs.Pairs(pair.captioner, pipeline, self.examples, latents)
        return Bench(*models, lessons.make(self.examples, latents, SEED), images, self.steps)

    def _kept(self, kind: Kind, make: Callable[[], np.ndarray], **asked: int) -> Costs:
        def measured():
            spent = make()
            machine = provenance.machine()
            where = f"{machine['cpu']}, {machine['cores']} cores, one thread, torch {torch.__version__}"
            return {"spent": spent, "noted": [date.today().isoformat(), where]}, spent[..., 0, 0].size

        content = self.finetuner.store.get(kind, self._key() | asked, measured)
        return Costs(tuple(self.ways), content["spent"], *content["noted"], self.steps)

    def _key(self) -> dict:
        profile = self.finetuner.profile
        tiny = Path(profile.locate(profile.tiny_decoder)) if profile.tiny_decoder else None
        key = {
            "ways": [[name, asdict(way)] for name, way in self.ways.items()],  # in their order
            "decoder": provenance.checkpoint_hash(tiny) if tiny and tiny.is_dir() else tiny and str(tiny),
            "captions": [example.references[0] for example in self.examples],
        }
        if self.steps != tuple(STEPS):
            key["steps"] = list(self.steps)
        return key | self.finetuner.models_key() | self.finetuner.images_key(self.examples)


def _work(name: str, savings: Savings) -> tuple:
    """Two ways of doing a step are the same work where these are equal."""
    return name, *(getattr(savings, setting) for setting in DEPENDS.get(name, asdict(savings)))
