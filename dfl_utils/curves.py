"""Losses against optimiser steps, smoothed, one panel a loss."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from dfl_utils.plots import COLOURS, _style

UNITS = {
    "caption_loss": "nats a token",
    "image_reconstruction_loss": "squared error",
    "generation_loss": "squared error",
    "text_reconstruction_loss": "nats a token",
}
DASHES = ("-", "--", "-.", ":")


def smooth(curve: ArrayLike, window: int) -> np.ndarray:
    """Running mean over `window` steps, `(steps - window + 1,)`; value k is of steps k to k + window - 1.

    Raises:
        ValueError: a window that is no number of the curve's steps.
    """
    curve = np.asarray(curve, dtype=float)
    if not 1 <= window <= len(curve):
        raise ValueError(f"window is {window}: choose 1 to {len(curve)}, the steps of the curve.")
    return np.convolve(curve, np.full(window, 1 / window), mode="valid")


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, ArrayLike]]], window: int) -> Figure:
    """Smoothed losses: a line for the mean over seeds, a band from the lowest seed to the highest.

    Args:
        runs: label -> for each seed, loss -> `(steps,)`. Labels may have losses that others lack.
        window: steps of the running mean, drawn at its last step; cut to the length of a shorter run.
    """
    losses = list(dict.fromkeys(loss for seeds in runs.values() for run in seeds for loss in run))
    lines = -(-len(losses) // 2)
    with plt.rc_context(_style()):
        figure, axes = plt.subplots(lines, 2, figsize=(7.2, 2.6 * lines), layout="constrained", squeeze=False)
        for axis in axes.flat[len(losses) :]:
            axis.axis("off")
        for axis, loss in zip(axes.flat, losses, strict=False):
            for (label, seeds), colour, dash in zip(runs.items(), COLOURS.values(), DASHES * 3, strict=False):
                known = [np.asarray(run[loss]) for run in seeds if loss in run]
                if not known:
                    continue
                width = min(window, len(known[0]))
                smoothed = np.stack([smooth(curve, width) for curve in known])
                steps = np.arange(width, len(known[0]) + 1)
                axis.plot(steps, smoothed.mean(axis=0), color=colour, linestyle=dash, linewidth=1.3, label=label)
                axis.fill_between(steps, smoothed.min(axis=0), smoothed.max(axis=0), color=colour, alpha=0.18, lw=0)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axis.set(xlabel="optimiser step", ylabel=f"{loss}\n({UNITS.get(loss, 'loss')})")
        named = {t: line for axis in axes.flat for line, t in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
    plt.close(figure)
    return figure
