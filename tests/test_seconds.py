"""Seconds of saying and judging: once measured they are kept, and every work is asked of images of its own."""

from dataclasses import replace

import numpy as np
import pytest

from dfl_utils.game import seconds
from dfl_utils.game.loops import Game
from dfl_utils.store.store import RunStore
from dfl_utils.world import data


def test_seconds_are_measured_once_and_kept(mini, tmp_path, monkeypatch):
    pool = data.load(mini, "nocaps", "overall")[:6]
    game = Game(replace(mini, num_inference_steps=1), RunStore(tmp_path), progress=False)
    options = {"num_candidates": 2, "num_beams": 2, "rounds": 2}
    spent = seconds.measure(game, pool, pool, **options)
    assert set(spent.of) == set(seconds.WORKS) and spent.when and spent.where
    assert all(rounds.shape == (2,) and (rounds > 0).all() for rounds in spent.of.values())
    low = spent.estimate("denoising")
    assert low.low <= low.value <= low.high and low.n == 2
    monkeypatch.setattr(seconds, "_rounds", lambda *_: pytest.fail("they were measured again"))
    again = seconds.measure(game, pool, pool, **options)
    np.testing.assert_array_equal(again.of["drawing"], spent.of["drawing"])


def test_too_few_images_are_refused(mini, tmp_path):
    game = Game(mini, RunStore(tmp_path), progress=False)
    with pytest.raises(ValueError, match="3 rounds and one to warm up need as many images, not 2: give more"):
        seconds.measure(game, data.load(mini, "nocaps", "overall")[:2], [])
