"""The book's numbers as tidy rows: checked, saved by each chapter, published with a stamp and the shards behind them.

A chapter ends with `save`; `dfl book --scale full` publishes what the chapters saved as `results/<profile>/`, with a
stamp that names the commit, the machine and the checkpoints. "Made by this code" means a checkout of that commit.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dfl_utils.exhibits import narrow, paper
from dfl_utils.scores import intervals
from dfl_utils.scores.ranking import Estimate, Gain, in_percent
from dfl_utils.store import provenance
from dfl_utils.store.store import RunStore

COLUMNS = ("exhibit", "dataset", "split", "method", "x", "metric", "value", "low", "high", "n", "paper")
EXHIBITS = (
    *("figure3", "figure4", "figure9", *(f"table{number}" for number in range(1, 10))),
    *("scored", "operating", "foils", "painter", "tokenizer", "sweep", "ways", "headroom", "beyond"),
    *("without_captions", "cost"),
)
DATASETS = {"nocaps": "NoCaps", "coco": "COCO"}  # as a page calls them
SPLITS = ("in", "near", "out", "overall", "weighted", "train", "val", "test")  # weighted: overall by NoCaps' shares
METRICS = (
    *("CIDEr", "SPICE", "SPICE-like", "B@1", "B@2", "B@3", "B@4", "WMD", "CLIP-text", "SBERT"),
    *("CLIP", "DINO", "FID", "IS", "KID", "EfficientNet-KID", "truth", "invented", "omitted"),
)
KEY = ["exhibit", "dataset", "split", "method", "metric", "x"]
NUMBERS = ["x", "value", "low", "high", "n", "paper"]
DIGITS = {"CLIP-text": 3, "SBERT": 3, "WMD": 3, "CLIP": 4, "DINO": 3, "FID": 2, "KID": 4}  # of a level; else 1

JUDGED = ("verdict", "same direction?", paper.SIZE)  # how columns of verdicts begin
INTERVAL = re.compile(r" \((\S+) to (\S+)\)")

# Metrics of exhibit `cost` that are seconds or ratios of seconds: two runs of one code differ in them.
TIMED = (
    "seconds a caption",
    "seconds an image",
    "joint step ratio",
    "joint step over naive plain steps",
    "times the original cost, about",
    "step over a mean plain step",
)


def folder() -> Path:
    """Where this process's chapters save their numbers and pictures: DFL_RESULTS, or `_build/results/interactive`."""
    path = provenance.named_folder("DFL_RESULTS") or provenance.ROOT / "_build" / "results" / "interactive"
    path.mkdir(parents=True, exist_ok=True)
    return path


