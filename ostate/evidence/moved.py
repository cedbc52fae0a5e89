"""What training moved in a whole model, by its values: where the optimizer holds a part of the model, which part that is.

A tensor that differs from where it started was trained. One that stands there bit for bit was not: an elementwise step moves every number whose
gradient is not zero. Two limits. In 16 bits a step may be lost in rounding; of a large tensor some numbers are small enough to move. And a float32
tensor whose every number fits into 16 bits was loaded from such a file, or filled with one number, and never stepped in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ostate.core.naming import Adapter, Moved
from ostate.core.state import Entry, RawState
from ostate.core.tensors import Slot, TensorRef
from ostate.optimizers.slots import MOMENT_SLOTS

from .tables.base_tensors import base_tensor

ENOUGH = 4096
"""Elements of a 16-bit tensor of which some are small enough to be moved by any step."""
FEWEST = 2
"""Elements of a float32 tensor that all fit into 16 bits by chance once in 2^32 tensors."""
STEPPED = 2
"""Steps after which one of them had a learning rate above zero: a warmup's first has none."""


def moved(raw: RawState, weights: Adapter, start: Mapping[str, TensorRef] | None) -> Moved:
    """Return which tensors moved since they started, and which did not.

    Args:
        raw: the state; which of its positions have no moment at all is part of the question.
        weights: the whole model, saved with the state.
        start: the base model's weights or an earlier save's, by name; None: what the model's own values tell.
    """
    away, there = set(), set()
    for key, ref in weights.tensors.items():
        begun = _start_of(key, start) if start else None
        if begun is None or begun.shape != ref.shape:
            if start is None and ref.dtype == "F32" and ref.numel >= FEWEST and _fits_16_bits(ref):
                there.add(key)
        elif not _equal(ref, begun):
            away.add(key)
        elif ref.dtype == "F32" or ref.numel >= ENOUGH:
            there.add(key)
    steps = [entry.step for entry in raw.entries if entry.has_state and entry.step is not None]
    if start is None and steps and max(steps) < STEPPED:
        there.clear()
    return Moved(frozenset(away), frozenset(there), frozenset(entry.position for entry in raw.entries if entry.has_state and _is_still(raw, entry)))


def _start_of(key: str, start: Mapping[str, TensorRef]) -> TensorRef | None:
    """Return where a tensor started; a bare model lacks the attribute that one with a head has it in (`bert.`)."""
    found = base_tensor(key, start)
    return found if found is not None else start.get(key.partition(".")[2])


def _equal(ref: TensorRef, begun: TensorRef) -> bool:
    """True where all numbers are equal, the start's rounded as the tensor is stored."""
    if len(ref.parts) != 1 or len(begun.parts) != 1:  # pieces of several sizes
        return np.array_equal(ref.read(), _rounded(begun.read(), ref.dtype))
    return all(np.array_equal(values, _rounded(before, ref.dtype)) for values, before in zip(ref.chunks(), begun.chunks()))


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 values as `dtype` holds them: bfloat16 and float16 round to the nearest, ties to even."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype != "BF16":
        return values
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(np.float32)


def _fits_16_bits(slot: Slot) -> bool:
    left = ["BF16", "F16"]
    for values in slot.chunks():
        left = [dtype for dtype in left if np.array_equal(values, _rounded(values, dtype))]
        if not left:
            return False
    return True


def _is_still(raw: RawState, entry: Entry) -> bool:
    """True where no step was taken: every moment is zero, or its group has no learning rate."""
    hyper = raw.groups[entry.group].hyper
    if hyper.get("initial_lr", hyper.get("lr")) == 0:
        return True
    moments = [slot for name, slot in entry.slots.items() if name in MOMENT_SLOTS]
    return bool(moments) and not any(np.any(values) for slot in moments for values in slot.chunks())
