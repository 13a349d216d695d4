"""Figures of the book: they take computed summaries and draw them, and know no model.

Every figure has units on its axes and no title: the caption, in the chapter's cell metadata, says what it shows.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from dfl_utils.exhibits import paper, play
from dfl_utils.exhibits.svg import STYLE, Plot
from dfl_utils.game.loops import Reconstructions
from dfl_utils.scores.ranking import Estimate
from dfl_utils.world.data import read_image

# Colour, marker and what a legend says. 4.5:1 on white and of different lightness; markers and dashes tell them apart
# without colour vision.
LOOKS = {
    "clip": ("#0b6fb8", "o", "ranked by CLIP"),
    "dino": ("#c2410c", "s", "ranked by DINO"),
    "sbert": ("#0f766e", "^", "ranked by SBERT"),
    "cider": ("#7c3aed", "D", "ranked by CIDEr"),
    "wmd": ("#713f12", "v", "ranked by WMD"),
    "clipscore": ("#be185d", "P", "ranked by CLIPScore"),
    "likelihood": ("#3f6212", "X", "ranked by likelihood"),
    "beam": ("#18181b", "*", "beam search"),
    "random": ("#52525b", "d", "random pick"),
}
COLOURS = {name: colour for name, (colour, *_) in LOOKS.items()}
NAMES = {name: words for name, (*_, words) in LOOKS.items()}
DASHES = ("--", ":", "-.")  # of level lines, in their order
AXES = {
    "CIDEr": "CIDEr (x 100)",
    "SPICE": "SPICE (x 100)",
    "SPICE-like": "SPICE-like (x 100)",
    "WMD": "WMD (distance, reversed)",
    "CLIP-text": "CLIP text (cosine)",
    "SBERT": "SBERT (cosine)",
    **{f"B@{n}": f"BLEU-{n} (x 100)" for n in range(1, 5)},
    "CLIP": "CLIP distance (x 100, reversed)",
    "DINO": "DINO (cosine)",
    "FID": "FID (reversed)",
    "IS": "Inception Score",
    "KID": "KID (reversed)",
    "caption_loss": "caption_loss (nats a token)",
    "text_reconstruction_loss": "text_reconstruction_loss\n(nats a token)",
    "image_reconstruction_loss": "image_reconstruction_loss\n(squared error)",
    "generation_loss": "generation_loss (squared error)",
}
MOST_BANDS, DODGE = 2, 0.14  # lines with bands in a panel; else the sideways step between bars, in steps of x
DRAWN = {"FigureClass": Plot, "layout": "constrained"}
RANK = "rank of the reconstruction (0 = most similar)"


def _panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure and its panels of a size in inches, in rows of `columns`; those past the `count` are blank."""
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(size[0] * columns, size[1] * lines), squeeze=False, **DRAWN)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes.flat[:count]


@plt.rc_context(STYLE)
def score_curves(
    frame: pd.DataFrame, metrics: Sequence[str], xlabel: str, *, columns: int = 2, reverse: bool = False
) -> Figure:
    """Scores against anything, one panel a metric, one line a method; better is up.

    Args:
        frame: exhibit rows (`method`, `x`, `metric`, `value`, `low`, `high`). A method's rows with `x` are a line with
            its band where bounds are given; its row without `x` is a dashed level. Gains and trends are left out.
            Methods of `NAMES` have colours of their own, others the next free one; a legend names them as they are.
        metrics: one panel each, in this order; the axis of a distance is reversed.
        xlabel: what `x` is, with its unit.
        columns: panels beside each other, at most.
        reverse: `x` falls from left to right, as a `RANK` does, so that better is up and right (Figures 3 and 4).

    Raises:
        ValueError: a metric without a row.
    """
    frame = frame[~frame.method.str.split().str[-1].isin(paper.SIGNED)]
    lost = [metric for metric in metrics if metric not in set(frame.metric)]
    if lost:
        raise ValueError(f"frame has no row of metric {lost[0]!r}: leave it out of metrics, or compute it first.")
    looks = _looks(list(dict.fromkeys(frame.method)))
    figure, axes = _panels(len(metrics), min(columns, len(metrics)), (4.2, 3.1))
    for axis, metric in zip(axes, metrics, strict=True):
        _panel(axis, frame[frame.metric == metric], looks)
        if reverse:
            axis.invert_xaxis()
        axis.set(xlabel=xlabel, ylabel=AXES.get(metric, metric))
        if not paper.HIGHER_IS_BETTER.get(metric, True):
            axis.invert_yaxis()
    named = _legend(axes)
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3)
    plt.close(figure)
    return figure