def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with numeric columns as floats, ready to be written.

    Args:
        frame: rows with the columns `COLUMNS`; `low`, `high`, `x` and `paper` may be empty.

    Raises:
        ValueError: one sentence that names the first row that breaks a rule.
    """
    if tuple(frame.columns) != COLUMNS:
        raise ValueError(f"Exhibit rows need the columns {','.join(COLUMNS)}, not {','.join(map(str, frame.columns))}.")
    frame = frame.reset_index(drop=True)
    frame[NUMBERS] = frame[NUMBERS].apply(pd.to_numeric)
    frame[["dataset", "split", "method"]] = frame[["dataset", "split", "method"]].fillna("")
    # Measurements of a tokenizer or of time belong to no data set.
    free = frame.exhibit.isin(["tokenizer", "cost"])
    spelling = {name.casefold(): name for name in METRICS}
    known = frame.metric.astype(str).str.casefold().map(spelling)
    _require(frame.exhibit.isin(EXHIBITS), frame, f"exhibit is one of {', '.join(EXHIBITS)}")
    _require(frame.dataset.isin(DATASETS) | (free & frame.dataset.eq("")), frame, "dataset is nocaps or coco")
    _require(frame.split.isin(SPLITS) | (free & frame.split.eq("")), frame, f"split is one of {', '.join(SPLITS)}")
    _require(known.isna() | (known == frame.metric), frame, f"metric is spelled as in {', '.join(METRICS)}")
    _require(frame.value.notna(), frame, "value is a number")
    _require(frame.low.isna() == frame.high.isna(), frame, "low and high come together")
    _require(frame.low.isna() | frame.value.between(frame.low, frame.high), frame, "low <= value <= high")
    _require(frame.n.ge(1) & frame.n.mod(1).eq(0), frame, "n is a whole number of images, at least 1")
    _require(~frame.duplicated(KEY), frame, f"{', '.join(KEY)} together are unique")
    return frame


def _require(holds: pd.Series, frame: pd.DataFrame, rule: str) -> None:
    if not holds.all():
        row = frame[~holds].iloc[0]
        shown = ", ".join(f"{column}={row[column]}" for column in COLUMNS if pd.notna(row[column]))
        raise ValueError(f"An exhibit row breaks the rule that {rule}: {shown}.")


def save(chapter: str, frame: pd.DataFrame, cost: dict, failed: Collection[str] = ()) -> Path:
    """Write a chapter's rows (`validate`) as `<folder()>/<chapter>.csv`, and what made them as a JSON beside it.

    `cost` is that of `spent`, `failed` that of `paper.withhold`. Returns the path of the CSV.
    """
    path = folder() / f"{chapter}.csv"
    write(frame, path)
    record = {
        "chapter": chapter,
        "cost": cost | {"seconds": round(cost["seconds"], 1), "model_calls": int(cost["model_calls"])},
        "checkpoints": provenance.checkpoints(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "exhibits": sorted(set(frame.exhibit)),
    } | ({"failed": sorted(failed)} if failed else {})
    write_json(record, path.with_suffix(".json"))
    return path


def write(frame: pd.DataFrame, path: Path) -> None:
    """Rows sorted, floats with six digits, so that a second run changes few lines."""
    frame = validate(frame)
    ordered = frame.assign(
        exhibit=pd.Categorical(frame.exhibit, EXHIBITS),
        dataset=pd.Categorical(frame.dataset, ["", *DATASETS]),
        split=pd.Categorical(frame.split, ["", *SPLITS]),
        n=frame.n.astype(int),
    ).sort_values(KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, ordered.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read(path: Path) -> pd.DataFrame:
    """Read rows as `save` and `publish` write them; a method may be called NA, None or null."""
    texts = dict.fromkeys(set(COLUMNS) - set(NUMBERS), str)
    empty = {name: [""] for name in NUMBERS}
    return validate(pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=empty))


def write_json(record: dict, path: Path) -> None:
    """Two levels are indented; what lies deeper stands on one line."""
    text = json.dumps(record, indent=1) + "\n"
    text = re.sub(r"(?<=[\[{])\n {3,}|\n {2,}(?=[\]}])", "", text)
    _replace(path, re.sub(r"\n {3,}", " ", text))


def _replace(path: Path, text: str) -> None:
    """Write a whole file or none."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# --- The book's tables: the rows that a chapter saves, and what its page shows of them.


def row(
    exhibit: str,
    part: tuple[str, str],
    method: str,
    metric: str,
    estimate: Estimate | float,
    x: float = np.nan,
    n: int | None = None,
    published: float = np.nan,
) -> dict:
    """A row, column -> value in the order of `COLUMNS`.

    Args:
        part: data set and split.
        estimate: its interval may be NaN; a number has none, and comes with its n.
        x: NaN where the exhibit is no curve.
        n: in place of the estimate's.
        published: the paper's number; `paper.fill` knows those of its tables.
    """
    if not isinstance(estimate, Estimate):
        estimate = Estimate(estimate, np.nan, np.nan, n)
    n = estimate.n if n is None else n
    numbers = estimate.value, estimate.low, estimate.high, n, published
    return dict(zip(COLUMNS, (exhibit, *part, method, x, metric, *numbers), strict=True))


def rows(
    exhibit: str, part: tuple[str, str], estimates: Mapping[tuple, Estimate | float], n: int | None = None
) -> list[dict]:
    """A `row` for each estimate, by (method, metric) or (method, metric, x); `n` as there."""
    return [row(exhibit, part, *of[:2], estimate, *of[2:], n=n) for of, estimate in estimates.items()]


def written(estimate: Estimate, digits: int = 1, sign: str = "", missing: str = "") -> str:
    """`value (low to high)`, `missing` for NaN; never a minus before zero; the sign `+` also says what is positive."""
    if np.isnan(estimate.value):
        return missing
    value, low, high = (f"{v:{sign}z.{digits}f}" for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def markdown(name: str, caption: str, table: pd.DataFrame, digits: int | Mapping[str, int] = 1) -> str:
    """Markdown of a table that a page can number and refer to.

    Args:
        name: label of the table, unique in the book.
        caption: one line.
        table: integers and texts are shown as they are, estimates with their intervals, NaN as nothing. A named index
            is a column. Wide ones are cut to six columns, with a link to all.
        digits: decimals of floats and estimates, for all columns or by column.
    """
    below, table = "", table.reset_index() if table.index.names != [None] else table
    of = digits if isinstance(digits, Mapping) else dict.fromkeys(table.columns, digits)
    texts = pd.DataFrame({column: [_cell(v, of.get(column, 1)) for v in table[column]] for column in table})
    shown = {column: [_shown(str(column), text) for text in texts[column]] for column in texts}
    few, same = narrow.six(pd.DataFrame(shown, columns=table.columns))
    if few.shape != texts.shape or same:
        caption = f"{caption} {same}".strip()
        below = f"All {texts.shape[1]} columns: {narrow.link(texts, f'{name}.csv')}\n\n"
    text = few.to_markdown(index=False, disable_numparse=True)
    return f":::{{table}} {caption}\n:name: {name}\n\n{text}\n\n:::\n\n{below}"


def _shown(column: str, text: str) -> str:
    """A cell for a page: no line ends inside an interval, and a verdict has its colour (`custom.css`)."""
    if text and column.startswith(JUDGED):
        kind = "within" if (column, text) == (paper.SIZE, "no") else text.replace(",", "").replace(" ", "-")
        return f"[{text}]{{.verdict .{kind}}}"
    return INTERVAL.sub("\u00a0(\\1\u00a0to\u00a0\\2)", text)


def _cell(value: object, digits: int) -> str:
    if isinstance(value, Estimate):
        return written(value, digits)
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:z.{digits}f}"
    return "" if value is None or value is pd.NA else str(value)


