"""Limits on what a state may ask for, whatever its layout: names, and numbers that its files do not hold. Counts are bounded where they are known."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ostate.core import limits
from ostate.core.state import RawState
from ostate.core.tensors import ITEMSIZE, Part, Slot, TensorRef
from ostate.errors import ReadError

from .flat_buffers import Cut
from .quantized import Packed
from .state_dict import NO_OPTIMIZER


def within_limits(raw: RawState) -> RawState:
    """Return the state, once it asks for no more than any real one does (`core/limits.py`).

    Raises:
        ReadError: a longer name, or tensors that repeat the same bytes of the file again and again.
    """
    for names in ((entry.name for entry in raw.entries if entry.name is not None), raw.weights):
        longest = max(map(len, names), default=0)
        if longest > limits.NAME:
            raise ReadError(f"a name of {longest} letters, more than {limits.NAME}", where=raw.source, fix=NO_OPTIMIZER)
    _refuse_repeated(raw)
    return raw


def _refuse_repeated(raw: RawState) -> None:
    """Refuse tensors whose numbers together are far more than the bytes they lie on: strides of zero, storages that many tensors share."""
    slots = [slot for entry in raw.entries for slot in entry.slots.values()]
    refs = [slot for slot in slots if isinstance(slot, TensorRef)]
    asked = sum(ref.nbytes for ref in refs)
    if len(refs) < len(slots):
        within = [row for slot in slots if not isinstance(slot, TensorRef) for row in _within(slot)]
        refs += {id(ref): ref for _, ref in within}.values()
        asked += sum(nbytes for nbytes, _ in within)
    if asked <= limits.REPEATED:
        return
    held, file, reached = 0, "", 0
    for name, start, end in sorted(_span(part, ITEMSIZE[ref.dtype]) for ref in refs for part in ref.parts):
        if name != file:
            file, reached = name, 0
        held += max(0, end - max(start, reached))
        reached = max(reached, end)
    if asked > limits.REPEATED + 2 * held:
        what = f"the tensors of the state claim {asked} bytes, and its files hold {held} for them"
        raise ReadError(what, where=raw.source, fix=NO_OPTIMIZER)


def _within(slot: Slot) -> Iterator[tuple[int, TensorRef]]:
    """Yield (bytes asked for, stored tensor) for what a slot's elements are made of: codes, scales and the table of a packed one, cut or whole."""
    if isinstance(slot, TensorRef):
        yield slot.nbytes, slot
    elif isinstance(slot, Packed):
        yield from ((ref.nbytes, ref) for ref in (slot.codes, slot.scale, slot.table) if isinstance(ref, TensorRef))
    elif isinstance(slot, Cut):
        for piece in slot.pieces:
            whole = max(1, math.prod(piece.slot.shape))
            table = piece.slot.table if isinstance(piece.slot, Packed) else None
            for nbytes, ref in _within(piece.slot):
                yield (nbytes if ref is table else nbytes * piece.count // whole), ref  # the table is read for every piece


def _span(part: Part, size: int) -> tuple[str, int, int]:
    """Return file, first byte and end of what a part reaches."""
    elements = 1 + sum((length - 1) * stride for length, stride in zip(part.sizes, part.strides)) if 0 not in part.sizes else 0
    return part.file, part.offset, part.offset + elements * size
