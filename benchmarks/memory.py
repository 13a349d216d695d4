"""Peak memory of the whole loop (captions, drawings, similarities, store) at two numbers of images.

Each number runs in a process of its own. This process imports nothing large: on Linux a child's peak starts at the
size of the process that started it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

SCALE = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss counts bytes on macOS and kibibytes on Linux


def peak_of_a_run(num_images: int, num_candidates: int, steps: int) -> float:
    """Play i2t2i here through a store in a temporary folder; the peak resident memory of this process in MiB."""
    from dfl_utils import data, profile
    from dfl_utils.loops import Game
    from dfl_utils.store import RunStore

    world = profile.load("mini", num_inference_steps=steps)
    examples = data.subset(data.load(world, "nocaps", "overall"), num_images, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        Game(world, RunStore(folder)).i2t2i(examples, num_candidates)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / SCALE


def in_a_process(num_images: int, options: argparse.Namespace) -> float:
    """`peak_of_a_run` in a fresh interpreter."""
    command = [sys.executable, __file__, "--only", num_images, "--candidates", options.candidates]
    command += ["--steps", options.steps]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def record(peaks: dict[int, float], ratio: float, options: argparse.Namespace) -> None:
    """Write the numbers beside this file."""
    from dfl_utils import provenance

    content = {
        "date": date.today().isoformat(),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "options": {"candidates": options.candidates, "steps": options.steps},
        "peak_mib": {str(count): round(peak, 1) for count, peak in peaks.items()},
        "ratio": round(ratio, 3),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[100, 1000], help="the two numbers of images")
    parser.add_argument("--candidates", type=int, default=4, help="4 x 16 images of a shard fill a call")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps: they cost time and no memory")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(peak_of_a_run(options.only, options.candidates, options.steps))
        return
    peaks = {count: in_a_process(count, options) for count in options.images}
    for count, peak in peaks.items():
        print(f"{count:6} images: peak {peak:7.1f} MiB")
    few, many = (peaks[count] for count in options.images)
    print(f"ratio {many / few:.3f}")
    record(peaks, many / few, options)


if __name__ == "__main__":
    main()
