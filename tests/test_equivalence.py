"""Published numbers are carried over a change of code only where every number is alike."""

import contextlib
import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from dfl_utils import chapter, equivalence, exhibits, provenance, shards
from dfl_utils.chapter import BuildFailed

COLUMNS = "exhibit,dataset,split,method,x,metric,value,low,high,n,paper\n"
ROWS = "figure3,nocaps,overall,dino,2,CIDEr,0.5,0.4,0.625,300,\ncost,,,ours,,joint step ratio,1.5,,,3,\n"


@pytest.fixture
def published(house, monkeypatch):
    """A published chapter, and a stand-in for its two executions: `saved[0]` by the old code, `saved[1]` by ours."""
    house.write("results/mini/exhibits.csv", COLUMNS + ROWS)
    source = chapter.find("one")
    run = {"scale": "full", "parameters": chapter.effective(source, chapter.at_scale(source, "full"))}
    record = {"run": run | {"made_by": exhibits.made_by(source)}, "checkpoints": {}}
    table = (house.root / "results/mini/exhibits.csv").read_bytes()
    stamp = {"commit": "0123456789abcdef", "exhibits": sha256(table), "chapters": {"one": record}}
    house.write("results/mini/stamp.json", json.dumps(stamp))
    house.saved = [COLUMNS + ROWS, COLUMNS + ROWS]

    def execute(root, values, results, jobs):
        results.mkdir(parents=True, exist_ok=True)
        assert values == {"one": {"NUM_IMAGES": 2}}
        (results / "one.csv").write_text(house.saved[root == provenance.ROOT])

    @contextlib.contextmanager
    def worktree(commit, place):
        assert commit == "0123456789abcdef"
        yield place

    monkeypatch.setattr(equivalence, "_execute", execute)
    monkeypatch.setattr(equivalence, "_worktree", worktree)
    monkeypatch.setattr(equivalence, "_values", lambda root, name, scale: {"NUM_IMAGES": 2})
    house.write("dfl_utils/scores.py", "def same(x):\n    return +x\n")  # other code, the same numbers
    return house


def sha256(table: bytes) -> str:

    return hashlib.sha256(table).hexdigest()


def test_alike_numbers_are_carried_and_the_next_change_is_stale_again(published):
    assert "dfl_utils.scores changed" in exhibits.stale("mini")[0]
    carried = equivalence.carry("mini")
    assert (carried["rows"], carried["timed"], carried["scale"]) == (1, 1, "ci")
    assert exhibits.stale("mini") == []
    published.write("dfl_utils/scores.py", "def same(x):\n    return -x\n")
    assert "dfl_utils.scores changed" in exhibits.stale("mini")[0]
    published.write("dfl_utils/scores.py", "def same(x):\n    return x\n")  # what made them in the first place
    assert exhibits.stale("mini") == []


def test_one_other_digit_is_refused_and_nothing_is_written(published):
    published.saved[1] = COLUMNS + ROWS.replace("0.625", "0.626")
    before = (published.root / "results/mini/stamp.json").read_text()
    with pytest.raises(BuildFailed, match="Chapter one makes other numbers .*'0.625'.* became .*'0.626'"):
        equivalence.carry("mini")
    assert (published.root / "results/mini/stamp.json").read_text() == before


def test_a_lost_row_is_refused_and_a_measured_time_may_differ(published):
    published.saved[1] = (COLUMNS + ROWS).replace("ratio,1.5", "ratio,1.7")
    equivalence.carry("mini")
    published.saved[1] = COLUMNS + ROWS.splitlines(keepends=True)[1]
    with pytest.raises(BuildFailed, match="figure3.* became nothing"):
        equivalence.carry("mini")


def test_shards_are_compared_by_content_whatever_their_keys(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    weights, texts = np.arange(3, dtype=np.float32), ["a cat", "a dog"]
    shards.write(old / "captions-01.safetensors", {"weights": weights, "texts": texts}, {"key": "old"})
    shards.write(old / "step-seconds-01.safetensors", {"seconds": np.ones(1)}, {"key": "old"})
    shards.write(new / "captions-02.safetensors", {"weights": weights, "texts": texts}, {"key": "new"})
    assert equivalence._compare_shards(old, new) == 1
    weights[0] = np.nextafter(np.float32(0), np.float32(1))
    shards.write(new / "captions-02.safetensors", {"weights": weights, "texts": texts}, {"key": "new"})
    with pytest.raises(BuildFailed, match="captions-01.safetensors: its 'weights' differs"):
        equivalence._compare_shards(old, new)
    shards.write(new / "captions-02.safetensors", {"texts": texts[::-1], "weights": np.arange(3.0)}, {"key": "new"})
    with pytest.raises(BuildFailed, match="captions-01.safetensors: its"):
        equivalence._compare_shards(old, new)


def test_the_timed_metrics_are_metrics_of_the_published_table():
    table = pd.read_csv(equivalence.provenance.ROOT / "results/mini/exhibits.csv", dtype=str)
    assert set(equivalence.TIMED) <= set(table[table.exhibit.eq("cost")].metric)


def test_results_that_are_not_there_are_named(house):
    with pytest.raises(ValueError, match="no published results of profile 'paper'"):
        equivalence.carry("paper")


def test_a_commit_that_is_not_here_is_named(house, tmp_path):
    with (
        pytest.raises(ValueError, match="Commit 0123 .* is not in this clone"),
        equivalence._worktree("0123", tmp_path / "before"),
    ):
        pass
