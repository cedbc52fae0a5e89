"""One pass over a parameter's numbers, both Adam moments side by side, in pieces that stay in a core's own cache."""

from __future__ import annotations

import numpy as np

from ostate.core.stream import PIECE, Meter, side_by_side
from ostate.optimizers.slots import SECOND_MOMENT_SLOTS

from .context import CheckedRow
from .numbers import UNDERFLOW, Measured, bound

_SLACK = 1.01
"""What rounding may add to a moment."""


def measure(row: CheckedRow, *, table: bool) -> Measured:
    """Read one parameter's slots.

    Args:
        row: the parameter.
        table: also count what no rule asks for.
    """
    slots = row.entry.slots
    eps = row.hyper.get("eps")
    tiny = float(eps) ** 2 if isinstance(eps, (int, float)) else 0.0
    meters = {slot: Meter(exact=True, tiny=tiny if slot in SECOND_MOMENT_SLOTS else 0.0, table=table) for slot in slots}
    pair = ("exp_avg", "exp_avg_sq")
    together = set(pair) <= set(slots) and slots[pair[0]].shape == slots[pair[1]].shape
    unbounded = unpaired = 0
    if together:
        limit = bound(row.hyper)
        for m, v in side_by_side(slots[pair[0]].chunks(PIECE), slots[pair[1]].chunks(PIECE)):
            meters[pair[0]].add(m)
            low, high = meters[pair[1]].add(v)
            unpaired += _unpaired(m, v) if low <= 0 else 0
            unbounded += 0 if limit is None else _unbounded(m, v, limit, high)
    for slot in slots:
        if together and slot in pair:
            continue
        for chunk in slots[slot].chunks(PIECE):
            meters[slot].add(chunk)
    return Measured(row, {slot: meter.summary() for slot, meter in meters.items()}, unbounded, unpaired)


def _unpaired(m: np.ndarray, v: np.ndarray) -> int:
    """Count elements with a first moment and no second."""
    return int(np.count_nonzero((v == 0) & (np.abs(m) > 0)))


def _unbounded(m: np.ndarray, v: np.ndarray, limit: float, high: float) -> int:
    """Count elements with |m| above `limit` sqrt(v); `high` is v's largest finite number."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if m.dtype == v.dtype == np.float32 and not _may_exceed(m, v, limit, high):
            return 0
        over = np.abs(m) > np.sqrt(np.maximum(v, 0)) * (limit * _SLACK) + UNDERFLOW
    return int(np.count_nonzero(over))


def _may_exceed(m: np.ndarray, v: np.ndarray, limit: float, high: float) -> bool:
    """False only where no element exceeds its bound, judged by squares, which cost a third of roots.

    What exceeds it is larger than `UNDERFLOW`, so its square is a normal number; rounding moves either side by a hundredth of the 1e-5 at most.
    """
    factor = (limit * _SLACK) ** 2 * (1 - 1e-5)
    return max(high, 1) * factor > 1e38 or bool((m * m > v * np.float32(factor)).any())
