"""Published numbers carried over a change of code that changes no number.

A module that every chapter imports cannot be touched without making all published numbers stale, and computing them
again takes hours. Where a change should alter none of them, `dfl carry` proves it on the small scale instead: every
published chapter is executed twice from an empty run store, by the code that the stamp names and by the tree, with the
same parameters. Every number that it saves is compared, digit for digit, and whatever lies in the store (drawings,
captions, scores, trained weights), bit for bit. Only if all are alike does the stamp get an entry `carried`, which
names the tree's code beside the code that made the numbers. Measured times are left out.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from dfl_utils import chapter as chapters
from dfl_utils import exhibits, provenance, shards
from dfl_utils.chapter import BuildFailed

# Metrics of exhibit `cost` that are seconds or ratios of seconds: they differ between two runs of one code.
TIMED = (
    "seconds a caption",
    "joint step ratio",
    "joint step over naive plain steps",
    "times the original cost, about",
)
TIMED_SHARDS, NOTED = ("step-seconds",), "noted"  # shards of seconds; day and machine of a measurement
# Runs one chapter in a process of its own: the package of the folder where it stands, not the installed one.
PROGRAM = """
import json, sys
from pathlib import Path
from dfl_utils.execution import run_chapter
name, values, results = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
run_chapter(name, values, target=results / f"{name}.ipynb", results=results, reuse=True)
"""


def carry(profile: str, scale: str = "ci", jobs: int = 2) -> dict:
    """Prove that the tree makes the published numbers of a profile, and say so in its stamp.

    Args:
        profile: folder of `results/`.
        scale: whose parameters both codes are given, as they stood when the numbers were published.
        jobs: chapters executed at a time.

    Returns:
        The stamp's new entry: `commit`, `scale`, `rows` and `shards` compared, `timed` rows left out, and `chapters`
        with what the tree would record of each.

    Raises:
        ValueError: no such results, or their commit is not in this clone.
        BuildFailed: a chapter failed, or a number differs; nothing is written.
    """
    path = provenance.ROOT / "results" / profile / "stamp.json"
    if not path.is_file():
        known = ", ".join(exhibits.published()) or "none"
        raise ValueError(f"There are no published results of profile {profile!r} to carry over; there are: {known}.")
    stamp = json.loads(path.read_text(encoding="utf-8"))
    names = list(stamp["chapters"])
    work = provenance.ROOT / "_build" / "carry"
    old, new = work / f"{stamp['commit'][:12]}-{scale}", work / "tree"
    shutil.rmtree(new, ignore_errors=True)  # the tree may have changed; a commit never does
    with _worktree(stamp["commit"], work / "before") as before:
        values = {name: _values(before, name, scale) for name in names}
        _execute(before, values, old, jobs)
    _execute(provenance.ROOT, values, new, jobs)
    rows = _compare(old, new, names) | {"shards": _compare_shards(old / "store", new / "store")}
    commit = provenance.git("rev-parse", "HEAD") or "none"
    stamp["carried"] = {"commit": commit, "scale": scale, **rows, "chapters": _records(stamp)}
    path.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    return stamp["carried"]


def _records(stamp: dict) -> dict[str, dict]:
    """What `execution` would note of the tree's chapters at the published scale."""
    found = {}
    for name, record in stamp["chapters"].items():
        source = chapters.find(name)
        parameters = chapters.effective(source, chapters.at_scale(source, record["run"]["scale"]))
        found[name] = {"parameters": parameters, "made_by": exhibits.made_by(source)}
    return found


@contextmanager
def _worktree(commit: str, place: Path) -> Iterator[Path]:
    """The repository as it was at a commit, with the embedded world of this one."""
    if not provenance.git("cat-file", "-t", commit) == "commit":
        raise ValueError(f"Commit {commit} of the published results is not in this clone: fetch its whole history.")
    provenance.git("worktree", "remove", "--force", str(place))
    shutil.rmtree(place, ignore_errors=True)
    provenance.git("worktree", "prune")
    provenance.git("worktree", "add", "--detach", str(place), commit)
    world = provenance.ROOT / "data" / "mini" / "world"
    if world.is_dir():
        shutil.copytree(world, place / "data" / "mini" / "world")
    try:
        yield place
    finally:
        provenance.git("worktree", "remove", "--force", str(place))


def _values(root: Path, name: str, scale: str) -> dict:
    """The parameters of a scale as another tree's files set them."""
    program = (
        "import json, sys; from dfl_utils import chapter; source = chapter.find(sys.argv[1]); "
        "print(json.dumps(chapter.effective(source, chapter.at_scale(source, sys.argv[2]))))"
    )
    return json.loads(_python(root, program, name, scale).communicate()[0])


def _execute(root: Path, values: dict[str, dict], results: Path, jobs: int) -> None:
    """Every chapter by the code of `root`, `jobs` at a time on one thread each; what is done already is kept."""
    results.mkdir(parents=True, exist_ok=True)
    waiting, running = list(values), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            running[name] = _python(
                root, PROGRAM, name, json.dumps(values[name]), str(results), store=results / "store"
            )
        name, process = next(iter(running.items()))
        process.communicate()
        del running[name]
        if process.returncode != 0:
            for other in running.values():
                other.kill()
            raise BuildFailed(f"Chapter {name} failed in {root}; its messages are above.")


def _python(root: Path, program: str, *arguments: str, store: Path | None = None) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment |= {"DFL_STORE": str(store)} if store else {}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, cwd=root, env=environment, text=True, stdout=None if store else subprocess.PIPE)


def _compare(old: Path, new: Path, names: list[str]) -> dict[str, int]:
    """Count the rows compared; BuildFailed names the first that is not alike."""
    compared = timed = 0
    for name in names:
        before, after = (pd.read_csv(folder / f"{name}.csv", dtype=str).fillna("") for folder in (old, new))
        measured = [frame.exhibit.eq("cost") & frame.metric.isin(TIMED) for frame in (before, after)]
        timed += int(measured[0].sum())
        before, after = (
            frame[~rows].reset_index(drop=True) for frame, rows in zip((before, after), measured, strict=True)
        )
        if not before.equals(after):
            raise BuildFailed(f"Chapter {name} makes other numbers than the published code: {_first(before, after)}.")
        compared += len(before)
    return {"rows": compared, "timed": timed}


def _compare_shards(old: Path, new: Path) -> int:
    """Count the shards of the old store; BuildFailed where the tree made one of another content, or none."""
    made = {part for path in new.glob("*.safetensors") for part in _parts(path)}
    paths = sorted(path for path in old.glob("*.safetensors") if not path.name.startswith(TIMED_SHARDS))
    for path in paths:
        lost = [name for kind, name, digest in _parts(path) if (kind, name, digest) not in made]
        if lost:
            raise BuildFailed(f"The tree makes no shard like {path}: its {lost[0]!r} differs in at least one bit.")
    return len(paths)


def _parts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, name and digest of each array and each list of texts in a shard; its key, which names the code, is left."""
    for name, value in shards.read(path)[0].items():
        if name == NOTED:
            continue
        described = [str(value.dtype), value.shape] if isinstance(value, np.ndarray) else [value]
        digest = hashlib.sha256(repr(described).encode())
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else b"")
        yield path.name.rpartition("-")[0], name, digest.hexdigest()


def _first(before: pd.DataFrame, after: pd.DataFrame) -> str:
    ours, theirs = (set(frame.itertuples(index=False, name=None)) for frame in (after, before))
    gone, come = (sorted(rows)[:1] for rows in (theirs - ours, ours - theirs))
    return f"{gone[0] if gone else 'nothing'} became {come[0] if come else 'nothing'}"
