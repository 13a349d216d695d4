"""Seconds and memory of `make book` beside what it took before, of a second one, and until a reader's first figure."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from dfl_utils.store import provenance
from dfl_utils.world import data, profile

CHAPTER, FIGURE = "finding_caption", "game.png"  # the first file of a figure that the book's first finding writes
BEFORE = "bb022f5"  # the last commit whose `make book` computed all it showed, at scale quick
AT_MOST = 8.0  # target: seconds of a build in which nothing changed
MEMORY, SHARE, SECONDS = 4.0, 1 / 6, 180.0  # targets: GiB of all processes; of the time before; seconds
# The command line lay elsewhere before.
COMMAND = "import sys; from dfl_utils.{} import main; sys.exit(main())"
DFL = [sys.executable, "-c", COMMAND.format("build.cli")]


@dataclass(frozen=True)
class Build:
    """Attributes:
    seconds: from the command to its end.
    peak: GiB of all its processes together, memory that they share counted once.
    """

    seconds: float
    peak: float


def build(root: Path, *options: str) -> Build:
    """`dfl data` and `dfl book`, as `make book` calls them, in a checkout."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    environment = {name: value for name, value in environment.items() if not name.startswith("DFL_")}
    began, peak = time.perf_counter(), [0.0]
    there = (root / "dfl_utils" / "build").is_dir()
    dfl = DFL if there else [sys.executable, "-c", COMMAND.format("cli")]
    for command in ([*dfl, "data"], [*dfl, "book", *options]):
        running = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL)
        watching = threading.Thread(target=_watch, args=(running, peak))
        watching.start()
        if running.wait():
            raise RuntimeError(f"dfl {' '.join(command[3:])} failed in {root}; its messages are above.")
        watching.join()
    return Build(time.perf_counter() - began, peak[0])


def _watch(running: subprocess.Popen, peak: list[float]) -> None:
    """Twice a second, the proportional set size of a process and all that it has started."""
    while running.poll() is None:
        total = 0
        try:
            for one in (parent := psutil.Process(running.pid)).children(recursive=True) + [parent]:
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:  # it has just ended
                    continue
        except psutil.Error:
            return
        peak[0] = max(peak[0], total / 2**30)
        time.sleep(0.5)


def published() -> tuple[Build, Build, Build]:
    """The published book from a new checkout, the same with nothing changed, and what `make book` did before.

    All three on this machine, one after the other, with the data set written before the clock starts.
    """
    with tempfile.TemporaryDirectory() as folder:
        now, then = Path(folder, "now"), Path(folder, "then")
        origin = str(provenance.ROOT)
        for place, commit in ((now, "HEAD"), (then, BEFORE)):
            subprocess.run(["git", "clone", "--quiet", origin, place], check=True)
            subprocess.run(["git", "checkout", "--quiet", provenance.git("rev-parse", commit)], cwd=place, check=True)
            data.ensure(profile.load("mini"))
            shutil.copytree(provenance.ROOT / "data" / "mini" / "world", place / "data" / "mini" / "world")
        first = build(now)
        return first, build(now), build(then, "--scale", "quick")


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
        environment = os.environ | {"DFL_STORE": folder, "DFL_PUBLISHED": ""}
        began = time.perf_counter()
        running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            while not figure.is_file():
                if running.poll() is not None:
                    raise RuntimeError(f"The chapter ended before it wrote {FIGURE}.")
                time.sleep(0.05)
            return time.perf_counter() - began
        finally:
            running.terminate()  # it ends its kernel
            running.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(f"first figure: {first_figure():.1f} s")
    for name, found in zip(("make book", "again", f"at {BEFORE}, quick"), published(), strict=True):
        print(f"{name}: {found.seconds:.1f} s, {found.peak:.2f} GiB")


if __name__ == "__main__":
    main()
