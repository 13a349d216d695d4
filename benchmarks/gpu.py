"""What a GPU makes of the same code: agreement with the CPU, ranks on one card, seconds and memory at published sizes.

Nothing is downloaded. Agreement is that of the embedded models (`gpu_agreement`); at the published sizes weights are
random (`gpu_sizes`). Run `dfl data` before. Each group runs in an interpreter of its own, leaves its rows in a folder
and is not run again, as in `run.py`; they take the place of rows of the same names in data/gpu/benchmarks.csv, from
which `dfl cost` starts. `--quick` goes through all of it with the embedded models and writes no such file; it needs no
GPU.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu_sizes
import numpy as np
from gpu_agreement import DEVICE, agreement, world
from run import FOLDER, ROOT, Row, row, stamp, write

from dfl_utils.game.loops import Game
from dfl_utils.store import shards
from dfl_utils.store.store import RunStore
from dfl_utils.world import data

TARGET = ROOT / "data" / "gpu" / "benchmarks.csv"
NCCL = "from dfl_utils.store import processes; processes.join(cpu=False); print(processes.gathered(7))"


def several(quick: bool) -> list[Row]:
    """Two ranks that fill one store from one GPU, against one process; and whether nccl answers."""
    images, steps = ("32", "2") if quick else ("128", "50")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        alone, both = (_together(folder, count, images, steps) for folder, count in ((one, 1), (two, 2)))
        alike = [_content(path) == _content(Path(two, path.name)) for path in Path(one).glob("*.safetensors")]
    note = (
        f"speed; i2t2i of {images} scenes x 4, {steps} steps, float32, starts and loading included; {sum(alike)} of "
        f"{len(alike)} shards the same to the bit; nccl: {_nccl()}"
    )
    return [row("two ranks on one GPU against one", (both, alone), alone / both, "s", note)]


def _together(folder: str, count: int, images: str, steps: str) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment, began = os.environ | {"OMP_NUM_THREADS": "4"}, time.perf_counter()
    subprocess.run([*command, __file__, "--rank-of", folder, images, steps], check=True, env=environment)
    return time.perf_counter() - began


def play(folder: str, images: str, steps: str) -> None:
    """What each rank does."""
    models = world(DEVICE, num_inference_steps=int(steps))
    examples = data.subset(data.load(models, "nocaps", "overall"), int(images), seed=0)
    Game(models, RunStore(folder), progress=False).i2t2i(examples, 4)


def _content(path: Path) -> list:
    content = shards.read(path)[0] if path.exists() else {}
    return [(name, value.tobytes() if isinstance(value, np.ndarray) else value) for name, value in content.items()]


def _nccl() -> str:
    if DEVICE == "cpu":
        return "no GPU"
    here = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    done = subprocess.run([sys.executable, "-c", NCCL], env=os.environ | here, capture_output=True, text=True)
    return "one rank joins and talks" if done.stdout.strip() == "[7]" else f"failed ({done.stderr.strip()[-100:]})"


GROUPS = {
    "agreement": agreement,
    "inference": gpu_sizes.inference,
    "training": gpu_sizes.training,
    "blip2": gpu_sizes.reader,
    "ranks": several,
}


def measured(folder: Path, name: str, quick: bool) -> None:
    """Run one group in an interpreter of its own, unless its rows are there."""
    if (folder / f"{name}.json").is_file():
        return
    began = time.perf_counter()
    command = [sys.executable, __file__, "--here", "--only", name, "--folder", str(folder), *["--quick"] * quick]
    failed = subprocess.run(command, check=False).returncode
    print(f"{name}: {'failed' if failed else 'done'} in {time.perf_counter() - began:.0f} s", flush=True)


def table(folder: Path, before: Path | None = None) -> list[Row]:
    """The rows of the groups that are there, each in place of one of its name in the table before."""
    rows = {}
    if before and before.is_file():
        with before.open(encoding="utf-8", newline="") as file:
            rows = {one["name"]: one for one in csv.DictReader(file)}
    places = [place for name in GROUPS if (place := folder / f"{name}.json").is_file()]
    found = [one for place in places for one in json.loads(place.read_text(encoding="utf-8"))]
    return list((rows | {one["name"]: one for one in found}).values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the embedded models, few steps; writes no results")
    parser.add_argument("--folder", type=Path, help="of the rows; default _build/benchmarks-gpu")
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one group, in this interpreter
    parser.add_argument("--rank-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        play(*options.rank_of)
        return 0
    if DEVICE == "cpu" and not options.quick:
        parser.error("no GPU is visible: run this on a machine with one, or add --quick")
    folder = (options.folder or FOLDER.with_name(f"benchmarks-gpu{'-quick' * options.quick}")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.here:
        rows = [one | {"note": f"{one['note']}; {stamp()}"} for one in GROUPS[options.only[0]](options.quick)]
        (folder / f"{options.only[0]}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        return 0
    for name in options.only:
        measured(folder, name, options.quick)
    for one in table(folder):
        print(
            f"{one['name']:60}{one['ours']:11.4g}{one['other']:11.4g}{one['ratio']:8.3f} {one['unit']}; {one['note']}"
        )
    write(folder / "table.csv" if options.quick else TARGET, table(folder, None if options.quick else TARGET))
    return 0 if all((folder / f"{name}.json").is_file() for name in options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
