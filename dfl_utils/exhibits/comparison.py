"""What a page shows of finetuned methods that are compared: rows, tables and examples of `evaluation.Trials`.

Rows have two columns beside those that are saved: `after` names the method, and `before` what a gain is over. Gains are
in per cent of the level before; positive is better, also of distances.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from dfl_utils.exhibits import paper, plots, tidy
from dfl_utils.models import workshop
from dfl_utils.scores import intervals
from dfl_utils.scores.ranking import percent
from dfl_utils.training.evaluation import Trials

COLUMNS = [*tidy.COLUMNS, "after", "before"]
VERDICT = ("gain, %", "verdict", "smallest visible, %", "the paper's, %", "visible from n")  # of `verdicts`
Chosen = Sequence[tuple[str, int]]  # images by their place, and why each is shown, as `ranking.extremes` says it


def rows(
    exhibit: str,
    part: tuple[str, str],
    trials: Trials,
    metrics: Sequence[str],
    gains: Mapping[str, tuple[str, str]],
    *,
    clear: bool = False,
) -> pd.DataFrame:
    """Levels, and gains between them, beside the paper's and beside those in per cent that the paper's levels make.

    Args:
        exhibit, part: see `tidy.row`.
        gains: how a gain is called in the rows -> (after, before), two methods of the trials.
        clear: leave out gains over a level whose interval reaches zero.
    """
    made = []
    methods = dict.fromkeys(method for after, before in gains.values() for method in (before, after))
    for metric in metrics:
        levels = {method: trials.level(method, metric) for method in methods}
        made += [tidy.row(exhibit, part, m, metric, level) | {"after": m} for m, level in levels.items()]
        for name, (after, before) in gains.items():
            if levels[before].low > 0 or not clear:
                change = tidy.improved(trials.change(metric, after, before), metric)
                gain = tidy.row(exhibit, part, name, metric, percent(change, levels[before].value))
                made.append(gain | {"after": after, "before": before})
    frame = paper.fill(pd.DataFrame(made, columns=COLUMNS).dropna(subset="value"))
    published = frame.set_index(["method", "metric"]).paper
    theirs = [
        _paper_gain(row, published) if pd.notna(row["before"]) else row["paper"] for row in frame.to_dict("records")
    ]
    return frame.assign(paper=theirs)


def _paper_gain(row: dict, published: pd.Series) -> float:
    old, new = (published[row[side], row["metric"]] for side in ("before", "after"))
    return paper.gain_of_levels(new, old, row["metric"])


def verdicts(gains: pd.DataFrame, columns: Sequence[str] = VERDICT) -> pd.DataFrame:
    """What is said of rows of gains, under their index: some columns of `VERDICT`, of the gain and the paper's.

    "visible from n" says from how many images a gain as small as the paper's would be visible, ours where it is.
    ValueError where a row is a level, which would be judged as a gain.
    """
    if gains.before.isna().any():
        raise ValueError(f"gains holds levels of {sorted(set(gains.method[gains.before.isna()]))}: drop them.")
    changes = tidy.estimates(gains)
    said = {
        "gain, %": changes,
        "verdict": [intervals.verdict(e, True) for e in changes],
        "smallest visible, %": [intervals.smallest_effect(e) for e in changes],
        "the paper's, %": gains.paper,
        "visible from n": list(map(intervals.shows_from, gains.paper, changes)),
    }
    return pd.DataFrame(said, index=gains.index)[list(columns)]


def places(made: pd.DataFrame) -> pd.Series:
    """Data set and split of each row, as a page calls them."""
    return made.dataset.map(tidy.DATASETS) + " " + made["split"]


def table(made: pd.DataFrame, bases: Mapping[str, str], columns: Sequence[str] = VERDICT[:2]) -> pd.DataFrame:
    """Levels beside the paper's, one line a method and metric, and what is judged of its gains.

    Args:
        made: rows of one data set and split.
        bases: a method -> how a gain over it is called.
        columns: of `verdicts`.
    """
    made = made.set_index(["after", "metric"], drop=False)
    levels = made[made.before.isna()]
    shown = pd.DataFrame({"metric": levels.metric, "": levels.after, "here": tidy.estimates(levels)})
    shown = shown.assign(paper=levels.paper, n=levels.n)
    for name in ("here", "paper"):
        shown[name] = tidy.printed(shown[name], levels.metric)
    for base, called in bases.items():
        shown = shown.join(verdicts(made[made.before == base], columns).add_suffix(called))
    return shown.reset_index(drop=True)


# --- Examples: what the first training of each method says and draws of some images.


def quotes(trials: Trials, chosen: Chosen, gained: np.ndarray, methods: Sequence[str]) -> Styler:
    """A line an image: why it is shown, its gain in CIDEr `(images,)`, a reference, and each method's caption."""
    lines = [
        {"": f"{kind}, image {trials.examples[k].image_id}, CIDEr {gained[k]:+.0f}"}
        | {"a reference": trials.examples[k].references[0]}
        | {method: trials.said(method)[0][k] for method in methods}
        for kind, k in chosen
    ]
    return pd.DataFrame(lines).style.hide().set_table_attributes('class="quotes"')


def scenes(trials: Trials, chosen: Chosen) -> Figure:
    """The images that `quotes` speaks of."""
    examples = [trials.examples[k] for _, k in chosen]
    titles = [f"{kind}, image {one.image_id}" for (kind, _), one in zip(chosen, examples, strict=True)]
    return plots.gallery([workshop.read(examples)], [titles])


def drawings(trials: Trials, chosen: Chosen, methods: Sequence[str]) -> Figure:
    """A row an image: the original with the text that is drawn, and each method's drawing with its CLIP distance."""
    pictures, labels = [], []
    each = {method: trials.drawn(method)[0] for method in methods}
    for kind, k in chosen:
        hats = [run.load_images(k)[0] for run in each.values()]
        pictures.append([*workshop.read([trials.examples[k]]), *hats])
        labels.append([f"{kind}: {each[methods[0]].captions[k][0]}"])
        labels[-1] += [f"{method}, {1 - run.sim_image['clip'][k, 0]:.3f}" for method, run in each.items()]
    return plots.gallery(pictures, labels, size=1.7)
