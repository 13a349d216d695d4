"""The run store: exact round trips, nothing half-written taken for whole, each shard made once; how a run is cut."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_utils.store import blocks, processes, shards
from dfl_utils.store import store as stores
from dfl_utils.store.blocks import caption_streams, cut, image_seeds, join, join_texts, pick
from dfl_utils.store.processes import claim
from dfl_utils.store.store import Job, Kind, RunStore, Spent

LOOP, INNER, OUTER, OTHER = Kind("test-loop"), Kind("test-inner"), Kind("test-outer"), Kind("test-other")
RNG = np.random.default_rng(0)
CONTENT = {
    "image_hat": RNG.integers(0, 256, (2, 3, 4, 3), np.uint8),
    "caption_hat": ["a red dog", "", "naïve ☃ \n\"'"],
    "embeddings": RNG.normal(size=(3, 5)).astype(np.float16),
    "scores": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    "seed": np.array(7),
    "none": np.zeros((0, 3), np.float32),
    "kept": np.array([True, False]),
    "no_strings": [],
}


def never():
    raise AssertionError("the shard was there")


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        if isinstance(a[name], list):
            assert a[name] == b[name]
        else:
            assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
            assert a[name].tobytes() == b[name].tobytes()


def test_contents_come_back_exactly(tmp_path):
    made = RunStore(tmp_path).get(LOOP, {"a": 1}, lambda: CONTENT)
    same(made, CONTENT)
    same(RunStore(tmp_path).get(LOOP, {"a": 1}, never), CONTENT)
    (only,) = tmp_path.iterdir()
    assert only.name.startswith("test-loop-") and only.suffix == ".safetensors"
    odd = {
        "f": np.asfortranarray(CONTENT["embeddings"]),
        "step": CONTENT["embeddings"][:, ::2],
        "big": np.arange(3, dtype=">i4"),
    }
    RunStore(tmp_path).get(LOOP, {}, lambda: odd)
    for name, value in RunStore(tmp_path).get(LOOP, {}, never).items():
        np.testing.assert_array_equal(value, odd[name])


def test_the_key_is_what_counts_not_its_order(tmp_path):
    store = RunStore(tmp_path)
    store.get(LOOP, {"a": 1, "b": [1, 2]}, lambda: {"x": ["1"]})
    assert store.get(LOOP, {"b": (1, 2), "a": 1}, never) == {"x": ["1"]}
    for kind, key in ((LOOP, {"a": 1, "b": [2, 1]}), (LOOP, {"a": 1}), (OTHER, {"a": 1, "b": [1, 2]})):
        assert store.get(kind, key, lambda: {"x": ["2"]}) == {"x": ["2"]}
    metadata = safetensors.safe_open(store.path(LOOP, {"a": 1}), "np").metadata()
    assert (
        json.loads(metadata["key"]) == {"kind": "test-loop", "version": 1, "a": 1}
        and metadata["calls"] == "0"
        and float(metadata["seconds"]) >= 0
    )


def test_costs_are_counted_once_a_shard_and_kept_with_it(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 1))
    monkeypatch.setattr(stores.time, "perf_counter", lambda: next(clock))
    first = RunStore(tmp_path)

    def outer():
        first.get(INNER, {"k": 1}, lambda: ({"x": ["a"]}, 3))  # ticks: in, begin, end, out
        return {"y": ["b"]}, 10

    first.get(OUTER, {}, outer)  # begin at 1, end at 6; inside the store from 2 to 5
    assert first.spent == {"test-inner": Spent(made=1), "test-outer": Spent(2.0, 10, made=1)}
    for _ in range(2):
        first.get(INNER, {"k": 1}, never)  # now it was asked for
        assert first.spent == {"test-inner": Spent(1.0, 3, made=1), "test-outer": Spent(2.0, 10, made=1)}
    second = RunStore(tmp_path)
    for _ in range(2):
        second.get(OUTER, {}, never)
    assert second.spent == {"test-outer": Spent(2.0, 10, loaded=1)}


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "swap"])
def test_a_damaged_shard_is_made_anew_with_a_warning(tmp_path, caplog, damage):
    store = RunStore(tmp_path)
    path, other = store.path(LOOP, {}), store.path(LOOP, {"of": "another key"})
    store.get(LOOP, {}, lambda: CONTENT)
    store.get(LOOP, {"of": "another key"}, lambda: {"x": ["a"]})
    raw = path.read_bytes()
    flipped = raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:]
    foreign = safetensors.numpy.save({"x": np.ones(3)})
    harmed = {"truncate": raw[:-1], "flip": flipped, "foreign": foreign, "swap": other.read_bytes()}
    path.write_bytes(harmed[damage])
    with caplog.at_level(logging.WARNING):
        same(RunStore(tmp_path).get(LOOP, {}, lambda: CONTENT), CONTENT)
    assert [r.getMessage().count("is not whole") for r in caplog.records] == [1] and str(path) in caplog.text
    assert ("it is the shard of another key" in caplog.text) == (damage == "swap")
    same(RunStore(tmp_path).get(LOOP, {}, never), CONTENT)


def test_no_flipped_bit_is_ever_read(tmp_path):
    """A bit of each byte in turn: of the header's length, of the header with all strings, of the tensors."""
    path = RunStore(tmp_path).path(LOOP, {})
    content = {"x": np.array([1.5, -2.0], np.float32), "kept": np.array([True]), "texts": ["a key", "naïve ☃"]}
    shards.write(path, content, {"key": "{}", "seconds": "0.1", "calls": "2"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(shards.Broken):
            shards.read(path)
    path.write_bytes(whole)
    same(shards.read(path)[0], content)


def test_a_failing_make_stores_nothing_and_frees_the_claim(tmp_path):
    store = RunStore(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.get(LOOP, {}, lambda: 1 / 0)
    assert not list(tmp_path.iterdir())
    assert store.get(LOOP, {}, lambda: {"x": ["a"]}) == {"x": ["a"]}


@dataclass(frozen=True)
class Looks:
    x: list[str]


def test_a_content_is_read_as_its_kind_says(tmp_path):
    kind, again = Kind("test-typed", Looks), RunStore(tmp_path)
    assert RunStore(tmp_path).get(kind, {"a": 1}, lambda: (Looks(["red"]), 3)) == Looks(["red"])
    assert again.get(kind, {"a": 1}, never) == Looks(["red"]) and again.spent["test-typed"].calls == 3
    assert list(again.fill([Job(kind, {"a": 2}, lambda: Looks(["blue"])), Job(kind, {"a": 1}, never)])) == [
        (0, Looks(["blue"])),
        (1, Looks(["red"])),
    ]


def test_claimed_shards_are_visited_last(tmp_path):
    store, order = RunStore(tmp_path), []
    keys = [{"shard": k} for k in range(4)]
    held = claim(store.path(LOOP, keys[0]).with_suffix(".claim"))

    def make(key):
        order.append(key["shard"])
        if len(order) == 3:
            held.__exit__(None, None, None)
        return {"x": [str(key["shard"])]}

    jobs = [Job(LOOP, key, lambda key=key: make(key)) for key in keys]
    assert [content["x"] for _, content in store.fill(jobs)] == [["1"], ["2"], ["3"], ["0"]]
    assert order == [1, 2, 3, 0]


WORKER = """
import json, os, signal, sys, time
import numpy as np
from dfl_utils.store import processes, shards
from dfl_utils.store.store import Job, Kind, RunStore
root, log, task = sys.argv[1:]

def make(key):
    with open(log, "a") as file:
        file.write(f"{key['shard']}\\n")
    time.sleep(0.02)
    return {"x": np.full(1000, key["shard"])}, 1

stopped = []

def stop():
    stopped.append(True)
    print("stopping", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

if task.startswith("stop"):
    processes.STALE_SECONDS = 0.6
if task == "hang":
    make_once, make = make, lambda key: (make_once(key), print("making", flush=True), time.sleep(100))
if task == "stop":
    make_once, make = make, lambda key: (stop() if key["shard"] == 0 else None, make_once(key))[1]
if task == "stop-writing":
    sync, shards.os.fsync = os.fsync, lambda file: (stop() if not stopped else None, sync(file))
if task == "half":  # killed between the first byte and the rename
    shards.os.fsync = lambda _: (print("writing", flush=True), time.sleep(100))
store, keys = RunStore(root), [{"shard": k} for k in range(12)]
jobs = [Job(Kind("test-loop"), key, lambda key=key: make(key)) for key in keys]
total = sum(int(content["x"][0]) for _, content in store.fill(jobs))
spent = store.spent["test-loop"]
print(json.dumps([total, spent.made, spent.loaded, spent.calls]))
"""


def worker(tmp_path, task):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", WORKER, tmp_path / "store", tmp_path / "log", task],
                            stdout=subprocess.PIPE, text=True, env=environment)  # fmt: skip


def test_two_processes_make_each_shard_once(tmp_path):
    workers = [worker(tmp_path, "fill") for _ in range(2)]
    ends = [json.loads(process.communicate(timeout=60)[0]) for process in workers]
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(12))
    assert [end[0] for end in ends] == [66, 66] and ends[0][1] + ends[1][1] == 12
    assert all(made + loaded == calls == 12 for _, made, loaded, calls in ends)
    assert {path.suffix for path in (tmp_path / "store").iterdir()} == {".safetensors"}
    third = RunStore(tmp_path / "store")
    assert len(list(third.fill([Job(LOOP, {"shard": k}, never) for k in range(12)]))) == 12
    assert third.spent["test-loop"].made == 0


@pytest.mark.parametrize(("task", "cue"), [("hang", "making\n"), ("half", "writing\n")])
def test_a_kill_loses_the_shard_in_hand_alone(tmp_path, task, cue):
    store = RunStore(tmp_path / "store")
    store.get(LOOP, {"shard": 0}, lambda: {"x": np.zeros(1000, int)})
    process = worker(tmp_path, task)
    assert process.stdout.readline() == cue
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = {path.suffix for path in (tmp_path / "store").iterdir()}
    assert left == ({".safetensors", ".claim"} | ({".partial"} if task == "half" else set()))
    made = []
    jobs = [Job(LOOP, {"shard": k}, lambda k=k: made.append(k) or {"x": np.array([1])}) for k in range(3)]
    assert len(list(store.fill(jobs))) == 3 and made == [1, 2]
    assert {path.suffix for path in (tmp_path / "store").iterdir()} == {".safetensors"}


def test_a_blank_claim_is_dropped_whatever_the_clocks_say(tmp_path, monkeypatch):
    """Of a machine whose clock is a day ahead: it looks as if it had just been made, for a day."""
    monkeypatch.setattr(processes, "STALE_SECONDS", 0.3)
    path = tmp_path / "a.claim"
    path.touch()
    tomorrow = time.time() + 86_400
    os.utime(path, (tomorrow, tomorrow))
    assert claim(path, wait=False) is None
    with claim(path):
        assert path.stat().st_size > 0


@pytest.mark.parametrize("skew", [-86_400, 86_400])
def test_another_machines_claim_lasts_as_long_as_its_heartbeat(tmp_path, monkeypatch, skew):
    """Its process cannot be asked, and its clock may be wrong: only whether the file changes counts."""
    monkeypatch.setattr(processes, "STALE_SECONDS", 0.6)
    path = tmp_path / "a.claim"
    with claim(path):
        told = path.read_text().splitlines()
    marker = "".join(f"{'host=elsewhere.example' if line.startswith('host=') else line}\n" for line in told)
    path.write_text(marker)
    beats = time.time() + skew
    os.utime(path, (beats, beats))
    began = time.monotonic()
    heart = threading.Thread(target=lambda: [beat(path, beats + k, marker) for k in range(5)])
    heart.start()
    with claim(path):
        assert time.monotonic() - began > 5 * 0.2 + 0.3  # not while it beat, and not at once after
    heart.join()


def beat(path, moment, marker):
    time.sleep(0.2)
    assert path.read_text() == marker  # nobody has taken it
    os.utime(path, (moment, moment))


@pytest.mark.parametrize("task", ["stop", "stop-writing"])
def test_a_holder_that_wakes_up_too_late_does_no_harm(tmp_path, monkeypatch, task):
    """Stopped while it makes or writes a shard, as by a closed lid; another makes it, and then it goes on."""
    monkeypatch.setattr(processes, "STALE_SECONDS", 0.6)
    store, key = RunStore(tmp_path / "store"), {"shard": 0}
    process = worker(tmp_path, task)
    assert process.stdout.readline() == "stopping\n"
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    found = store.get(LOOP, key, lambda: ({"x": np.full(1000, 0)}, 1))
    before = store.path(LOOP, key).stat().st_ino
    process.send_signal(signal.SIGCONT)
    total, made, loaded, calls = json.loads(process.communicate(timeout=60)[0])
    assert (total, made + loaded, calls) == (66, 12, 12)
    assert {path.suffix for path in (tmp_path / "store").iterdir()} == {".safetensors"}
    same(RunStore(tmp_path / "store").get(LOOP, key, never), found)
    if task == "stop-writing":  # what it had written was swept away
        assert store.path(LOOP, key).stat().st_ino == before


def test_a_full_disk_while_claiming_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processes.SoftFileLease, "acquire", full)
    with pytest.raises(OSError, match=r"loop-.*claim cannot be written \(No space left on device\): free some space"):
        RunStore(tmp_path).get(LOOP, {}, never)


