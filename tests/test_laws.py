"""A line or a saturating curve through a few points: hand cases, parity with scipy, intervals."""

import numpy as np
import pytest
from scipy import stats

from dfl_utils.scores import laws


def test_a_line_is_least_squares():
    x, y = [0.0, 1.0, 3.0], [1.0, 0.0, 5.0]
    law, known = laws.fit(x, y, "line"), stats.linregress(x, y)
    assert np.allclose(
        [law.intercept, law.slope, law(2.0)], [known.intercept, known.slope, law.intercept + law.slope * 2]
    )
    flat = laws.fit([2.0, 2.0], [1.0, 3.0], "line")
    assert (flat.intercept, flat.slope) == (2, 0)


def test_a_saturating_curve_is_found_again():
    x, rate = np.linspace(0, 1, 6), laws.RATES[12]
    y = 3 + 40 * (1 - np.exp(-rate * x))
    law = laws.fit(x, y, "saturating")
    assert np.allclose([law.intercept, law.slope, law.rate, law(0.5)], [3, 40, rate, 3 + 40 * (1 - np.exp(-rate / 2))])
    assert laws.choose(x, y)[0] == "saturating"


def test_the_error_at_points_left_out_by_hand():
    # Lines through the other two miss by 3, 1.5 and 3.
    assert laws.left_out_error([0, 1, 2], [0, 1, 5], "line") == pytest.approx(np.sqrt((9 + 2.25 + 9) / 3))


def test_of_points_on_a_line_the_line_is_chosen_and_of_few_no_curve_is_tried():
    x = np.array([0.0, 0.2, 0.5, 0.7, 1.0])
    assert laws.choose(x, 2 * x + 1)[0] == "line"
    assert list(laws.choose(x[:4], x[:4] ** 2)[1]) == ["line"]


def test_many_fits_at_once_are_those_one_by_one():
    rng = np.random.default_rng(0)
    x, y = rng.random((3, 6)), rng.random((3, 6))
    for shape in ("line", "saturating"):
        together = laws.fit(x, y, shape)(0.4)
        assert np.allclose(together, [laws.fit(*pair, shape)(0.4) for pair in zip(x, y, strict=True)])


def test_a_prediction_holds_the_law_and_its_resamples():
    x, rng = np.linspace(0, 1, 5), np.random.default_rng(1)
    y = 10 * x
    resamples = np.tile(x, (500, 1)), y + rng.normal(0, 1, (500, 5))
    found = laws.predicted((x, y), resamples, "line", 0.5, 96)
    half = 1.96 / np.sqrt(5)  # a line's standard error at the mean of x
    assert found.value == pytest.approx(5) and found.n == 96
    assert np.allclose([found.low, found.high], [5 - half, 5 + half], atol=0.15)


def test_too_few_points_are_named():
    with pytest.raises(ValueError, match="needs 4 points"):
        laws.fit([0, 1, 2], [0, 1, 2], "saturating")
    with pytest.raises(ValueError, match="of both"):
        laws.fit([0, 1, 2], [0, 1], "line")
