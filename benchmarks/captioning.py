"""Captions a second, sampled and by beam search, beside what they took at `bb022f5`, in interleaved rounds.

Each round is a process of its own in a checkout of its own, on one thread and on the processor's clock.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from book import BEFORE
from dfl_utils.store import provenance
from dfl_utils.world import data, profile

AT_LEAST = 1.5  # target: captions sampled a second, over those before
CAPTIONERS = ("blip-base", "blip-large")  # BLIP-2's checkpoint is another since
TIMED = """
import sys, time
import torch
try:
    from dfl_utils.models import captioner
    from dfl_utils.models.workshop import read
    from dfl_utils.store.blocks import caption_streams
    from dfl_utils.world import data, profile
except ImportError:  # before the rooms
    from dfl_utils import captioner, data, profile
    from dfl_utils.blocks import caption_streams
    from dfl_utils.workshop import read

torch.set_num_threads(1)
world = profile.load("mini").pair(captioner=sys.argv[1])
examples = data.subset(data.load(world, "nocaps", "overall"), int(sys.argv[2]), seed=0)
model, images = captioner.load(world), read(examples)
streams = [caption_streams(0, example.image_id, 10) for example in examples]
for call in (lambda: model.sample(images, streams), lambda: model.describe(images)):
    call()
    began = time.process_time()
    call()
    print(time.process_time() - began)
"""


def measure(captioner: str, images: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds `(rounds, 2)` of ten captions sampled of each image and of one by beam search: now, and before."""
    data.ensure(profile.load("mini"))
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder, "before")
        subprocess.run(["git", "clone", "--quiet", str(provenance.ROOT), str(before)], check=True)
        subprocess.run(["git", "-C", str(before), "checkout", "--quiet", BEFORE], check=True)
        (before / "data/mini/world").symlink_to(provenance.ROOT / "data/mini/world")
        spent = [[_timed(root, captioner, images) for root in (provenance.ROOT, before)] for _ in range(rounds)]
    now, then = np.array(spent).transpose(1, 0, 2)
    return now, then


def _timed(root: Path, captioner: str, images: int) -> list[float]:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    asked = [sys.executable, "-c", TIMED, captioner, str(images)]
    done = subprocess.run(asked, cwd=root, env=environment, check=True, capture_output=True, text=True)
    return list(map(float, done.stdout.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for captioner in CAPTIONERS:
        now, then = measure(captioner, options.images, options.rounds)
        sampled, searched = np.median(then / now, axis=0)
        print(f"{captioner}: {sampled:.2f} times as fast (target: at least {AT_LEAST:g}), beam search {searched:.2f}")


if __name__ == "__main__":
    main()
