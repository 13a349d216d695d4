"""Figures of the finetuning: what they are told stands in them; smoothing by hand."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import FancyBboxPatch

from dfl_utils.exhibits import diagrams
from dfl_utils.training.anatomy import Anatomy
from dfl_utils.training.finetune import ROLES
from dfl_utils.training.losses import LOSSES

NAMES = (
    *("pixel_values", "image embeds", "logits", "distributions", "mapped embeds", "encoder_hidden_states"),
    *("noisy latents", "noise prediction", "prompt_ids", "encoder_hidden_states of the caption"),
    *("noise prediction of the caption", "one-step latents", "decoded image", "logits of the decoded image"),
)


@pytest.fixture
def found():
    shapes = {name: (8, 1000 + k) for k, name in enumerate(NAMES)}
    grey = np.full((4, 4, 3), 128, np.uint8)
    pictures = dict.fromkeys(("image", "noisy", "image_hat"), grey)
    values = dict(zip(LOSSES, (0.5, 0.25, 0.125, 0.0625), strict=True))
    norms = {name: dict.fromkeys(ROLES, 1.0) for name in LOSSES}
    return Anatomy(shapes, values, norms, dict.fromkeys(ROLES, 7), pictures, "a red dog", "a red cat", "text", 321)


def written(figure) -> str:
    return "\n".join(text.get_text() for axis in figure.axes for text in axis.texts)


def test_the_diagrams_show_every_shape_and_every_loss(found):
    a, b = (written(draw(found)) for draw in (diagrams.image_text_image, diagrams.text_image_text))
    for k in range(len(NAMES)):
        assert f"8 × 1,{k:03}" in a + b
    for text, equations in ((a, (1, 2)), (b, (3, 4))):
        assert "timestep 321" in text
        assert all(f"{found.losses[LOSSES[k - 1]]:.3g} (Eq. {k})" in text for k in equations)
    assert "of the caption" not in b.replace("along the caption", "")


def test_the_side_that_is_trained_is_the_side_that_is_coloured(found):
    def trained(figure) -> list[str]:
        fill = to_rgba(diagrams.LOOKS["trained"][0])
        boxes = [box for box in figure.axes[0].patches[:-3] if box.get_facecolor() == fill]
        return [f"{box.get_y():.2f}" for box in boxes if isinstance(box, FancyBboxPatch)]

    tops = [f"{0.1 + (diagrams.BOX_HEIGHT + diagrams.GAP) * place:.2f}" for place in range(8)]
    assert trained(diagrams.image_text_image(found)) == [tops[2], tops[6]]
    other = diagrams.image_text_image(replace(found, side="image"))
    assert trained(other) == [tops[1], tops[6]]
