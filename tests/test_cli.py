"""The command line: what it prints, and its exit status."""

import os
import subprocess
import sys

import pytest

from dfl_utils.build import cli
from dfl_utils.build.chapter import BuildFailed


def test_bad_input_is_one_line_and_status_2(house, capsys):
    assert cli.main(["run", "one", "-p", "TOP_P", "a"]) == 2
    assert capsys.readouterr().err == "dfl: error: Parameter TOP_P of chapter one takes float, not 'a'.\n"


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


def test_the_module_runs_as_torchrun_starts_it():
    done = subprocess.run([sys.executable, "-m", "dfl_utils.build.cli", "chapters"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "finding_caption\n" in done.stdout


def test_the_parameters_of_one_chapter_are_listed_alone(capsys):
    assert cli.main(["chapters", "painter"]) == 0
    name, *lines = capsys.readouterr().out.splitlines()
    assert name == "painter" and lines and all(line.startswith("  ") for line in lines)


def test_a_terminal_of_few_letters_ends_no_command():
    """As in a locale of Latin-1, or under a scheduler: Kendall's tau stands in the answer of a chapter."""
    code = (
        "import sys; from dfl_utils.build import cli; cli._chapters = lambda _: print('\\u03c4'); sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "chapters"], env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"?\n", b"")
