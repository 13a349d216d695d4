"""The paper's published numbers, each held once in `data/paper/`, and ours beside them in one table."""

from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path(__file__).resolve().parents[2] / "data" / "paper"
TEXT = ["exhibit", "dataset", "split", "method", "metric"]
KEY = ["exhibit", "dataset", "split", "method", "x", "metric"]
JUDGES = ("clip", "dino", "sbert", "cider", "wmd")  # similarities that rank, as they are written in `method`
ALL = "all"  # of methods: a sanity check stands behind all rows of a chapter
SIZE = "excludes the paper's size?"  # a column of verdicts
SIGNED = ("gain", "trend", "rise")  # last word of a method whose number is an improvement: positive is better
# CLIP of images is a distance in the paper's Tables 2, 4, 5 and 8.
HIGHER_IS_BETTER = {
    "CIDEr": True, "SPICE": True, "SPICE-like": True, "B@1": True, "B@2": True, "B@3": True, "B@4": True, "WMD": False,
    "CLIP-text": True, "SBERT": True, "CLIP": False, "DINO": True, "FID": False, "IS": True, "KID": False,
    "EfficientNet-KID": False, "truth": True, "invented": False, "omitted": False,
}  # fmt: skip


@cache
def _everything() -> pd.DataFrame:
    files = sorted(FOLDER.glob("*.csv"))
    numeric = {name: [""] for name in ("x", "value", "low", "high", "n", "paper")}
    read = [pd.read_csv(f, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=numeric) for f in files]
    return pd.concat(read, ignore_index=True)


def table(exhibit: str) -> pd.DataFrame:
    """All that the paper says in numbers of one exhibit, a row each (see `data/paper/README.md`).

    The number stands in `paper`; empty text is "", an empty number NaN. ValueError of an unknown exhibit.
    """
    everything = _everything()
    rows = everything[everything.exhibit == exhibit].reset_index(drop=True)
    if rows.empty:
        known = ", ".join(everything.exhibit.unique())
        raise ValueError(f"data/paper has no exhibit {exhibit!r}; it is one of {known}.")
    return rows


@cache
def _records(exhibit: str) -> list[dict]:
    everything = _everything()
    return everything[everything.exhibit == exhibit].to_dict("records")


def _names(method: str) -> list[str]:
    """The names under which the paper may have a method of ours: ours first, then without the judge that ranked."""
    words = ["baseline" if word == "random" else word for word in method.split() if word not in JUDGES]
    if not words or words[-1] not in ("baseline", "ours", *SIGNED):
        words.append("ours")
    return [method, " ".join(words)]


def _find(exhibit: str, dataset: str, split: str, method: str, x: float | None, metric: str) -> float:
    """The paper's number, NaN where it has none."""
    # The paper's overall is weighted by the domains' shares in NoCaps.
    wanted = {"dataset": (dataset, ""), "split": (split.replace("weighted", "overall"), ""), "metric": (metric, "")}
    fits = [
        row
        for row in _records(exhibit)
        if all(row[name] in texts for name, texts in wanted.items()) and (np.isnan(row["x"]) or row["x"] == x)
    ]
    found = [row["paper"] for name in _names(method) for row in fits if row["method"] == name]
    return float(found[0]) if found else float("nan")


def number(exhibit: str, *, dataset: str, split: str, method: str, metric: str, x: float | None = None) -> float:
    """The paper's number for one cell of an exhibit.

    Where the paper leaves a cell open (which data set Figure 3 shows, which similarity ranked in Table 1), any value
    fits it: `clip` and `dino` stand for `ours`, `clip gain` for `gain`, `random` for `baseline`.

    Raises:
        ValueError: the paper has no such number.
    """
    found = _find(exhibit, dataset, split, method, x, metric)
    if np.isnan(found):
        wanted = f"dataset={dataset}, split={split}, method={method}, x={x}, metric={metric}"
        has = "; ".join(f"{c}: {', '.join(map(str, table(exhibit)[c].unique()))}" for c in ("method", "metric"))
        raise ValueError(f"The paper's {exhibit} has no number for {wanted}; it has {has}.")
    return found


