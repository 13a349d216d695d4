"""The table of benchmarks: its form, what its bounds mean, and that a stopped run goes on. Nothing is timed."""

import csv
import json
import runpy
from types import SimpleNamespace

import pytest

from dfl_utils import provenance

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
        *("book", "forecast", "joint_step", "processes", "reconstruction", "run", "scaling", "scoring", "vocabulary")
    }
    assert len(run.GROUPS) == 9
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in readme or path.stem == "run" for path in FOLDER.glob("*.py"))
