"""The paper's numbers as published: complete, unique, consistent with the gains it prints; and ours beside them."""

import itertools

import numpy as np
import pandas as pd
import pytest

from dfl_utils.exhibits import paper, tidy

# The one printed gain that its own table contradicts: from 41.19 to 45.64 is 10.8 %, and 9.8 % only of the larger.
MISPRINTED_GAINS = {("table2", "nocaps", "overall", "gain", "IS")}


def as_printed(name: str) -> pd.DataFrame:
    return pd.read_csv(paper.FOLDER / f"{name}.csv", dtype=str, keep_default_na=False)


def half_unit(printed: str) -> float:
    """Half a unit of the last printed decimal: how far the true number may lie from the printed one."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])


def possible_gains(baseline: str, ours: str, metric: str) -> tuple[float, float]:
    """Smallest and largest gain in per cent that any numbers which round to the two printed ones can have."""
    before, after = ([float(v) - half_unit(v), float(v) + half_unit(v)] for v in (baseline, ours))
    changes = [100 * (b - a) / a for a, b in itertools.product(before, after)]
    corners = [paper.improvement(change, metric) for change in changes]
    return min(corners), max(corners)


def printed_gains() -> list[tuple]:
    found = []
    for name in ("table1", "table2", "table7"):
        cells = {tuple(row[paper.KEY]): row.paper for _, row in as_printed(name).iterrows()}
        for (exhibit, dataset, split, method, x, metric), printed in cells.items():
            if method.endswith("gain"):
                pair = [cells[exhibit, dataset, split, method[:-4] + word, x, metric] for word in ("baseline", "ours")]
                found.append(((exhibit, dataset, split, method, metric), *pair, printed))
    return found


def test_rows_are_tidy():
    for file in paper.FOLDER.glob("*.csv"):
        rows = as_printed(file.stem)
        assert tuple(rows.columns) == tidy.COLUMNS
        assert not rows.duplicated(paper.KEY).any()
        assert (rows[["value", "low", "high"]] == "").all(axis=None), "the paper's numbers stand in `paper` alone"
        assert np.isfinite(pd.to_numeric(rows.paper)).all()
        assert set(rows.dataset) <= {*tidy.DATASETS, ""} and set(rows.split) <= {*tidy.SPLITS, "train", ""}


def test_printed_gains_follow_from_their_tables():
    gains = printed_gains()
    assert len(gains) == 12 + 6 + 24
    for key, baseline, ours, printed in gains:
        low, high = possible_gains(baseline, ours, key[-1])
        agrees = low <= float(printed) + half_unit(printed) and float(printed) - half_unit(printed) <= high
        assert agrees != (key in MISPRINTED_GAINS), key


def test_tables_that_repeat_each_other_agree():
    again = paper.table("table8")
    compared = 0
    for exhibit, methods in {
        "table1": {"baseline": "baseline", "BLIP + SD": "ours"},
        "table2": {"baseline": "baseline", "SD + BLIP": "ours"},
    }.items():
        shared = again[again.method.isin(methods) & again.metric.isin(paper.table(exhibit).metric)]
        for row in shared.itertuples():
            cell = {"dataset": row.dataset, "split": row.split, "metric": row.metric}
            assert paper.number(exhibit, method=methods[row.method], **cell) == row.paper
            compared += 1
    assert compared == 2 * 4 + 2 * 3


def test_a_judge_stands_for_ours_and_an_open_cell_fits_any():
    cell = {"dataset": "nocaps", "split": "overall", "metric": "CIDEr"}
    assert paper.number("table1", method="dino", **cell) == paper.number("table1", method="ours", **cell)
    assert paper.number("table1", method="clip gain", **cell) == paper.number("table1", method="gain", **cell)
    assert paper.number("figure3", method="dino trend", **cell) == 1
    assert paper.number("figure9", method="clip ours rise", **cell) == 1


def test_a_number_the_paper_lacks_is_named():
    with pytest.raises(ValueError, match="table1 has no number for .*metric=METEOR; it has .*SPICE"):
        paper.number("table1", dataset="nocaps", split="overall", method="ours", metric="METEOR")
    with pytest.raises(ValueError, match="no exhibit 'table10'; it is one of .*table9"):
        paper.table("table10")


def test_improvement_turns_distances_round():
    assert paper.improvement(-2.0, "FID") == 2.0 and paper.improvement(-2.0, "CIDEr") == -2.0
    with pytest.raises(ValueError, match="higher METEOR is better"):
        paper.improvement(1.0, "METEOR")


def our_rows(*cells: tuple) -> pd.DataFrame:
    """Exhibit rows from (split, method, metric, value, low, high, n)."""
    rows = pd.DataFrame(cells, columns=["split", "method", "metric", "value", "low", "high", "n"])
    return rows.assign(exhibit="table1", dataset="nocaps", x=np.nan, paper=np.nan)[list(tidy.COLUMNS)]


def test_compare_is_one_table_with_a_verdict_for_gains_alone():
    shown = tidy.compare(
        our_rows(
            ("overall", "dino", "CIDEr", 61.234, 58.0, 64.0, 300),
            ("overall", "dino gain", "CIDEr", 9.5, 4.26, 14.0, 300),
            ("in", "dino gain", "CIDEr", 1.0, -2.0, 4.0, 100),
            ("out", "dino gain", "CIDEr", -5.0, -9.0, -1.0, 100),
            ("overall", "dino gain", "WMD", 3.0, np.nan, np.nan, 300),
        )
    )
    assert list(shown.columns) == ["ours", "n", "paper", "same direction?", paper.SIZE]
    assert shown.index.names == ["split", "method", "metric"]  # exhibit, dataset and x are the same throughout
    assert shown.ours[:2].tolist() == ["61.23 (58.00 to 64.00)", "9.50 (4.26 to 14.00)"]
    assert shown.n.tolist() == [300, 300, 100, 100, 300]
    assert shown.paper.fillna(-99).tolist() == [80.3, 8.4, 2.9, 12.8, -99]
    assert shown["same direction?"].tolist() == ["", "yes", "not visible", "no", ""]
    assert shown[paper.SIZE].tolist() == ["", "no", "no", "yes, smaller", ""]


def test_an_interval_excludes_a_size_whatever_it_says_of_zero():
    cases = {
        (1.0, 4.0, 3.0): "no",
        (-1.0, 2.0, 3.0): "yes, smaller",  # not visible, and yet not the paper's
        (4.0, 9.0, 3.0): "yes, larger",
        (-9.0, -4.0, -3.0): "yes, larger",  # the paper's is a loss
        (-2.0, 1.0, -3.0): "yes, smaller",
        (-9.0, -4.0, 3.0): "yes, smaller",
        (1.0, 4.0, 0.0): "",
        (np.nan, 4.0, 3.0): "",
    }
    assert {bounds: paper.excludes_size(*bounds) for bounds in cases} == cases


def test_verdicts_are_withheld_and_numbers_are_not():
    rows = our_rows(
        ("overall", "clip gain", "CIDEr", 9.5, 4.0, 14.0, 300), ("in", "dino gain", "CIDEr", 1.0, -2.0, 4.0, 9)
    )
    beside = tidy.compare(rows)
    for failed, said in (
        ([paper.ALL], ["withheld"] * 2),
        (["dino"], ["yes", "withheld"]),
        ([], ["yes", "not visible"]),
    ):
        shown = paper.withhold(beside, failed, rows.method)
        assert shown["same direction?"].tolist() == said and shown.ours.str[:3].tolist() == ["9.5", "1.0"]
    assert paper.withhold(beside, ["dino"])[paper.SIZE].tolist() == ["withheld"] * 2
    assert beside["same direction?"].tolist() == ["yes", "not visible"]
