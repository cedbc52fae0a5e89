"""Statistics of a slot's numbers, gathered chunk by chunk while a chunk is in cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .tensors import ITEMSIZE, Slot, TensorRef, decode_numbers, raw_chunks

if TYPE_CHECKING:
    import numpy as np


class Summary(NamedTuple):
    """What one pass over a slot found. Ranges are over the finite numbers; 0 where there are none."""

    elements: int
    zeros: int
    low: float
    high: float
    mean: float | None = None
    """Over the finite numbers; None: not counted."""
    nan: int = 0
    inf: int = 0
    negative: int = 0
    """Counted by an exact meter that fills a table only."""
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
    where a chunk looks bad; numbers below `tiny` only with `exact`, and the sum and the negative ones only where a `table` will show them too.
    """

    def __init__(self, *, exact: bool = False, tiny: float = 0.0, table: bool = True) -> None:
        self._exact, self._limit, self._table = exact, tiny, exact and table
        self._elements = self._zeros = self._nan = self._inf = self._negative = self._tiny = 0
        self._low, self._high, self._total = math.inf, -math.inf, 0.0
        self._whole = True

    def add(self, values: np.ndarray) -> tuple[float, float]:
        """Take in one chunk, any shape, not changed; return its smallest and largest finite number, (inf, -inf) where there is none."""
        import numpy as np

        if not values.size:
            return math.inf, -math.inf
        self._elements += values.size
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            values = self._finite(values)
            if not values.size:
                return math.inf, -math.inf
            low, high = float(values.min()), float(values.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        if low <= 0 <= high:  # five times as fast as count_nonzero on floats
            self._zeros += int(np.count_nonzero(values == 0))
        if self._whole and (low < 0 or high > 255 or (high > 0 and not (_are_whole(values[:256]) and _are_whole(values)))):
            self._whole = False
        if self._exact:
            self._count(values, low)
        return low, high

    def _count(self, values: np.ndarray, low: float) -> None:
        """Count what only an exact meter does, of finite numbers of which `low` is the smallest."""
        import numpy as np

        if self._table:
            with np.errstate(over="ignore"):
                self._total += float(values.sum())
            if low < 0:
                self._negative += int(np.count_nonzero(values < 0))
        if self._limit > max(low, 0):
            small = values < self._limit
            self._tiny += int(np.count_nonzero(small if low > 0 else small & (values > 0)))

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
            mean=None if not self._table else self._total / finite if finite else 0.0,
            nan=self._nan,
            inf=self._inf,
            negative=self._negative,
            tiny=self._tiny if self._exact else None,
            whole=self._whole and finite > 0 and self._high >= 16,
        )


def _are_whole(values: np.ndarray) -> bool:
    import numpy as np

    return bool((values == np.rint(values)).all())


PIECE = 1 << 16
"""Elements read at a time for rules and comparisons: two streams and what is made of them stay in a core's own cache."""


def stream(slot: Slot, buffer: memoryview) -> Iterator[np.ndarray]:
    """Yield a slot's numbers flat, in C order, at most an eighth of `buffer`'s bytes at a time where the layout allows it.

    Those of one run of bytes lie in `buffer` (`new_buffer(8 * PIECE)`), each chunk over the one before: whoever keeps numbers copies them.

    Raises:
        ReadError: the source cannot be read.
    """
    if not isinstance(slot, TensorRef) or slot.run is None:
        yield from slot.chunks(len(buffer) // 8)
        return
    for raw in raw_chunks(slot, buffer[: len(buffer) // 8 * ITEMSIZE[slot.dtype]]):
        yield decode_numbers(raw, slot.dtype)


def side_by_side(left: Iterator[np.ndarray], right: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pair chunks of two streams of the same length, cut where either is cut."""
    a = b = None
    while True:
        a = next(left, None) if a is None or not a.size else a
        b = next(right, None) if b is None or not b.size else b
        if a is None or b is None:
            return
        size = min(a.size, b.size)
        yield a[:size], b[:size]
        a, b = a[size:], b[size:]
