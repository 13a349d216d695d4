"""Figures: which side is best, which axis is reversed, what each panel holds; no figure is left open."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dfl_utils import plots

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


def test_rank_curves_have_one_panel_a_metric_in_their_order(rows):
    panels = [axis for axis in plots.rank_curves(rows, METRICS).axes if axis.lines]
    assert [axis.get_ylabel() for axis in panels] == [plots.AXES[metric] for metric in METRICS]


def test_the_best_rank_is_at_the_right_and_only_a_distance_is_reversed(rows):
    for axis, metric in zip(plots.rank_curves(rows, METRICS).axes, METRICS, strict=False):
        assert axis.xaxis_inverted()
        assert axis.yaxis_inverted() == (metric == "WMD")


def test_curves_are_drawn_by_rank_with_their_intervals(rows):
    axis = plots.rank_curves(rows, METRICS).axes[0]
    for name in ("ranked by CLIP", "ranked by DINO"):
        np.testing.assert_array_equal(curves(axis)[name].get_xydata(), [[0, 50], [1, 40], [2, 30]])
    for band in axis.collections:
        corners = {tuple(point) for path in band.get_paths() for point in path.vertices}
        assert {(0, 48), (0, 53), (2, 28), (2, 33)} <= corners
    assert len(axis.collections) == 2


def test_the_baseline_is_a_level_line_and_may_be_missing(rows):
    for axis, level in zip(plots.rank_curves(rows, METRICS).axes, (40, 41, 42), strict=False):
        assert set(curves(axis)["random pick"].get_ydata()) == {level}
    axis = plots.rank_curves(rows[rows.method != "random"], ["CIDEr"]).axes[0]
    assert set(curves(axis)) == {"ranked by CLIP", "ranked by DINO"}


def test_one_legend_names_each_line_once(rows):
    (legend,) = plots.rank_curves(rows, METRICS).legends
    assert [text.get_text() for text in legend.texts] == ["ranked by CLIP", "ranked by DINO", "random pick"]


def test_interval_points_go_down_in_the_tables_order_with_groups_side_by_side():
    table = pd.DataFrame(
        [("own", "clip", 0.9, 0.8, 0.95), ("own", "dino", 0.7, 0.6, 0.8), ("other", "clip", 0.2, 0.1, 0.4)],
        columns=["label", "group", "value", "low", "high"],
    )
    axis = plots.interval_points(table, "cosine").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["own", "other"]
    assert axis.yaxis_inverted() and axis.get_xlabel() == "cosine"
    clip, dino = (container.lines[0] for container in axis.containers)
    np.testing.assert_allclose(clip.get_xydata(), [[0.9, -0.11], [0.2, 0.89]])
    np.testing.assert_allclose(dino.get_xydata(), [[0.7, 0.11]])
    bars = [segment[:, 0] for segment in axis.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[0.8, 0.95], [0.1, 0.4]])
    assert [text.get_text() for text in axis.get_legend().texts] == ["CLIP", "DINO"]


def test_a_single_group_needs_no_legend():
    table = pd.DataFrame([("own", "clip", 0.9, 0.8, 0.95)], columns=["label", "group", "value", "low", "high"])
    assert plots.interval_points(table, "cosine").axes[0].get_legend() is None


def test_a_gallery_wraps_its_texts_and_leaves_short_rows_empty():
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    long = "a very small yellow guitar to the left of a big purple hippo"
    figure = plots.gallery([[red, red, red], [red]], [["short", long, "one\ntwo"], ["last"]])
    assert [axis.axison for axis in figure.axes] == [True] * 4 + [False] * 2  # a frame round each picture
    assert not any(len(axis.get_xticks()) + len(axis.get_yticks()) for axis in figure.axes[:4])
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 1, 0, 0]
    texts = [axis.texts[0].get_text() for axis in figure.axes[:4]]
    assert (texts[0], texts[2], texts[3]) == ("short", "one\ntwo", "last")
    assert texts[1].count("\n") >= 2 and texts[1].split() == long.split()  # wrapped, nothing lost
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), red)


def test_a_gallery_cuts_endless_texts_with_dots():
    image = np.zeros((2, 2, 3), np.uint8)
    text = plots.gallery([[image]], [["word " * 100]]).axes[0].texts[0].get_text()
    assert text.endswith("\n...") and text.count("word") < 100


def test_faces_are_white_and_names_are_known(rows):
    figure = plots.rank_curves(rows, METRICS)
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert set(plots.COLOURS) == set(plots.NAMES)
