"""Estimates over trainings and images, and laws of few points: by hand, beside scipy; coverage, bad input."""

import numpy as np
import pytest
from scipy import stats

from dfl_utils.scores import image_sets, intervals, laws, ngrams, ranking
from dfl_utils.scores.ranking import Estimate

CAPTIONS = [["a red dog runs on grass", "two cats sleep"], ["a dog on the grass", "two cats sit on a bed"]]
REFERENCES = [["a red dog runs on the green grass"], ["two cats sleep on a bed"]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def bleu_4(means):
    return ngrams.corpus_bleu(means)[..., 3]


def interval(found: Estimate) -> tuple[float, float]:
    return found.low, found.high


def test_value_by_hand():
    found = intervals.estimate([[1, 2, 3], [5, 6, 10]])
    assert (found.value, found.n, found.excluded) == (4.5, 3, 0)
    assert intervals.difference([[1, 2, 3], [5, 6, 10]], [[0, 1, 5]]).value == 2.5


def test_seeds_that_agree_leave_the_interval_of_the_images(rng):
    images = rng.normal(size=50)
    alone = ranking.bootstrap_interval(images)
    for count in (1, 2, 3):
        assert interval(intervals.estimate(np.tile(images, (count, 1)))) == pytest.approx(alone)


def test_images_that_agree_leave_student_s_interval_of_the_seeds():
    # Of two seeds one is drawn: the percentiles are the seeds themselves, 1 from their mean; one degree of freedom.
    found = intervals.estimate(np.repeat([[0.0], [2.0]], 40, axis=1))
    assert interval(found) == pytest.approx((1 - 12.7062 / 1.95996, 1 + 12.7062 / 1.95996), rel=1e-4)


def test_intervals_of_three_seeds_hold_the_truth(rng):
    def holds(of_seeds: float, of_images: float) -> bool:
        values = of_seeds * rng.normal(size=(3, 1)) + of_images * rng.normal(size=(1, 40)) + rng.normal(size=(3, 40))
        found = intervals.estimate(values)
        return found.low <= 0 <= found.high

    for spread in ((0.0, 1.0), (0.2, 1.0), (1.0, 0.1)):
        assert np.mean([holds(*spread) for _ in range(150)]) > 0.88


def test_a_difference_is_paired_by_image_and_seed(rng):
    before = rng.normal(size=(3, 40)) + 5 * rng.normal(size=(3, 1))
    found = intervals.difference(before + 0.25, before)
    assert (found.value, *interval(found)) == pytest.approx((0.25, 0.25, 0.25))
    one = rng.normal(size=(1, 40))
    found = intervals.difference(np.concatenate([one + 1, one + 2, one + 3]), one)
    assert found.value == pytest.approx(2) and found.low < 1 and found.high > 3  # the seeds' part alone is left
    shuffled = intervals.difference(before[:, ::-1] + 0.25, before)
    assert intervals.smallest_effect(shuffled) > 0.1


def test_bleu_is_a_statistic_of_each_seed():
    counts = np.stack([ngrams.bleu_statistics([[c] for c in row], REFERENCES)[:, 0] for row in CAPTIONS])
    each = [float(bleu_4(own.mean(axis=0))) for own in counts]
    # Means and sums differ by the guards against a division by zero alone.
    assert each == pytest.approx(bleu_4(counts.sum(axis=1)), abs=0.01)
    assert intervals.estimate(counts, bleu_4).value == pytest.approx(np.mean(each))
    assert intervals.difference(counts, counts[:1], bleu_4).value == pytest.approx(np.mean(each) - each[0])
    alone = ranking.bootstrap_interval(counts[0], bleu_4)
    assert interval(intervals.estimate(counts[:1], bleu_4)) == pytest.approx(alone)


def test_an_image_undefined_at_one_seed_is_left_out_everywhere():
    after = [[1.0, 2, 3], [3.0, np.nan, 5]]
    found = intervals.estimate(after)
    assert (found.value, found.n, found.excluded) == (3, 2, 1)
    found = intervals.difference(after, [[0, 0, np.nan]])
    assert (found.value, found.n, found.excluded) == (2, 1, 2)
    empty = intervals.estimate([[np.nan, np.nan]])
    assert np.isnan(empty.value) and (empty.n, empty.excluded) == (0, 2)


def test_fid_is_the_mean_over_seeds(rng):
    features, reference = rng.normal(size=(3, 40, 4)) + [[[0]], [[0.5]], [[1]]], rng.normal(size=(40, 4))
    each = [image_sets.fid(rows, reference) for rows in features]
    found = intervals.level("FID", features, reference, num_resamples=50)
    assert found.value == pytest.approx(np.mean(each)) and found.low < found.value < found.high
    change = intervals.change("FID", features, features[:1], reference, num_resamples=50)
    assert change.value == pytest.approx(np.mean(each) - each[0])
    nothing = intervals.change("FID", features, features, reference, num_resamples=20)
    assert (nothing.value, *interval(nothing)) == pytest.approx((0, 0, 0))
    kid = intervals.level("KID", features, reference, num_resamples=20)
    assert kid.value == pytest.approx(np.mean([image_sets.kid(rows, reference) for rows in features]))


@pytest.mark.parametrize(
    ("low", "high", "up", "down"),
    [
        (0.1, 0.3, "better", "worse"),
        (-0.1, 0.3, "not visible", "not visible"),
        (0.0, 0.3, "not visible", "not visible"),
        (np.nan, np.nan, "not visible", "not visible"),
    ],
)
def test_verdict_is_by_the_interval_alone(low, high, up, down):
    change = Estimate((low + high) / 2, low, high, 10)
    assert (intervals.verdict(change, True), intervals.verdict(change, False)) == (up, down)


def test_the_smallest_effect_is_half_the_interval():
    change = Estimate(1.0, 0.5, 2.0, 10)
    assert intervals.smallest_effect(change) == 0.75
    assert [intervals.would_show(effect, change) for effect in (0.8, -0.8, 0.7, np.nan)] == ["yes", "yes", "no", ""]
    assert intervals.would_show(5.0, Estimate(0.0, 0.0, 0.0, 9)) == ""  # what does not vary says nothing of noise
    assert intervals.verdict(Estimate(1.0, 1.0, 1.0, 1), True) == "not visible"  # of one image


# --- a line or a saturating curve through a few points ---------------------------------------------------------
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
