"""The book's tables: rows in the order of the results, numbers as a page shows them."""

import numpy as np
import pandas as pd
import pytest

from dfl_utils.exhibits import tidy
from dfl_utils.scores.ranking import Estimate
from dfl_utils.store.store import Kind, RunStore

E = Estimate(1.25, -0.04, 2.5, 7, excluded=1)


def test_a_row_is_one_that_exhibits_take():
    found = tidy.row("table9", ("nocaps", "overall"), "ours", "CIDEr", E)
    assert tuple(found) == tidy.COLUMNS
    assert [found[name] for name in ("exhibit", "dataset", "split", "method", "metric")] == [
        *("table9", "nocaps", "overall", "ours", "CIDEr")
    ]
    assert [found[name] for name in ("value", "low", "high", "n")] == [1.25, -0.04, 2.5, 7]
    assert np.isnan([found["x"], found["paper"]]).all()
    tidy.validate(pd.DataFrame([found]))


def test_a_row_may_say_where_on_a_curve_and_what_the_paper_has():
    found = tidy.row("table9", ("coco", "test"), "ours", "CIDEr", E, 50.0, n=3, published=2.0)
    assert [found[name] for name in ("x", "n", "paper")] == [50.0, 3, 2.0]


def test_a_number_is_written_with_its_interval():
    assert tidy.written(E, 2) == "1.25 (-0.04 to 2.50)"
    assert tidy.written(E) == "1.2 (0.0 to 2.5)"  # no minus before zero
    assert tidy.written(E, 2, sign="+") == "+1.25 (-0.04 to +2.50)"
    unknown = Estimate(np.nan, np.nan, np.nan, 0)
    assert tidy.written(unknown) == "" and tidy.written(unknown, missing="not measured") == "not measured"


def test_a_table_has_a_caption_a_name_and_its_texts_letter_by_letter():
    shown = tidy.numbered("tab-x", "What is.", pd.DataFrame({"a": ["1.50", None], "b": [2.5, np.nan]}))
    begin, body, end = shown.data.split("\n\n")
    assert begin == ":::{table} What is.\n:name: tab-x" and end == ":::\n"
    lines = [[text.strip() for text in line.split("|")[1:-1]] for line in body.splitlines()]
    assert lines[0] == ["a", "b"] and lines[2:] == [["1.50", "2.5"], ["", ""]]
    assert tidy.numbered("tab-x", "What is.", "| a |").data.split("\n\n")[1] == "| a |"


@pytest.mark.parametrize(("metric", "numbers"), [("CIDEr", (1.25, -0.04, 2.5)), ("FID", (-1.25, -2.5, 0.04))])
def test_an_improvement_turns_the_sign_of_a_distance(metric, numbers):
    assert tidy.improved(E, metric) == Estimate(*numbers, 7, 1)


def test_what_was_spent_is_the_sum_over_kinds_but_for_what_only_others_were_made_from(tmp_path):
    """So a run that finds those others tells the same cost."""
    store = RunStore(tmp_path)
    assert tidy.spent(store) == {"seconds": 0, "model_calls": 0}

    def look(asked):
        asked.get(Kind("test-inner"), {}, lambda: ({"x": np.zeros(1)}, 7))
        return {"x": np.zeros(1)}, 3

    for again in (store, RunStore(tmp_path)):
        again.get(Kind("test-one"), {}, lambda: ({"x": np.zeros(1)}, 2))
        again.get(Kind("test-other"), {}, lambda again=again: look(again))
        assert tidy.spent(again)["model_calls"] == 5
    assert tidy.spent(store) == tidy.spent(again)
    again.count(Kind("test-inner"), {})
    assert tidy.spent(again)["model_calls"] == 12
