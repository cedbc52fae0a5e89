"""Read a tensor's rows in order, some at a time, so that a sum over rows holds a strip of each tensor and never a whole one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.files import new_buffer, read_into
from ostate.core.hyper import all_betas, one_number
from ostate.core.state import Hyper
from ostate.core.tensors import Slot, TensorRef
from ostate.optimizers import OPTIMIZERS

from .. import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


class Rows:
    """Hands out the rows of one tensor, float32, zeros where a strip is not finite."""

    def __init__(self, slot: Slot, columns: int, *, strip: int, turned: bool = False) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            slot: the tensor.
            columns: numbers a row.
            strip: rows that will be taken at a time.
            turned: the rows wanted are the stored tensor's columns; it is then read at once and kept.
        """
        self.finite = True
        """False once a number was not."""
        self.square = 0.0
        """Of the rows taken last, the sum of squares."""
        self.top = 0.0
        """A size that no number so far exceeds."""
        self._columns = columns
        self._run = slot.run if isinstance(slot, TensorRef) and slot.dtype == "F32" and not turned else None
        self._at = 0
        self._chunks: Iterator[Array] = _turned(slot, columns) if turned else slot.chunks(max(strip * columns, 1))
        self._left: Array = _NOTHING

    def take(self, count: int, out: Array | None = None) -> Array:
        """Return the next `count` rows, (count, columns): `out`, or an array of their own."""
        rows = self.unchecked(count, out)
        flat = rows.reshape(-1)
        self.square = float(np.dot(flat, flat))  # not finite where a number is not: a tenth of what asking each costs
        if not math.isfinite(self.square):
            self.square = 0.0
            if not np.isfinite(rows).all():
                self.finite = False
                rows[:] = 0
        self.top = max(self.top, math.sqrt(self.square))
        return rows

    def unchecked(self, count: int, out: Array | None = None) -> Array:
        """Return the next `count` rows as they are."""
        rows = np.empty((count, self._columns), np.float32) if out is None else out
        flat = rows.reshape(-1)
        if self._run is not None:
            file, offset = self._run
            read_into(file, offset + 4 * self._at, flat.view(np.uint8).data, on=self._at > 0)
            self._at += flat.size
        else:
            self._fill(flat)
        return rows

    def _fill(self, out: Array) -> None:
        have = 0
        while have < out.size:
            if not self._left.size:
                self._left = next(self._chunks).reshape(-1)
            part = self._left[: out.size - have]
            out[have : have + part.size] = part
            have += part.size
            self._left = self._left[part.size :] if part.size < self._left.size else _NOTHING  # an empty view would keep its chunk


_NOTHING: Array = np.zeros(0, np.float32)


class Buffers:
    """Memory for rows, used again and again: what was never touched costs the system a fault a page."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._held: dict[int, Array] = {}

    def rows(self, number: int, count: int, columns: int) -> Array:
        """Return room for (count, columns) numbers, float32, whatever they are: over what buffer `number` held before."""
        if number not in self._held or self._held[number].size < count * columns:
            self._held[number] = np.frombuffer(new_buffer(4 * count * columns), np.float32)
        return self._held[number][: count * columns].reshape(count, columns)


def _turned(slot: Slot, columns: int) -> Iterator[Array]:
    yield np.asarray(slot.read(), np.float32).reshape(columns, -1).T.reshape(-1)


class MomentRows:
    """Hands out the rows of a position's moments: m, sqrt(v), and the update direction u."""

    def __init__(self, first: Rows, second: Rows, hyper: Hyper, step: float | None) -> None:
        """Take the rows of exp_avg and exp_avg_sq, the group's hyperparameters and the entry's step."""
        self._first, self._second, self._step = first, second, step
        self._betas, self._eps = betas_of(hyper), eps_of(hyper)

    @property
    def finite(self) -> bool:
        """False once a number was not."""
        return self._first.finite and self._second.finite

    @property
    def top(self) -> float:
        """The size of the first moment so far."""
        return self._first.top

    def take(self, count: int, place: Array | None = None) -> tuple[Array, Array, Array]:
        """Return the next `count` rows of m, sqrt(v) and u, each (count, columns): in `place`, (3, count, columns), where given."""
        first, second, out = (None, None, None) if place is None else place
        m, root = self._first.take(count, first), self._second.unchecked(count, second)
        with np.errstate(invalid="ignore"):
            np.sqrt(root, out=root)  # NaN where a second moment is negative, which no optimizer makes
        flat = root.reshape(-1)
        if not np.isfinite(np.dot(flat, flat)) and not np.isfinite(root).all():
            self._second.finite = False
            root[:] = 0
        return m, root, statistics.update_direction(m, root, step=self._step, betas=self._betas, eps=self._eps, out=out)


BETAS = (0.9, 0.999)
"""torch.optim.Adam's."""


def betas_of(hyper: Hyper) -> tuple[float, float]:
    """Return (beta1, beta2) of a group, torch's defaults where it says nothing: the tests need them roughly, for the bias corrections."""
    first, second = (*all_betas(hyper), None, None)[:2]
    beta1, beta2 = one_number(hyper, "beta1", BETAS[0]), one_number(hyper, "beta2", BETAS[1])
    return beta1 if first is None else first, beta2 if second is None else second


def decay_within(optimizer: str, hyper: Hyper, step: float | None) -> float:
    """Return the weight of the parameter itself in its first moment: wd * (1 - beta1^t) where decay acts through the gradient, else 0.

    Args:
        optimizer: a row of `OPTIMIZERS`, or what is in none.
        hyper: of the parameter's group.
        step: t; None or 0: not known, and so far along that the power is gone.
    """
    spec = OPTIMIZERS.get(optimizer)
    if spec is None or spec.decay != "l2" or hyper.get("decoupled_weight_decay") is True:
        return 0.0
    remembered = 1.0 - betas_of(hyper)[0] ** step if step else 1.0
    return one_number(hyper, "weight_decay", 0.0) * float(remembered)


def eps_of(hyper: Hyper) -> float:
    """Return Adam's eps of a group, torch's default where it says nothing, or something else: Adafactor's and CAME's are several numbers."""
    return one_number(hyper, "eps", 0.0) or 1e-8