def _looks(methods: Sequence[str]) -> dict[str, dict]:
    """Colour, marker and legend name of each method, known ones first; others take what these leave, in order."""
    known = [name for name in LOOKS if name in methods]
    unknown = [name for name in methods if name not in LOOKS]
    free = cycle([name for name in LOOKS if name not in known] or LOOKS)
    names = {name: LOOKS[name] for name in known}
    names |= {name: (*LOOKS[next(free)][:2], name) for name in unknown}
    return {name: dict(zip(("color", "marker", "label"), look, strict=True)) for name, look in names.items()}


def _legend(axes: Iterable[plt.Axes]) -> dict[str, Artist]:
    """Label -> line, each label once."""
    return {text: line for axis in axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}


def _panel(axis: plt.Axes, rows: pd.DataFrame, looks: dict[str, dict]) -> None:
    dashes = iter(DASHES * len(looks))
    lines = rows[rows.x.notna()].method.unique().tolist()
    for method, look in looks.items():
        own = rows[rows.method == method]
        line, level = own[own.x.notna()].sort_values("x"), own[own.x.isna()]
        if len(line) and len(lines) <= MOST_BANDS:
            axis.plot(line.x, line.value, markersize=4, **look)
            axis.fill_between(line.x, line.low, line.high, color=look["color"], alpha=0.15, linewidth=0)
        elif len(line):  # more bands than that are one grey cloud; bars stand side by side
            step = line.x.diff().median() if len(line) > 1 else 1.0
            shift = DODGE * (lines.index(method) - (len(lines) - 1) / 2) * step
            axis.plot(line.x + shift, line.value, markersize=4, linewidth=1.2, **look)
            axis.vlines(line.x + shift, line.low, line.high, color=look["color"], alpha=0.5, linewidth=1)
        elif len(level):
            axis.axhline(
                level.value.iloc[0], color=look["color"], linestyle=next(dashes), linewidth=1.2, label=look["label"]
            )
    if (rows.x.dropna() % 1 == 0).all():
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


@plt.rc_context(STYLE)
def interval_points(
    table: pd.DataFrame | Mapping[tuple[str, str], Estimate],
    xlabel: str,
    *,
    origin: float | None = None,
    published: bool = False,
) -> Figure | None:
    """Horizontal points with intervals; nothing of nothing.

    Args:
        table: columns `label`, `group`, `value`, `low`, `high`; one row a label and group, groups side by side. Rows
            of gains need neither: their metric and what gains are these. Or (label, group) -> estimate.
        xlabel: what the numbers are, with their unit.
        origin: where a thin line stands for no change, such as 0 of gains.
        published: draw the column `paper` too, as a hollow diamond, where it has a number.
    """
    if not len(table):
        return None
    table = table if isinstance(table, pd.DataFrame) else _points(table)
    if "label" not in table:
        table = table.assign(label=table.metric, group=table.method.str.removesuffix(" gain"))
    labels, groups = list(dict.fromkeys(table.label)), list(dict.fromkeys(table.group))
    looks, step = _looks(groups), min(0.22, 0.8 / len(groups))
    height = 0.55 + max(0.55, 0.17 * len(groups)) * len(labels)
    figure, axis = plt.subplots(figsize=(7.2, height), **DRAWN)
    if origin is not None:
        axis.axvline(origin, color="#a1a1aa", linewidth=1, zorder=0)
    for shift, group in enumerate(groups):
        part, look = table[table.group == group], looks[group]
        y = np.array([labels.index(label) + step * (shift - (len(groups) - 1) / 2) for label in part.label])
        error = np.abs(np.stack([part.value - part.low, part.high - part.value]))
        name = look["label"].replace("ranked by ", "")
        style = {"fmt": look["marker"], "color": look["color"], "markersize": 5, "capsize": 2}
        axis.errorbar(part.value, y, xerr=error, label=name, **style)
        if published and part.paper.notna().any():
            hollow = {"markerfacecolor": "none", "color": COLOURS["beam"], "markersize": 6}
            axis.plot(part.paper, y, "D", label="the paper's", **hollow)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    named = _legend([axis])
    named |= {"the paper's": named.pop("the paper's")} if "the paper's" in named else {}  # last
    if len(named) > 1:
        axis.legend(named.values(), named.keys(), loc="center left", bbox_to_anchor=(1, 0.5))
    plt.close(figure)
    return figure


