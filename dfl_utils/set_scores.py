"""FID, KID and IS of a set of images by torch-fidelity, and of many resamples of it at once (Figure 4, Table 2).

Unlike a caption's score these belong to no single image. Three things decide what such a number says:

- Size. FID is biased upward, the more the fewer images: the covariances that it compares are estimated, and that of n
  images has rank n - 1 at most. IS is biased downward. Compare sets of one size alone. KID is unbiased at any size.
- The reference. All this holds for a reference of other images. If it is the drawings' own originals, chance moves
  both sets alike, and FID and KID fall the more a drawing resembles its original, even where the two sets are of one
  distribution; at some hundred images this can be more than there is to see.
- The extractor: see `dfl_utils.fidelity`.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import log_softmax, xlogy
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

METRICS = ("FID", "KID", "IS")
PARTS, PART_SIZE = 10, 100  # torch-fidelity's default is 10 parts whatever their size
SUBSETS, SUBSET_SIZE = 100, 1000  # torch-fidelity's defaults
SEED = 2020  # torch-fidelity's


class RankDeficient(UserWarning):
    """FID was asked of no more images than features."""


def _checked(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"{name} must be of at least 2 images by 2 columns, not {values.shape}: take more images.")
    if not np.isfinite(values).all():
        image = np.argwhere(~np.isfinite(values))[0][0]
        raise ValueError(f"{name} of image {image} hold a NaN or an infinity; compute them anew.")
    return values


def _checked_pair(features: ArrayLike, reference: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    features, reference = _checked("features", features), _checked("reference features", reference)
    if features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features have {features.shape[1]} columns and reference features {reference.shape[1]}: "
            "take both from one extractor."
        )
    return features, reference


def fid(features: ArrayLike, reference: ArrayLike) -> float:
    """Fréchet Inception Distance, by torch-fidelity: from 0, lower is better.

    Args:
        features: (n, D), n >= 2.
        reference: (M, D), M >= 2.

    Raises:
        ValueError: fewer than 2 images on a side, NaN, or two widths.

    Note: of no more than D images it is computed all the same (so that a small run goes through), and `RankDeficient`
    is warned of: the number then says more of n than of the images.
    """
    features, reference = _checked_pair(features, reference)
    few = min(len(features), len(reference))
    if few <= features.shape[1]:
        warnings.warn(
            f"FID of {few} images by {features.shape[1]} features: the covariance has rank {few - 1} at most and the "
            "bias is large; compare it with sets of the same size alone, and read KID beside it.",
            RankDeficient,
            stacklevel=2,
        )
    statistics = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (features, reference)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kid(features: ArrayLike, reference: ArrayLike) -> float:
    """Kernel Inception Distance, by torch-fidelity: cubic kernel, unbiased, so also below 0; lower is better.

    The mean over 100 subsets of 1,000 images (torch-fidelity's defaults; seed 2020); of fewer images, over subsets as
    large as the smaller side, and where both sides are that large, once over all.

    Args, Raises: as `fid`.
    """
    features, reference = _checked_pair(features, reference)
    size = min(len(features), len(reference), SUBSET_SIZE)
    subsets = 1 if size == len(features) == len(reference) else SUBSETS
    sides = (torch.from_numpy(rows) for rows in (features, reference))
    options = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
    return kid_features_to_metric(*sides, **options)["kernel_inception_distance_mean"]


def isc(logits: ArrayLike) -> float:
    """Inception Score, by torch-fidelity: from 1 to L, higher is better.

    The mean over as many parts as hold 100 images, at most torch-fidelity's 10 (from 1,000 images on this is its
    default), cut after shuffling by its seed 2020. A smaller part would know less of how varied the images are.

    Args:
        logits: (n, L), n >= 2.
    """
    logits = torch.from_numpy(_checked("logits", logits))
    return isc_features_to_metric(logits, splits=_parts(len(logits)), rng_seed=SEED)["inception_score_mean"]


def _parts(count: int) -> int:
    return min(PARTS, max(1, count // PART_SIZE))


# --- resamples ----------------------------------------------------------------------------------------------
# Each takes sets (S, n, K), a reference (M, K) and the images drawn, (B, n) numbers below n, and gives scores (B, S).
# With `paired` the reference is drawn alike, else it is taken as it is. Subsets of KID are not drawn: their mean over
# all draws is the estimate over all images, which is used here.
def _weights(drawn: np.ndarray, count: int) -> np.ndarray:
    """How often each of `count` images is drawn: (B, count)."""
    return np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(float)


def _factor(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and a factor F with F'F = the covariance, of rows drawn `weights` times."""
    rows, weights = rows[weights > 0], weights[weights > 0]
    mean = weights @ rows / weights.sum()
    return mean, np.sqrt(weights / (weights.sum() - 1))[:, None] * (rows - mean)


