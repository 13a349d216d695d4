"""Whom the self-training learns from: the caption that the loop ranks first, last, or any."""

from pathlib import Path

import numpy as np
import pytest

from dfl_utils.game import self_training
from dfl_utils.game.loops import Reconstructions
from dfl_utils.store import blocks
from dfl_utils.world.data import Example

EXAMPLES = [Example(k, Path(f"{k}.png"), ("people's",), "in") for k in (7, 8, 9)]
CAPTIONS = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]]
SIM = np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.7], [0.3, 0.3, 0.3]], np.float32)


class Played:
    """A game whose captions and similarities are known."""

    def __init__(self, captions=CAPTIONS):
        self.captions = captions

    def sample_captions(self, examples, num_candidates, **options):
        return self.captions

    def i2t2i(self, examples, num_candidates, *, similarities, **options):
        return Reconstructions(list(examples), self.captions, {similarities[0]: SIM}, None)


def texts(game=None, **options):
    return [text for e in self_training.winners(game or Played(), EXAMPLES, 3, **options) for text in e.references]


def test_the_most_and_the_least_similar_drawing_name_the_caption():
    assert texts() == ["b", "d", "g"]  # the first of a tie
    assert texts(pick="worst") == ["a", "e", "i"]
    assert texts(Played([["a", " ", "c"], *CAPTIONS[1:]])) == ["d", "g"]  # an empty winner is left out


def test_a_random_pick_draws_nothing_and_depends_on_the_image_alone(monkeypatch):
    monkeypatch.delattr(Played, "i2t2i")
    picks = [blocks.pick(4, e.image_id, row) for e, row in zip(EXAMPLES, CAPTIONS, strict=True)]
    assert texts(seed=4, pick="random") == picks
    assert {texts(seed=s, pick="random")[0] for s in range(20)} == {"a", "b", "c"}


def test_captions_that_say_nothing_are_refused():
    assert self_training.retold(EXAMPLES[:2], [" x ", ""])[0].references == ("x",)
    with pytest.raises(ValueError, match="None of the 3 captions says anything"):
        self_training.retold(EXAMPLES, ["", " ", "\n"])
