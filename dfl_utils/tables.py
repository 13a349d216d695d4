"""The book's tables: the rows that a chapter saves, and what its page shows of them."""

import numpy as np
import pandas as pd
from IPython.display import Markdown

from dfl_utils import exhibits, paper
from dfl_utils.ranking import Estimate
from dfl_utils.store import RunStore


def row(
    exhibit: str,
    part: tuple[str, str],
    method: str,
    metric: str,
    estimate: Estimate,
    x: float = np.nan,
    n: int | None = None,
    published: float = np.nan,
) -> dict:
    """A row for `exhibits.save`.

    Args:
        exhibit, method, metric, x: as in `exhibits`; `x` is NaN where the exhibit is no curve.
        part: data set and split.
        estimate: its interval may be NaN.
        n: in place of the estimate's.
        published: the paper's number; `paper.fill` knows those of its tables.

    Returns:
        Column -> value, in the order of `exhibits.COLUMNS`.
    """
    n = estimate.n if n is None else n
    numbers = estimate.value, estimate.low, estimate.high, n, published
    return dict(zip(exhibits.COLUMNS, (exhibit, *part, method, x, metric, *numbers), strict=True))


def written(estimate: Estimate, digits: int = 1, sign: str = "", missing: str = "") -> str:
    """`value (low to high)`; `missing` for NaN, and never a minus before zero.

    Args:
        estimate: a number with its interval.
        digits: decimals.
        sign: `+` also says that a number is positive.
        missing: what stands for a value that is NaN.
    """
    if np.isnan(estimate.value):
        return missing
    value, low, high = (f"{v:{sign}z.{digits}f}" for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def numbered(name: str, caption: str, table: pd.DataFrame | str) -> Markdown:
    """A table that a page can number and refer to.

    Args:
        name: label of the table, unique in the book.
        caption: one line.
        table: of which texts are shown letter by letter, numbers as Python writes them and NaN as nothing; or Markdown.

    Returns:
        What `glue` takes for a `glue:md` directive of the format `myst`.
    """
    if isinstance(table, pd.DataFrame):
        table = table.astype(object).where(table.notna(), "").to_markdown(index=False, disable_numparse=True)
    return Markdown(f":::{{table}} {caption}\n:name: {name}\n\n{table}\n\n:::\n")


def improved(change: Estimate, metric: str) -> Estimate:
    """A change as an improvement: of a metric that is better lower, the sign turns."""
    return Estimate(*paper.improvement(change.value, change.low, change.high, metric), change.n, change.excluded)


def spent(store: RunStore) -> dict[str, float]:
    """Seconds and model calls of the shards that a chapter asked for, for `exhibits.save`; see `store.Spent`."""
    kinds = store.spent.values()
    seconds = sum(kind.seconds - kind.inner_seconds for kind in kinds)
    return {"seconds": seconds, "model_calls": sum(kind.calls - kind.inner_calls for kind in kinds)}
