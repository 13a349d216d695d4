"""Ranks, best of N, bootstrap intervals, partial correlation: hand-computed cases, parity with scipy, invariants."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau, rankdata

from dfl_utils.scores import ranking
from dfl_utils.scores.ngrams import corpus_bleu

SIM = np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.7]])
QUALITY = np.array([[10.0, 30.0, 20.0], [5.0, 1.0, 3.0]])
tables = st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(*[arrays(float, shape, elements=st.integers(-3, 3).map(float))] * 2)
)
fixed = settings(derandomize=True, deadline=None, max_examples=60)


def test_ranks_by_hand_ties_in_candidate_order():
    assert ranking.ranks(SIM).tolist() == [[2, 0, 1], [0, 2, 1]]
    assert ranking.ranks([[1, 1, 1]]).tolist() == [[0, 1, 2]]
    assert ranking.ranks([[0.3], [0.4]]).tolist() == [[0], [0]]


def test_standardised_by_hand():
    found = ranking.standardised([[1.0, 3.0], [0.1, 0.1], [-5.0, 5.0]])
    np.testing.assert_allclose(found, [[-1, 1], [0, 0], [-1, 1]])


@fixed
@given(tables)
def test_ranks_equal_scipys(pair):
    sim, quality = pair
    assert np.array_equal(ranking.ranks(sim), rankdata(-sim, method="ordinal", axis=1) - 1)
    by_rank = ranking.quality_by_rank(sim, quality)
    assert np.array_equal(np.sort(by_rank), np.sort(quality))
    assert np.array_equal(np.take_along_axis(by_rank, ranking.ranks(sim), axis=1), quality)
    assert (np.diff(ranking.quality_by_rank(sim, sim), axis=1) <= 0).all()


def test_quality_by_rank_by_hand():
    assert ranking.quality_by_rank(SIM, QUALITY).tolist() == [[30, 20, 10], [5, 3, 1]]
    assert ranking.best_of_n(SIM, QUALITY).tolist() == [30, 5]
    deep = np.stack([QUALITY, -QUALITY], axis=-1)
    assert ranking.quality_by_rank(SIM, deep)[0].tolist() == [[30, -30], [20, -20], [10, -10]]


def test_bad_arrays():
    with pytest.raises(ValueError, match="without a NaN: of \\(1, 2\\) 1 are"):
        ranking.rank_curve([[0.1, np.nan]], [[1, 2]])
    with pytest.raises(ValueError, match=r"\(1, 2\) and quality of \(1, 3\)"):
        ranking.rank_curve([[0.1, 0.2]], [[1, 2, 3]])


def test_bootstrap_resamples_whole_images():
    values = np.random.default_rng(1).normal(size=(50, 1))
    low, high = ranking.bootstrap_interval(np.hstack([values, values + 1]), lambda means: means[..., 1] - means[..., 0])
    assert (low, high) == (pytest.approx(1), pytest.approx(1))  # the shift is the same in every resample


def test_bootstrap_equals_drawing_indices(monkeypatch):
    monkeypatch.setattr(ranking, "NUM_RESAMPLES", 20000)
    values = np.random.default_rng(2).exponential(size=(80, 3))
    drawn = np.random.default_rng(3).integers(80, size=(20000, 80))
    expected = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    np.testing.assert_allclose(ranking.bootstrap_interval(values), expected, atol=0.01)


def test_bootstrap_leaves_nan_out():
    values = np.array([[1.0, np.nan, np.nan], [1.0, 4.0, np.nan], [1.0, 4.0, np.nan]])
    low, high = ranking.bootstrap_interval(values)
    np.testing.assert_array_equal(low, [1, 4, np.nan])
    np.testing.assert_array_equal(high, [1, 4, np.nan])


def test_bootstrap_of_one_image_and_of_corpus_bleu():
    assert ranking.bootstrap_interval([3.0]) == (3, 3)
    one = np.array([[6, 5, 4, 3, 6, 5, 4, 3, 6, 6]] * 4)
    np.testing.assert_allclose(ranking.bootstrap_interval(one, corpus_bleu), np.full((2, 4), 100))


def test_rank_curve():
    quality = QUALITY.copy()
    quality[1, 0] = np.nan  # the best of image 1
    curve = ranking.rank_curve(SIM, quality)
    assert [(point.value, point.n, point.excluded) for point in curve] == [(30, 1, 1), (11.5, 2, 0), (5.5, 2, 0)]
    assert (curve[1].low, curve[1].high) == (3, 20)
    assert curve == ranking.rank_curve(SIM, quality)
    nothing = ranking.rank_curve(SIM, np.full_like(SIM, np.nan))[0]
    assert (nothing.n, nothing.excluded, np.isnan(nothing.value)) == (0, 2, True)


@fixed
@given(tables)
def test_kendall_equals_scipys(pair):
    ours = ranking.kendall_tau(*pair)
    for sim, quality, tau in zip(*pair, ours, strict=True):
        constant = len(set(sim)) == 1 or len(set(quality)) == 1
        expected = np.nan if constant else kendalltau(sim, quality).statistic
        assert tau == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_rank_correlation_excludes_what_was_not_ranked():
    sim = [[1, 2, 3], [1, 2, 3], [1, 1, 1], [1, 2, 3], [1, 2, 3]]
    quality = [[1, 2, 3], [3, 2, 1], [1, 2, 3], [5, 5, 5], [1, np.nan, 2]]
    found = ranking.rank_correlation(sim, quality)
    assert (found.value, found.n, found.excluded) == (pytest.approx(1 / 3), 3, 2)
    assert -1 <= found.low < found.value < found.high <= 1


def test_gain_by_hand():
    found = ranking.gain(SIM, QUALITY)
    assert (found.best.value, found.baseline.value) == (17.5, 11.5)
    assert found.absolute.value == 6
    assert found.percent.value == pytest.approx(600 / 11.5)
    # Resamples of two images: the first twice, the second twice, or both.
    assert (found.absolute.low, found.absolute.high) == (2, 10)
    assert (found.percent.low, found.percent.high) == (pytest.approx(50), pytest.approx(200 / 3))


def test_gain_of_a_corpus_score_is_that_of_the_means_of_its_parts():
    parts = np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 16.0]]])  # (images, N, K)
    ratio = ranking.gain([[0, 1], [1, 0]], parts, statistic=lambda means: means[..., 0] / means[..., 1])
    assert (ratio.best.value, ratio.baseline.value) == pytest.approx((8 / 10, 16 / 28))
    assert ratio.percent.value == pytest.approx(40.0) and ratio.measurable


def test_gain_over_another_method():
    found = ranking.gain(SIM, QUALITY, baseline=[20, 10])
    assert (found.absolute.value, found.baseline.value) == (2.5, 15)


def test_gain_excludes_undefined_images_from_all_four():
    quality = np.array([[np.nan, 30.0, 20.0], [np.nan, 1.0, 3.0]])
    found = ranking.gain(SIM, quality)  # image 1's best candidate is undefined
    assert (found.best.value, found.baseline.value) == (30, 25)
    assert {(e.n, e.excluded) for e in (found.best, found.baseline, found.absolute, found.percent)} == {(1, 1)}


@pytest.mark.parametrize("quality", [QUALITY[:, :1], np.array([[4.0] * 3, [6.0] * 3])])
def test_one_candidate_or_equal_captions_gain_nothing(quality):
    sim = SIM[:, : quality.shape[1]]
    found = ranking.gain(sim, quality)
    assert (found.absolute.value, found.absolute.low, found.absolute.high, found.percent.value) == (0, 0, 0, 0)
    tau = ranking.rank_correlation(sim, quality)
    assert (tau.n, tau.excluded, np.isnan(tau.value)) == (0, 2, True)


@fixed
@given(tables)
def test_gain_lies_between_best_and_worst(pair):
    sim, quality = pair
    found = ranking.gain(sim, quality)
    lowest, highest = quality.min(axis=1).mean(), quality.max(axis=1).mean()
    assert lowest - 1e-9 <= found.best.value <= highest + 1e-9
    assert found.baseline.value == pytest.approx(quality.mean())
    assert ranking.gain(quality, quality).absolute.value >= -1e-12


# --- best of n of a pool ------------------------------------------------------------------------------------
def test_best_of_subsets_by_hand():
    # Of 3 candidates ranked 30, 20, 10 two out of three pairs have 30 on top, one has 20.
    np.testing.assert_allclose(ranking.best_of_subsets(SIM, QUALITY, [1, 2, 3]), [[20, 80 / 3, 30], [3, 13 / 3, 5]])


@fixed
@given(tables)
def test_best_of_subsets_equals_trying_all(pair):
    sim, quality = pair
    sizes = list(range(1, sim.shape[1] + 1))
    found = ranking.best_of_subsets(sim, quality, sizes)
    for size in sizes:
        subsets = [list(chosen) for chosen in combinations(range(sim.shape[1]), size)]
        tried = [ranking.best_of_n(sim[:, chosen], quality[:, chosen]) for chosen in subsets]
        np.testing.assert_allclose(found[:, size - 1], np.mean(tried, axis=0), atol=1e-12)
    np.testing.assert_allclose(found[:, 0], quality.mean(axis=1), atol=1e-12)
    assert np.array_equal(found[:, -1], ranking.best_of_n(sim, quality))


def test_best_of_subsets_leaves_nan_out():
    quality = [[np.nan, 30.0, 10.0], [np.nan, np.nan, np.nan]]
    found = ranking.best_of_subsets([[3, 2, 1], [3, 2, 1]], quality, [1, 2, 3])
    # Of the pairs, two have the unknown on top and the third 30; of all three the best is unknown.
    np.testing.assert_allclose(found, [[20, 30, np.nan], [np.nan] * 3])


def test_best_of_subsets_of_many_candidates_stays_exact():
    sim = np.arange(60)[None]
    assert ranking.best_of_subsets(sim, sim, [30])[0, 0] == pytest.approx(30 * 61 / 31 - 1)  # a known maximum


def test_a_gallery_shows_the_best_the_median_and_the_worst_with_ties_by_id():
    values, ids = [3, 1, 2, 2], [7, 5, 9, 8]
    assert ranking.extremes(values, ids) == [("best", 0), ("median", 2), ("worst", 1)]
    places = [place for _, place in ranking.extremes(values, ids, each=2)]
    assert places == [0, 3, 3, 2, 2, 1]
    assert [place for _, place in ranking.extremes([1.0], [4], each=2)] == 6 * [0]


# --- partial rank correlation --------------------------------------------------------------------------------
triples = st.integers(2, 7).flatmap(
    lambda count: st.tuples(*[arrays(float, (1, count), elements=st.integers(-3, 3).map(float))] * 3)
)


def test_partial_tau_by_hand():
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
def test_partial_tau_is_what_is_left_of_the_signs_after_regressing_on_the_controls(triple):
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


def test_partial_tau_of_undefined_images_is_nan():
    sim = [[1, 2, 3, 4]] * 5
    quality = [[2, 1, 3, 4], [2, 1, 3, 4], [5, 5, 5, 5], [2, 1, 3, 4], [np.nan, 1, 3, np.nan]]
    control = [[1, 2, 4, 3], [1, 2, 3, 4], [1, 2, 4, 3], [7, 7, 7, 7], [1, np.nan, 4, 3]]
    taus = ranking.partial_tau(sim, quality, control)
    np.testing.assert_array_equal(np.isnan(taus), [False, True, True, True, True])


def test_winogrounds_scores_by_hand():
    sims = [
        [[2, 1], [1, 2]],  # image, caption: all right
        [[2, 1], [3, 4]],  # the second image has more of both captions
        [[1, 0], [3, 4]],  # the same, the first image less
        [[2, 3], [1, 4]],  # the second caption is liked more by both images
        [[1, 1], [1, 1]],  # nothing is preferred
    ]
    found = ranking.of_quartets(sims)
    assert {name: of.tolist() for name, of in found.items()} == {
        "text": [1, 1, 1, 0, 0],
        "image": [1, 0, 0, 1, 0],
        "group": [1, 0, 0, 0, 0],
    }


def test_guessing_has_winogrounds_chances():
    orders = np.array(list(permutations(range(4)))).reshape(-1, 2, 2)
    means = {name: of.mean() for name, of in ranking.of_quartets(orders).items()}
    assert means == pytest.approx({"text": 1 / 4, "image": 1 / 4, "group": 1 / 6})


def test_the_way_to_the_oracle_by_hand():
    """Of two images: random 1 and 2, best-ranked 2 and 2, oracle 2 and 4: 0.5 of 1.5 on average."""
    values = np.array([[0.0, 2.0, 1.0], [2.0, 0.0, 4.0]])
    sim = np.array([[0.1, 0.9, 0.2], [0.9, 0.1, 0.2]])
    assert ranking.ByImage(values).reached(sim, values).value == pytest.approx(100 / 3)
    assert ranking.ByImage(values).reached(values, values).value == pytest.approx(100)
    assert np.isnan(ranking.ByImage(np.ones((2, 3))).reached(sim, values).value)


def test_weighted_means_by_hand():
    """Two images of weights 1 and 3: a random pick is worth (1 + 3 * 2) / 4, the best (2 + 3 * 4) / 4."""
    values, sim = np.array([[0.0, 2.0], [0.0, 4.0]]), np.array([[0.1, 0.9], [0.2, 0.8]])
    worth = ranking.ByImage(values).weighted([1, 3]).gain(sim)
    assert (worth.baseline.value, worth.best.value) == (1.75, 3.5)
    assert ranking.ByImage(values).weighted([2, 2]).gain(sim).percent == ranking.ByImage(values).gain(sim).percent