def estimates(rows: pd.DataFrame) -> pd.Series:
    """The estimate of each row, under the rows' index."""
    return pd.Series(map(estimate, rows.itertuples()), index=rows.index, dtype=object)


def estimate(row) -> Estimate:
    """That of a row with the attributes `value`, `low`, `high` and `n`."""
    return Estimate(row.value, row.low, row.high, int(row.n))


def printed(levels: pd.Series, metrics: Iterable[str]) -> pd.Series:
    """Levels as texts, each with the decimals of its metric; of estimates the interval too, of NaN nothing."""
    texts = [_cell(value, DIGITS.get(metric, 1)) for value, metric in zip(levels, metrics, strict=True)]
    return pd.Series(texts, index=levels.index, dtype=object)


def gain_table(
    gains: Mapping[tuple, Gain], names: Sequence[str], published: Callable[..., Sequence[float]]
) -> pd.DataFrame:
    """A table of gains beside the paper's: from a random pick to the best-ranked, better is positive.

    Args:
        gains: by what `names`, the table's first columns, name; the metric is the last of it.
        published: the same names -> the paper's baseline, its best-ranked and, where it prints one, its gain in per
            cent; NaN where it has none.
    """
    lines = [
        dict(zip(names, key, strict=True)) | _beside(gain, key[-1], *published(*key)) for key, gain in gains.items()
    ]
    return pd.DataFrame(lines)


def _beside(gain: Gain, metric: str, base: float, best: float, theirs: float | None = None) -> dict:
    """Ours beside the paper's; a gain over a level that may be zero is not stated."""
    if theirs is None:
        theirs = float(paper.improvement(in_percent(best, base), metric))
    change, stated = improved(gain.percent, metric), gain.measurable
    return {
        "ours": f"{gain.baseline.value:#.4g} to {gain.best.value:#.4g}",
        "gain, %": change if stated else "not stated",
        "n": gain.best.n,
        "paper": "" if np.isnan(theirs) else f"{base} to {best}",
        "paper, %": theirs,
        "same direction?": paper.same_direction(change.low, change.high, theirs) if stated else "",
        paper.SIZE: paper.excludes_size(change.low, change.high, theirs) if stated else "",
        "visible at our n?": intervals.would_show(theirs, change) if stated else "",
    }


