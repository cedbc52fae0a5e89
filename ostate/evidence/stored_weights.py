"""Weights that a state keeps for itself: schedule-free's z, Prodigy's p0, master weights where there is no first moment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ostate.core.state import Entry, RawState
from ostate.core.tensors import CHUNK, Slot
from ostate.optimizers.slots import first_moment, weights_slot

EVERY = 11
"""Elements of which ProdigyPlusScheduleFree keeps one."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A parameter's values of which every nth is stored; `missing` stands in for the others, so that they say nothing. Satisfies `Slot`.

    Which ones are stored is the same whichever parameter the state's numbers belong to, so the weights' gauge is as free beside them as before.
    """

    kept: Slot
    shape: tuple[int, ...]
    step: int
    missing: float
    encoding: str = "plain"
    dtype: str = "F32"

    def read(self) -> np.ndarray:
        """Return the values, float32, the logical shape."""
        values = np.full(math.prod(self.shape), self.missing, np.float32)
        values[:: self.step] = self.kept.read().reshape(-1)
        return values.reshape(self.shape)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat; all are held at once."""
        flat = self.read().reshape(-1)
        yield from (flat[at : at + elements] for at in range(0, flat.size, elements))

    def with_shape(self, shape: tuple[int, ...]) -> Slot:
        """Return the same numbers under another shape."""
        return replace(self, shape=shape)


def stored_weights(raw: RawState, entry: Entry, *, missing: float = 0.0) -> Slot | None:
    """Return a parameter's values as the state keeps them, of its own shape; None where it keeps none.

    Master weights may be read anew from the model while moments are kept, so they count here only where there is no first moment. Prodigy may keep
    every nth element only (prodigyopt/prodigy.py and prodigyplus/core_optimiser.py, `flatten()[::slice_p]`).

    Args:
        raw: the state.
        entry: one of its parameters.
        missing: what stands for elements that it does not keep: where they started.
    """
    slot = weights_slot(entry)
    found = entry.slots[slot] if slot is not None else None
    if found is None and first_moment(entry) is None:
        found = raw.master.get(entry.position)
    numel = entry.numel or 0
    if found is None or math.prod(found.shape) == numel:
        return found
    step, kept = raw.groups[entry.group].hyper.get("slice_p", EVERY), math.prod(found.shape)
    if entry.shape is None or not isinstance(step, int) or step < 2 or kept < 2 or kept != -(-numel // step):
        return None
    return Spread(found, entry.shape, step, missing)
