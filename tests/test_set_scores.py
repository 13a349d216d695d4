"""FID, KID and IS of sets: hand-computed cases, resamples equal to torch-fidelity's scores of them, bad input."""

import warnings

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from dfl_utils.scores import image_sets
from dfl_utils.scores.image_sets import RankDeficient, fid, isc, kid

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


def test_fid_of_many_nears_the_formula_for_normal_distributions_from_above(rng):
    def excess(count: int) -> float:
        return fid(rng.normal(size=(count, 8)), 2 * rng.normal(size=(20000, 8)) + 1) - 8 * (1 + 1)

    assert excess(20000) == pytest.approx(0, abs=0.3)
    assert np.mean([excess(20) for _ in range(20)]) > 1  # fewer images, larger FID


def test_kid_by_hand_and_of_one_distribution(rng):
    one, two = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 1], [0, 0]])
    # Kernel (x.y / 2 + 1)^3: between the two of a side 1 and 1; across 3.375, 1, 3.375, 1.
    assert kid(one, two) == pytest.approx(1 + 1 - 2 * 8.75 / 4)
    found = [kid(rng.normal(size=(50, 4)), rng.normal(size=(50, 4))) for _ in range(60)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(60)


def test_kid_of_unequal_sides_is_a_mean_over_subsets(rng):
    features, reference = rng.normal(size=(30, 4)), rng.normal(size=(200, 4)) + 1
    whole = image_sets.resampled_kid(features[None], reference, np.arange(30)[None], paired=False)
    assert kid(features, reference) == pytest.approx(whole.item(), rel=0.05)


def test_isc_by_hand():
    assert isc(np.zeros((10, 5))) == pytest.approx(1)
    assert isc(100 * np.eye(5)[np.arange(50) % 5]) == pytest.approx(5)
    # Two images of probabilities (3/4, 1/4) and (1/4, 3/4): the divergence of each from (1/2, 1/2).
    logits = np.log([[3.0, 1], [1, 3]])
    assert isc(logits) == pytest.approx(np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5)))


def test_isc_is_torch_fidelitys_default_from_a_thousand_images_on(rng):
    logits = rng.normal(size=(1000, 6))
    assert isc(logits) == isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"]
    assert [image_sets._parts(count) for count in (2, 199, 200, 350, 999, 5000)] == [1, 1, 2, 3, 9, 10]


def test_fid_of_few_images_is_computed_and_warned_of(rng):
    features = rng.normal(size=(5, 8))
    with pytest.warns(RankDeficient, match="FID of 5 images by 8 features: the covariance has rank 4"):
        few = fid(features, rng.normal(size=(100, 8)))
    assert few > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fid(rng.normal(size=(9, 8)), rng.normal(size=(100, 8)))
        kid(features, features)


def test_originals_of_the_same_images_flatter_what_resembles_them(rng):
    originals, others = rng.normal(size=(100, 40)), rng.normal(size=(400, 40))
    alike, unlike = originals + 0, rng.normal(size=(100, 40))  # both of the originals' distribution
    assert fid(alike, originals) < 1e-6 < 3 < fid(unlike, originals)
    assert fid(alike, others) == pytest.approx(fid(unlike, others), rel=0.2)
    assert kid(alike, originals) < -0.02  # torch-fidelity's estimate counts each image against itself


@pytest.mark.parametrize(
    ("features", "reference", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), r"features must be of at least 2 images .*not \(1, 3\)"),
        (np.zeros((4, 3)), np.zeros((0, 3)), r"reference features must be .* not \(0, 3\)"),
        (np.zeros(4), np.zeros((4, 3)), r"not \(4,\)"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "have 3 columns and reference features 2"),
        (np.zeros((4, 3)), np.array([[0.0, 1], [np.nan, 0]]), "reference features of image 1 hold a NaN"),
    ],
)
def test_bad_features(features, reference, message):
    for score in (fid, kid):
        with pytest.raises(ValueError, match=message):
            score(features, reference)


def test_bad_logits():
    with pytest.raises(ValueError, match="logits of image 2 hold a NaN or an infinity"):
        isc([[0, 1], [1, 0], [0, np.inf]])
    with pytest.raises(ValueError, match="at least 2 images"):
        isc([[0, 1]])


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


def test_all_images_once_score_as_they_are_by_192_features(rng):
    mixing = np.linalg.qr(rng.normal(size=(192, 192)))[0] * np.geomspace(1, 0.02, 192)[:, None]
    features, reference = (np.maximum(rng.normal(size=(300, 192)) @ mixing + 0.1, 0) for _ in range(2))
    once = np.arange(300)[None]
    for paired in (True, False):
        found = image_sets.resampled_fid(features[None], reference, once, paired).item()
        assert found == pytest.approx(fid(features, reference), rel=1e-6)


def test_resampled_isc_of_several_parts(rng):
    logits, drawn = 3 * rng.normal(size=(1, 300, 9)), rng.integers(300, size=(1, 300))
    expected = isc_features_to_metric(torch.from_numpy(logits[0, drawn[0]]), splits=3, shuffle=False)
    assert image_sets.resampled_isc(logits, None, drawn, True).item() == pytest.approx(expected["inception_score_mean"])
