"""Kills and full disks: what comes out is what an undisturbed run gives, no shard made twice.

The quiet process loads the embedded models and forks every run that is disturbed. A run is killed by SIGKILL at a
moment drawn over the time that an undisturbed one takes, or at one of its file operations, drawn likewise.
"""

import ctypes
import functools
import gc
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import plain_map, unshare
from tqdm import tqdm

from dfl_utils.game.loops import Game
from dfl_utils.models import captioner
from dfl_utils.store import blocks, provenance, shards
from dfl_utils.store.store import RunStore
from dfl_utils.training import finetune, finetuned, vocabulary
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import Economy
from dfl_utils.world import data, profile

KILLS = 8  # of a run by itself, at least
MOMENT, FILES = "at a moment", "at a file operation"
RECIPE = Recipe(steps=4, batch_size=1, lr=1e-3, decoder="tiny", economy=Economy(threshold=1e-6))
NEW_MOUNTS, REMOUNT = 0x00020000, 0x20  # of Linux's sched.h and mount.h


# --- in the process that forks ----------------------------------------------------------------------------
class Nursery:
    """The models, loaded once, and what is done to runs of them; every method answers with plain values."""

    def __init__(self, hall: Path):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_num_threads(1)
        tqdm.monitor_interval = 0  # it is a thread
        blocks.SHARD_IMAGES, finetune.CHECKPOINT_SECONDS = 2, -1  # shards of two images; a state at every step
        models = profile.load("mini").pair(captioner="blip-base")
        data.ensure(models)
        # Drawn one by one: what is drawn together after a kill is another batch, which some processors round otherwise.
        self.profile = replace(models, num_inference_steps=1, max_words=8, draw_batch=1)
        self.examples = data.subset(data.load(models, "nocaps", "overall"), 4, seed=0)
        self.lessons = data.subset(data.load(models, "coco", "val"), 4, seed=0)
        self.base = captioner.load(self.profile), finetuned.load_pipeline(self.profile)
        self.map = plain_map(*self.base)
        hall = Game(self.profile, RunStore(hall), progress=False)
        hall._while_same("captioner", [hall.made_by("captioner")["checkpoint"]], lambda: self.base[0])
        self.loaded = hall._loaded
        for load in (lambda: hall.generator, lambda: hall.encoder("clip"), lambda: hall.encoder("dino")):
            load()
        # What a process works out once, worked out before the forks.
        provenance.checkpoint_hash(Path(self.profile.tiny_decoder))
        vocabulary.fingerprint = functools.cache(vocabulary.fingerprint)
        self.play(hall.store.root)
        assert threading.active_count() == 1  # only then a fork is a whole process
        gc.freeze()

    # The two runs, each on a store; they return what a reader would see.
    def play(self, root: Path) -> shards.Content:
        game = Game(self.profile, RunStore(root), progress=False)
        game._loaded = dict(self.loaded)
        run = game.i2t2i(self.examples, 2)
        images = np.stack([run.load_images(k) for k in range(len(self.examples))])
        calls = sum(spent.calls for spent in game.store.spent.values())
        captions = [text for row in run.captions for text in row]
        return run.sim_image | {"images": images, "captions": captions, "calls": np.array(calls)}

    def train(self, root: Path) -> shards.Content:
        finetuner = Finetuner(self.profile, RunStore(root), self.lessons, progress=False)
        finetuner._while_same("pair", finetuner._checkpoints, lambda: self.base)
        finetuner.vocabulary_map = self.map
        (run,) = finetuner.run([RECIPE])
        folders = [run.profile.provide(folder) for folder in (run.profile.captioner, run.profile.generator)]
        spent = finetuner.store.spent["weights"]
        hashes = [provenance.files_hash(Path(folder)) for folder in folders]
        return run.losses | {"folders": hashes, "calls": np.array([spent.calls, spent.made + spent.loaded])}

    # What is done to them.
    def undisturbed(self, task: str, folder: Path) -> dict:
        """Seconds and file operations of a run, and what it gives."""
        root, began = folder / "whole", time.monotonic()
        assert _end(self._fork(task, root, tally=True)) == 0
        seconds = time.monotonic() - began
        sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
        operations = int(root.with_suffix(".operations").read_text())
        size = {"bytes": sum(sizes), "largest": max(sizes)}
        return {"seconds": seconds, "operations": operations, "result": _everything(root)} | size

    def kill(self, task: str, folder: Path, kills: int, whole: dict, seed: int) -> dict:
        """Runs of fresh stores, each killed and resumed until it ends, until there were that many kills."""
        rng, counts = np.random.default_rng(seed), Counter()
        while counts[MOMENT] + counts[FILES] < kills:
            root, left, status = folder / f"run{counts['runs']}", 1.0, None
            counts["runs"] += 1
            while status != 0:
                before, how, drawn = _finished(root), (MOMENT, FILES)[rng.integers(2)], rng.uniform(0, left)
                operation = 1 + int(drawn * whole["operations"])
                pid = self._fork(task, root, operation if how is FILES else None)
                status = _end(pid, kill_after=drawn * whole["seconds"] if how is MOMENT else None)
                assert status in (0, -signal.SIGKILL)
                assert before.items() <= _finished(root).items()  # nothing lost, nothing made again
                counts[how] += status != 0
                left = max(0.7, left - drawn)  # about the share that is still to be done
            _compare(root, whole)
        return dict(counts)

    def kill_one_of_two(self, task: str, folder: Path, kills: int, whole: dict, seed: int) -> None:
        """Two processes on one store, one of them killed."""
        rng, counts = np.random.default_rng(seed), Counter()
        while counts["kills"] < kills:
            root, victim = folder / f"run{counts['runs']}", int(rng.integers(2))
            moment = rng.uniform(0, whole["seconds"])
            pids = [self._fork(task, root) for _ in range(2)]
            status = _end(pids[victim], kill_after=moment)
            before = _finished(root)
            assert _end(pids[1 - victim]) == 0
            _compare(root, whole)
            if status != 0:
                assert status == -signal.SIGKILL and _end(self._fork(task, root)) == 0
                _compare(root, whole)
            assert before.items() <= _finished(root).items()
            counts["runs"] += 1
            counts["kills"] += status != 0

    def fill_disk(self, task: str, folder: Path, whole: dict) -> list[str]:
        """A disk that is full and grows, again and again: the same run goes on each time. What it said."""

        def outgrow():
            disk, root = Disk(folder / "disk", whole), folder / "disk" / "store"
            said = []
            for share in (1, 2, 3, 5, 7, 1000):  # eighths of what the run needs
                disk.resize(share)
                try:
                    self._run(task, root)
                    break
                except OSError as error:
                    said.append(str(error))
                for name in _finished(root):
                    shards.read(root / name)
                left = [path.name for path in root.rglob("*") if path.suffix in (".partial", ".claim")]
                assert not [name for name in left if name.endswith(".claim") or ".safetensors" in name], left
            _compare(root, whole)
            (folder / "said").write_text("\n".join(said))

        assert _end(_fork(outgrow)) == 0
        return (folder / "said").read_text().splitlines()

    def _fork(self, *arguments, **options) -> int:
        return _fork(lambda: self._run(*arguments, **options))

    def _run(self, task: str, root: Path, at: int | None = None, tally: bool = False) -> None:
        """One run in this forked process, which dies at its file operation number `at`."""
        signal.alarm(120)  # a run that hangs fails the test
        operations = _watch(root, at)
        content = getattr(self, task)(root)
        count = operations()
        shards.write(_answer(root), content, {})
        if tally:
            root.with_suffix(".operations").write_text(str(count))


