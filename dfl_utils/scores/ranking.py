"""Candidates ranked by the similarity of their reconstruction: quality at each rank, best of N, intervals.

Arrays have one row an image and one column a candidate. Similarity: higher is better. Quality: any score; NaN
means undefined and is left out. Intervals are percentile bootstrap intervals over images: what is resampled is
an image with all its candidates, so that comparisons between ranks and with a random pick stay paired.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import ArrayLike

NUM_RESAMPLES = 2000
LEVEL = 0.95
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


def _mean(means: np.ndarray) -> np.ndarray:
    return means


def _similarity(sim: ArrayLike) -> np.ndarray:
    sim = np.asarray(sim, dtype=float)
    if sim.ndim != 2 or sim.size == 0:
        raise ValueError(f"sim must be of shape (images, candidates), neither of them zero, not {sim.shape}.")
    if np.isnan(sim).any():
        image, candidate = np.argwhere(np.isnan(sim))[0]
        raise ValueError(f"sim of image {image}, candidate {candidate} is NaN, which has no rank; compute it anew.")
    return sim


def _pair(sim: ArrayLike, quality: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    sim, quality = _similarity(sim), np.asarray(quality, dtype=float)
    if quality.shape[:2] != sim.shape:
        raise ValueError(f"sim is of shape {sim.shape} and quality of {quality.shape}; give one of each a candidate.")
    return sim, quality


def _order(sim: np.ndarray) -> np.ndarray:
    return np.argsort(-sim, axis=1, kind="stable")


def ranks(sim: ArrayLike) -> np.ndarray:
    """Rank of every candidate among those of its image: (images, N) int, 0 = most similar.

    Equal similarities are ranked in the order of the candidates. With N = 1 every rank is 0.

    Raises:
        ValueError: a NaN among the similarities, or no (images, N) array.
    """
    return np.argsort(_order(_similarity(sim)), axis=1)


def quality_by_rank(sim: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Quality of the candidate at each rank: (images, N, ...), column 0 = the most similar candidate's.

    `quality` is (images, N), or (images, N, K) such as `ngrams.bleu_statistics`.
    """
    sim, quality = _pair(sim, quality)
    order = _order(sim).reshape(*sim.shape, *[1] * (quality.ndim - 2))
    return np.take_along_axis(quality, order, axis=1)


