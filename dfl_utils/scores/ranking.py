"""Candidates ranked by the similarity of their reconstruction: quality at each rank, best of N, intervals.

Arrays have one row an image and one column a candidate. Similarity: higher is better. Quality: any score; NaN
means undefined and is left out. Intervals hold 95 % and are percentile bootstrap intervals over images: what is
resampled is an image with all its candidates, so that comparisons between ranks and with a random pick stay paired.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import ArrayLike

NUM_RESAMPLES = 2000
SET_RESAMPLES = 200  # of scores of a whole set
TAILS = (0.025, 0.975)
Statistic = Callable[[np.ndarray], np.ndarray]  # (..., K) means over images -> (...) or (..., M), leading axes kept


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, the number `n` of images behind it and the number `excluded` from it."""

    value: float
    low: float
    high: float
    n: int
    excluded: int = 0


@dataclass(frozen=True)
class Gain:
    """What ranking is worth: `best`, `baseline`, their difference, and that in per cent of the baseline."""

    best: Estimate
    baseline: Estimate
    absolute: Estimate
    percent: Estimate

    @property
    def measurable(self) -> bool:
        """Whether the baseline is clear of zero: per cent of what may be zero say little."""
        return self.baseline.low > 0 and np.isfinite(self.percent.value)


def ranks(sim: ArrayLike) -> np.ndarray:
    """Rank of every candidate among those of its image: (images, N) int, 0 = most similar."""
    return np.argsort(order(sim), axis=1)


def order(sim: ArrayLike) -> np.ndarray:
    """The candidates of each image, the most similar first, equal ones in their own order: (images, N) int.

    ValueError for a NaN, or no (images, N) array.
    """
    sim = np.asarray(sim, dtype=float)
    if sim.ndim != 2 or sim.size == 0 or np.isnan(sim).any():
        raise ValueError(f"sim must be (images, candidates) without a NaN: of {sim.shape} {np.isnan(sim).sum()} are.")
    return np.argsort(-sim, axis=1, kind="stable")


def standardised(sim: ArrayLike) -> np.ndarray:
    """Similarities of each image with mean 0 and deviation 1, or 0 where all are equal: (images, N)."""
    sim = np.asarray(sim, dtype=float)
    differ = np.ptp(sim, axis=1, keepdims=True) > 0
    return (sim - sim.mean(axis=1, keepdims=True)) / np.where(differ, sim.std(axis=1, keepdims=True), np.inf)


