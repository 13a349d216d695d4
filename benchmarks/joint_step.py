"""Seconds of a joint step over those of a captioning step and a generation step, one saving after the other.

And those of an alternating pair of steps over those of its passes through U-Net, captioner and decoder alone, by the
processor's time and by FLOPs: what is above them is the text encoder, which both prompts pass, the map and the losses.
Beside the embedded models also at the published sizes, with random weights: there the U-Net dwarfs them.

All ways are measured in one process on one thread in interleaved rounds, so that a busy moment of the machine falls on
each of them; a ratio is taken within a round. The chapter `cost` measures the same by the same code, once.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import random_models
import torch
from gpu_agreement import teacher

from dfl_utils.store.store import RunStore
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.savings import DECODING, GENERATOR, IMAGE, IMAGE_HAT, PARTS, STEPS, TURNS, ladder
from dfl_utils.training.step_cost import Bench, Costs, StepCost
from dfl_utils.world import data, profile

AT_MOST = 1.75  # target: the median ratio of the last way, which reconstructs a share of each batch
AT_MOST_BARE = 1.1  # target: an alternating pair of steps over its bare passes
SHARE = 0.375  # that of the chapter `cost`
NUM_EXAMPLES = 64  # whose captions the vocabulary map is learned from; the first of them are the batch


def measure(captioner: str, batch_size: int, rounds: int) -> tuple[Costs, Costs]:
    """Seconds and FLOPs, anew: the store is a scratch folder."""
    with _finetuner(captioner) as finetuner:
        cost = StepCost(finetuner, ladder(share=SHARE), batch_size=batch_size)
        return cost.seconds(rounds), cost.flops()


@contextlib.contextmanager
def _finetuner(captioner: str) -> Iterator[Finetuner]:
    world = profile.load("mini").pair(captioner=captioner)
    data.ensure(world)
    examples = data.subset(data.load(world, "coco", "train"), NUM_EXAMPLES, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        yield Finetuner(world, RunStore(scratch), examples, progress=False)


def alternating(captioner: str, batch_size: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds `(rounds,)` of two alternating steps as the finetuning runs them, and of their bare passes."""
    with _finetuner(captioner) as finetuner:
        return _alternating(finetuner, batch_size, rounds)