@plt.rc_context(STYLE)
def points_on_curve(frame: pd.DataFrame, curve: str, metrics: Sequence[str], xlabel: str, ylabel: str) -> Figure:
    """Points with intervals, rows as in `score_curves`, over one method's curve and band; `{}` is the metric."""
    looks = _looks([name for name in dict.fromkeys(frame.method) if name != curve])
    figure, axes = _panels(len(metrics), len(metrics), (4.2, 3.4))
    for axis, metric in zip(axes, metrics, strict=True):
        rows = frame[frame.metric == metric].sort_values("x")
        line = rows[rows.method == curve]
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.plot(line.x, line.value, color="0.3", label=curve)
        axis.fill_between(line.x, line.low, line.high, color="0.3", alpha=0.15, linewidth=0)
        for method, look in looks.items():
            own = rows[rows.method == method]
            error = own.value - own.low, own.high - own.value
            axis.errorbar(own.x, own.value, yerr=error, linestyle="", markersize=5, linewidth=1, **look)
        axis.set(xlabel=xlabel, ylabel=ylabel.format(metric))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    plt.close(figure)
    return figure


@plt.rc_context(STYLE)
def cost_curves(table: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """Quality with intervals against cost on a logarithmic axis, a line a method.

    Args:
        table: `method`, `x` (positive), `value`, `low`, `high`; a method of one row is a point.
        xlabel, ylabel: what cost and quality are, with their units.
    """
    looks = _looks(list(dict.fromkeys(table.method)))
    figure, axis = plt.subplots(figsize=(7.2, 4.2), **DRAWN)
    for method, look in looks.items():
        own = table[table.method == method].sort_values("x")
        error = np.abs(np.stack([own.value - own.low, own.high - own.value]))
        axis.errorbar(own.x, own.value, yerr=error, markersize=5, capsize=2, linewidth=1.2, **look)
    axis.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    figure.legend(loc="outside right center")
    plt.close(figure)
    return figure


def _points(estimates: Mapping[tuple[str, str], Estimate]) -> pd.DataFrame:
    rows = [(*names, e.value, e.low, e.high) for names, e in estimates.items()]
    return pd.DataFrame(rows, columns=["label", "group", "value", "low", "high"])


@plt.rc_context(STYLE)
def stacked_bars(values: pd.Series, xlabel: str) -> Figure:
    """Horizontal bars of parts, one after the other.

    Args:
        values: by (bar, part, half), in the order in which they are drawn; every half but the first is hatched.
        xlabel: what the values are, with their unit.
    """
    bars, parts, halves = (values.index.unique(level) for level in range(3))
    colours, ends = dict(zip(parts, COLOURS.values(), strict=False)), dict.fromkeys(bars, 0.0)
    figure, axis = plt.subplots(figsize=(7.2, 2.9), **DRAWN)
    for (bar, part, half), value in values.items():
        first = half == halves[0]
        label = part if first and bar == bars[0] else None
        look = {"alpha": 1.0, "hatch": ""} if first else {"alpha": 0.55, "hatch": "///"}
        look |= {"color": colours[part], "edgecolor": "white", "linewidth": 0.4}
        axis.barh(bar, value, left=ends[bar], label=label, **look)
        ends[bar] += value
    axis.invert_yaxis()
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel)
    figure.legend(loc="outside right center", fontsize=8)
    plt.close(figure)
    return figure


class Gallery(Figure):
    """Images with texts: a picture where one is saved or printed, and `html` that reflows where it is read."""

    html = ""

    def _repr_html_(self) -> str:
        return self.html


