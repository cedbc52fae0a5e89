"""Compare a state's float32 master weights with the model's own weights under the same names: they are laid out as the moments.

Few numbers of each are compared, since a state is looked at before anyone asks for its numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

from ostate.core.files import read_at
from ostate.core.master_weights import FIRST, close
from ostate.core.tensors import ITEMSIZE, STRUCT, Slot, TensorRef


def disagreements(master: Mapping[str, Slot], weights: Mapping[str, TensorRef]) -> tuple[list[str], list[str]]:
    """Return the names that are in both with one shape, and of these the ones whose first numbers differ."""
    compared = [name for name, slot in master.items() if name in weights and weights[name].shape == slot.shape]
    return compared, [name for name in compared if not _agree(master[name], weights[name])]


def _agree(master: Slot, weight: TensorRef) -> bool:
    pairs = zip(_first(master), _first(weight))
    return all(close(one, other) for one, other in pairs)


def _first(slot: Slot) -> list[float]:
    """Return the first numbers, as far as they lie in one run; without numpy where the slot is plain."""
    part = min(slot.parts, key=lambda part: part.starts, default=None) if isinstance(slot, TensorRef) else None
    if not isinstance(slot, TensorRef) or part is None or not part.contiguous or slot.dtype not in {"F64", "F32", "F16", "BF16"}:
        return [float(value) for value in next(iter(slot.chunks(FIRST)), ())][:FIRST]
    count = min(FIRST, math.prod(part.sizes))
    raw = read_at(part.file, part.offset, count * ITEMSIZE[slot.dtype])
    order = ">" if slot.swapped else "<"
    if slot.dtype == "BF16":
        halves = struct.unpack(f"{order}{count}H", raw)
        return list(struct.unpack(f"<{count}f", b"".join((half << 16).to_bytes(4, "little") for half in halves)))
    return list(struct.unpack(f"{order}{count}{STRUCT[slot.dtype]}", raw))
