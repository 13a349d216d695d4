"""Cost and peak memory of i2t2i (captions, drawings, similarities, store) against the number of images.

Each number is played in a process of its own, on one thread, with models that are loaded and warm; its cost is seconds
of that process on its processor. This process imports nothing large: on Linux a child's peak starts at the size of the
process that started it. One denoising step a drawing: more would cost time in proportion, and no memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

SCALE = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss counts bytes on macOS and kibibytes on Linux
COUNTS = (100, 300, 1000)
CANDIDATES, STEPS = 4, 1  # 4 x 16 images of a shard fill a call of 64 drawings
LINEAR, FLAT = 0.05, 0.10  # targets: cost an image, and peak memory, against those of the fewest images


def play(num_images: int) -> dict[str, float]:
    """Seconds and peak MiB of a run here, through a store in a temporary folder."""
    import torch

    from dfl_utils.game.loops import Game
    from dfl_utils.store.store import RunStore
    from dfl_utils.world import data, profile

    torch.set_num_threads(1)
    world = profile.load("mini", num_inference_steps=STEPS)
    data.ensure(world)
    everything = data.load(world, "nocaps", "overall")
    examples = data.subset(everything, num_images, seed=0)
    with tempfile.TemporaryDirectory() as warm, tempfile.TemporaryDirectory() as folder:
        game = Game(world, RunStore(warm), progress=False)
        game.i2t2i(data.subset(everything, 16, seed=1), CANDIDATES)
        game.store = RunStore(folder)
        began = time.process_time()
        game.i2t2i(examples, CANDIDATES)
        seconds = time.process_time() - began
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / SCALE}


def measure(counts: tuple[int, ...] = COUNTS) -> dict[int, dict[str, float]]:
    """Number of images -> seconds and peak MiB, each of a fresh interpreter.

    A machine's speed drifts over minutes: the fewest images are played before the others and after them, and the mean
    of both is what the others are held against.
    """
    first, *others = counts
    played = [(count, _alone(count)) for count in (first, *others, *[first] * bool(others))]
    found = dict(played[: len(counts)])
    found[first] = {name: (value + played[-1][1][name]) / 2 for name, value in found[first].items()}
    return found


def _alone(count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(play(options.only)))
        return
    for count, spent in measure(tuple(options.images)).items():
        each = 1000 * spent["seconds"] / count
        print(f"{count:6} images: {spent['seconds']:7.1f} s, {each:6.1f} ms an image, peak {spent['peak']:7.1f} MiB")


if __name__ == "__main__":
    main()
