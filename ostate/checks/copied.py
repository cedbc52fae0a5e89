"""Find parameters whose moments are another parameter's, reading few numbers: for commands that judge names and copy nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from ostate.core.state import Finding, RawState
from ostate.core.tensors import Slot, TensorRef
from ostate.optimizers.slots import MOMENT_SLOTS

from .context import CheckedRow, name_of, structure_of
from .numbers import may_be_equal, parameters_are_copies, written_over

_FEW = 64
"""Numbers that tell most tensors apart, where no checksum does."""


def copies(raw: RawState) -> list[Finding]:
    """Return the finding that moments are copies of one another's; nothing where they are not.

    Checksums that the file records, else the first numbers, tell who could be a copy; only those are read.

    Raises:
        ReadError: they cannot be read.
    """
    alike: dict[tuple[object, ...], list[CheckedRow]] = defaultdict(list)
    for row in structure_of(raw, None).with_state:
        moments = _moments(row)
        if moments and not may_be_equal(moments[0]):
            alike[tuple((slot.shape, _mark(slot)) for slot in moments)].append(row)
    same: dict[bytes, list[CheckedRow]] = defaultdict(list)
    for rows in alike.values():
        for row in rows if len(rows) > 1 else ():
            digest = _digest(row)
            if digest is not None:
                same[digest].append(row)
    rule = name_of(parameters_are_copies)
    return [finding._replace(rule=rule) for finding in written_over([rows for rows in same.values() if len(rows) > 1])]


def _moments(row: CheckedRow) -> list[Slot]:
    return [slot for name, slot in sorted(row.entry.slots.items()) if name in MOMENT_SLOTS]


def _mark(slot: Slot) -> object:
    if isinstance(slot, TensorRef) and slot.crc32 is not None:
        return slot.dtype, slot.crc32
    return next((chunk[:_FEW].tobytes() for chunk in slot.chunks(_FEW)), b"")


def _digest(row: CheckedRow) -> bytes | None:
    """Return a digest of all moments; None when one of them is the same number everywhere, as after a first step."""
    digest = hashlib.blake2b(digest_size=16)
    for slot in _moments(row):
        first, constant = None, True
        digest.update(repr(slot.shape).encode())
        for chunk in slot.chunks():
            first = chunk[0] if first is None else first
            constant = constant and bool((chunk == first).all())
            digest.update(chunk.tobytes())
        if constant:
            return None
    return digest.digest()
