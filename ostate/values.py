"""Facts about a slot's numbers, gathered chunk by chunk while a chunk is in cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .model import Slot

if TYPE_CHECKING:
    import numpy as np


class Summary(NamedTuple):
    """What one pass over a slot told. Ranges are over the finite numbers; 0 where there are none."""

    elements: int
    zeros: int
    low: float
    high: float
    mean: float | None = None
    """Over the finite numbers; None: not counted."""
    nan: int = 0
    inf: int = 0
    negative: int = 0
    """Counted by an exact meter only."""
    tiny: int | None = None
    """How many lie between 0 and the meter's `tiny`, both excluded; None: not counted."""
    whole: bool = False
    """True when all numbers are whole, none is negative, and the largest lies between 16 and 255: codes look like this."""

    @property
    def bad(self) -> int:
        """How many are not finite."""
        return self.nan + self.inf

    @property
    def prints(self) -> tuple[float, ...]:
        """What two slots with the same numbers share."""
        return self.elements, self.zeros, self.low, self.high

    @property
    def largest(self) -> float:
        """Return the largest magnitude."""
        return max(abs(self.low), abs(self.high))


class Meter:
    """Adds chunks up to a `Summary`.

    Two passes a chunk, smallest and largest; a third counts zeros where the range holds zero. NaN and infinities are counted only
    where a chunk looks bad; sums, negative and tiny numbers only with `exact`.
    """

    def __init__(self, *, exact: bool = False, tiny: float = 0.0) -> None:
        self._exact, self._limit = exact, tiny
        self._elements = self._zeros = self._nan = self._inf = self._negative = self._tiny = 0
        self._low, self._high, self._total = math.inf, -math.inf, 0.0
        self._whole = True

    def add(self, values: np.ndarray) -> None:
        """Take in one chunk: any shape, not changed."""
        import numpy as np

        if not values.size:
            return
        self._elements += values.size
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            values = self._finite(values)
            if not values.size:
                return
            low, high = float(values.min()), float(values.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        if low <= 0 <= high:  # five times as fast as count_nonzero on floats
            self._zeros += int(np.count_nonzero(values == 0))
        if self._whole and (low < 0 or high > 255 or (high > 0 and not bool((values == np.rint(values)).all()))):
            self._whole = False
        if self._exact:
            with np.errstate(over="ignore"):
                self._total += float(values.sum())
            self._negative += int(np.count_nonzero(values < 0))
            self._tiny += int(np.count_nonzero((values < self._limit) & (values > 0)))

    def _finite(self, values: np.ndarray) -> np.ndarray:
        """Count what is not finite and return the rest."""
        import numpy as np

        finite = np.isfinite(values)
        bad = values.size - int(np.count_nonzero(finite))
        nan = int(np.count_nonzero(np.isnan(values)))
        self._nan += nan
        self._inf += bad - nan
        return np.asarray(values[finite])

    def summary(self) -> Summary:
        """Return the facts so far."""
        finite = self._elements - self._nan - self._inf
        return Summary(
            elements=self._elements,
            zeros=self._zeros,
            low=self._low if finite else 0.0,
            high=self._high if finite else 0.0,
            mean=None if not self._exact else self._total / finite if finite else 0.0,
            nan=self._nan,
            inf=self._inf,
            negative=self._negative,
            tiny=self._tiny if self._exact else None,
            whole=self._whole and finite > 0 and self._high >= 16,
        )


def summarise(slot: Slot, *, exact: bool = False) -> Summary:
    """Stream once over a slot's numbers."""
    meter = Meter(exact=exact)
    for chunk in slot.chunks():
        meter.add(chunk)
    return meter.summary()
