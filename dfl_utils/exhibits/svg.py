"""How a plot is drawn and reaches a page: as SVG on white paper. In the dark theme its colours are those that the
book's `_static/custom.css` names for them."""

import re
from io import BytesIO

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

STYLE = {
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor"), "white"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"figure.dpi": 110, "font.size": 10, "axes.grid": True, "grid.alpha": 0.25},
}
# Texts are texts, in a font of the same widths where the first is missing; the same plot is the same file.
FILE = {"svg.fonttype": "none", "svg.hashsalt": "", "font.sans-serif": ["DejaVu Sans", "Verdana"]}
TAG, FINER = re.compile(r"<[^>]*>"), re.compile(r"(\d\.\d\d)\d+")  # than a hundredth of a point


class Plot(Figure):
    """A figure that a cell shows as SVG."""

    def _ipython_display_(self) -> None:
        with plt.rc_context(FILE):
            self.savefig(drawn := BytesIO(), format="svg", bbox_inches="tight", metadata={"Date": None})
        drawing = TAG.sub(lambda tag: FINER.sub(r"\1", tag[0]), drawn.getvalue().decode())
        display({"image/svg+xml": drawing}, raw=True)
