"""Partial rank correlation: hand-computed cases, parity with partial correlation of signs, what is undefined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dfl_utils.scores import ranking

triples = st.integers(2, 7).flatmap(
    lambda count: st.tuples(*[arrays(float, (1, count), elements=st.integers(-3, 3).map(float))] * 3)
)


def test_by_hand():
    # Of the 6 pairs sim and quality agree on 4, sim and control on 5, quality and control on 3.
    sim, quality, control = [[1, 2, 3, 4]], [[2, 1, 3, 4]], [[1, 2, 4, 3]]
    assert ranking.kendall_tau(sim, quality)[0] == pytest.approx(2 / 3)
    assert ranking.kendall_tau(sim, control)[0] == pytest.approx(2 / 3)
    assert ranking.kendall_tau(quality, control)[0] == pytest.approx(1 / 3)
    expected = (2 / 3 - 2 / 3 * 1 / 3) / np.sqrt((1 - 4 / 9) * (1 - 1 / 9))
    assert ranking.partial_tau(sim, quality, control)[0] == pytest.approx(expected)


def signs(values: np.ndarray) -> np.ndarray:
    return np.sign(np.subtract.outer(values, values)).ravel()


@settings(derandomize=True, deadline=None, max_examples=100)
@given(triples)
def test_is_what_is_left_of_the_signs_after_regressing_on_the_controls(triple):
    sim, quality, control = (signs(values[0]) for values in triple)
    found = ranking.partial_tau(*triple)[0]
    if not control.any():
        assert np.isnan(found)
        return
    left = [x - x @ control / (control @ control) * control for x in (sim, quality)]
    norms = [np.linalg.norm(x) for x in left]
    if min(norms) < 1e-6:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(left[0] @ left[1] / (norms[0] * norms[1]), abs=1e-9)


def test_undefined_images_are_nan():
    sim = [[1, 2, 3, 4]] * 5
    quality = [[2, 1, 3, 4], [2, 1, 3, 4], [5, 5, 5, 5], [2, 1, 3, 4], [np.nan, 1, 3, np.nan]]
    control = [[1, 2, 4, 3], [1, 2, 3, 4], [1, 2, 4, 3], [7, 7, 7, 7], [1, np.nan, 4, 3]]
    taus = ranking.partial_tau(sim, quality, control)
    np.testing.assert_array_equal(np.isnan(taus), [False, True, True, True, True])
