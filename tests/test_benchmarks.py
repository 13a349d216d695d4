"""The table of benchmarks: its form, what its bounds mean, and that a stopped run goes on. Nothing is timed."""

import csv
import json
import re
import runpy
from types import SimpleNamespace

import pytest

from dfl_utils.store import provenance

FOLDER = provenance.ROOT / "benchmarks"


@pytest.fixture(scope="module")
def run():
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "run.py")))


@pytest.mark.parametrize(
    ("ratio", "bounds", "told"),
    [
        (1.7, {"least": 1.7}, "target at least 1.7: met"),
        (1.69, {"least": 1.7}, "target at least 1.7: missed"),
        (1.16, {"most": 1.15}, "target at most 1.15: missed"),
        (0.94, {"least": 0.95, "most": 1.05}, "target at least 0.95 and at most 1.05: missed"),
        (1.0, {"least": 0.95, "most": 1.05}, "target at least 0.95 and at most 1.05: met"),
        (3.0, {}, "no target"),
    ],
)
def test_a_row_says_whether_its_target_was_met(run, ratio, bounds, told):
    row = run.row("name", (1.0, 2.0), ratio, "s", "how", **bounds)
    assert tuple(row) == run.COLUMNS and row["note"] == f"how; {told}"


def test_what_was_measured_is_not_measured_again(run, tmp_path, capsys):
    row = run.row("a, b", (1, 2), 0.5, "s", "a note")
    (tmp_path / "loop.json").write_text(json.dumps([row]))
    assert run.measured(tmp_path, "loop", True)
    assert capsys.readouterr().out == "loop: measured before\n"
    run.write(tmp_path / "table.csv", [row])
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        (read,) = csv.DictReader(file)
    assert {key: str(value) for key, value in row.items()} == read


def test_every_group_has_its_script(run):
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        *("book", "forecast", "joint_step", "processes", "reconstruction", "run", "scaling", "scoring", "vocabulary"),
        *("gpu", "gpu_agreement", "gpu_sizes", "random_models"),
    }
    assert len(run.GROUPS) == 9
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in readme or path.stem == "run" for path in FOLDER.glob("*.py"))


TABLES = ("results/mini/benchmarks.csv", "data/gpu/benchmarks.csv")


@pytest.mark.parametrize("table", TABLES)
def test_a_table_holds_what_its_notes_say(run, table):
    with (provenance.ROOT / table).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and tuple(rows[0]) == run.COLUMNS and len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        ratio, note = float(row["ratio"]), row["note"]
        bounds = dict(re.findall(r"at (least|most) ([0-9.]+)", note.partition("target ")[2]))
        met = float(bounds.get("least", 0)) <= ratio <= float(bounds.get("most", "inf"))
        assert bounds or "; no target; " in note
        assert not bounds or f": {'met' if met else 'missed'}; " in note
        assert re.search(r"; \d\d [A-Z][a-z]+ 20\d\d, .+ cores", note)


def test_every_group_has_its_rows(run):
    told = (provenance.ROOT / "results" / "mini" / "benchmarks.csv").read_text(encoding="utf-8")
    wanted = (
        "drawing against, i2t2i against, two processes, cost an image, peak memory, second build, time to first figure"
    )
    wanted += ", vocabulary gather, joint step, scores against, forecast"
    assert all(name in told for name in wanted.split(", "))
