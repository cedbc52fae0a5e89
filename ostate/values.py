"""Facts about a slot's numbers, gathered chunk by chunk while a chunk is in cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .model import Slot

if TYPE_CHECKING:
    import numpy as np

TINY = 1e-30
"""Below this a second moment nears what float32 can still decay: (1 - beta2) v reaches its subnormals."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What one pass over a slot told. Ranges are over the finite numbers; 0 where there are none."""

    elements: int
    zeros: int
    low: float
    high: float
    mean: float
    """Over the finite numbers."""
    nan: int = 0
    inf: int = 0
    negative: int = 0
    tiny: int | None = None
    """0 < |x| < TINY; None: not counted, because no chunk's smallest number was near."""

    @property
    def bad(self) -> int:
        """How many are not finite."""
        return self.nan + self.inf

    @property
    def largest(self) -> float:
        """Return the largest magnitude."""
        return max(abs(self.low), abs(self.high))


class Meter:
    """Adds chunks up to a `Summary`. Four passes a chunk; exact counts only where a chunk looks bad, or with `exact`."""

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact
        self._elements = self._nonzero = self._nan = self._inf = self._negative = self._tiny = 0
        self._low, self._high, self._total = math.inf, -math.inf, 0.0

    def add(self, values: np.ndarray) -> None:
        """Take in one chunk: any shape, floats, not changed."""
        import numpy as np

        if not values.size:
            return
        self._elements += values.size
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(values)
            nan = int(np.count_nonzero(np.isnan(values)))
            self._nan += nan
            self._inf += values.size - int(np.count_nonzero(finite)) - nan
            self._nonzero += values.size - int(np.count_nonzero(finite))
            values = values[finite]
            if not values.size:
                return
            low, high = float(values.min()), float(values.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._nonzero += int(np.count_nonzero(values))
        self._total += float(values.sum(dtype=None if values.dtype == np.float64 else np.float32))
        if low < 0 <= high or self._exact:
            self._negative += int(np.count_nonzero(values < 0)) if self._exact else 0
        if self._exact:
            size = np.abs(values)
            self._tiny += int(np.count_nonzero((size < TINY) & (size > 0)))

    def summary(self) -> Summary:
        """Return the facts so far."""
        finite = self._elements - self._nan - self._inf
        return Summary(
            elements=self._elements,
            zeros=self._elements - self._nonzero,
            low=self._low if finite else 0.0,
            high=self._high if finite else 0.0,
            mean=self._total / finite if finite else 0.0,
            nan=self._nan,
            inf=self._inf,
            negative=self._negative,
            tiny=self._tiny if self._exact else None,
        )


def summarise(slot: Slot, *, exact: bool = False) -> Summary:
    """Stream once over a slot's numbers."""
    meter = Meter(exact=exact)
    for chunk in slot.chunks():
        meter.add(chunk)
    return meter.summary()
