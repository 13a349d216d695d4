"""FID, KID and IS of sets: by hand, beside torch-fidelity, of resamples; by rank and against random picks."""

import warnings

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from dfl_utils.models.fidelity import Features
from dfl_utils.scores import image_sets
from dfl_utils.scores.image_sets import RankDeficient, SetCurves, fid, isc, kid

CORNERS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_fid_by_hand():
    # Covariances are diagonal, 4/3 of the squared half sides, so the distance falls apart into two of one dimension.
    one, two = CORNERS * [1, 3] + [5, 0], CORNERS * [4, 2] + [2, 1]
    assert fid(one, two) == pytest.approx(3**2 + 1**2 + 4 / 3 * ((1 - 4) ** 2 + (3 - 2) ** 2))
    assert fid(one, one) == pytest.approx(0, abs=1e-9)
    assert fid(one, two) == pytest.approx(fid(two, one))


def test_kid_by_hand_and_of_one_distribution(rng):
    one, two = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 1], [0, 0]])
    # Kernel (x.y / 2 + 1)^3: between the two of a side 1 and 1; across 3.375, 1, 3.375, 1.
    assert kid(one, two) == pytest.approx(1 + 1 - 2 * 8.75 / 4)
    found = [kid(rng.normal(size=(50, 4)), rng.normal(size=(50, 4))) for _ in range(60)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(60)


def test_isc_by_hand():
    assert isc(np.zeros((10, 5))) == pytest.approx(1)
    assert isc(100 * np.eye(5)[np.arange(50) % 5]) == pytest.approx(5)
    # Two images of probabilities (3/4, 1/4) and (1/4, 3/4): the divergence of each from (1/2, 1/2).
    logits = np.log([[3.0, 1], [1, 3]])
    assert isc(logits) == pytest.approx(np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5)))


def test_isc_is_torch_fidelitys_default_from_a_thousand_images_on(rng):
    logits = rng.normal(size=(1000, 6))
    assert isc(logits) == isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"]


def test_fid_of_few_images_is_computed_and_warned_of(rng):
    features = rng.normal(size=(5, 8))
    with pytest.warns(RankDeficient, match="FID of 5 images by 8 features: the covariance has rank 4"):
        assert fid(features, rng.normal(size=(100, 8))) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fid(rng.normal(size=(9, 8)), rng.normal(size=(100, 8)))
        kid(features, features)


@pytest.mark.parametrize("bad", [np.zeros((1, 3)), np.array([[0.0, 1], [np.nan, 0]])])
def test_bad_features(bad):
    for call in (lambda: fid(bad, CORNERS), lambda: kid(CORNERS, bad), lambda: isc(bad)):
        with pytest.raises(ValueError, match="must be finite, of 2 images and 2 columns at least, not"):
            call()


# --- resamples ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(60, 7), (12, 20)])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.filterwarnings("ignore::dfl_utils.scores.image_sets.RankDeficient")
def test_resampled_scores_equal_torch_fidelitys_of_each_resample(rng, shape, paired):
    count, width = shape
    sets = np.abs(rng.normal(size=(2, *shape))) * np.geomspace(1, 0.01, width)
    reference = np.abs(rng.normal(size=shape if paired else (count + 5, width))) * np.geomspace(1, 0.02, width)
    drawn = rng.integers(count, size=(3, count))
    found = {name: score(sets, reference, drawn, paired) for name, score in image_sets.RESAMPLED.items()}
    for b, rows in enumerate(drawn):
        for s, features in enumerate(sets):
            two = reference[rows] if paired else reference
            assert found["FID"][b, s] == pytest.approx(fid(features[rows], two), rel=1e-6)
            assert found["IS"][b, s] == pytest.approx(isc(features[rows]), rel=1e-9)
            if paired:
                assert found["KID"][b, s] == pytest.approx(kid(features[rows], two), rel=1e-9)


