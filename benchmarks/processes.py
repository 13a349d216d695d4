"""Seconds of one process and of two, one thread each, that fill one store with the same i2t2i run.

Processes start, load their models and warm up; then all begin at once, and the clock stops when the last is done.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

IMAGES, CANDIDATES, STEPS = 128, 4, 25  # eight shards of images: two processes share them evenly
AT_LEAST = 1.7  # target: the speed of two against one


def work(folder: str, images: int, steps: int) -> None:
    """One process: ready, and when a line comes the run."""
    import torch

    from dfl_utils.game.loops import Game
    from dfl_utils.store.store import RunStore
    from dfl_utils.world import data, profile

    torch.set_num_threads(1)
    world = profile.load("mini", num_inference_steps=steps)
    data.ensure(world)
    everything = data.load(world, "nocaps", "overall")
    examples = data.subset(everything, images, seed=0)
    with tempfile.TemporaryDirectory() as warm:
        game = Game(world, RunStore(warm), progress=False)
        game.i2t2i(data.subset(everything, 4, seed=1), CANDIDATES)
        game.store = RunStore(folder)
        print("ready", flush=True)
        sys.stdin.readline()
        game.i2t2i(examples, CANDIDATES)


def seconds(count: int, images: int = IMAGES, steps: int = STEPS) -> float:
    """Of so many processes on a new store."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--work", folder, "--images", str(images), "--steps", str(steps)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        running = [subprocess.Popen(command, **pipes) for _ in range(count)]
        try:
            for process in running:
                if process.stdout.readline() != "ready\n":
                    raise RuntimeError("A process did not come as far as the start.")
            began = time.perf_counter()
            for process in running:
                process.stdin.write("go\n")
                process.stdin.flush()
            if any([process.wait() for process in running]):  # a list: all are waited for
                raise RuntimeError("A process failed.")
            return time.perf_counter() - began
        finally:
            for process in running:
                process.kill()


def measure(images: int = IMAGES, steps: int = STEPS, rounds: int = 2) -> dict[int, list[float]]:
    """Number of processes -> seconds, a number a round; both in every round."""
    found = {1: [], 2: []}
    for _ in range(rounds):
        for count in found:
            found[count].append(seconds(count, images, steps))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.images, options.steps)
        return
    found = measure(options.images, options.steps, options.rounds)
    for one, two in zip(*found.values(), strict=True):
        print(f"one process {one:7.1f} s, two {two:7.1f} s: {one / two:.2f} x")


if __name__ == "__main__":
    main()
