"""Figure 6 drawn anew: the two ways round, with the shapes and losses of a step that was taken.

Each way is a chain from top to bottom, narrow enough to be read on a phone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from dfl_utils.exhibits.svg import STYLE, Plot
from dfl_utils.training.anatomy import Anatomy

# In inches, from the left and from the top.
WIDTH, LEFT, BOX, BOX_HEIGHT, GAP = 4.6, 0.12, 2.5, 0.4, 0.36
RIGHT, PICTURE = 3.02, 0.4  # where stands what is beside a box; side of a picture
# Fill and edge. The ink is near-black: 7:1 and more on each fill.
LOOKS = {
    "trained": ("#fed7aa", "#c2410c"),
    "frozen": ("#f4f4f5", "#52525b"),
    "loss": ("#bfdbfe", "#0b6fb8"),
    "given": ("#ffffff", "#a1a1aa"),
}
KINDS = {"trained": "trained in part", "frozen": "frozen", "loss": "loss, this batch"}
INK, FONT = "#18181b", 8.5


@dataclass(frozen=True)
class Part:
    """A box of the chain.

    Attributes:
        text: what it is, two lines at most.
        kind: a key of `LOOKS`.
        hands_on: what the arrow below it carries, with its shape; "" for the last.
        loss: a loss that is taken of what it hands on, in two lines.
        beside: what else enters it, three lines at most.
        picture: shown at its right, `(H, W, 3)` uint8.
    """

    text: str
    kind: str
    hands_on: str = ""
    loss: str = ""
    beside: str = ""
    picture: np.ndarray | None = None


def image_text_image(found: Anatomy) -> Figure:
    """From the image by a soft caption back to the image (the paper's Figure 6 a; Eq. 1 and 2)."""
    looks = {side: "trained" if side == found.side else "frozen" for side in ("image", "text")}
    parts = [
        Part("image", "given", _named(found, "pixel_values"), picture=found.pictures["image"]),
        Part("captioner, image side", looks["image"], _named(found, "image embeds")),
        Part("captioner, text side,\nforced along the caption", looks["text"], _named(found, "logits"),
             loss=_loss(found, "caption_loss", 1)),
        Part("softmax at the caption's tokens", "frozen", _named(found, "distributions")),
        Part("mixed token embeddings,\nby the vocabulary map", "frozen", _named(found, "mapped embeds")),
        Part("[BOS] ... [EOS],\ntext encoder", "frozen", _named(found, "encoder_hidden_states")),
        Part("generator: U-Net", "trained", _named(found, "noise prediction"), beside=_noised(found),
             picture=found.pictures["noisy"]),
        Part(_loss(found, "image_reconstruction_loss", 2), "loss"),
    ]  # fmt: skip
    return chain(parts)


def text_image_text(found: Anatomy) -> Figure:
    """From the caption by a one-step image back to the caption (the paper's Figure 6 b; Eq. 3 and 4)."""
    parts = [
        Part("caption", "given", _named(found, "prompt_ids")),
        Part("text encoder", "frozen", _named(found, "encoder_hidden_states of the caption")),
        Part("generator: U-Net", "trained", _named(found, "noise prediction of the caption"), beside=_noised(found),
             picture=found.pictures["noisy"], loss=_loss(found, "generation_loss", 3)),
        Part("one step to clean latents", "frozen", _named(found, "one-step latents")),
        Part("decoder, resize", "frozen", _named(found, "decoded image"), picture=found.pictures["image_hat"]),
        Part("captioner,\nforced along the caption", "trained", _named(found, "logits of the decoded image")),
        Part(_loss(found, "text_reconstruction_loss", 4), "loss"),
    ]  # fmt: skip
    return chain(parts)


@plt.rc_context(STYLE | {"axes.grid": False, "font.size": FONT, "text.color": INK})
def chain(parts: Sequence[Part]) -> Figure:
    """Boxes from top to bottom, and an arrow with its label from each to the next; below them what the fills mean."""
    step = BOX_HEIGHT + GAP
    height = step * len(parts) + 0.2
    figure = plt.figure(figsize=(WIDTH, height), FigureClass=Plot)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH), ylim=(height, 0))
    axis.axis("off")
    for place, part in enumerate(parts):
        _draw(axis, part, 0.1 + step * place)
    for place, (kind, text) in enumerate(KINDS.items()):
        x, y = LEFT + 1.5 * place, height - 0.24
        _box(axis, x, y, 0.2, 0.12, kind)
        axis.text(x + 0.3, y + 0.06, text, va="center")
    plt.close(figure)
    return figure


def _draw(axis: Axes, part: Part, top: float) -> None:
    middle, centre, bottom = top + BOX_HEIGHT / 2, LEFT + BOX / 2, top + BOX_HEIGHT
    _box(axis, LEFT, top, BOX, BOX_HEIGHT, part.kind)
    axis.text(centre, middle, part.text, ha="center", va="center", linespacing=1.15)
    if part.hands_on:
        _arrow(axis, (centre, bottom), (centre, bottom + GAP))
        axis.text(centre + 0.1, bottom + GAP / 2, part.hands_on, va="center")
    if part.beside:
        _arrow(axis, (RIGHT - 0.04, middle), (LEFT + BOX, middle))
        axis.text(RIGHT, middle, part.beside, va="center", linespacing=1.15, fontsize=FONT - 0.5)
    if part.loss:
        _arrow(axis, (WIDTH - 1.28, bottom + GAP / 2), (WIDTH - 1.13, bottom + GAP / 2))
        _box(axis, WIDTH - 1.13, bottom + 0.03, 1.05, GAP - 0.03, "loss")
        axis.text(WIDTH - 0.605, bottom + 0.195, part.loss, ha="center", va="center", fontsize=FONT - 0.5)
    if part.picture is not None:
        left = WIDTH - PICTURE - 0.08 if part.beside else RIGHT
        extent = (left, left + PICTURE, middle + PICTURE / 2, middle - PICTURE / 2)
        axis.imshow(part.picture, extent=extent, interpolation="nearest", aspect="auto", zorder=2)
        edge = {"facecolor": "none", "edgecolor": "#d4d4d8", "linewidth": 0.6, "zorder": 3}
        axis.add_patch(Rectangle((left, middle - PICTURE / 2), PICTURE, PICTURE, **edge))  # a white ground ends here


def _box(axis: Axes, x: float, y: float, width: float, height: float, kind: str) -> None:
    fill, edge = LOOKS[kind]
    shape = "round,pad=0,rounding_size=0.05"
    axis.add_patch(FancyBboxPatch((x, y), width, height, shape, facecolor=fill, edgecolor=edge, linewidth=1))


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    look = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=look)


def shown(shape: Sequence[int]) -> str:
    """A tensor's shape as it is read: 8 × 77 × 64, with commas in thousands."""
    return " × ".join(f"{size:,}" for size in shape)


def _named(found: Anatomy, name: str) -> str:
    return f"{name.partition(' of the ')[0]}  {shown(found.shapes[name])}"


def _loss(found: Anatomy, name: str, equation: int) -> str:
    return f"{name}\n{found.losses[name]:.3g} (Eq. {equation})"


def _noised(found: Anatomy) -> str:
    return f"noisy latents\n{shown(found.shapes['noisy latents'])}\ntimestep {found.timestep}"
