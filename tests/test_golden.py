"""Golden rows: every number that is no time is compared, within what its metric may differ by."""

import numpy as np
import pandas as pd
import pytest

from dfl_utils.build import cli, golden
from dfl_utils.exhibits import tidy


def rows(*changes, **columns):
    row = dict(
        zip(tidy.COLUMNS, ("table1", "nocaps", "overall", "clip", np.nan, "CIDEr", 10, 9, 11, 4, 7), strict=True)
    )
    return tidy.validate(pd.DataFrame([row | columns | change for change in changes or ({},)]))


@pytest.mark.parametrize(
    ("change", "what"), [({"value": 10.9}, "value"), ({"low": 2}, "low"), ({"n": 5}, "n"), ({"paper": 8}, "paper")]
)
def test_a_changed_number_is_named(change, what):
    lines = golden.differences(rows(), rows())
    assert list(lines.what) == ["value", "low", "high"] and lines.agrees.all() and (lines.difference == 0).all()
    lines = golden.differences(rows(), rows(change))
    (wrong,) = lines[~lines.agrees].to_dict("records")
    assert wrong["what"] == what and wrong["new"] == next(iter(change.values()))
    assert wrong["difference"] == pytest.approx(wrong["new"] - wrong["old"])


def test_a_row_or_an_interval_that_only_one_side_has_is_named():
    lines = golden.differences(rows(), rows({"low": np.nan, "high": np.nan}))
    assert set(lines[~lines.agrees].what) == {"low", "high"}
    both = rows({}, {"method": "dino"})
    for before, after in ((both, rows()), (rows(), both)):
        lines = golden.differences(before, after)
        assert lines[~lines.agrees][["method", "what"]].values.tolist() == [["dino", "row"]]


def test_times_are_left_out():
    timed = {"exhibit": "cost", "metric": tidy.TIMED[0], "dataset": "", "split": ""}
    assert golden.differences(rows(timed), rows(timed | {"value": 10.5})).empty
    point = {"exhibit": "operating", "method": "the point minus drawing"}
    assert golden.differences(rows(point), rows(point | {"value": 10.5})).empty
    counted = timed | {"metric": "joint step flop ratio"}
    assert not golden.differences(rows(counted), rows(counted | {"value": 10.5})).agrees.all()


def test_the_command_compares_and_writes(house, monkeypatch, capsys):
    monkeypatch.setattr(golden.execution, "refuse_stale", lambda scale: None)
    monkeypatch.setattr(golden.publish, "merged", lambda folder: (rows(), {}))
    assert cli.main(["golden"]) == 2  # there is nothing to compare with
    assert "`make golden` writes it" in capsys.readouterr().err
    assert cli.main(["golden", "--write"]) == 0
    assert cli.main(["golden"]) == 0
    monkeypatch.setattr(golden.publish, "merged", lambda folder: (rows({"value": 10.9}), {}))
    capsys.readouterr()
    assert cli.main(["golden"]) == 1
    said = capsys.readouterr().out
    assert "10.9" in said and "1 of 3 numbers differ from results/ci/exhibits.csv" in said


def test_a_part_of_a_build_or_one_of_another_tree_is_not_compared(house, capsys):
    assert cli.main(["golden"]) == 1
    assert "Chapter one has not been run, or failed; run `dfl book --scale ci` again" in capsys.readouterr().err