def test_an_unwritable_root_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"The run store .*file/store cannot be written \(.*\): set DFL_STORE"):
        RunStore(tmp_path / "file" / "store")
    monkeypatch.setenv("DFL_STORE", str(tmp_path / "elsewhere"))
    assert RunStore().root == tmp_path / "elsewhere"
    monkeypatch.delenv("DFL_STORE")
    assert stores.default_root() == Path(__file__).parents[1] / ".store"


def test_what_cannot_be_stored_is_refused(tmp_path):
    store = RunStore(tmp_path)
    with pytest.raises(ValueError, match="'x' of the shard test-loop-.* is an array of <U1"):
        store.get(LOOP, {}, lambda: {"x": np.array(["a"])})
    with pytest.raises(ValueError, match="is a list: make a numeric numpy array or a list of str"):
        store.get(LOOP, {}, lambda: {"x": [1, 2]})
    for value in (Path("a"), float("nan"), np.float32(1)):
        with pytest.raises(ValueError, match="is not plain JSON"):
            store.get(LOOP, {"p": value}, never)


# --- the cut of a run into shards, and its random streams ----------------------------------------------------
def test_the_cut_by_hand():
    found = [(b.images.start, b.images.stop, b.candidates.start, b.candidates.stop) for b in cut(18, 12)]
    assert found == [(0, 16, 0, 10), (0, 16, 10, 12), (16, 32, 0, 10), (16, 32, 10, 12)]
    rows = [[10 * image + n for n in range(12)] for image in range(18)]
    assert cut(18, 12)[3].of(rows) == [[170, 171], [180, 181]]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(1, 50), st.integers(1, 35))