def quality_by_rank(sim: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Quality (images, N, ...) of the candidate at each rank: column 0 is the most similar candidate's."""
    chosen, quality = order(sim), np.asarray(quality, dtype=float)
    if quality.shape[:2] != chosen.shape:
        raise ValueError(f"sim is of {chosen.shape} and quality of {quality.shape}; give one of each a candidate.")
    return quality[np.arange(len(chosen))[:, None], chosen]


def of_quartets(sims: ArrayLike) -> dict[str, np.ndarray]:
    """Winoground's three scores (Thrush et al., CVPR 2022), each `(quartets,)` of 0 and 1.

    `text`: both images prefer their own caption; `image`: both captions prefer their own image; `group`: all of it.
    Guessing has 1/4, 1/4 and 1/6. Equal scores prefer nothing.

    Args:
        sims: of image i and caption c, `(quartets, 2, 2)`; caption k is that of image k, higher is better.
    """
    sims = np.asarray(sims, dtype=float)
    right, other_caption, other_image = sims[:, [0, 1], [0, 1]], sims[:, [0, 1], [1, 0]], sims[:, [1, 0], [0, 1]]
    text, image = (right > other_caption).all(axis=1), (right > other_image).all(axis=1)
    return {name: of.astype(float) for name, of in (("text", text), ("image", image), ("group", text & image))}


def best_of_n(sim: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Quality of each image's most similar candidate: (images, ...); of the first of several equally similar."""
    return quality_by_rank(sim, quality)[:, 0]


def best_of_subsets(sim: ArrayLike, quality: ArrayLike, sizes: Sequence[int]) -> np.ndarray:
    """Expected quality of the best-ranked of n of an image's N candidates (Figure 9): (images, len(sizes)).

    Exact, over all subsets of n: the candidate of rank r is the best of C(N-1-r, n-1) of the C(N, n). A NaN is left
    out: the mean is then over the subsets whose best has a quality, NaN if there is none. `sizes` go from 1 to N.
    """
    ordered = quality_by_rank(sim, quality)
    count, known = ordered.shape[1], ~np.isnan(ordered)
    shares = np.array([[comb(count - 1 - rank, n - 1) / comb(count, n) for n in sizes] for rank in range(count)])
    return _divided(np.where(known, ordered, 0.0) @ shares, known @ shares)


def _divided(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Totals by counts; NaN where a count is 0."""
    return np.divide(totals, counts, out=np.full(np.shape(totals), np.nan), where=counts != 0)


@lru_cache(maxsize=16)  # drawing takes longer than all that is done with it, and most estimates share their draws
def draws_of(images: int, num_resamples: int) -> np.ndarray:
    """How often each image is drawn in each resample: (num_resamples, images) float, read only, of one seed.

    Equal to drawing indices, and turns all resamples into one matrix product.
    """
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=num_resamples)
    drawn = drawn.astype(float)
    drawn.flags.writeable = False
    return drawn


def bootstrap_interval(values: ArrayLike, statistic: Statistic = np.asarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval `(low, high)` of a function of means over images, each bound of the statistic's shape.

    Args:
        values: (images, ...); all of one image are drawn together. NaN are left out of the means.
        statistic: function of the means, vectorised over their leading axes, such as corpus BLEU; default: the mean.
    """
    low, high = _tails(statistic(_resampled(np.asarray(values, dtype=float))))
    return low[()], high[()]


def _resampled(values: np.ndarray) -> np.ndarray:
    """Means of (images, ...) in each resample, (num_resamples, ...); NaN are left out."""
    flat, draws = values.reshape(len(values), -1), draws_of(len(values), NUM_RESAMPLES)
    known = ~np.isnan(flat)
    # As many as there are images, where all are known: what a product of the draws with ones would give.
    counts = float(len(values)) if known.all() else draws @ known.astype(float)
    means = _divided(draws @ np.where(known, flat, 0.0), counts)
    return means.reshape(-1, *values.shape[1:])


def _tails(statistics: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    statistics = np.asarray(statistics)
    empty = np.isnan(statistics).all(axis=0)
    low, high = np.nanquantile(np.where(empty, 0.0, statistics), TAILS, axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def mean(values: ArrayLike, statistic: Statistic = np.asarray) -> Estimate:
    """Mean over images, or one number of means as in `bootstrap_interval`, with its interval.

    `values` is (images, ...); an image with a NaN is left out and counted. With none left all is NaN and n is 0.
    """
    return _estimates(values, [statistic])[0]


def _estimates(values: ArrayLike, statistics: Sequence[Statistic]) -> list[Estimate]:
    """`mean` by each of some statistics, of the same resamples."""
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values).any(axis=tuple(range(1, values.ndim)))
    n, excluded = int(known.sum()), int((~known).sum())
    if n == 0:
        return [Estimate(np.nan, np.nan, np.nan, 0, excluded)] * len(statistics)
    centre, means = values[known].mean(axis=0), _resampled(values[known])
    tails = [_tails(statistic(means)) for statistic in statistics]
    each = zip(statistics, tails, strict=True)
    return [Estimate(float(of(centre)), float(low), float(high), n, excluded) for of, (low, high) in each]


def percent(change: Estimate, base: float) -> Estimate:
    """A change in per cent of a level; NaN where the level is zero."""
    scale = 100 / base if base else np.nan
    return Estimate(scale * change.value, scale * change.low, scale * change.high, change.n, change.excluded)


def rank_curve(sim: ArrayLike, quality: ArrayLike, statistic: Statistic = np.asarray) -> list[Estimate]:
    """Quality at each rank over all images (Figure 3): N estimates, rank 0 first; a NaN is excluded at its rank.

    `quality` is (images, N), or (images, N, K) with a `statistic` of K means, such as `intervals.statistic_of("B@4")`.
    """
    return [mean(values, statistic) for values in np.moveaxis(quality_by_rank(sim, quality), 1, 0)]


def kendall_tau(sim: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Kendall's tau-b between similarity and quality within each image: (images,), in [-1, 1].

    Candidates of NaN quality are left out. NaN where fewer than two remain or either side is constant.
    """
    sim, quality = np.asarray(sim, dtype=float), np.asarray(quality, dtype=float)
    known = ~np.isnan(quality)
    both = known[:, :, None] & known[:, None, :]
    one, two = (np.where(both, np.sign(x[:, :, None] - x[:, None, :]), 0.0) for x in (sim, quality))
    agree, *squares = (product.sum(axis=(1, 2)) for product in (one * two, one**2, two**2))
    scale = np.sqrt(squares[0] * squares[1])
    return np.divide(agree, scale, out=np.full(len(sim), np.nan), where=scale > 0)


def rank_correlation(sim: ArrayLike, quality: ArrayLike) -> Estimate:
    """Mean over images of `kendall_tau`, with its interval; images without a tau are excluded and counted."""
    return mean(kendall_tau(sim, quality))


def partial_tau(sim: ArrayLike, quality: ArrayLike, control: ArrayLike) -> np.ndarray:
    """Kendall's partial tau of similarity and quality with `control` held fixed, within each image: (images,).

    From three tau-b's: (t_sq - t_sc t_qc) / sqrt((1 - t_sc^2) (1 - t_qc^2)), in [-1, 1]. Candidates whose quality or
    control is NaN are left out of all three. NaN where one of the three is undefined (see `kendall_tau`), and where
    similarity or quality follows the control exactly.
    """
    quality, control = np.asarray(quality, dtype=float), np.asarray(control, dtype=float)
    known = ~(np.isnan(quality) | np.isnan(control))
    masked = np.where(known, control, np.nan)
    sim_quality = kendall_tau(sim, np.where(known, quality, np.nan))
    sim_control = kendall_tau(sim, masked)
    quality_control = kendall_tau(np.where(known, quality, 0.0), masked)
    left = (1 - sim_control**2) * (1 - quality_control**2)
    # A tau that is 1 but for rounding leaves nothing either.
    scale = np.sqrt(np.where(left > 1e-12, left, np.nan))
    return np.clip((sim_quality - sim_control * quality_control) / scale, -1, 1)


def extremes(values: ArrayLike, ids: Sequence, each: int = 1) -> list[tuple[str, int]]:
    """Whom a gallery shows: (kind, place) of the `each` best, median and worst, highest first, ties by id."""
    places, n = np.lexsort((ids, -np.asarray(values, dtype=float))), len(ids)
    starts = {"best": 0, "median": (n - each + 1) // 2, "worst": n - each}
    shown = {kind: places[np.clip(start + np.arange(each), 0, n - 1)] for kind, start in starts.items()}
    return [(kind, int(place)) for kind, of_kind in shown.items() for place in of_kind]


def gain(
    sim: ArrayLike, quality: ArrayLike, baseline: ArrayLike | None = None, *, statistic: Statistic = np.asarray
) -> Gain:
    """The best-ranked candidate against a random one (the paper's Tables 1 and 2: Ours, Baseline, Gain %).

    All four are of the same resamples; the percentage is a ratio of means, NaN where the baseline is 0. Images whose
    best-ranked candidate or baseline is NaN are excluded from all four.

    Args:
        sim: (images, N).
        quality: (images, N), or (images, N, K) with a `statistic` of K means, such as corpus BLEU. Of a distance such
            as WMD a negative gain is an improvement.
        baseline: (images, ...) quality to compare with; default: the mean over the image's candidates, a random pick's.
    """
    quality = np.asarray(quality, dtype=float)
    known = ~np.isnan(quality)
    random = _divided(np.moveaxis(np.where(known, quality, 0.0), 1, 0).sum(axis=0), known.sum(axis=1))
    values = np.stack([best_of_n(sim, quality), random if baseline is None else baseline], axis=1)

    def of_means(rule: Callable) -> Statistic:
        return lambda means: rule(*np.moveaxis(statistic(means), -1, 0))

    return Gain(*_estimates(values, [of_means(rule) for rule in RULES]))


def in_percent(best: ArrayLike, baseline: ArrayLike) -> np.ndarray:
    """By how many per cent of the baseline the best is above it; NaN where the baseline is 0."""
    return _divided(np.asarray(100 * (best - baseline)), np.asarray(baseline))


# What the four numbers of a `Gain` are of best and baseline.
RULES = (lambda best, _: best, lambda _, baseline: baseline, np.subtract, in_percent)


@dataclass(frozen=True)
class ByImage:
    """A score of each candidate, asked what ranking is worth as `image_sets.SetCurves` are of a whole set.

    `values` and `statistic` are the `quality` and `statistic` of `rank_curve`; `sim` is (images, N).
    """

    values: np.ndarray
    statistic: Statistic = np.asarray

    def weighted(self, weights: ArrayLike) -> "ByImage":
        """The same score where images count by `weights` (images,): every mean over images is a weighted one."""
        values = np.asarray(self.values, dtype=float)
        each = np.broadcast_to(np.asarray(weights, dtype=float)[:, None], values.shape)
        return ByImage(np.stack([each * values, each], axis=-1), lambda means: means[..., 0] / means[..., 1])

    def by_rank(self, sim: ArrayLike) -> list[Estimate]:
        return rank_curve(sim, self.values, self.statistic)

    def trend(self, sim: ArrayLike) -> Estimate:
        """Of one score a candidate: corpus BLEU has none within an image."""
        return rank_correlation(sim, self.values)

    def gain(self, sim: ArrayLike) -> Gain:
        return gain(sim, self.values, statistic=self.statistic)

    def reached(self, sim: ArrayLike, oracle: ArrayLike) -> Estimate:
        """How much of the gain of a pick by `oracle` (images, N) the best-ranked one has, in per cent; NaN of none."""
        values = np.asarray(self.values, dtype=float)
        picks = np.stack([values.mean(axis=1), best_of_n(sim, values), best_of_n(oracle, values)], axis=1)

        def share(means: np.ndarray) -> np.ndarray:
            random, best, most = np.moveaxis(self.statistic(means), -1, 0)
            return _divided(100 * (best - random), most - random)

        return mean(picks, share)
