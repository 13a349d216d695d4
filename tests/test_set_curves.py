"""Fidelity by rank and against random picks: what is picked, coverage of the intervals, bad input."""

import numpy as np
import pytest

from dfl_utils.models.fidelity import Features
from dfl_utils.scores.image_sets import SetCurves, fid, fidelity_by_rank, fidelity_gain, isc, kid
from dfl_utils.scores.ranking import Estimate


@pytest.fixture(scope="module")
def run():
    """60 images, 4 drawings each, better ones (nearer to the originals' distribution) of higher similarity."""
    rng = np.random.default_rng(0)
    originals, sim = rng.normal(size=(60, 5)), rng.normal(size=(60, 4))
    spoilt = 2.5 * (np.argsort(np.argsort(-sim)) + 1)[..., None]
    drawings = originals[:, None] + rng.normal(size=(60, 4, 5)) + spoilt
    return sim, Features(drawings, drawings * 2), Features(originals, originals * 2)


def test_by_rank_scores_the_set_of_each_rank(run):
    sim, features, reference = run
    order = np.argsort(-sim, axis=1)
    for metric, score in (("FID", fid), ("KID", kid), ("IS", lambda logits, _: isc(logits))):
        curve = fidelity_by_rank(sim, features, reference, metric, num_resamples=20)
        values = features.logits if metric == "IS" else features.pooled
        sets = [values[np.arange(60), order[:, rank]] for rank in range(4)]
        assert [point.value for point in curve] == pytest.approx([score(rows, reference.pooled) for rows in sets])
        assert all(point.low <= point.value <= point.high and point.n == 60 for point in curve)
    distances = [point.value for point in fidelity_by_rank(sim, features, reference, "FID", num_resamples=5)]
    assert distances == sorted(distances)


def test_trend_is_the_order_of_the_ranks_by_their_score(run):
    sim, features, reference = run
    curves = SetCurves(features, reference, "FID", num_resamples=40)
    assert curves.trend(sim).value == pytest.approx(-1)  # the better the rank, the smaller the distance
    assert curves.trend(-sim).value == pytest.approx(1)
    mixed = SetCurves(features, reference, "IS", num_resamples=40).trend(np.random.default_rng(4).normal(size=(60, 4)))
    assert -1 <= mixed.low <= mixed.value <= mixed.high <= 1
    assert mixed.n == 60
    one = Features(features.pooled[:, :1], features.logits[:, :1])
    nothing = SetCurves(one, reference, "FID", num_resamples=5).trend(sim[:, :1])
    assert (nothing.n, nothing.excluded, np.isnan(nothing.value)) == (0, 60, True)


def test_gain_compares_with_sets_of_one_candidate_an_image(run):
    sim, features, reference = run
    curves = SetCurves(features, reference, "FID", num_resamples=50, num_picks=8)
    found = curves.gain(sim)
    assert curves.picks.shape == (8, 60)
    for four in (curves.picks[:4], curves.picks[4:]):
        np.testing.assert_array_equal(np.sort(four, axis=0), np.tile(np.arange(4)[:, None], 60))
    picked = [fid(features.pooled[np.arange(60), pick], reference.pooled) for pick in curves.picks]
    assert found.baseline.value == pytest.approx(np.mean(picked))
    assert found.best == curves.by_rank(sim)[0]
    assert found.absolute.value == pytest.approx(found.best.value - found.baseline.value)
    assert found.percent.value == pytest.approx(100 * found.absolute.value / found.baseline.value)
    assert found.percent.high < 0  # a distance: less is better


def test_one_object_serves_several_similarities_and_no_order_matters(run):
    sim, features, reference = run
    curves = SetCurves(features, reference, "KID", num_resamples=20)
    first = curves.gain(sim), curves.by_rank(-sim), curves.gain(-sim)
    assert first[2] == fidelity_gain(-sim, features, reference, "KID", num_resamples=20)
    assert first[1] == fidelity_by_rank(-sim, features, reference, "KID", num_resamples=20)
    assert first[1] == fidelity_by_rank(sim, features, reference, "KID", num_resamples=20)[::-1]


def test_one_candidate_or_equal_drawings_gain_nothing(run):
    sim, features, reference = run
    one = Features(features.pooled[:, :1], features.logits[:, :1])
    equal = Features(*(np.repeat(values, 4, axis=1) for values in one))
    for metric in ("FID", "KID", "IS"):
        for same, own_sim in ((one, sim[:, :1]), (equal, sim)):
            found = fidelity_gain(own_sim, same, reference, metric, num_resamples=10)
            for estimate in (found.absolute, found.percent):
                assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_a_distance_of_nothing_has_no_percentage():
    same = np.ones((4, 2, 3))
    found = fidelity_gain(np.zeros((4, 2)), Features(same, same), Features(same[:, 0], None), "KID", num_resamples=3)
    assert found.absolute.value == 0
    assert np.isnan([found.percent.value, found.percent.low, found.percent.high]).all()


