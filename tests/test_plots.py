"""Figures: which side is best, which axis is reversed, what each panel holds; no figure is left open."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dfl_utils.exhibits import plots

METRICS = ["CIDEr", "WMD", "SBERT"]


@pytest.fixture(autouse=True)
def all_figures_are_closed():
    plt.close("all")
    yield
    assert plt.get_fignums() == []  # an open one would be shown twice in a notebook


@pytest.fixture
def rows():
    """Exhibit rows of figure3 out of order: CIDEr falls with the rank, the others rise; random is 40, 41, 42."""
    curve = [
        (method, x, metric, value := (50 - 10 * x if metric == "CIDEr" else 30 + 5 * x), value - 2, value + 3)
        for metric in METRICS
        for method in ("dino", "clip")
        for x in (1.0, 0.0, 2.0)
    ]
    baseline = [("random", np.nan, metric, 40.0 + k, 39.0, 41.0) for k, metric in enumerate(METRICS)]
    return pd.DataFrame(curve + baseline, columns=["method", "x", "metric", "value", "low", "high"])


def curves(axis):
    return {line.get_label(): line for line in axis.lines}


def test_curves_are_drawn_by_rank_with_their_intervals_and_only_a_distance_is_reversed(rows):
    figure = plots.score_curves(rows, METRICS, plots.RANK, reverse=True)
    panels = [axis for axis in figure.axes if axis.lines]
    assert [axis.get_ylabel() for axis in panels] == [plots.AXES[metric] for metric in METRICS]
    for axis, metric in zip(panels, METRICS, strict=True):
        assert axis.xaxis_inverted()  # the best rank is at the right
        assert axis.yaxis_inverted() == (metric == "WMD")
    axis = panels[0]
    for name in ("ranked by CLIP", "ranked by DINO"):
        np.testing.assert_array_equal(curves(axis)[name].get_xydata(), [[0, 50], [1, 40], [2, 30]])
    for band in axis.collections:
        corners = {tuple(point) for path in band.get_paths() for point in path.vertices}
        assert {(0, 48), (0, 53), (2, 28), (2, 33)} <= corners
    assert len(axis.collections) == 2


@pytest.fixture
def swept():
    """Rows of figure9: two lines against N, one of a method without a colour of its own, a level and a gain."""
    lines = [(m, x, "KID", 1.0 + x, np.nan, np.nan) for m in ("clip, other model", "random") for x in (5.0, 1.0)]
    extra = [("beam", np.nan, "KID", 2.5, 2.0, 3.0), ("clip gain", np.nan, "KID", 9.0, 8.0, 10.0)]
    return pd.DataFrame(lines + extra, columns=["method", "x", "metric", "value", "low", "high"])


def test_score_curves_rise_to_the_right_and_leave_gains_out(swept):
    (axis,) = (axis for axis in plots.score_curves(swept, ["KID"], "candidates").axes if axis.lines)
    assert set(curves(axis)) == {"clip, other model", "random pick", "beam search"}
    np.testing.assert_array_equal(curves(axis)["random pick"].get_xydata(), [[1, 2], [5, 6]])
    assert not axis.xaxis_inverted() and axis.yaxis_inverted()  # KID is a distance
    assert len({line.get_color() for line in axis.lines}) == 3  # also of a method without a colour of its own
    with pytest.raises(ValueError, match="no row of metric 'FID'"):
        plots.score_curves(swept, ["KID", "FID"], "candidates")


def test_a_line_is_the_mean_over_seeds_and_ends_at_the_last_step():
    runs = {"both": [{"caption_loss": [1, 3, 5]}, {"caption_loss": [3, 5, 7]}], "other": [{"generation_loss": [2.0]}]}
    figure = plots.loss_curves(runs, window=2)
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[2, 3], [3, 5]])
    assert "nats a token" in figure.axes[0].get_ylabel()
    (short,) = figure.axes[1].lines  # shorter than the window, which is cut
    np.testing.assert_allclose(short.get_xydata(), [[1, 2]])
