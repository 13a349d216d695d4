"""How one number grows with another over a few points: a line or a curve that saturates, chosen by leaving points out.

Both laws are straight lines in a function of x: `a + b x`, and `a + b (1 - exp(-k x))` with k from a grid, so that
thousands of resamples are fitted at once by least squares.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dfl_utils.scores.ranking import TAILS, Estimate

Shape = Literal["line", "saturating"]
RATES = np.geomspace(0.5, 30.0, 40)  # k, for x of 0 to 1: from all but straight to a step
LEAST = {"line": 2, "saturating": 4}  # points that a fit needs; k takes one and to know better than a line another


@dataclass(frozen=True)
class Law:
    """Fitted to points, or to many sets of them: each of `(...)`. `rate` is k, NaN of a line."""

    shape: Shape
    intercept: np.ndarray
    slope: np.ndarray
    rate: np.ndarray

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """What it says at x, a number or one for each of the fits: `(...)`."""
        x = np.asarray(x, dtype=float)
        return self.intercept + self.slope * (x if self.shape == "line" else -np.expm1(-self.rate * x))


def fit(x: ArrayLike, y: ArrayLike, shape: Shape) -> Law:
    """The law with the least squared error, of x and y `(..., points)`; where all x are equal the slope is 0.

    ValueError: fewer points than the law needs (2 and 4), or x and y of two shapes.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim == 0 or x.shape[-1] < LEAST[shape]:
        raise ValueError(f"x {x.shape} and y {y.shape}: a law ({shape}) needs {LEAST[shape]} points or more of both.")
    if shape == "line":
        return Law(shape, *_line(x, y)[:2], np.full(x.shape[:-1], np.nan))
    bent = -np.expm1(-RATES[:, None] * x[..., None, :])
    *lines, error = _line(bent, np.broadcast_to(y[..., None, :], bent.shape))
    best = error.argmin(axis=-1)
    return Law(shape, *(np.take_along_axis(one, best[..., None], -1)[..., 0] for one in lines), RATES[best])


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intercept, slope and squared error of a line, over the last axis."""
    x_mean, y_mean = x.mean(axis=-1), y.mean(axis=-1)
    dx, dy = x - x_mean[..., None], y - y_mean[..., None]
    spread = (dx**2).sum(axis=-1)
    slope = np.where(spread > 0, (dx * dy).sum(axis=-1) / np.where(spread > 0, spread, 1.0), 0.0)
    return y_mean - slope * x_mean, slope, ((dy - slope[..., None] * dx) ** 2).sum(axis=-1)


def left_out_error(x: ArrayLike, y: ArrayLike, shape: Shape) -> float:
    """Root of the mean squared error at each point of the law fitted to the others; of `(points,)` each."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    kept = ~np.eye(len(x), dtype=bool)
    others = [np.stack([values[row] for row in kept]) for values in (x, y)]
    return float(np.sqrt(np.mean((fit(*others, shape)(x) - y) ** 2)))


def choose(x: ArrayLike, y: ArrayLike) -> tuple[Shape, dict[Shape, float]]:
    """The shape that errs least at points left out, and the errors; of fewer than five points the line alone."""
    errors = {shape: left_out_error(x, y, shape) for shape, least in LEAST.items() if len(np.asarray(x)) > least}
    return min(errors, key=errors.get), errors


def predicted(
    point: tuple[ArrayLike, ArrayLike], resamples: tuple[ArrayLike, ArrayLike], shape: Shape, at: float, n: int
) -> Estimate:
    """What the law says at x = `at`, with the interval of 95 % over resamples in which it is fitted anew.

    Args:
        point: x and y as measured, `(points,)` each.
        resamples: x and y of each, `(resamples, points)` each.
        n: images behind a point.
    """
    low, high = np.quantile(fit(*resamples, shape)(at), TAILS)
    return Estimate(float(fit(*point, shape)(at)), float(low), float(high), n)
