"""How similarity and quality go together once a third thing is held fixed: is it the judge that they share?

DINO's ranking and CLIP's score of the same drawings may agree because the better caption wins both, or because a
third thing (what the other judge sees, how the pixels differ) moves both. Arrays are as in `dfl_utils.ranking`.
"""

import numpy as np
from numpy.typing import ArrayLike

from dfl_utils.ranking import Estimate, bootstrap_interval, kendall_tau


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
