"""What a chapter tells its page: numbers for its sentences, tables, figures, and at its end the rows that it keeps.

On the page `num_images=300` is {glue:text}`num-images`, and the table `tab-one` stands where it is asked for by
```{glue:md} tab_one
:format: myst
```
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display, update_display
from matplotlib.figure import Figure

from dfl_utils.exhibits import answers, narrow, paper, plots, tidy
from dfl_utils.scores import intervals
from dfl_utils.scores.ranking import Estimate
from dfl_utils.store.store import RunStore

DPI = 150  # of saved figures
pd.options.display.max_colwidth = None  # a sentence in a data frame is shown whole


def answer(chapter: str) -> None:
    """Open a chapter with its answer in four lines: the published run's, until `save` puts this run's in its place."""
    display(replace(answers.published()[chapter], note=answers.LATER), display_id=f"answer-{chapter}")


def say(*, digits: int = 1, sign: str = "", unit: str = "", **values: object) -> None:
    """Give the page values for its sentences.

    Args:
        digits, sign, unit: of an `Estimate`, see `tidy.written`; the unit, such as " %", follows its value.
        **values: an `Estimate` is written with its interval; numbers and texts are taken as they are.
    """
    from myst_nb import glue

    for name, value in values.items():
        if isinstance(value, Estimate):
            value = tidy.written(value, digits, sign, "none (nan)").replace(" (", f"{unit} (", 1)
        glue(name.replace("_", "-"), value.item() if isinstance(value, np.generic) else value, display=False)


def say_verdicts(name: str, verdicts: pd.Series) -> None:
    """Give the page how many verdicts there are, `NAME-cells`, and of each how many: `NAME-yes`, `NAME-not-visible`."""
    verdicts = verdicts[verdicts != ""]
    say(**{f"{name}-cells": len(verdicts)})
    for verdict in ("yes", "no", "better", "worse", "not visible", "yes, smaller", "yes, larger"):
        say(**{f"{name}-{verdict.replace(',', '').replace(' ', '-')}": (verdicts == verdict).sum()})


def show(
    name: str,
    shown: Figure | pd.DataFrame | Mapping[str, pd.DataFrame],
    caption: str = "",
    *,
    digits: int | Mapping[str, int] = 1,
) -> Figure | None:
    """Show a figure here, or give the page a numbered table.

    Args:
        name: unique in the book. Of a table its label; of a figure the name of the PNG that is saved beside the rows.
        shown: a figure, which is returned for the cell to show; a table with a caption of one line; or several tables
            under one name: caption -> table.
        digits: see `tidy.markdown`.
    """
    if isinstance(shown, Figure):
        if isinstance(shown, plots.Gallery):
            shown.html = f'<div data-name="{name}">{shown.html}</div>'  # by which another page may ask for it
        shown.savefig(tidy.folder() / f"{name}.png", dpi=DPI, bbox_inches="tight")  # no line below it is cut
        return shown
    from myst_nb import glue

    tables = shown if isinstance(shown, Mapping) else {caption: shown}
    places = [name if k == 0 else f"{name}-{k + 1}" for k in range(len(tables))]
    blocks = [tidy.markdown(place, *item, digits) for place, item in zip(places, tables.items(), strict=True)]
    glue(name.replace("-", "_"), Markdown("\n".join(blocks)), display=False)
    return None


def browse(frame: pd.DataFrame, name: str) -> HTML:
    """The first rows of a long table in a box that scrolls, and a link to all of it as the CSV `name`."""
    body = frame.head(300).to_html(index=False, border=0)
    box = f'<div style="max-height:22rem;overflow:auto">{body}</div>'
    return HTML(f"{box}<p>{narrow.link(frame, name)}, {len(frame):,} tokens</p>")


def beside_paper(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows of `tidy.row` with the paper's numbers; those without a value of ours are left out."""
    return paper.fill(pd.DataFrame(rows, columns=tidy.COLUMNS).dropna(subset="value"))


def compare(
    name: str,
    rows: pd.DataFrame,
    caption: str,
    *,
    count: str,
    digits: int = 1,
    visible: bool = False,
    failed: Collection[str] = (),
) -> None:
    """Show rows beside the paper's, as `tidy.compare` does, and say how many go its way: see `say_verdicts`.

    Args:
        rows: of improvements, with the column `paper`.
        count: the verdicts' name; `COUNT-size-yes-smaller` and the like say how many exclude the paper's size.
        visible: would an effect as large as the paper's be visible at our n? A column tells, and `COUNT-visible`.
        failed: see `paper.withhold`.
    """
    beside = paper.withhold(tidy.compare(rows, digits), failed, rows.method)
    say_verdicts(count, beside["same direction?"])
    if paper.SIZE in beside:
        say_verdicts(f"{count}-size", beside[paper.SIZE])
    if visible:
        beside["visible at our n?"] = list(map(intervals.would_show, rows.paper, tidy.estimates(rows)))
        say(**{f"{count}-visible": int((beside["visible at our n?"] == "yes").sum())})
    show(name, beside, caption, digits=digits)


def save(
    chapter: str,
    store: RunStore,
    *rows: pd.DataFrame | Iterable[dict],
    trainings: int = 0,
    failed: Collection[str] = (),
) -> None:
    """Keep a chapter's rows and what its work cost, which the page may say as `minutes`; call it once, at the end.

    What the rows answer takes its place at the chapter's top, see `answer`.

    Args:
        store: where the chapter's work lies.
        *rows: as `tidy.validate` wants them, or as `tidy.row` makes them, to which the paper's numbers are added.
        trainings: how many were averaged, where the chapter trains.
        failed: words of the methods whose sanity check failed, or `paper.ALL`: what they answer is withheld.
    """
    frames = [part if isinstance(part, pd.DataFrame) else beside_paper(part) for part in rows]
    cost = tidy.spent(store)
    say(minutes=cost["seconds"] / 60)
    path = tidy.save(chapter, pd.concat([frame[list(tidy.COLUMNS)] for frame in frames]), cost, failed)
    if now := answers.of_run(chapter, path, trainings):
        update_display(now, display_id=f"answer-{chapter}")
