"""Captions a second by the generator's loss beside drawing them: the same captions of the same images, in interleaved
rounds of one process, by the processor's time."""

import argparse
import time
from collections.abc import Callable
from statistics import median

from dfl_utils.game import denoising
from dfl_utils.game.loops import Game
from dfl_utils.models import denoising as losses
from dfl_utils.models.workshop import read
from dfl_utils.store import blocks
from dfl_utils.store.store import RunStore
from dfl_utils.world import data, profile

CANDIDATES, DRAWN = 10, 20  # captions an image; of them, drawn a round
AT_LEAST = 50.0  # target: speed of one timestep against drawing


def contenders(game: Game, images: int, drawn: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Name -> (the work, how many captions it judges)."""
    examples = data.subset(data.load(game.profile, "nocaps", "overall"), images, seed=0)
    captions = [list(example.references[:CANDIDATES]) for example in examples]
    flat = [text for row in captions for text in row][:drawn]

    def asked(timesteps) -> tuple[Callable[[], object], int]:
        seeds = [[blocks.drawing_seed(e.image_id, t) for t in timesteps] for e in examples]
        work = lambda: losses.losses(game.generator, read(examples), captions, timesteps, seeds)  # noqa: E731
        return work, images * CANDIDATES

    return {
        "drawing": (lambda: game.generator.draw(flat, list(range(len(flat)))), len(flat)),
        "one timestep": asked(denoising.TIMESTEPS),
        "nine timesteps": asked(denoising.spread(9)),
    }


def measure(images: int, drawn: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of the processor a caption, one number a round; round 0 warms up and is dropped."""
    world = profile.load("mini", num_inference_steps=steps)
    data.ensure(world)
    jobs = contenders(Game(world, RunStore(), progress=False), images, drawn)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, (work, count) in jobs.items():
            began = time.process_time()
            work()
            if turn:
                times[name].append(1000 * (time.process_time() - began) / count)
    return times


def speeds(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians over rounds of how many times as fast each is as drawing."""
    return {
        name: median(a / b for a, b in zip(times["drawing"], each, strict=True))
        for name, each in times.items()
        if name != "drawing"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="of ten captions each; 16 are a shard")
    parser.add_argument("--drawn", type=int, default=DRAWN, help="captions drawn a round")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of a drawing")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    times = measure(options.images, options.drawn, options.steps, options.rounds)
    for name, values in times.items():
        print(f"{name:16}{median(values):9.2f} ms each, {1000 / median(values):8.2f} a second")
    for name, value in speeds(times).items():
        print(f"{name}: {value:.0f} times as fast as drawing")
    print(f"target: one timestep at least {AT_LEAST:g} times as fast")


if __name__ == "__main__":
    main()