def _low(mean: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same mean and covariance by a factor of at most D rows."""
    return mean, np.linalg.qr(factor, mode="r") if len(factor) > factor.shape[1] else factor


def _frechet(mean: np.ndarray, factor: np.ndarray, mean_2: np.ndarray, factor_2: np.ndarray) -> float:
    """FID. The eigenvalues of the product F'F G'G are the squared singular values of FG': a symmetric problem."""
    crossed = factor @ factor_2.T
    trace = np.sqrt(np.linalg.eigvalsh(crossed.T @ crossed).clip(min=0)).sum()
    return ((mean - mean_2) ** 2).sum() + (factor**2).sum() + (factor_2**2).sum() - 2 * trace


def resampled_fid(sets: np.ndarray, reference: np.ndarray, drawn: np.ndarray, paired: bool) -> np.ndarray:
    whole = None if paired else _low(*_factor(reference, np.ones(len(reference))))
    scores = []
    for weights in _weights(drawn, sets.shape[1]):
        other = whole or _low(*_factor(reference, weights))
        scores.append([_frechet(*_factor(rows, weights), *other) for rows in sets])
    return np.array(scores)


def _kernel(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return (one @ two.T / one.shape[1] + 1) ** 3


def _within(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean kernel of two different draws: (B,)."""
    count = weights.sum(axis=1)
    total = (weights @ kernel * weights).sum(axis=1) - weights @ kernel.diagonal()
    return total / (count * (count - 1))


def resampled_kid(sets: np.ndarray, reference: np.ndarray, drawn: np.ndarray, paired: bool) -> np.ndarray:
    weights = _weights(drawn, sets.shape[1])
    other = weights if paired else np.ones((1, len(reference)))
    own = _within(_kernel(reference, reference), other)
    pairs = weights.sum(axis=1) * other.sum(axis=1)
    scores = []
    for rows in sets:
        across = (weights @ _kernel(rows, reference) * other).sum(axis=1) / pairs
        scores.append(_within(_kernel(rows, rows), weights) + own - 2 * across)
    return np.stack(scores, axis=1)


def resampled_isc(sets: np.ndarray, reference: None, drawn: np.ndarray, paired: bool) -> np.ndarray:
    count = sets.shape[1]
    parts = [_weights(part, count) / part.shape[1] for part in np.array_split(drawn, _parts(count), axis=1)]
    scores = []
    for rows in sets:
        logs = log_softmax(rows, axis=1)
        negative_entropy = (np.exp(logs) * logs).sum(axis=1)
        means = [shares @ np.exp(logs) for shares in parts]
        # The mean divergence from the parts' mean distribution, as a difference of entropies.
        found = [shares @ negative_entropy - xlogy(m, m).sum(axis=1) for shares, m in zip(parts, means, strict=True)]
        scores.append(np.exp(found).mean(axis=0))
    return np.stack(scores, axis=1)


SCORES: dict[str, Callable] = {"FID": fid, "KID": kid, "IS": lambda logits, reference: isc(logits)}
RESAMPLED: dict[str, Callable] = {"FID": resampled_fid, "KID": resampled_kid, "IS": resampled_isc}
