"""FID, KID and IS of a set of images by torch-fidelity, and of many resamples of it at once (Figure 4, Table 2).

Three things decide what such a number says:

- Size. FID is biased upward, the more the fewer images: the covariances that it compares are estimated, and that of n
  images has rank n - 1 at most. IS is biased downward. Compare sets of one size alone. KID is unbiased at any size.
- The reference. All this holds for a reference of other images. If it is the drawings' own originals, chance moves
  both sets alike, and FID and KID fall the more a drawing resembles its original, even where the two sets are of one
  distribution; at some hundred images this can be more than there is to see.
- The extractor: see `dfl_utils.models.fidelity`.
"""

import warnings
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import log_softmax, xlogy
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from dfl_utils.models.fidelity import Features
from dfl_utils.scores.ranking import RULES, SET_RESAMPLES, TAILS, Estimate, Gain, kendall_tau, order

METRICS = ("FID", "KID", "IS")
PARTS, PART_SIZE = 10, 100  # torch-fidelity's default is 10 parts whatever their size
SUBSETS, SUBSET_SIZE = 100, 1000  # torch-fidelity's defaults
SEED = 2020  # torch-fidelity's


class RankDeficient(UserWarning):
    """FID was asked of no more images than features."""


def _rows(values: ArrayLike) -> torch.Tensor:
    """What torch-fidelity takes, of at least two images."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError(f"features must be finite, of 2 images and 2 columns at least, not {values.shape}: take more.")
    return torch.from_numpy(values)


def fid(features: ArrayLike, reference: ArrayLike) -> float:
    """Fréchet Inception Distance of (n, D) and (M, D), by torch-fidelity: from 0, lower is better.

    Of no more than D images, for a small run, `RankDeficient` is warned of: the number then says more of n than of the
    images. ValueError: fewer than 2 images on a side, or NaN.
    """
    sides = _rows(features), _rows(reference)
    few, columns = min(map(len, sides)), sides[0].shape[1]
    if few <= columns:
        warnings.warn(
            f"FID of {few} images by {columns} features: the covariance has rank {few - 1} at most and the bias is "
            "large; compare it with sets of the same size alone, and read KID beside it.",
            RankDeficient,
            stacklevel=2,
        )
    statistics = map(fid_features_to_statistics, sides)
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kid(features: ArrayLike, reference: ArrayLike) -> float:
    """Kernel Inception Distance, by torch-fidelity: cubic kernel, unbiased, so also below 0; lower is better.

    The mean over 100 subsets of 1,000 images (torch-fidelity's defaults; seed 2020); of fewer images, over subsets as
    large as the smaller side, and where both sides are that large, once over all. Else as `fid`.
    """
    sides = _rows(features), _rows(reference)
    size = min(SUBSET_SIZE, *map(len, sides))
    subsets = 1 if size == max(map(len, sides)) else SUBSETS
    options = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
    return kid_features_to_metric(*sides, **options)["kernel_inception_distance_mean"]


def isc(logits: ArrayLike, reference: None = None) -> float:
    """Inception Score of (n, L) logits, by torch-fidelity: from 1 to L, higher is better; it has no reference.

    The mean over as many parts as hold 100 images, at most torch-fidelity's 10 (from 1,000 images on this is its
    default), cut after shuffling by its seed 2020.
    """
    return isc_features_to_metric(_rows(logits), splits=_parts(len(logits)), rng_seed=SEED)["inception_score_mean"]


def _parts(count: int) -> int:
    return min(PARTS, max(1, count // PART_SIZE))


# --- Resamples. Each takes sets (S, n, K), a reference (M, K) and the images drawn, (B, n) numbers below n, and gives
# scores (B, S). With `paired` the reference is drawn alike, else it is taken as it is. Subsets of KID are not drawn:
# their mean over all draws is the estimate over all images, which is used here.


def _weights(drawn: np.ndarray, count: int) -> np.ndarray:
    """How often each of `count` images is drawn: (B, count)."""
    return np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(float)


def _factor(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and a factor F with F'F = the covariance, of rows drawn `weights` times."""
    rows, weights = rows[weights > 0], weights[weights > 0]
    mean = weights @ rows / weights.sum()
    return mean, np.sqrt(weights / (weights.sum() - 1))[:, None] * (rows - mean)


