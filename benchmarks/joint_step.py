"""Seconds of a joint step over those of a captioning step and a generation step, one saving after the other.

All ways are measured in one process on one thread in interleaved rounds, so that a busy moment of the machine falls on
each of them; a ratio is taken within a round. The chapter `cost` measures the same by the same code, once.
"""

import argparse
import tempfile

import numpy as np

from dfl_utils.store.store import RunStore
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.step_cost import Costs, StepCost
from dfl_utils.training.step_ways import STEPS, ways
from dfl_utils.world import data, profile

AT_MOST = 1.75  # target: the median ratio of the last way, which reconstructs a share of each batch
SHARE = 0.375  # that of the chapter `cost`
NUM_EXAMPLES = 64  # whose captions the vocabulary map is learned from; the first of them are the batch


def measure(captioner: str, batch_size: int, rounds: int) -> tuple[Costs, Costs]:
    """Seconds and FLOPs, anew: the store is a scratch folder."""
    world = profile.load("mini").pair(captioner=captioner)
    data.ensure(world)
    examples = data.subset(data.load(world, "coco", "train"), NUM_EXAMPLES, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        finetuner = Finetuner(world, RunStore(scratch), examples, progress=False)
        cost = StepCost(finetuner, ways(share=SHARE), batch_size=batch_size)
        return cost.seconds(rounds), cost.flops()


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
    options = parser.parse_args()
    if not 1 <= options.batch <= NUM_EXAMPLES or options.rounds < 1:
        parser.error(f"--batch lies between 1 and {NUM_EXAMPLES}, --rounds starts at 1")
    seconds, flops = measure(options.captioner, options.batch, options.rounds)
    print("\n".join(table(seconds, flops)))
    ratios = dict(zip(seconds.ways, np.median(seconds.ratio, axis=0).round(3).tolist(), strict=True))
    print(f"target: {seconds.ways[-1]} at most {AT_MOST:g}; it is {ratios[seconds.ways[-1]]:.2f}")


if __name__ == "__main__":
    main()