def alternating_published(rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of BLIP ViT-B and Stable Diffusion 1.4 by their sizes, one pair a step; 13 GiB and a minute a step."""
    with tempfile.TemporaryDirectory() as scratch:
        random_models.write(Path(scratch), ("blip-base", "stable-diffusion", "tiny_decoder"), "cpu")
        world = random_models.world(Path(scratch), "cpu").pair("blip-base")
        examples = data.subset(data.load(profile.load("mini"), "coco", "train"), NUM_EXAMPLES, seed=0)
        return _alternating(teacher(world, RunStore(Path(scratch, "store")), examples), 1, rounds)


def _alternating(finetuner: Finetuner, batch_size: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    cost = StepCost(finetuner, {"ours": ladder()["ours"]}, batch_size=batch_size, steps=tuple(TURNS))
    return _interleaved(*_contenders(cost.bench), rounds)


def _contenders(bench: Bench) -> tuple[Callable[[], None], Callable[[], None]]:
    steps, batch, images = [bench.step(name, ladder()["ours"]) for name in TURNS], bench.batch, bench.images
    updates = [torch.optim.AdamW(step.prepare(), lr=0.0).step for step in steps]

    def pair() -> None:
        for step, update in zip(steps, updates, strict=True):
            step.spend(batch, images, time.perf_counter, update)

    step = steps[0]
    with torch.no_grad():
        states = step.text_encoder(batch.prompt_ids).last_hidden_state
    noisy = step.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    noisy = noisy.contiguous(memory_format=torch.channels_last)

    def through(call: Callable[[torch.Tensor], torch.Tensor], entering: torch.Tensor, onwards: bool) -> None:
        """Forward and back, to the weights that move, and where the gradient goes `onwards` to what entered."""
        made = call(entering.detach().requires_grad_(onwards))
        made.backward(torch.ones_like(made))

    def bare() -> None:
        for onwards in (False, True):  # the generator's turn, and the captioner's, which reaches the prompt
            through(lambda told: step.unet(noisy, batch.timesteps, told).sample, states, onwards)
            through(lambda pixels: step.predict(pixels, batch.caption), batch.pixel_values, not onwards)
        through(lambda latents: step.decoder.decode(latents).sample, batch.latents, True)
        step.zero_grad(set_to_none=True)

    return pair, bare


def _interleaved(pair: Callable[[], None], bare: Callable[[], None], rounds: int) -> tuple[np.ndarray, np.ndarray]:
    torch.set_num_threads(1)
    spent = []
    for _ in range(rounds + 1):  # the first warms up
        for call in (pair, bare):
            began = time.process_time()  # one thread's work, whoever else is at work
            call()
            spent.append(time.process_time() - began)
    return tuple(np.reshape(spent, (-1, 2))[1:].T)


def flops_over_bare(captioner: str, batch_size: int) -> tuple[float, float]:
    """FLOPs of two alternating steps over those of their bare passes: of the mini world, and of the paper's sizes."""
    with _finetuner(captioner) as finetuner:
        cost = StepCost(finetuner, {"ours": ladder()["ours"]}, batch_size=batch_size, steps=tuple(TURNS))
        spent = [costs.spent[0, 0].sum(axis=(0, 2)) for costs in (cost.flops(), cost.published_flops())]
    passes = [PARTS.index(part) for part in (IMAGE, GENERATOR, DECODING, IMAGE_HAT)]
    return tuple(float(parts.sum() / parts[passes].sum()) for parts in spent)


def table(seconds: Costs, flops: Costs) -> list[str]:
    """One line a way: milliseconds of each step, the ratio with its smallest and largest, the ratio of FLOPs."""
    lines = [f"{'way':24}" + "".join(f"{step:>12}" for step in STEPS) + f"{'ratio':>8}{'min':>7}{'max':>7}{'FLOPs':>7}"]
    for k, way in enumerate(seconds.ways):
        times = "".join(f"{1000 * np.median(seconds.of(step)[:, k]):9.1f} ms" for step in STEPS)
        own = seconds.ratio[:, k]
        spread = f"{np.median(own):8.2f}{own.min():7.2f}{own.max():7.2f}{flops.ratio[0, k]:7.2f}"
        lines.append(f"{way:24}{times}{spread}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captioner", default="blip-base", help="of the profile mini")
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--published", action="store_true", help="alternating at the published sizes, too: six minutes")
    options = parser.parse_args()
    if not 1 <= options.batch <= NUM_EXAMPLES or options.rounds < 1:
        parser.error(f"--batch lies between 1 and {NUM_EXAMPLES}, --rounds starts at 1")
    seconds, flops = measure(options.captioner, options.batch, options.rounds)
    print("\n".join(table(seconds, flops)))
    ratios = dict(zip(seconds.ways, np.median(seconds.ratio, axis=0).round(3).tolist(), strict=True))
    pair, bare = alternating(options.captioner, options.batch, options.rounds)
    print(
        f"alternating pair of steps: {1000 * np.median(pair):.1f} ms, its passes bare {1000 * np.median(bare):.1f} ms"
    )
    print(f"target: at most {AT_MOST_BARE:g}; it is {np.median(pair / bare):.2f}")
    if options.published:
        pair, bare = alternating_published(rounds=2)
        ratio = np.median(pair / bare)
        print(f"at the published sizes: {np.median(pair):.0f} s, bare {np.median(bare):.0f} s, {ratio:.2f}")
    mini, paper = flops_over_bare(options.captioner, options.batch)
    print(f"by FLOPs {mini:.2f}, and {paper:.2f} at the paper's sizes, whose text encoder is small beside the U-Net")
    print(f"target: {seconds.ways[-1]} at most {AT_MOST:g}; it is {ratios[seconds.ways[-1]]:.2f}")


if __name__ == "__main__":
    main()
