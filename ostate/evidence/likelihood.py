"""From test statistics to one scale: the log-likelihood ratio of "these two belong together" against "they do not".

Both densities are fitted to the file itself: the null to the pairs that are not matched, the true one to those that are. Tails are
Student's, and a share TRUST of either density is mixed into the other, so that no single number can outweigh everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .statistics import quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

TRUST = 1e-4
"""Share of pairs that may behave like the other kind: bounds one log ratio at log(1 / TRUST) = 9.2 either way."""
RARE = 1e-12
"""The same for unrelated pairs that look true where the null's tail is fitted: r * r numbers that agree to a thousandth are no accident."""
_TAIL = 5.0
"""Degrees of freedom of the Student tails, whose density is then an inverse cube."""
ENOUGH = 40
"""Values from which their 99 % quantile is taken as it is."""
FROM = 1.64
"""Where the exponential tail begins at the latest, in scales above the location: the 95 % quantile of a normal."""
SHARE = 0.05
"""Of the values beyond the start of the tail."""
FEW = 8
"""Excesses below which no tail is fitted."""
STEEPEST = 2.5
"""Largest rate, per scale."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A location, a scale, and how fast the upper tail falls."""

    loc: float
    scale: float
    rate: float = math.inf
    """Of the exponential that replaces Student's tail above `start`; inf: no such tail."""
    tail: float = math.inf
    """The 95 % quantile of the values, where it was taken."""

    @property
    def start(self) -> float:
        """Where the exponential tail begins: at the values' own 95 % quantile, at a normal's at the latest.

        The scale covers both sides. Where the lower one is the wider, hardly a value reaches a normal's quantile, and what is known of the
        upper tail would be lost.
        """
        return min(self.loc + FROM * self.scale, self.tail)

    def beyond(self, x: Array) -> Array:
        """Return a bound on the chance of a value of at least x: 1 up to `start`, from there SHARE falling at the fitted rate, or 1 / scale."""
        rate = 1 / self.scale if math.isinf(self.rate) else self.rate
        return np.asarray(np.where(x > self.start, SHARE * np.exp(-rate * np.maximum(x - self.start, 0)), 1.0))


@dataclass(frozen=True, slots=True)
class DensityPair:
    """How one statistic is distributed for unrelated and for true pairs."""

    null: Fit
    true: Fit
    alike: float = TRUST
    """Share of unrelated pairs that may look true."""

    @property
    def is_informative(self) -> bool:
        """True when the two are apart enough to tell anything; never where numbers near the end of their range left one without a finite scale."""
        return self.true.loc > self.null.loc + self.null.scale and math.isfinite(self.true.scale) and math.isfinite(self.true.loc)

    @property
    def distance(self) -> float:
        """How far the two lie apart, in their joint scale."""
        return (self.true.loc - self.null.loc) / float(np.hypot(self.true.scale, self.null.scale))


def fit(values: Array, *, floor: float, trim: bool = False) -> Fit:
    """Return median, a robust scale that also covers the upper tail (the 99 % quantile as a normal's), and the tail's rate.

    The rate is that of the excesses over loc + FROM * scale, lowered by two of its own standard errors, and bounded by the hazard that a
    normal has there and beyond. With few values, `trim` leaves the farthest one out: a single broken pair must not widen the fit.
    """
    if values.size == 0:
        return Fit(0.0, floor)
    loc = quantile(values, 0.5)
    middle = 1.4826 * quantile(np.abs(values - loc), 0.5)
    with np.errstate(over="ignore"):
        reach = (quantile(values, 0.99) - loc) / 2.33 if values.size >= ENOUGH else float(np.std(_trimmed(values, loc) if trim else values))
    scale = max(middle, reach, floor)
    start = min(loc + FROM * scale, quantile(values, 1 - SHARE))
    excess = values[values > start] - start
    if excess.size < FEW:
        return Fit(loc, scale)
    rate = 1 / (float(excess.mean()) * (1 + 2 / math.sqrt(excess.size)))
    return Fit(loc, scale, min(rate, STEEPEST / scale), start)


def _trimmed(values: Array, loc: float) -> Array:
    return np.asarray(np.delete(values, int(np.argmax(np.abs(values - loc))))) if values.size > 4 else values


def log_ratio(x: Array, density: DensityPair) -> Array:
    """Return log f_true / f_null, at least log TRUST, at most -log `alike`; zero everywhere where the densities are not informative.

    Above the true location the ratio stays what it is there: more than true is not better than true. What is no number tells nothing: zero.
    """
    if not density.is_informative:
        return np.zeros_like(x)
    at = np.minimum(x, density.true.loc)
    true, null = _student(at, density.true), _tailed(at, density.null)
    found = np.log((1 - TRUST) * true + TRUST * null) - np.log((1 - density.alike) * null + density.alike * true)
    return np.where(np.isfinite(found), found, 0.0)


def _student(x: Array, fitted: Fit) -> Array:
    scaled = (x - fitted.loc) / fitted.scale
    core = 1 / (1 + scaled * scaled / _TAIL)
    return np.asarray(core * core * core / fitted.scale + 1e-300)  # a power takes three times as long


def _tailed(x: Array, fitted: Fit) -> Array:
    core = _student(np.minimum(x, fitted.start), fitted)
    if math.isinf(fitted.rate):
        return np.asarray(np.minimum(_student(x, fitted), core * np.exp(-np.maximum(x - fitted.start, 0) / fitted.scale)))
    return np.asarray(core * np.exp(-fitted.rate * np.maximum(x - fitted.start, 0)))