@pytest.mark.filterwarnings("ignore::dfl_utils.scores.image_sets.RankDeficient")
def test_two_images_are_enough_to_run():
    rng = np.random.default_rng(1)
    features = Features(*rng.normal(size=(2, 2, 3, 8)))
    reference = Features(*rng.normal(size=(2, 2, 8)))
    for metric in ("FID", "KID", "IS"):
        curve = fidelity_by_rank(np.zeros((2, 3)), features, reference, metric, num_resamples=10)
        assert all(isinstance(point, Estimate) and np.isfinite([point.low, point.high]).all() for point in curve)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_cover_the_mean_score_of_so_many_images(paired):
    # What they are to cover is known from fresh runs.
    others = np.random.default_rng(2).normal(size=(200, 6))
    sim = np.tile([2.0, 1.0], (40, 1))

    def played(rng: np.random.Generator, num_resamples: int) -> SetCurves:
        originals = rng.normal(size=(40, 6))
        noise = rng.normal(size=(40, 2, 6)) * [[[0.5], [0.9]]]
        drawings = 0.6 * originals[:, None] + noise + 0.4
        reference = Features(originals if paired else others, None)
        options = {"paired": paired, "num_resamples": num_resamples, "num_picks": 2}
        return SetCurves(Features(drawings, drawings), reference, "FID", **options)

    rng = np.random.default_rng(3)
    fresh = [played(rng, 1).gain(sim) for _ in range(400)]
    truth = np.mean([(gain.best.value, gain.absolute.value) for gain in fresh], axis=0)
    covered = []
    for _ in range(100):
        gain = played(rng, 60).gain(sim)
        intervals = (gain.best, gain.absolute)
        covered.append([found.low <= true <= found.high for found, true in zip(intervals, truth, strict=True)])
    # 250 longer experiments covered 93 to 97 %; the bound is three standard errors of a hundred below.
    assert np.mean(covered, axis=0).min() >= 0.85


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "PPL"}, "metric must be one of FID, KID, IS, not 'PPL'"),
        ({"reference": None}, "FID compares with images: pass their features as reference"),
        ({"reference": Features(np.zeros((3, 5)), None)}, "3 reference images for 4: .*paired=False"),
        ({"features": Features(np.zeros((4, 5)), None)}, r"\(images, N, D\), at least 2 images, not \(4, 5\)"),
        ({"features": Features(np.zeros((1, 2, 5)), None)}, r"at least 2 images, not \(1, 2, 5\)"),
        ({"features": Features(np.full((4, 2, 5), np.nan), None)}, "image 0, candidate 0 hold a NaN"),
        ({"sim": np.zeros((4, 3))}, r"sim is of shape \(4, 3\) and the features are of \(4, 2\) drawings"),
        ({"sim": np.full((4, 2), np.nan)}, "NaN, which has no rank"),
        ({"num_resamples": 0}, "must be at least 1"),
        ({"level": 95}, "level between 0 and 1, not 200, 10 and 95"),
    ],
)
def test_bad_arguments(change, message):
    good = {
        "sim": np.zeros((4, 2)),
        "features": Features(np.zeros((4, 2, 5)), np.zeros((4, 2, 3))),
        "reference": Features(np.zeros((4, 5)), None),
        "metric": "FID",
    }
    with pytest.raises(ValueError, match=message):
        fidelity_by_rank(**good | change)


def test_inception_scores_need_no_reference(run):
    sim, features, reference = run
    assert fidelity_by_rank(sim, features, None, "IS") == fidelity_by_rank(sim, features, reference, "IS")


def curves(metric, spread=0.5, count=4, n=40):
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(n, 3))
    noise = rng.normal(size=(n, count, 3)) * spread * np.arange(count)[:, None]
    pooled = originals[:, None] + noise + 1.0 * np.arange(count)[:, None]  # candidate k lies ever farther off
    features = Features(pooled, np.zeros((n, count, 2)))
    return SetCurves(features, Features(originals, None), metric, num_resamples=50)


def test_a_set_score_that_worsens_with_the_rank_has_a_trend_of_one_and_reversed_of_minus_one():
    sim = np.tile([4.0, 3.0, 2.0, 1.0], (40, 1))
    for metric in ("FID", "KID"):
        s = curves(metric)
        down, up = s.trend(sim), s.trend(-sim)
        assert (down.value, up.value, down.n) == (-1.0, 1.0, 40)  # distances: low at the best rank
        assert -1 <= down.low <= down.value <= down.high < 0


def test_one_candidate_or_equal_scores_have_no_trend():
    s = curves("FID", count=1)
    assert s.trend(np.zeros((40, 1))).n == 0 and np.isnan(s.trend(np.zeros((40, 1))).value)
    e = curves("IS").trend(np.tile([4.0, 3.0, 2.0, 1.0], (40, 1)))  # equal logits: IS 1 at every rank
    assert e.n == 0
