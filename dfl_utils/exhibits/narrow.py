"""Six columns of a wide table: what a page shows, beside a link to all of it.

A few long lines are turned on their side and keep everything. Else columns that say one thing throughout go into a
sentence, pairs that belong together become one, and of what is left the least important is left out.
"""

import base64
import gzip

import pandas as pd

MOST = 6
# From the first that is left out; `LAST` when pairs are one. None carries a finding: they say how it was reached.
ASIDE = ("smallest visible, %", "visible at our n?", "seeds")
LAST = ("n", "visible from n", "paper: baseline", "paper: ours", "excludes the paper's size?", "clip", "dino")
LEVELS = {"paper": ("paper, %", "the paper's, %")}  # left out where one of these stands beside it
PAIRS = (("data", "split"), ("dataset", "split"), ("exhibit", "method"))
VERDICTS = ("verdict", "same direction?")


def six(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """At most six columns of a table of texts, and a sentence of what is the same in every line, or ""."""
    if cells.shape[1] <= MOST:
        return cells, ""
    names = cells.iloc[:, 0]
    if len(cells) < MOST and names.is_unique and names.all() and not cells.columns.duplicated().any():
        turned = cells.set_index(cells.columns[0]).T
        return turned.rename_axis(columns=None).reset_index(names=names.name), ""
    cells, same = _apart(cells)
    for name in ASIDE:
        cells = _without(cells, name)
    cells = _joined(cells)
    for name in LAST:
        cells = _without(cells, name)
    for name, others in LEVELS.items():
        if set(others) & set(cells.columns):
            cells = _without(cells, name)
    return _cut(cells), same


def _apart(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Columns of one value, as a sentence."""
    full = [name for name in cells.columns if name and not name.startswith(VERDICTS) and cells[name].all()]
    one = [name for name in full if len(cells) > 1 and cells[name].nunique() == 1]
    said = "; ".join(f"{name} {cells[name].iloc[0]}" for name in one)
    return cells.drop(columns=one), f"In each line: {said}." if one else ""


def _without(cells: pd.DataFrame, name: str) -> pd.DataFrame:
    return cells.drop(columns=name) if cells.shape[1] > MOST and name in cells else cells


def _joined(cells: pd.DataFrame) -> pd.DataFrame:
    """A verdict goes to its gain, a split to its data set, while there are too many."""
    cells = cells.copy()
    for pair in PAIRS:
        if cells.shape[1] > MOST and set(pair) <= set(cells.columns):
            first, second = sorted(pair, key=list(cells.columns).index)
            cells[first] = (cells[pair[0]] + " " + cells[pair[1]]).str.strip()
            cells = cells.rename(columns={first: " ".join(pair)}).drop(columns=second)
    for gain in [name for name in cells.columns if name.startswith("gain, %")]:
        verdict = f"verdict{gain.removeprefix('gain, %')}"
        if cells.shape[1] > MOST and verdict in cells:
            cells[gain] = (cells[gain] + " " + cells[verdict]).str.strip()
            cells = cells.drop(columns=verdict)
    return cells


def _cut(cells: pd.DataFrame) -> pd.DataFrame:
    """The first columns; one that gives a verdict stays wherever it stands."""
    others = [k for k, name in enumerate(cells.columns) if not str(name).startswith(VERDICTS)]
    surplus = others[::-1][: max(0, cells.shape[1] - MOST)]
    return cells.iloc[:, [k for k in range(cells.shape[1]) if k not in surplus][:MOST]]


def link(table: pd.DataFrame, name: str, text: str = "") -> str:
    """HTML: a link that downloads a table as the CSV `name`, packed if that ends in `.gz`; `text` is what it reads."""
    csv, kind = table.to_csv(index=False).encode(), "text/csv"
    if name.endswith(".gz"):
        csv, kind = gzip.compress(csv, mtime=0), "application/gzip"
    return f'<a download="{name}" href="data:{kind};base64,{base64.b64encode(csv).decode()}">{text or name}</a>'