def test_blocks_joined_are_the_whole(images, candidates):
    whole = np.arange(images * candidates * 2).reshape(images, candidates, 2)
    parts = [whole[block.images, block.candidates] for block in cut(images, candidates)]
    np.testing.assert_array_equal(join(parts, candidates), whole)
    texts = whole[..., 0].astype(str).tolist()
    flat = [[text for row in block.of(texts) for text in row] for block in cut(images, candidates)]
    assert join_texts(flat, candidates) == texts


def test_seeds_are_stable_prefixes_and_shared_by_no_two_purposes():
    assert image_seeds(0, 7, 3)[:2] == image_seeds(0, 7, 2)
    assert caption_streams(0, 7, 2) == [[blocks.WORDS, 0, 7, 0], [blocks.WORDS, 0, 7, 1]]
    assert len(set(image_seeds(0, 7, 50)) | set(image_seeds(0, 8, 50))) == 100
    assert all(0 <= seed < 2**63 for seed in image_seeds(3, 4, 50))
    assert not set(image_seeds(0, 7, 50)) & set(image_seeds(0, 7, 50, blocks.NOISE_OF_TEXT))


def test_a_pick_depends_on_seed_and_image_alone_and_reaches_every_text():
    texts = ("a", "b", "c")
    assert pick(1, 7, texts) == pick(1, 7, texts)
    drawn = [pick(0, image, texts) for image in range(300)]
    assert all(70 < drawn.count(text) < 130 for text in texts)
    assert drawn != [pick(1, image, texts) for image in range(300)]


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="SEED is -1: give a seed of 0 or more"):
        blocks.check_seed(-1)
