"""Moments and weights as the tests take them: float32, finite, in canonical form, some rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.files import is_remote
from ostate.core.lora_modules import LoraModule
from ostate.core.naming import Adapter
from ostate.core.state import RawState

from .. import statistics
from .stream_rows import MomentRows, Rows, decay_within

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How factors of one shape and kind are read: rows of `columns` numbers, `strip` rows at a time."""

    columns: int
    strip: int
    turned: bool = False
    """True when these rows are the stored tensor's columns."""


@dataclass(frozen=True, slots=True)
class MomentReader:
    """Reads moments under the shape of the key that they are compared with."""

    raw: RawState
    adapter: Adapter
    sketch_rows: int = 0
    """Mixtures of their rows by which wide factors are compared; 0: whole."""

    def stored(self, key: str) -> tuple[int, int]:
        """Return the shape of a factor as a matrix: a convolution's A (r, in, kh, kw) is (r, in * kh * kw), its B (out, r, 1, 1) is (out, r)."""
        shape = self.adapter.tensors[key].shape
        return shape[0], int(np.prod(shape[1:], dtype=np.int64))

    def projection(self, width: int, module: LoraModule) -> statistics.RandomProjection:
        """Return the projection of a module's factors to `sketch_rows` rows."""
        return statistics.random_projection(width, module.blocks, sketch_rows=self.sketch_rows)

    def weights(self, key: str, plan: ReadPlan) -> Rows:
        """Return the rows of a factor."""
        return Rows(self.adapter.tensors[key], plan.columns, strip=plan.strip, turned=plan.turned)

    def moments(self, position: int, like: str, plan: ReadPlan) -> MomentRows:
        """Return the rows of a position's moments as if it belonged to the key `like`."""
        shape, entry = self.adapter.tensors[like].shape, self.raw.entries[position]
        first, second = (
            Rows(entry.slots[slot].with_shape(shape), plan.columns, strip=plan.strip, turned=plan.turned) for slot in ("exp_avg", "exp_avg_sq")
        )
        return MomentRows(first, second, self.raw.groups[entry.group].hyper, entry.step)

    def direction(self, position: int, like: str) -> Array:
        """Return u of a position that belongs to no pair, flat, float32; zeros where it is not finite."""
        size = self.adapter.tensors[like].numel
        rows = self.moments(position, like, ReadPlan(size, 1))
        _, _, u = rows.take(1)
        return u.reshape(-1) if rows.finite else np.zeros(size, np.float32)

    def second_moment(self, position: int) -> Array:
        """Return v of a position, float32."""
        return np.asarray(self.raw.entries[position].slots["exp_avg_sq"].read(), np.float32)

    def decay(self, position: int) -> float:
        """Return the weight of the parameter itself in its first moment; see `decay_within`."""
        entry = self.raw.entries[position]
        return decay_within(self.raw.optimizer, self.raw.groups[entry.group].hyper, entry.step)

    @property
    def far(self) -> bool:
        """True where every range that is read is a request to a server."""
        return is_remote(self.raw.source) or is_remote(self.adapter.file)