def improvement(change: float, metric: str) -> float:
    """A change in a metric as an improvement: of a distance the sign turns.

    The paper prints its gains so (a falling FID is a positive gain), and `gain` and `trend` rows are to follow it.
    """
    if metric not in HIGHER_IS_BETTER:
        raise ValueError(f"Whether a higher {metric} is better is not known; add it to paper.HIGHER_IS_BETTER.")
    return change if HIGHER_IS_BETTER[metric] else -change


def same_direction(low: float, high: float, published: float) -> str:
    """Does our improvement go the paper's way? The one rule behind every such verdict in the book.

    Args:
        low, high: our 95 % interval of an improvement (positive is better).
        published: the paper's improvement; only its sign counts.

    Returns:
        "yes": our interval excludes zero on the paper's side; "no": on the other side; "not visible": it includes zero
        (as a bound, too); "": nothing to compare: no interval, or the paper has no number or claims no change (0).
    """
    if np.isnan([low, high, published]).any() or published == 0:
        return ""
    if low <= 0 <= high:
        return "not visible"
    return "yes" if (low > 0) == (published > 0) else "no"


def excludes_size(low: float, high: float, published: float) -> str:
    """Does our interval of an improvement exclude the paper's size, whatever it says of zero?

    "no": it holds the paper's; "yes, smaller", "yes, larger": ours is, seen in the paper's direction; "" as there.
    """
    if np.isnan([low, high, published]).any() or published == 0:
        return ""
    if low <= published <= high:
        return "no"
    return "yes, smaller" if (high < published) == (published > 0) else "yes, larger"


def gain_of_levels(after: float, before: float, metric: str) -> float:
    """A gain in per cent made of two levels, where the paper prints no gain; positive is better."""
    return improvement(100 * (after - before) / before, metric)


def standing(low: float, high: float, published: float, sized: bool = True) -> str:
    """How an improvement of ours stands to the paper's, in one word: what `same_direction` and `excludes_size` say.

    `sized`: whether `published` has a size; of a figure there is its sign alone.

    Returns:
        "agrees": the paper's direction, and its size lies in our interval (or it has none); "smaller" or "larger": our
        interval excludes the paper's size, smaller also where nothing of the effect is visible; "contradicts": the
        other direction; "cannot tell": our interval holds both zero and the paper's number; "" as there.
    """
    direction = same_direction(low, high, published)
    size = excludes_size(low, high, published).removeprefix("yes, ") if sized else "no"
    if direction in ("", "no") or size in ("smaller", "larger"):
        return {"no": "contradicts"}.get(direction, size)
    return "agrees" if direction == "yes" else "cannot tell"


def doubtful(method: str, failed: Collection[str]) -> bool:
    """Whether a sanity check stands behind a row of that method which failed: it names one that did, or `ALL` did."""
    return ALL in failed or not set(failed).isdisjoint(method.split())


def withhold(table: pd.DataFrame, failed: Collection[str], methods: Iterable[str] | None = None) -> pd.DataFrame:
    """A table without the verdicts behind which a sanity check failed: they read `withheld`.

    Args:
        failed: words of methods whose check failed, or `ALL`.
        methods: of each row; None: what failed is behind all of them.
    """
    columns = [name for name in table if name.startswith(("verdict", "same direction?", SIZE))]
    rows = [bool(failed)] * len(table) if methods is None else [doubtful(method, failed) for method in methods]
    table = table.copy()
    table.loc[rows, columns] = table.loc[rows, columns].where(table.loc[rows, columns] == "", "withheld")
    return table


def fill(ours: pd.DataFrame) -> pd.DataFrame:
    """Our exhibit rows, with the column `paper` filled from `data/paper/` where it says nothing; NaN of no number."""
    ours = ours.astype(dict.fromkeys(TEXT, object)).fillna(dict.fromkeys(TEXT, "")).reset_index(drop=True)
    return ours.assign(paper=ours.paper.fillna(pd.Series([_find(**row) for row in ours[KEY].to_dict("records")])))