def _frechet(mean: np.ndarray, factor: np.ndarray, mean_2: np.ndarray, factor_2: np.ndarray) -> float:
    """FID. The eigenvalues of the product F'F G'G are the squared singular values of FG': a symmetric problem."""
    crossed = factor @ factor_2.T
    trace = np.sqrt(np.linalg.eigvalsh(crossed.T @ crossed).clip(min=0)).sum()
    return ((mean - mean_2) ** 2).sum() + (factor**2).sum() + (factor_2**2).sum() - 2 * trace


def resampled_fid(sets: np.ndarray, reference: np.ndarray, drawn: np.ndarray, paired: bool) -> np.ndarray:
    whole = None if paired else _reference_factor(reference, np.ones(len(reference)))
    scores = []
    for weights in _weights(drawn, sets.shape[1]):
        mean, factor = whole or _reference_factor(reference, weights)
        scores.append([_frechet(*_factor(rows, weights), mean, factor) for rows in sets])
    return np.array(scores)


def _reference_factor(reference: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_factor`, of at most D rows."""
    mean, factor = _factor(reference, weights)
    return mean, np.linalg.qr(factor, mode="r") if len(factor) > factor.shape[1] else factor


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
    reference_kernel = _within(_kernel(reference, reference), other)
    pairs = weights.sum(axis=1) * other.sum(axis=1)
    scores = []
    for rows in sets:
        across = (weights @ _kernel(rows, reference) * other).sum(axis=1) / pairs
        scores.append(_within(_kernel(rows, rows), weights) + reference_kernel - 2 * across)
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
        each = zip(parts, means, strict=True)
        divergences = [shares @ negative_entropy - xlogy(m, m).sum(axis=1) for shares, m in each]
        scores.append(np.exp(divergences).mean(axis=0))
    return np.stack(scores, axis=1)


SCORES = {"FID": fid, "KID": kid, "IS": isc}
RESAMPLED = {"FID": resampled_fid, "KID": resampled_kid, "IS": resampled_isc}


def scored(
    sets: np.ndarray, reference: np.ndarray | None, metric: str, drawn: np.ndarray, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (S,) of the sets, and (B, S) of their resamples, shifted until their mean is the score.

    In a resample a third of the images is missing and others stand there twice: to FID that is a smaller set, to KID
    one whose images resemble each other, and both come out too high. What a resample does tell is the error of a score
    around its mean: the percentiles of the shifted values are an interval of what n such images score on average.

    On synthetic features (32 to 100 images, 8 to 64 columns) such intervals of FID held it in 90 to 100 % of
    experiments, those of its gain in 87 to 100 %.
    """
    if paired and metric != "IS" and len(reference) != sets.shape[1]:
        raise ValueError(
            f"There are {len(reference)} reference images for {sets.shape[1]}: pass the original of each, "
            "or paired=False where they are others."
        )
    scores = np.array([SCORES[metric](rows, reference) for rows in sets])
    resampled = RESAMPLED[metric](sets, reference, drawn, paired)
    return scores, resampled - resampled.mean(axis=0) + scores


# --- Fidelity by rank and against random picks (Figure 4). Intervals are over images: an image is drawn with all its
# candidates, so ranks and random picks stay paired.

NUM_PICKS = 10


class SetCurves:
    """Scores of sets that take one of each image's candidates: the best-ranked, or random ones; a set is scored once.

    Args:
        features: of the candidates, `(images, N, ...)`.
        reference: of the images they are compared with, `(M, ...)`; IS needs none.
        metric: one of `METRICS`.
        num_resamples: draws. A FID of 300 images by 192 features takes about 5 ms; time grows with D cubed.
        paired: the reference is the images' own originals, one each in their order, and is resampled with them; else it
            is of other images (see the top of this file).
    """

    def __init__(self, features: Features, reference: Features | None, metric: str,
                 num_resamples: int = SET_RESAMPLES, *, paired: bool = True):  # fmt: skip
        self.values = np.asarray(features.logits if metric == "IS" else features.pooled, dtype=float)
        self.reference = None if metric == "IS" else np.asarray(reference.pooled, dtype=float)
        self.metric, self.paired = metric, paired
        self.rng = np.random.default_rng(0)
        self.drawn = self.rng.integers(len(self.values), size=(num_resamples, len(self.values)))
        self._scored: dict[bytes, tuple[float, np.ndarray]] = {}

    def by_rank(self, sim: ArrayLike) -> list[Estimate]:
        """Score of the set of all candidates of each rank by `sim` (images, N), rank 0 first: N estimates."""
        return [self._estimate(*score) for score in self._score(order(sim).T)]

    def trend(self, sim: ArrayLike) -> Estimate:
        """Kendall's tau between the score of a rank's set and how good the rank is, over the N ranks: in [-1, 1].

        Positive: the better the rank, the higher the score. The noise of a resample adds to that of the images, so its
        tau leans towards 0. NaN, and n is 0, with N = 1 or where all ranks score alike.
        """
        scores, resampled = zip(*self._score(order(sim).T), strict=True)
        curves = np.vstack([scores, np.stack(resampled, axis=1)])
        taus = kendall_tau(np.tile(-np.arange(len(scores)), (len(curves), 1)), curves)
        if np.isnan(taus[0]):
            return Estimate(np.nan, np.nan, np.nan, 0, len(self.values))
        return self._estimate(taus[0], np.nan_to_num(taus[1:]))

    def gain(self, sim: ArrayLike) -> Gain:
        """The set of the best-ranked candidates against a random pick of one candidate an image.

        The baseline is the mean over ten seeded picks, of which N in a row take each candidate once; the pool is a
        larger set of another bias. `absolute` and `percent` are best minus baseline: of a distance negative is an
        improvement (`paper.improvement` turns the sign). Of a KID near 0 the percentage says nothing.
        """
        best, *picks = self._score(np.vstack([order(sim)[:, 0], self.picks]))
        baseline = tuple(np.mean(part, axis=0) for part in zip(*picks, strict=True))
        return Gain(*(self._estimate(*map(rule, best, baseline)) for rule in RULES))

    @cached_property
    def picks(self) -> np.ndarray:
        """Random picks of one candidate an image: (picks, images)."""
        images, count, _ = self.values.shape
        rows = np.tile(np.arange(count), (-(-NUM_PICKS // count), images, 1))
        return self.rng.permuted(rows, axis=2).transpose(0, 2, 1).reshape(-1, images)[:NUM_PICKS]

    def _score(self, choices: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Score and shifted resamples (B,) of each set; `choices` (S, images) names the candidates taken."""
        new = {choice.tobytes(): choice for choice in choices if choice.tobytes() not in self._scored}
        if new:
            sets = np.stack([self.values[np.arange(len(choice)), choice] for choice in new.values()])
            scores, resampled = scored(sets, self.reference, self.metric, self.drawn, self.paired)
            self._scored |= dict(zip(new, zip(scores, resampled.T, strict=True), strict=True))
        return [self._scored[choice.tobytes()] for choice in choices]

    def _estimate(self, value: float, resampled: np.ndarray) -> Estimate:
        """With the percentiles of the resamples; of few the value can lie outside them, which is mended."""
        low, high = np.quantile(resampled, TAILS)
        return Estimate(float(value), float(min(low, value)), float(max(high, value)), len(self.values))
