"""Seconds, memory and share of a GPU's published peak of the models at their published sizes, with random weights."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import random_models
import torch
from gpu_agreement import DEVICE, teacher
from random_models import WORDS
from run import Row, row
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dfl_utils.build import cost
from dfl_utils.game.loops import Game
from dfl_utils.models.workshop import read
from dfl_utils.store.blocks import caption_streams
from dfl_utils.store.store import RunStore
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.savings import Savings, ladder
from dfl_utils.training.step_cost import Bench, StepCost
from dfl_utils.world import data, profile
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

BATCH_SIZE = 8  # pairs a step (Section 5)
SHARE = 0.375  # of a batch that is reconstructed, as in the chapter `cost`
EXACT, OURS, LESS = "one generator pass", "ours", f"share {SHARE:g}"


class Card:
    """The GPU under us, and what it does; where there is none, a quick run takes the peak of `cost.MEASURED`.

    Raises:
        ValueError: a GPU whose peak is not in `cost.GPUS`.
    """

    def __init__(self):
        name = torch.cuda.get_device_name() if DEVICE == "cuda" else cost.MEASURED.name
        known = [gpu for key, gpu in cost.GPUS.items() if f" {key} " in f" {name} "]
        if not known:
            raise ValueError(f"The peak of {name} is not known: add it to dfl_utils.build.cost.GPUS.")
        self.gpu = known[0]

    def measured(self, call: Callable[[], object], rounds: int) -> tuple[float, float]:
        """Median seconds, after a call that warms up, and peak GiB of allocated memory."""
        call()
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        spent = []
        for _ in range(rounds):
            began = self._now()
            call()
            spent.append(self._now() - began)
        peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
        return statistics.median(spent), peak

    def row(self, name: str, count: int, dtype: str, how: str, call: Callable[[], object]) -> Row:
        """Seconds a unit, those that the published peak would allow, and their ratio: the share of the peak."""
        seconds, peak = self.measured(call, 2)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        flops = counter.get_total_flops() / count
        return self.share(name, flops, seconds / count, dtype, f"{how}; {peak:.1f} GiB at most")

    def share(self, name: str, flops: float, seconds: float, dtype: str, how: str) -> Row:
        """The same of seconds that are known."""
        ideal = flops / (1e12 * getattr(self.gpu, dtype))
        return row(name, (seconds, ideal), ideal / seconds, "s", f"share of the published peak in {dtype}; {how}")

    def _now(self) -> float:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@contextmanager
def _models(quick: bool, *names: str) -> Iterator[tuple[Profile, RunStore]]:
    with tempfile.TemporaryDirectory() as folder:
        if not quick:
            random_models.write(Path(folder), names, DEVICE)
        yield random_models.world(None if quick else Path(folder), DEVICE), RunStore(Path(folder, "store"))


def _examples(count: int) -> list[Example]:
    return data.subset(data.load(profile.load("mini"), "coco", "train"), count, seed=0)


def inference(quick: bool) -> list[Row]:
    """Captions, drawings and embeddings."""
    with _models(quick, "blip-base", "blip-large", "stable-diffusion", "clip", "dino") as (world, store):
        card, examples, rows = Card(), _examples(16), []
        originals, texts = read(examples), [example.references[0] for example in examples]
        how = f"16 images x 10, {WORDS} tokens"
        for name in ("blip-base", "blip-large"):
            game = Game(world.pair(name), store, progress=False)
            rows.append(_said(card, game, name, examples, how))
        rows.append(
            card.row("caption by beam search, blip-large", 16, world.dtype, f"16 images, {WORDS} tokens",
                     lambda: game.captioner.describe(originals))
        )  # fmt: skip
        size, steps = world.image_size, world.num_inference_steps
        for batch in (2,) if quick else (world.draw_batch, 16):
            game.generator.draw_batch, how = batch, f"{size} px, {steps} steps with guidance, batches of {batch}"
            rows.append(
                card.row(f"drawing, Stable Diffusion, {batch} at a time", batch, world.dtype, how,
                         lambda batch=batch: game.generator.draw(texts[:batch], list(range(batch))))
            )  # fmt: skip
        drawings, how = np.zeros((16, size, size, 3), np.uint8), "16 drawings, resized on the processor"
        for judge in ("clip", "dino"):
            rows.append(
                card.row(f"embedding, {judge}", 16, "float32", how,
                         lambda judge=judge: game.encoder(judge).embed(drawings))
            )  # fmt: skip
        return rows


def reader(quick: bool) -> list[Row]:
    """Captions of BLIP-2."""
    with _models(quick, "blip2") as (world, store):
        game = Game(world.pair("blip2"), store, progress=False)
        return [_said(Card(), game, "blip2", _examples(8), f"8 images x 10, {WORDS} tokens")]


def _said(card: Card, game: Game, name: str, examples: Sequence[Example], how: str) -> Row:
    streams = [caption_streams(0, example.image_id, 10) for example in examples]
    originals = read(examples)
    count, dtype = 10 * len(examples), game.profile.dtype
    return card.row(f"caption sampled, {name}", count, dtype, how, lambda: game.captioner.sample(originals, streams))


def training(quick: bool) -> list[Row]:
    """Joint steps: memory by batch size, cost beside the two plain steps, share of the peak."""
    every = ladder(0.0 if quick else 1e-6, SHARE)
    chosen = {name: every[name] for name in ("naive", EXACT, OURS, LESS)}
    with _models(quick, "blip-base", "stable-diffusion", "tiny_decoder") as (world, store):
        world = world.pair("blip-base")
        finetuner = teacher(world, store, _examples(16))
        card, rows, fits = Card(), [], 0
        how = f"float32, {world.image_size} px; other: the paper's card"
        for batch in (1, 2) if quick else (1, 2, 4, 8):
            spent = _remembered(card, finetuner, chosen, batch)
            for name, peak in spent.items():
                pair = peak, cost.PAPER.memory * 1e9 / 2**30
                rows.append(row(f"peak memory, joint step, {name}, {batch} pairs", pair, pair[0] / pair[1], "GiB", how))
            fits = batch if len(spent) == len(chosen) else fits
        return rows + _timed(card, StepCost(finetuner, chosen, batch_size=fits).bench, chosen, fits, 1 if quick else 3)


def _timed(card: Card, bench: Bench, chosen: dict[str, Savings], size: int, rounds: int) -> list[Row]:
    rows, steps = [], bench.seconds(chosen, rounds).sum((-1, -2))  # rounds, ways, steps
    pixels = bench.images.shape[-1]
    for k, name in enumerate(chosen):
        captioning, generation, joint = np.median(steps[:, k], axis=0)
        ratio = float(np.median(steps[:, k, 2] / (steps[:, k, 0] + steps[:, k, 1])))
        how = (
            f"time; {size} pairs of {pixels} px, float32; captioning {captioning:.3f} s, generation {generation:.3f} s"
        )
        rows.append(row(f"joint step against the sum, {name}", (joint, captioning + generation), ratio, "s", how))
    counted = bench.flops(chosen).sum((-1, -2))[0, :, 2]
    for name in (EXACT, OURS):
        place = list(chosen).index(name)
        joint, flops = float(np.median(steps[:, place, 2])), counted[place] * BATCH_SIZE / size
        how = f"batches of {size} pairs; per {BATCH_SIZE} pairs"
        rows.append(card.share(f"joint step, {name}", flops, joint * BATCH_SIZE / size, "float32", how))
    torch.set_float32_matmul_precision("high")
    fast = float(np.median(bench.seconds({OURS: chosen[OURS]}, rounds).sum((-1, -2))[:, 0, 2]))
    torch.set_float32_matmul_precision("highest")
    told = f"time; {size} pairs"
    return [
        *rows,
        row("joint step, ours, matrix products in TF32 against float32", (fast, joint), fast / joint, "s", told),
    ]


def _remembered(card: Card, finetuner: Finetuner, chosen: dict[str, Savings], batch: int) -> dict[str, float]:
    """Way -> peak GiB of its joint step, of those that fit into the card's memory."""
    bench, found = StepCost(finetuner, chosen, batch_size=batch).bench, {}
    for name, way in chosen.items():
        step = bench.step("joint", way)
        try:
            found[name] = card.measured(lambda s=step: s.spend(bench.batch, bench.images, time.perf_counter), 1)[1]
        except torch.cuda.OutOfMemoryError:
            step.zero_grad(set_to_none=True)
            print(f"{name} does not fit with {batch} pairs", flush=True)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return found