MOST_PIXELS = 256  # of an image's longer side, on a page


def _html(rows: Sequence[Sequence[ArrayLike]], titles: Sequence[Sequence[str]]) -> str:
    lines = ["".join(map(_framed, *pair)) for pair in zip(rows, titles, strict=True)]
    return "".join(f'<div class="gallery">{line}</div>' for line in lines)


def _framed(image: ArrayLike, text: str) -> str:
    words = escape(text)
    seen = f'<img alt="{" ".join(words.split())}" src="{play.picture(image, MOST_PIXELS)}">'
    return f"<figure>{seen}<figcaption>{words.replace(chr(10), '<br>')}</figcaption></figure>"


@plt.rc_context(STYLE | {"axes.grid": False})
def gallery(rows: Sequence[Sequence[ArrayLike]], titles: Sequence[Sequence[str]], size: float = 1.5) -> Gallery:
    """A grid of images, each with a short text below.

    Args:
        rows: R lists of images, of PIL or `(H, W, 3)` uint8; shorter rows leave cells empty.
        titles: R lists of texts, wrapped at about 22 characters.
        size: inches a picture.
    """
    columns = max(len(row) for row in rows)
    wrapped = [[_wrap(text) for text in texts] for texts in titles]
    lines = 1 + max(text.count("\n") + 1 for texts in wrapped for text in texts)
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(size * columns, (size + 0.17 * lines) * len(rows)),
        squeeze=False,
        layout="constrained",
        FigureClass=Gallery,
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, images, texts in zip(axes, rows, wrapped, strict=True):
        for axis, image, text in zip(line, images, texts, strict=False):
            axis.imshow(image, interpolation="nearest")
            axis.axis("on")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color="#d4d4d8", linewidth=0.6)  # a white ground ends somewhere
            axis.text(0.5, -0.04, text, transform=axis.transAxes, ha="center", va="top", fontsize=8)
    figure.html = _html(rows, titles)
    plt.close(figure)
    return figure


def games(
    run: Reconstructions,
    shown: Iterable[tuple[int, str, Sequence[tuple[int, str]]]],
    across: int = 1,
    size: float = 1.5,
) -> Figure:
    """A `gallery` of games: of each the original with a text, and some of its candidates' drawings with theirs.

    Args:
        run: the games, of either loop.
        shown: (place of the image, text, [(candidate, text), ...]).
        across: games in a row.
        size: see `gallery`.
    """
    pictures, titles = [], []
    for k, title, picks in shown:
        drawings = run.load_images(k)
        pictures.append([read_image(run.examples[k].path), *(drawings[candidate] for candidate, _ in picks)])
        titles.append([title, *(text for _, text in picks)])
    starts = range(0, len(titles), across)
    return gallery(*([sum(of[k : k + across], []) for k in starts] for of in (pictures, titles)), size)


def _wrap(text: str, width: int = 20, lines: int = 7) -> str:
    wrapped = [piece for part in text.split("\n") for piece in wrap(part, width)]
    return "\n".join(wrapped[:lines] + (["..."] if len(wrapped) > lines else []))


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, ArrayLike]]], points: int = 15) -> Figure:
    """Losses against optimiser steps, by `score_curves`: means over seeds, and from the lowest seed to the highest.

    Args:
        runs: label -> for each seed, loss -> `(steps,)`. Labels may have losses that others lack.
        points: of a line, each the mean over a block of steps, drawn at its last one.
    """
    parts = []
    for label, seeds in runs.items():
        for loss in seeds[0]:
            values = np.stack([run[loss] for run in seeds])
            blocks = np.array_split(np.arange(values.shape[1]), min(points, values.shape[1]))
            means = pd.DataFrame([values[:, block].mean(axis=1) for block in blocks]).agg(
                ["mean", "min", "max"], axis=1
            )
            means = means.set_axis(["value", "low", "high"], axis=1)
            parts.append(means.assign(method=label, metric=loss, x=[block[-1] + 1.0 for block in blocks]))
    frame = pd.concat(parts)
    return score_curves(frame, list(frame.metric.unique()), "optimiser step")