class Disk:
    """A small disk of the calling process's own: a tmpfs in namespaces of its own.

    Where the system forbids those, a limit on the size of a file takes its place.
    """

    def __init__(self, place: Path, whole: dict):
        place.mkdir()
        self.place, self.whole, self.libc, self.how = place, whole, ctypes.CDLL(None, use_errno=True), "tmpfs"
        try:
            unshare(NEW_MOUNTS)
            self._mount(4096, 0)
        except (OSError, AttributeError):  # forbidden, or no Linux
            self.how = "RLIMIT_FSIZE"

    def resize(self, eighths: int) -> None:
        if self.how == "tmpfs":
            self._mount(self.whole["bytes"] * eighths // 8, REMOUNT)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.whole["largest"] * eighths // 8, resource.RLIM_INFINITY))

    def _mount(self, size: int, flags: int) -> None:
        if self.libc.mount(b"tmpfs", bytes(self.place), b"tmpfs", flags, f"size={size}".encode()) != 0:
            raise OSError(ctypes.get_errno(), "mount is forbidden")


def _watch(root: Path, at: int | None) -> Callable[[], int]:
    """Count this process's file operations below a folder, and kill it at number `at`."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if str(arguments[0]).startswith(str(root)):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def _fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(pid: int, kill_after: float | None = None) -> int:
    """The exit status of a child, negative for a signal; it is killed if it takes longer."""
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _answer(root: Path) -> Path:
    return root.with_name(f"{root.name}.answer")


def _finished(root: Path) -> dict[str, tuple[int, int]]:
    """The finished shards, by name: a shard that is made again is another file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.glob("*.safetensors")}


