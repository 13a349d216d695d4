"""Figures of the book: they take computed summaries and draw them, and know no model.

Every figure has a white face (it is framed in the dark theme), units on its axes and no title: the caption, in the
chapter's cell metadata, says what it shows.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = {
    "clip": "#0b6fb8",
    "dino": "#c2410c",
    "random": "#52525b",
}  # 4.5:1 on white, told apart without colour vision
MARKERS = {"clip": "o", "dino": "s"}
NAMES = {"clip": "ranked by CLIP", "dino": "ranked by DINO", "random": "random pick"}
AXES = {
    "CIDEr": "CIDEr (x 100)",
    "WMD": "WMD (distance, reversed)",
    "CLIP-text": "CLIP text (cosine)",
    "SBERT": "SBERT (cosine)",
    "B@4": "BLEU-4 (x 100)",
    "CLIP": "CLIP image (cosine)",
    "DINO": "DINO (cosine)",
}


def _style() -> dict:
    return {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "figure.dpi": 110,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }


def rank_curves(rows: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Quality against reconstruction rank, one panel a metric (the paper's Figure 3).

    Args:
        rows: exhibit rows of figure3: methods `clip`, `dino` with `x` = rank (0 best), and `random` without `x`.
        metrics: one panel each, in this order.

    The best rank is at the right; a distance has its axis reversed, so in every panel better is up.
    """
    with plt.rc_context(_style()):
        columns = 2
        figure, axes = plt.subplots(
            -(-len(metrics) // columns), columns, figsize=(8.4, 3.1 * -(-len(metrics) // columns)), layout="constrained"
        )
        for axis, metric in zip(np.ravel(axes), metrics, strict=False):
            _panel(axis, rows[rows.metric == metric], metric)
        handles, labels = np.ravel(axes)[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    plt.close(figure)
    return figure


def _panel(axis: plt.Axes, rows: pd.DataFrame, metric: str) -> None:
    for method in ("clip", "dino"):
        line = rows[(rows.method == method) & rows.x.notna()].sort_values("x")
        axis.plot(line.x, line.value, color=COLOURS[method], marker=MARKERS[method], markersize=4, label=NAMES[method])
        axis.fill_between(line.x, line.low, line.high, color=COLOURS[method], alpha=0.15, linewidth=0)
    baseline = rows[(rows.method == "random") & rows.x.isna()]
    if len(baseline):
        axis.axhline(
            baseline.value.iloc[0], color=COLOURS["random"], linestyle="--", linewidth=1, label=NAMES["random"]
        )
    axis.invert_xaxis()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("rank of the reconstruction (0 = most similar)")
    axis.set_ylabel(AXES[metric])
    if metric == "WMD":
        axis.invert_yaxis()


def interval_points(table: pd.DataFrame, xlabel: str) -> Figure:
    """Horizontal points with intervals.

    Args:
        table: columns `label`, `group`, `value`, `low`, `high`; one row a label and group, groups side by side.
        xlabel: what the numbers are, with their unit.
    """
    labels, groups = list(dict.fromkeys(table.label)), list(dict.fromkeys(table.group))
    with plt.rc_context(_style()):
        figure, axis = plt.subplots(figsize=(7.2, 0.55 + 0.55 * len(labels)), layout="constrained")
        for shift, group in enumerate(groups):
            part = table[table.group == group]
            y = [labels.index(label) + 0.22 * (shift - (len(groups) - 1) / 2) for label in part.label]
            error = np.abs(np.stack([part.value - part.low, part.high - part.value]))
            axis.errorbar(
                part.value,
                y,
                xerr=error,
                fmt=MARKERS.get(group, "o"),
                color=COLOURS.get(group, "#52525b"),
                markersize=5,
                capsize=2,
                label=NAMES.get(group, group).replace("ranked by ", ""),
            )
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.set_xlabel(xlabel)
        if len(groups) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.close(figure)
    return figure


def gallery(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]], size: float = 1.5) -> Figure:
    """A grid of images, each with a short text below.

    Args:
        rows: R lists of images `(H, W, 3)` uint8; shorter rows leave cells empty.
        titles: R lists of texts, wrapped at about 22 characters.
        size: inches a picture.
    """
    columns = max(len(row) for row in rows)
    wrapped = [[_wrap(text) for text in texts] for texts in titles]
    lines = 1 + max(text.count("\n") + 1 for texts in wrapped for text in texts)
    with plt.rc_context(_style() | {"axes.grid": False}):
        figure, axes = plt.subplots(
            len(rows),
            columns,
            figsize=(size * columns, (size + 0.17 * lines) * len(rows)),
            squeeze=False,
            layout="constrained",
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
    plt.close(figure)
    return figure


def _wrap(text: str, width: int = 20, lines: int = 5) -> str:
    import textwrap

    wrapped = [piece for part in text.split("\n") for piece in textwrap.wrap(part, width)]
    return "\n".join(wrapped[:lines] + (["..."] if len(wrapped) > lines else []))