@lru_cache(maxsize=16)  # drawing takes longer than all that is done with it, and most estimates share their draws
def draws_of(images: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn in each resample: (num_resamples, images) float, read only.

    Equal to drawing indices, and turns all resamples into one matrix product.
    """
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=num_resamples)
    drawn = drawn.astype(float)
    drawn.flags.writeable = False
    return drawn


def _resampled_means(values: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Means over `num_resamples` draws of as many images with replacement, NaN left out: (num_resamples, ...)."""
    images = len(values)
    flat, draws = values.reshape(images, -1), draws_of(images, num_resamples, seed)
    known = ~np.isnan(flat)
    totals = draws @ np.where(known, flat, 0.0)
    counts = np.full((1, 1), float(images)) if known.all() else draws @ known.astype(float)
    means = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    return means.reshape(num_resamples, *values.shape[1:])


def _image_means(values: np.ndarray) -> np.ndarray:
    """Mean over images, NaN left out; NaN where nothing is left."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    totals = np.where(known, values, 0.0).sum(axis=0)
    return np.divide(totals, counts, out=np.full(np.shape(totals), np.nan), where=counts > 0)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = _mean,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a function of means over images.

    Args:
        values: (images, ...); all of one image are drawn together. NaN are left out of the means.
        statistic: function of the means, vectorised over their leading axes; default: the mean itself. Ratios and
            corpus BLEU are such functions: `bootstrap_interval(bleu_statistics, corpus_bleu)`.
        num_resamples: draws.
        seed: the same seed draws the same images, so intervals of equally many images are comparable.
        level: coverage, in (0, 1).

    Returns:
        `(low, high)`, each of the statistic's shape. Of one image low = high; where all is NaN both are NaN.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim == 0 or values.size == 0:
        raise ValueError("values holds no images; a bootstrap needs at least one.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}.")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, not {num_resamples}.")
    found = np.asarray(statistic(_resampled_means(values, num_resamples, seed)))
    empty = np.isnan(found).all(axis=0)
    tails = (1 - level) / 2, (1 + level) / 2
    low, high = np.nanquantile(np.where(empty, 0.0, found), tails, axis=0)
    return np.where(empty, np.nan, low)[()], np.where(empty, np.nan, high)[()]


def percent(change: Estimate, base: float) -> Estimate:
    """A change in per cent of a level; NaN where the level is zero."""
    scale = 100 / base if base else np.nan
    return Estimate(scale * change.value, scale * change.low, scale * change.high, change.n, change.excluded)


def mean(values: ArrayLike, **bootstrap) -> Estimate:
    """Mean over images, NaN left out and counted, with its interval; `values` is (images,)."""
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    return _estimate(values[known], _mean, int(known.sum()), int((~known).sum()), **bootstrap)


def _estimate(values: np.ndarray, statistic: Statistic, n: int, excluded: int, **bootstrap) -> Estimate:
    if len(values) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0, excluded)
    low, high = bootstrap_interval(values, statistic, **bootstrap)
    return Estimate(float(statistic(_image_means(values))), float(low), float(high), n, excluded)


def rank_curve(sim: ArrayLike, quality: ArrayLike, statistic: Statistic = _mean, **bootstrap) -> list[Estimate]:
    """Quality at each rank over all images (Figure 3): N estimates, rank 0 first.

    Args:
        sim: (images, N).
        quality: (images, N), or (images, N, K) with a `statistic` that makes one number of K means, such as
            `lambda means: corpus_bleu(means)[..., 3]`. Images with a NaN at a rank are excluded there.
        statistic: as in `bootstrap_interval`.
        **bootstrap: `num_resamples`, `seed`, `level`.
    """
    curve = []
    for values in np.moveaxis(quality_by_rank(sim, quality), 1, 0):
        known = ~np.isnan(values.reshape(len(values), -1)).any(axis=1)
        curve.append(_estimate(values[known], statistic, int(known.sum()), int((~known).sum()), **bootstrap))
    return curve


def kendall_tau(sim: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Kendall's tau-b between similarity and quality within each image: (images,), in [-1, 1].

    Candidates of NaN quality are left out. NaN where fewer than two remain or either side is constant (as with
    N = 1 and with equal captions): nothing was ranked there.
    """
    taus = []
    for similarity, score in zip(*_pair(sim, quality), strict=True):
        known = ~np.isnan(score)
        signs = [np.sign(np.subtract.outer(x[known], x[known])) for x in (similarity, score)]
        scale = np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
        taus.append((signs[0] * signs[1]).sum() / scale if scale > 0 else np.nan)
    return np.array(taus)


def rank_correlation(sim: ArrayLike, quality: ArrayLike, **bootstrap) -> Estimate:
    """Mean over images of `kendall_tau`, with its interval; images without a tau are excluded and counted.

    Positive: the more similar, the higher the quality. For a distance such as WMD negative is what one hopes for.
    With no image left (N = 1) value and interval are NaN and n is 0.
    """
    taus = kendall_tau(sim, quality)
    known = ~np.isnan(taus)
    return _estimate(taus[known], _mean, int(known.sum()), int((~known).sum()), **bootstrap)


def extremes(values: ArrayLike, ids: Sequence, each: int = 1) -> list[tuple[str, int]]:
    """Whom a gallery shows: (kind, place) of the `each` best, median and worst, highest first, ties by id.

    Of few values a place can stand there more than once.
    """
    order, n = np.lexsort((ids, -np.asarray(values, dtype=float))), len(ids)
    starts = {"best": 0, "median": (n - each + 1) // 2, "worst": n - each}
    return [
        (kind, int(order[place]))
        for kind, start in starts.items()
        for place in np.clip(start + np.arange(each), 0, n - 1)
    ]


def best_of_n(sim: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Quality of each image's most similar candidate: (images, ...); of the first of several equally similar."""
    return quality_by_rank(sim, quality)[:, 0]


def best_of_subsets(sim: ArrayLike, quality: ArrayLike, sizes: Sequence[int]) -> np.ndarray:
    """Expected quality of the best-ranked of n of an image's N candidates (Figure 9): (images, len(sizes)).

    Exact, over all subsets of n: the candidate of rank r is the best of C(N-1-r, n-1) of the C(N, n). It depends on
    every candidate of the pool, so points of one curve are not independent. A NaN is left out: the mean is then over
    the subsets whose best has a quality, NaN if there is none.

    Args:
        sim, quality: (images, N).
        sizes: numbers of candidates, each from 1 (the mean) to N (`best_of_n`); else ValueError.
    """
    ordered = quality_by_rank(sim, quality)
    count = ordered.shape[1]
    if ordered.ndim != 2:
        raise ValueError(f"quality must be of shape (images, candidates), not {ordered.shape}.")
    if not all(1 <= size <= count for size in sizes):
        raise ValueError(f"sizes must lie between 1 and the {count} candidates of the pool, not {list(sizes)}.")
    shares = np.array([[comb(count - 1 - rank, n - 1) / comb(count, n) for n in sizes] for rank in range(count)])
    known = ~np.isnan(ordered)
    totals, weights = np.where(known, ordered, 0.0) @ shares, known @ shares
    return np.divide(totals, weights, out=np.full(totals.shape, np.nan), where=weights > 0)


def _percent(means: np.ndarray) -> np.ndarray:
    best, baseline = means[..., 0], means[..., 1]
    return np.divide(100 * (best - baseline), baseline, out=np.full(np.shape(best), np.nan), where=baseline != 0)


def gain(sim: ArrayLike, quality: ArrayLike, baseline: ArrayLike | None = None, **bootstrap) -> Gain:
    """The best-ranked candidate against a random one (the paper's Tables 1 and 2: Ours, Baseline, Gain %).

    Args:
        sim: (images, N).
        quality: (images, N). Of a distance such as WMD a negative gain is an improvement.
        baseline: (images,) quality to compare with, such as another method's caption; default: the mean over the
            image's candidates, which is what a random pick is worth on average.
        **bootstrap: `num_resamples`, `seed`, `level`.

    Returns:
        Means, difference and percentage, each with the interval over the same resamples. The percentage is a ratio
        of means, worked out anew in each resample; it is NaN where the baseline is 0 and says little near it.
        Images whose best-ranked candidate or baseline is NaN are excluded from all four. With N = 1, or equal
        captions, the gain is 0.
    """
    sim, quality = _pair(sim, quality)
    if quality.ndim != 2:
        raise ValueError(f"quality must be of shape (images, candidates), not {quality.shape}.")
    other = _image_means(quality.T) if baseline is None else np.asarray(baseline, dtype=float)
    if other.shape != sim.shape[:1]:
        raise ValueError(f"baseline must hold one number for each of the {len(sim)} images, not {other.shape}.")
    values = np.stack([best_of_n(sim, quality), other], axis=-1)
    known = ~np.isnan(values).any(axis=-1)
    statistics = (lambda m: m[..., 0], lambda m: m[..., 1], lambda m: m[..., 0] - m[..., 1], _percent)
    return Gain(*(_estimate(values[known], f, int(known.sum()), int((~known).sum()), **bootstrap) for f in statistics))


# --- How similarity and quality go together once a third thing is held fixed: is it the judge that they share?
#
# DINO's ranking and CLIP's score of the same drawings may agree because the better caption wins both, or because a
# third thing (what the other judge sees, how the pixels differ) moves both. Arrays are as in
# `dfl_utils.scores.ranking`.


def partial_tau(sim: ArrayLike, quality: ArrayLike, control: ArrayLike) -> np.ndarray:
    """Kendall's partial tau of similarity and quality with `control` held fixed, within each image: (images,).

    From three tau-b's: (t_sq - t_sc t_qc) / sqrt((1 - t_sc^2) (1 - t_qc^2)), in [-1, 1]. Candidates whose quality or
    control is NaN are left out of all three.

    NaN where one of the three is undefined (see `ranking.kendall_tau`; a constant control holds nothing fixed), and
    where similarity or quality follows the control exactly, so that nothing is left to go together.

    Args:
        sim, quality, control: (images, N) each.
    """
    sim, quality, control = (np.asarray(values, dtype=float) for values in (sim, quality, control))
    if not sim.shape == quality.shape == control.shape:
        raise ValueError(
            f"sim, quality and control are of the shapes {sim.shape}, {quality.shape} and {control.shape}; "
            "give one of each a candidate."
        )
    known = ~(np.isnan(quality) | np.isnan(control))
    masked = np.where(known, control, np.nan)
    sim_quality = kendall_tau(sim, np.where(known, quality, np.nan))
    sim_control = kendall_tau(sim, masked)
    quality_control = kendall_tau(np.where(known, quality, 0.0), masked)
    left = (1 - sim_control**2) * (1 - quality_control**2)
    # A tau that is 1 but for rounding leaves nothing either.
    scale = np.sqrt(np.where(left > 1e-12, left, np.nan))
    return np.clip((sim_quality - sim_control * quality_control) / scale, -1, 1)


def partial_correlation(sim: ArrayLike, quality: ArrayLike, control: ArrayLike, **bootstrap) -> Estimate:
    """Mean over images of `partial_tau`, with its interval; images without one are excluded and counted.

    With no image left value and interval are NaN and n is 0.

    Args:
        sim, quality, control: as in `partial_tau`.
        **bootstrap: `num_resamples`, `seed`, `level`.
    """
    taus = partial_tau(sim, quality, control)
    known = taus[~np.isnan(taus)]
    excluded = len(taus) - len(known)
    if len(known) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0, excluded)
    low, high = bootstrap_interval(known, **bootstrap)
    return Estimate(float(known.mean()), float(low), float(high), len(known), excluded)