def _everything(root: Path) -> dict[str, str]:
    """Each file of a store and the answer of a run by name, as what it says: all but the seconds that it took."""
    found = {"answer": _digest(_answer(root))}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            is_shard = path.parent == root and path.suffix == ".safetensors"
            found[name] = _digest(path) if is_shard else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _digest(path: Path) -> str:
    content, metadata = shards.read(path)
    metadata.pop("seconds", None)
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in content.items():
        digest.update(name.encode())
        digest.update(json.dumps(value).encode() if isinstance(value, list) else value.tobytes())
    return digest.hexdigest()


def _compare(root: Path, whole: dict) -> None:
    found = _everything(root)
    assert found.keys() == whole["result"].keys(), found.keys() ^ whole["result"].keys()
    assert found == whole["result"], [name for name in found if found[name] != whole["result"][name]]


nursery = functools.cache(Nursery)


def on_runs(hall: Path, name: str, *arguments: object) -> object:
    """In the process that forks: what a method of the nursery answers."""
    return getattr(nursery(hall), name)(*arguments)


# --- the tests --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ask(quiet, tmp_path_factory):
    """Ask the nursery for what one of its methods answers."""
    return functools.partial(quiet, on_runs, tmp_path_factory.mktemp("hall"))


@pytest.fixture(scope="module")
def loop(ask, tmp_path_factory):
    return ask("undisturbed", "play", tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def training(ask, tmp_path_factory):
    return ask("undisturbed", "train", tmp_path_factory.mktemp("training"))


@pytest.mark.parametrize(("name", "task", "seed"), [("loop", "play", 1), ("training", "train", 2)])
def test_a_run_killed_at_random_loses_and_repeats_nothing(ask, request, tmp_path, name, task, seed):
    counts = ask("kill", task, tmp_path, KILLS, request.getfixturevalue(name), seed)
    assert counts[MOMENT] + counts[FILES] >= KILLS and counts[MOMENT] and counts[FILES]


def test_two_writers_share_one_store(ask, loop, tmp_path):
    ask("kill_one_of_two", "play", tmp_path, 4, loop, 3)


@pytest.mark.parametrize(("name", "task"), [("loop", "play"), ("training", "train")])
def test_a_full_disk_is_named_and_nothing_is_lost(ask, request, tmp_path, name, task):
    said = ask("fill_disk", task, tmp_path, request.getfixturevalue(name))
    assert said
    for sentence in said:
        assert "cannot be written (" in sentence and "free some space" in sentence and "DFL_STORE" in sentence
