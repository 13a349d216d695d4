"""Six columns of a wide table: what a page shows, beside a link to all of it.

A few long lines are turned on their side and keep everything. Else columns that say one thing throughout go into a
sentence, pairs that belong together become one, and of what is left the least important is left out.
"""

import base64
import gzip

import pandas as pd

MOST = 6
# From the first that is left out. None of them carries a finding: they say how it was reached, or repeat it.
ASIDE = (
    *("smallest visible, %", "visible here?", "visible at our n?", "seeds", "n", "better by", "visible from n"),
    *("paper: baseline", "paper: ours", "excludes the paper's size?", "clip", "dino", "table"),
)
LEVELS = {"paper": ("paper, %", "the paper's, %")}  # left out where one of these stands beside it
PAIRS = (("data", "split"), ("dataset", "split"), ("exhibit", "method"))
VERDICTS = ("verdict", "same direction?")


def six(cells: pd.DataFrame, most: int = MOST) -> tuple[pd.DataFrame, str]:
    """At most so many columns of a table of texts, and a sentence of what is the same in every line, or ""."""
    if cells.shape[1] <= most:
        return cells, ""
    names = cells.iloc[:, 0]
    if len(cells) < most and names.is_unique and names.all() and not cells.columns.duplicated().any():
        turned = cells.set_index(cells.columns[0]).T
        return turned.rename_axis(columns=None).reset_index(names=names.name), ""
    cells, same = _apart(cells)
    for name in ASIDE[:4]:
        cells = _without(cells, name, most)
    cells = _joined(cells, most)
    for name in ASIDE[4:]:
        cells = _without(cells, name, most)
    for name, others in LEVELS.items():
        if set(others) & set(cells.columns):
            cells = _without(cells, name, most)
    return _cut(cells, most), same


def _apart(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Columns of one value, as a sentence."""
    told = [name for name in cells.columns if name and not name.startswith(VERDICTS) and cells[name].all()]
    one = [name for name in told if len(cells) > 1 and cells[name].nunique() == 1]
    said = "; ".join(f"{name} {cells[name].iloc[0]}" for name in one)
    return cells.drop(columns=one), f"In each line: {said}." if one else ""


def _without(cells: pd.DataFrame, name: str, most: int) -> pd.DataFrame:
    return cells.drop(columns=name) if cells.shape[1] > most and name in cells else cells


def _joined(cells: pd.DataFrame, most: int) -> pd.DataFrame:
    """A verdict goes to its gain, a split to its data set, while there are too many."""
    cells = cells.copy()
    for pair in PAIRS:
        if cells.shape[1] > most and set(pair) <= set(cells.columns):
            first, second = sorted(pair, key=list(cells.columns).index)
            cells[first] = [f"{a} {b}".strip() for a, b in _two(cells, *pair)]
            cells = cells.rename(columns={first: " ".join(pair)}).drop(columns=second)
    for gain in [name for name in cells.columns if name.startswith("gain, %")]:
        verdict = f"verdict{gain.removeprefix('gain, %')}"
        if cells.shape[1] > most and verdict in cells:
            cells[gain] = [f"{a} {b}".strip() for a, b in _two(cells, gain, verdict)]
            cells = cells.drop(columns=verdict)
    return cells


def _two(cells: pd.DataFrame, *names: str) -> zip:
    return zip(*(cells[name] for name in names), strict=True)


def _cut(cells: pd.DataFrame, most: int) -> pd.DataFrame:
    """The first columns; one that gives a verdict stays wherever it stands."""
    kept = list(range(cells.shape[1]))
    for place in reversed(kept.copy()):
        if len(kept) > most and not str(cells.columns[place]).startswith(VERDICTS):
            kept.remove(place)
    return cells.iloc[:, kept[:most]]


def link(table: pd.DataFrame, name: str, text: str = "") -> str:
    """HTML: a link that downloads a table as the CSV `name`, packed if that ends in `.gz`; `text` is what it reads."""
    csv, kind = table.to_csv(index=False).encode(), "text/csv"
    if name.endswith(".gz"):
        csv, kind = gzip.compress(csv, mtime=0), "application/gzip"
    return f'<a download="{name}" href="data:{kind};base64,{base64.b64encode(csv).decode()}">{text or name}</a>'