def compare(ours: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """Exhibit rows beside the paper's, in their order: `ours` as text, `n`, `paper` and the verdicts on improvements.

    Those are rows of `paper.SIGNED`; levels have no direction and get "". The column `paper.SIZE` is there where the
    paper has a size. The index holds the metric and what else of `paper.KEY` differs between the rows.
    """
    rows = paper.fill(ours)
    published = rows.paper.where(rows.method.str.split().str[-1].isin(paper.SIGNED))
    sizes = rows.paper.where(rows.method.str.endswith("gain"))
    ours = [written(e, digits) for e in estimates(rows)]
    shown = pd.DataFrame({"ours": ours, "n": rows.n.astype("Int64"), "paper": rows.paper})
    shown["same direction?"] = list(map(paper.same_direction, rows.low, rows.high, published))
    if sizes.notna().any():
        shown[paper.SIZE] = list(map(paper.excludes_size, rows.low, rows.high, sizes))
    labels = [name for name in paper.KEY if name == "metric" or rows[name].nunique(dropna=False) > 1]
    return shown.set_index([rows[name] for name in labels])


def improved(change: Estimate, metric: str) -> Estimate:
    """A change as an improvement: of a metric that is better lower, the sign turns."""
    value, *bounds = (paper.improvement(part, metric) for part in (change.value, change.low, change.high))
    return Estimate(value, *sorted(bounds), change.n, change.excluded)


# What ranking is worth: a judge's similarities (images, N) by its name, and scores by that of their metric.
Measures = Mapping[str, Any]  # `ranking.ByImage`, or `image_sets.SetCurves`, which takes seconds to import
Judges = Mapping[str, ArrayLike]


def trends(measures: Measures, judges: Judges) -> dict[tuple[str, str], Estimate]:
    """(metric, judge) -> Kendall's tau, positive is better; none where nothing has an order."""
    return _improvements(measures, judges, lambda measure, sim: measure.trend(sim))


def gains(measures: Measures, judges: Judges) -> dict[tuple[str, str], Estimate]:
    """(metric, judge) -> gain of the best-ranked over a random pick in per cent; none over a level of zero."""
    return _improvements(measures, judges, lambda measure, sim: measure.gain(sim).percent)


def _improvements(measures: Measures, judges: Judges, ask: Callable) -> dict[tuple[str, str], Estimate]:
    pairs = [(judge, metric) for judge in judges for metric in measures]
    found = {(metric, judge): improved(ask(measures[metric], judges[judge]), metric) for judge, metric in pairs}
    return {of: e for of, e in found.items() if not np.isnan(e.value)}


def by_metric(
    exhibit: str, part: tuple[str, str], estimates: Mapping[str, Mapping[tuple[str, str], Estimate]]
) -> list[dict]:
    """`rows` of what is made of a name, such as "{} gain" -> (metric, name) -> estimate."""
    found = {(of.format(name), m): e for of, each in estimates.items() for (m, name), e in each.items()}
    return rows(exhibit, part, found)


def spread(heads: Mapping[str, Mapping[tuple[str, str], Estimate]], metrics: Iterable[str]) -> pd.DataFrame:
    """A line a name, and a column of each metric and head, such as "τ, {}" -> (metric, name) -> estimate."""
    columns = {head.format(m): (m, found) for m in metrics for head, found in heads.items()}
    return pd.DataFrame(
        {head: pd.Series({n: e for (of, n), e in found.items() if of == m}) for head, (m, found) in columns.items()}
    )


def by_rank(exhibit: str, part: tuple[str, str], measures: Measures, judges: Judges) -> list[dict]:
    """Rows of a line a judge and metric, `x` = rank, and of the level of a random pick (Figures 3 and 4)."""
    lines = [
        row(exhibit, part, judge, metric, e, x)
        for metric, measure in measures.items()
        for judge, sim in judges.items()
        for x, e in enumerate(measure.by_rank(sim))
    ]
    any_sim = next(iter(judges.values()))
    levels = {(metric, "random"): measure.gain(any_sim).baseline for metric, measure in measures.items()}
    return lines + by_metric(exhibit, part, {"{}": levels})


def best_ranked(
    exhibit: str, part: tuple[str, str], measures: Measures, judges: Judges, *, clear: bool = False
) -> list[dict]:
    """Rows of the best-ranked and of a random pick, and of the gain in per cent (Tables 1 and 2).

    `clear` leaves out gains over a level that may be zero.
    """
    estimates = {}
    for metric, measure in measures.items():
        for judge, sim in judges.items():
            worth = measure.gain(sim)
            estimates |= {(metric, judge): worth.best, (metric, "random"): worth.baseline}
            if worth.measurable or not clear:
                estimates[metric, f"{judge} gain"] = improved(worth.percent, metric)
    return by_metric(exhibit, part, {"{}": estimates})


def with_papers(ours: pd.DataFrame, digits: Mapping[str, int] = DIGITS) -> pd.DataFrame:
    """Our rows of one exhibit, and the paper's, whose methods are called `paper: METHOD`, ready to be pivoted.

    Splits and metrics sort as on every page; the column `cell` is a text with its interval, by a metric's decimals.
    """
    decimals = ours.metric.map(digits).fillna(1).where(~ours.method.str.endswith(" gain"), 1).astype(int)
    ours = ours.assign(cell=list(map(written, estimates(ours), decimals)))
    theirs = paper.table(ours.exhibit.iloc[0])
    theirs = theirs.assign(method="paper: " + theirs.method, value=theirs.paper, cell=theirs.paper.astype(str))
    both = pd.concat([ours, theirs], ignore_index=True)
    both = both.assign(split=pd.Categorical(both.split, SPLITS), metric=pd.Categorical(both.metric, METRICS))
    return both.sort_values(["split", "metric"], kind="stable")


def spent(store: RunStore) -> dict:
    """What the shards that a chapter asked for cost when they were first made, see `store.Spent`.

    Returns:
        `seconds` and `model_calls` of all, and `kinds`: kind -> [calls, seconds], of those that took any.
    """
    kinds = {name: [kind.calls, round(kind.seconds, 1)] for name, kind in sorted(store.spent.items())}
    return {
        "seconds": sum(kind.seconds for kind in store.spent.values()),
        "model_calls": sum(kind.calls for kind in store.spent.values()),
        "kinds": {name: both for name, both in kinds.items() if any(both)},
    }
