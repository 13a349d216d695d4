"""The command line: what it prints, and its exit status."""

import subprocess
import sys

import pytest

from dfl_utils.build import cli, publish
from dfl_utils.build.chapter import BuildFailed


def test_bad_input_is_one_line_and_status_2(house, capsys):
    assert cli.main(["run", "one", "-p", "TOP_P", "a"]) == 2
    assert capsys.readouterr().err == "dfl: error: Parameter TOP_P of chapter one takes float, not 'a'.\n"


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
        (BuildFailed("Chapter one failed."), 1, "Chapter one failed."),
        (PermissionError(13, "Permission denied", "results"), 2, "[Errno 13] Permission denied: 'results'"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on where this one was"),
    ],
)
def test_errors_end_in_one_line_and_a_fault_of_ours_in_its_traceback(monkeypatch, capsys, error, status, line):
    def fail(scale, html, jobs, reuse):
        raise error

    monkeypatch.setattr("dfl_utils.build.book.build", fail)
    assert cli.main(["book", "--scale", "ci"]) == status
    assert capsys.readouterr().err == f"dfl: error: {line}\n"
    error = KeyError("scale")
    with pytest.raises(KeyError):
        cli.main(["book"])


def test_check_lists_what_has_changed_and_is_never_red(house, capsys, monkeypatch):
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == "nothing has changed since: nothing is published yet\n"
    monkeypatch.setattr(publish, "published", lambda: ["mini"])
    monkeypatch.setattr(publish, "changed", lambda profile: [f"results/{profile}: a.py has changed."])
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == "results/mini: a.py has changed.\n"


def test_the_module_runs_as_torchrun_starts_it():
    done = subprocess.run([sys.executable, "-m", "dfl_utils.build.cli", "chapters"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "finding_caption\n" in done.stdout
