"""Figures: which side is best, which axis is reversed, what each panel holds; no figure is left open."""

import base64
import re
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfl_utils.build import bookext
from dfl_utils.exhibits import diagrams, plots, svg

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


def test_a_cell_shows_a_plot_as_the_same_svg_each_time_and_texts_as_texts(rows, monkeypatch):
    shown = []
    monkeypatch.setattr(svg, "display", lambda data, raw: shown.append(data["image/svg+xml"]))
    for _ in range(2):
        plots.score_curves(rows, METRICS, "p = 0.12345")._ipython_display_()
    assert shown[0] == shown[1] and ">ranked by CLIP</text>" in shown[0] and ">p = 0.12345</text>" in shown[0]
    page = bookext.themed(shown[0], 'a "line"')
    assert page.startswith('<div class="plot" role="img" aria-label="a &quot;line&quot;"><svg fill="currentColor"')
    assert "<style" not in page and "stroke: var(--plot-0b6fb8, #0b6fb8)" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and {*re.findall(r'(?:href="|url\()#([^")]+)', page)} <= {*ids}


def luminance(colour):
    part = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def contrast(*colours):
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_each_colour_is_read_on_the_ground_of_either_theme():
    css = (Path(__file__).parents[1] / "book" / "_static" / "custom.css").read_text()
    dark = {f"#{name}": colour for name, colour in re.findall(r"--plot-(\w{6}): (#\w{6});", css)}
    for colour in {*plots.COLOURS.values(), "#000000"}:
        assert contrast(colour, "#ffffff") >= 4.5 and contrast(dark[colour], "#121212") >= 4.5
    for fill, _ in diagrams.LOOKS.values():
        assert contrast(diagrams.INK, fill) >= 7 and contrast(dark[diagrams.INK], dark.get(fill, "#121212")) >= 7


def test_losses_are_means_over_blocks_and_seeds_at_a_blocks_last_step():
    runs = {"both": [{"caption_loss": [1, 3, 5]}, {"caption_loss": [3, 5, 7]}], "other": [{"generation_loss": [2.0]}]}
    figure = plots.loss_curves(runs, points=2)
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[2, 3], [3, 6]])
    assert "nats a token" in figure.axes[0].get_ylabel()
    (short,) = figure.axes[1].lines  # of fewer steps than points
    np.testing.assert_allclose(short.get_xydata(), [[1, 2]])


def test_a_gallery_is_text_beside_images_where_it_is_read():
    image = np.zeros((600, 300, 3), np.uint8)
    figure = plots.gallery([[image, image]], [["a <b>\nc", "d"]])
    html = figure._repr_html_()
    assert html.count("<figure>") == 2 and 'alt="a &lt;b&gt; c"' in html and "a &lt;b&gt;<br>c</figcaption>" in html
    packed = html.split("base64,")[1].split('"')[0]
    assert Image.open(BytesIO(base64.b64decode(packed))).size == (128, 256)


def test_points_lie_on_their_own_x_over_one_curve():
    frame = pd.DataFrame(
        [("law", x, "CIDEr", 10 * x, 10 * x - 1, 10 * x + 1) for x in (0.0, 0.5, 1.0)]
        + [("one", 0.2, "CIDEr", 3.0, 1.0, 4.0), ("two", 0.9, "CIDEr", 8.0, 7.0, 9.0)],
        columns=["method", "x", "metric", "value", "low", "high"],
    )
    (axis,) = plots.points_on_curve(frame, "law", ["CIDEr"], "skill", "gain in {}, %").axes
    assert axis.get_ylabel() == "gain in CIDEr, %" and axis.get_xlabel() == "skill"
    drawn = {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    assert drawn.keys() == {"law", "one", "two"} and drawn["law"].get_xdata().tolist() == [0, 0.5, 1]
    assert drawn["two"].lines[0].get_xydata().tolist() == [[0.9, 8]]
    ends = sorted(segment[:, 1].tolist() for bars in (drawn["one"].lines[2]) for segment in bars.get_segments())
    assert ends == [[1, 4]]


def test_cost_stands_on_a_logarithmic_axis():
    rows = [("likelihood", 100.0, 9.0), ("likelihood", 10.0, 5.0), ("one caption", 1.0, 4.0)]
    frame = pd.DataFrame(
        [(*row, row[2] - 1, row[2] + 2) for row in rows], columns=["method", "x", "value", "low", "high"]
    )
    (axis,) = plots.cost_curves(frame, "ms", "CIDEr").axes
    assert axis.get_xscale() == "log" and (axis.get_xlabel(), axis.get_ylabel()) == ("ms", "CIDEr")
    drawn = {label: bars for bars, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    assert drawn.keys() == {"ranked by likelihood", "one caption"}
    assert drawn["ranked by likelihood"].lines[0].get_xydata().tolist() == [[10, 5], [100, 9]]
    assert drawn["one caption"].lines[2][0].get_segments()[0][:, 1].tolist() == [3, 6]