# --- scores by rank, and against random picks ---------------------------------------------------------------
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
        curve = SetCurves(features, reference, metric, num_resamples=20).by_rank(sim)
        values = features.logits if metric == "IS" else features.pooled
        sets = [values[np.arange(60), order[:, rank]] for rank in range(4)]
        assert [point.value for point in curve] == pytest.approx([score(rows, reference.pooled) for rows in sets])
        assert all(point.low <= point.value <= point.high and point.n == 60 for point in curve)
    distances = [point.value for point in SetCurves(features, reference, "FID", num_resamples=5).by_rank(sim)]
    assert distances == sorted(distances)
    assert SetCurves(features, None, "IS", num_resamples=20).by_rank(sim) == curve  # which needs no reference


def test_trend_is_the_order_of_the_ranks_by_their_score(run):
    sim, features, reference = run
    curves = SetCurves(features, reference, "FID", num_resamples=40)
    assert curves.trend(sim).value == pytest.approx(-1)  # the better the rank, the smaller the distance
    assert curves.trend(-sim).value == pytest.approx(1)
    mixed = SetCurves(features, reference, "IS", num_resamples=40).trend(np.random.default_rng(4).normal(size=(60, 4)))
    assert -1 <= mixed.low <= mixed.value <= mixed.high <= 1 and mixed.n == 60
    one = Features(features.pooled[:, :1], features.logits[:, :1])
    nothing = SetCurves(one, reference, "FID", num_resamples=5).trend(sim[:, :1])
    assert (nothing.n, nothing.excluded, np.isnan(nothing.value)) == (0, 60, True)
    equal = Features(*(np.repeat(values, 4, axis=1) for values in one))
    assert SetCurves(equal, reference, "IS", num_resamples=5).trend(sim).n == 0


def test_gain_compares_with_sets_of_one_candidate_an_image(run):
    sim, features, reference = run
    curves = SetCurves(features, reference, "FID", num_resamples=50)
    found = curves.gain(sim)
    assert curves.picks.shape == (10, 60)
    for four in (curves.picks[:4], curves.picks[4:8]):
        np.testing.assert_array_equal(np.sort(four, axis=0), np.tile(np.arange(4)[:, None], 60))
    picked = [fid(features.pooled[np.arange(60), pick], reference.pooled) for pick in curves.picks]
    assert found.baseline.value == pytest.approx(np.mean(picked))
    assert found.best == curves.by_rank(sim)[0]
    assert found.absolute.value == pytest.approx(found.best.value - found.baseline.value)
    assert found.percent.value == pytest.approx(100 * found.absolute.value / found.baseline.value)
    assert found.percent.high < 0  # a distance: less is better


def test_one_candidate_or_equal_drawings_gain_nothing(run):
    sim, features, reference = run
    one = Features(features.pooled[:, :1], features.logits[:, :1])
    equal = Features(*(np.repeat(values, 4, axis=1) for values in one))
    for metric in ("FID", "KID", "IS"):
        for same, own_sim in ((one, sim[:, :1]), (equal, sim)):
            found = SetCurves(same, reference, metric, num_resamples=10).gain(own_sim)
            for estimate in (found.absolute, found.percent):
                assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0, 0, 0), abs=1e-9)
    zero = Features(np.ones((4, 2, 3)), np.ones((4, 2, 3)))
    nothing = SetCurves(zero, Features(np.ones((4, 3)), None), "KID", num_resamples=3).gain(np.zeros((4, 2)))
    assert nothing.absolute.value == 0 and np.isnan(nothing.percent.value)  # no share of a distance of nothing


def test_originals_must_be_those_of_the_drawings():
    curves = SetCurves(Features(np.zeros((4, 2, 5)), None), Features(np.zeros((3, 5)), None), "FID")
    with pytest.raises(ValueError, match="3 reference images for 4: .*paired=False"):
        curves.by_rank(np.zeros((4, 2)))
