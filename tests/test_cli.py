"""The command line: what it prints, and its exit status."""

import subprocess
import sys
from types import ModuleType

import pytest
from conftest import PARAMETERS, cell

from dfl_utils.build import cli, publish
from dfl_utils.build.chapter import BuildFailed


def test_chapters_lists_parameters_with_defaults_and_comments(house, capsys):
    assert cli.main(["chapters"]) == 0
    expected = "one\n  NUM_IMAGES = 3  # images; paper: 4500\n  TOP_P = 0.9  # nucleus\n  PROFILE = 'mini'\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "nope"], "dfl: error: There is no chapter nope; the book has one.\n"),
        (["run", "one", "-p", "X", "1"], "dfl: error: Chapter one has no parameter X; it knows NUM_IMAGES, "),
        (["run", "one", "-p", "TOP_P", "a"], "dfl: error: Parameter TOP_P of chapter one takes float, not 'a'.\n"),
    ],
)
def test_bad_input_is_one_line_and_status_2(house, capsys, words, line):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(line) and error.count("\n") == 1


def test_run_passes_typed_values_and_prints_where_the_copy_is(house, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "dfl_utils.build.execution.run_chapter", lambda *arguments: seen.append(arguments) or "the/copy.ipynb"
    )
    words = ["run", "book/one.ipynb", "-p", "NUM_IMAGES", "7", "-p", "PROFILE", "paper", "--scale", "ci"]
    assert cli.main(words) == 0
    assert seen == [("one", {"NUM_IMAGES": 7, "PROFILE": "paper"}, "ci")]
    assert capsys.readouterr().out == "executed copy: the/copy.ipynb\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (BuildFailed("Chapter one failed."), 1, "dfl: error: Chapter one failed.\n"),
        (
            PermissionError(13, "Permission denied", "results"),
            2,
            "dfl: error: [Errno 13] Permission denied: 'results'\n",
        ),
        (KeyboardInterrupt(), 130, "dfl: error: stopped; the same command goes on where this one was\n"),
    ],
)
def test_errors_end_in_one_line(monkeypatch, capsys, error, status, line):
    def fail(scale, html, jobs, reuse):
        raise error

    monkeypatch.setattr("dfl_utils.build.book.build", fail)
    assert cli.main(["book", "--scale", "ci"]) == status
    assert capsys.readouterr().err == line


def test_book_says_where_the_book_is(monkeypatch, capsys):
    monkeypatch.setattr(
        "dfl_utils.build.book.build", lambda scale, html, jobs, reuse: f"{scale}/index.html" if html else None
    )
    assert cli.main(["book"]) == 0
    assert cli.main(["book", "--scale", "ci", "--no-html"]) == 0
    assert capsys.readouterr().out == "the book: published/index.html\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("dfl_utils.build.book.build", lambda scale, html, jobs, reuse: {}[scale])
    with pytest.raises(KeyError):
        cli.main(["book"])


def test_check_lists_what_has_changed_and_is_never_red(house, capsys, monkeypatch):
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == "nothing has changed since: nothing is published yet\n"
    monkeypatch.setattr(publish, "published", lambda: ["mini"])
    monkeypatch.setattr(publish, "changed", lambda profile: [f"results/{profile}: a.py has changed."])
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == "results/mini: a.py has changed.\n"


def test_data_and_quality_call_the_embedded_world(house, monkeypatch):
    seen = []
    splits, report = ModuleType("splits"), ModuleType("quality_report")
    splits.write = lambda root, progress: seen.append((root, progress))
    report.main = lambda argv: seen.append(argv)
    for name, module in (("world.splits", splits), ("mini.quality_report", report)):
        monkeypatch.setitem(sys.modules, f"dfl_utils.{name}", module)
        monkeypatch.setattr(f"dfl_utils.{name}", module, raising=False)
    assert cli.main(["data"]) == 0
    assert cli.main(["quality"]) == 0
    assert seen == [(house.root / "data/mini/world", True), []]


def test_a_parameters_cell_that_is_wrong_is_named(house, capsys):
    house.chapter(cell(PARAMETERS + "\nimport os", tags=["parameters"]))
    assert cli.main(["chapters"]) == 2
    assert capsys.readouterr().err.startswith("dfl: error: Chapter one: `import os` in the parameters cell")


def test_the_module_runs_as_torchrun_starts_it():
    done = subprocess.run([sys.executable, "-m", "dfl_utils.build.cli", "chapters"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "finding_caption\n" in done.stdout
