"""Whom the self-training learns from: the caption that the loop ranks first, last, or any."""

from dataclasses import replace
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
    """A game whose captions and similarities are known; it notes what it was asked."""

    def __init__(self, captions=CAPTIONS):
        self.captions, self.asked = captions, []

    def sample_captions(self, examples, num_candidates, **options):
        self.asked.append(("sample_captions", num_candidates, options))
        return self.captions

    def i2t2i(self, examples, num_candidates, **options):
        self.asked.append(("i2t2i", num_candidates, options))
        (judge,) = options["similarities"]
        return Reconstructions(list(examples), self.captions, {judge: SIM}, None)


def told(examples):
    return [example.references for example in examples]


def test_the_most_and_the_least_similar_drawing_name_the_caption():
    game = Played()
    found = self_training.winners(game, EXAMPLES, 3, top_p=0.5, seed=4)
    assert told(found) == [("b",), ("d",), ("g",)]  # the first of a tie
    assert [replace(example, references=("people's",)) for example in found] == EXAMPLES
    assert game.asked == [("i2t2i", 3, {"top_p": 0.5, "seed": 4, "similarities": ("clip",)})]
    assert told(self_training.winners(Played(), EXAMPLES, 3, pick="worst")) == [("a",), ("e",), ("i",)]


def test_a_random_pick_draws_nothing_and_depends_on_the_image_alone():
    game = Played()
    found = self_training.winners(game, EXAMPLES, 3, top_p=0.5, seed=4, pick="random")
    assert game.asked == [("sample_captions", 3, {"top_p": 0.5, "seed": 4})]
    assert told(found) == [(blocks.pick(4, e.image_id, row),) for e, row in zip(EXAMPLES, CAPTIONS, strict=True)]
    seen = {told(self_training.winners(Played(), EXAMPLES, 3, seed=s, pick="random"))[0] for s in range(20)}
    assert seen == {("a",), ("b",), ("c",)}


def test_an_empty_winner_is_left_out():
    blank = [["a", " ", "c"], *CAPTIONS[1:]]
    found = self_training.winners(Played(blank), EXAMPLES, 3)
    assert [example.image_id for example in found] == [8, 9]
    assert told(self_training.retold(EXAMPLES[:2], [" x ", ""])) == [("x",)]


def test_captions_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="None of the 3 captions says anything"):
        self_training.retold(EXAMPLES, ["", " ", "\n"])
