"""Seconds until a reader's first figure, and of a build of the book in which nothing changed."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dfl_utils import data, profile, provenance, shards

CHAPTER, FIGURE = "finding_caption", "game.png"  # the first file of a figure that the book's first finding writes
AT_MOST = 30.0  # target: seconds of a build in which nothing changed
DFL = [sys.executable, "-c", "import sys; from dfl_utils.cli import main; sys.exit(main())"]


def first_figure(scale: str = "ci") -> float:
    """Seconds from a command, on a new store, until that chapter's first file of a figure lies there.

    Imports, models, captions and drawings of all the chapter's images at that scale are in it; the data set, which is
    written once in the life of a checkout, is not.
    """
    data.ensure(profile.load("mini"))
    figure = provenance.ROOT / "_build" / "results" / "run" / FIGURE
    figure.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [*DFL, "run", CHAPTER, "--scale", scale]
        began = time.perf_counter()
        running = subprocess.Popen(command, env=os.environ | {"DFL_STORE": folder}, stdout=subprocess.DEVNULL)
        try:
            while not figure.is_file():
                if running.poll() is not None:
                    raise RuntimeError(f"The chapter ended before it wrote {FIGURE}.")
                time.sleep(0.05)
            return time.perf_counter() - began
        finally:
            running.terminate()  # it ends its kernel
            running.wait()


def second_build(store: Path, html: bool, scale: str = "ci") -> tuple[float, int]:
    """Seconds of a build in which nothing changed, and the model calls of shards that it made.

    Whatever is not yet built is built before the clock starts.
    """
    command = [*DFL, "book", "--scale", scale, *([] if html else ["--no-html"])]
    options = {"env": os.environ | {"DFL_STORE": str(store)}, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(command, **options)
    before = set(store.glob("*.safetensors"))
    began = time.perf_counter()
    subprocess.run(command, **options)
    seconds = time.perf_counter() - began
    return seconds, sum(shards.cost(path)[1] for path in set(store.glob("*.safetensors")) - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="ci")
    parser.add_argument("--store", type=Path, help="a run store for the builds; a new one if not given")
    options = parser.parse_args()
    print(f"first figure: {first_figure(options.scale):.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        for html in (False, True):
            seconds, calls = second_build(options.store or Path(folder), html, options.scale)
            print(f"second build {'with' if html else 'without'} HTML: {seconds:.1f} s, {calls} model calls")


if __name__ == "__main__":
    main()
