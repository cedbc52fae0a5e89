"""Float32 master weights as a witness: cut like the moments, so where they are the model's own weights the names are right."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ostate.core.files import read_at
from ostate.core.state import RawState
from ostate.core.tensors import ITEMSIZE, Slot, TensorRef

ENOUGH = 64
"""Elements of a parameter that are compared: few, since a state is looked at before anyone asks for its numbers."""
_TOLERANCE = 2**-7
"""Relative: the model's weights are the masters rounded to 16 bits (bfloat16 keeps 8 bits, so half of one in 2**8)."""
_TINY = 1e-6
_CODES = {"F64": "d", "F32": "f", "F16": "e"}


def disagreements(master: Mapping[str, Slot], weights: Mapping[str, TensorRef]) -> tuple[list[str], list[str]]:
    """Return the names that are in both with one shape, and of these the ones whose first numbers differ."""
    compared = [name for name, slot in master.items() if name in weights and weights[name].shape == slot.shape]
    return compared, [name for name in compared if not _agree(master[name], weights[name])]


def masters_against(raw: RawState, weights: Mapping[str, TensorRef]) -> tuple[list[str], list[str]]:
    """As `disagreements`, of a state's own masters and weights under the names that the state records."""
    named = {raw.entries[position].name: slot for position, slot in raw.master.items()}
    return disagreements({name: slot for name, slot in named.items() if name is not None}, weights)


def _agree(master: Slot, weight: TensorRef) -> bool:
    pairs = zip(_first(master), _first(weight))
    return all(abs(one - other) <= _TINY + _TOLERANCE * abs(other) for one, other in pairs)


def _first(slot: Slot) -> list[float]:
    """Return the first numbers, as far as they lie in one run; without numpy where the slot is plain."""
    part = min(slot.parts, key=lambda part: part.starts, default=None) if isinstance(slot, TensorRef) else None
    if not isinstance(slot, TensorRef) or part is None or not part.contiguous or slot.dtype not in {*_CODES, "BF16"}:
        return [float(value) for value in next(iter(slot.chunks(ENOUGH)), ())][:ENOUGH]
    count = min(ENOUGH, _count(part.sizes))
    raw = read_at(part.file, part.offset, count * ITEMSIZE[slot.dtype])
    order = ">" if slot.swapped else "<"
    if slot.dtype == "BF16":
        halves = struct.unpack(f"{order}{count}H", raw)
        return list(struct.unpack(f"<{count}f", b"".join((half << 16).to_bytes(4, "little") for half in halves)))
    return list(struct.unpack(f"{order}{count}{_CODES[slot.dtype]}", raw))


def _count(sizes: tuple[int, ...]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count
