"""Every byte of a state compared with the CRC32 that torch's archives record. Torch itself never looks: a flipped byte loads silently there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

from ostate.core.files import new_buffer, read_at, read_into
from ostate.core.state import Finding, RawState
from ostate.errors import ReadError

from .container import dcp_index
from .container.zip import ZipIndex

RULE = "checksums"
_PIECE = 1 << 18


class _Archive(NamedTuple):
    path: str
    start: int
    length: int | None
    where: str
    """For messages: the file, and what of it."""


def check(raw: RawState) -> Finding:
    """Read every member of every archive that the state lies in, and compare.

    Raises:
        ReadError: a byte is not what was saved, with the member's name; or a file records no checksums, so that nothing can be compared.
    """
    buffer = new_buffer(_PIECE)
    members = total = 0
    for archive in _archives(raw):
        found = ZipIndex(archive.path, archive.start, archive.length).members
        for name, (offset, size, recorded) in sorted(found.items(), key=lambda one: one[1]):
            _compare(archive, name, _crc(archive.path, offset, size, buffer), recorded)
            total += size
        members += len(found)
    return Finding(
        rule=RULE, severity="note", text=f"{total:,} bytes in {members:,} members of archives have the checksums that were saved with them"
    )


def _archives(raw: RawState) -> Iterator[_Archive]:
    """Yield every archive: a whole file, or each chunk of a distributed checkpoint."""
    indexes = [file.path for file in raw.files if os.path.basename(file.path) == dcp_index.METADATA]
    chunks = [(item.key, blob) for path in indexes for item in dcp_index.read_index(os.path.dirname(path)).items.values() for blob in item.blobs]
    for key, blob in chunks:
        yield _Archive(blob.file, blob.offset, blob.length, f"{blob.file}: {key}")
    known = {*indexes, *(blob.file for _, blob in chunks)}
    for file in raw.files:
        if file.path in known:
            continue
        if read_at(file.path, 0, min(file.size, 4)) != b"PK\3\4":
            raise _nothing_recorded(file.path)
        yield _Archive(file.path, 0, None, file.path)


def _crc(path: str, offset: int, size: int, buffer: memoryview) -> int:
    found = 0
    for at in range(0, size, len(buffer)):
        piece = buffer[: min(len(buffer), size - at)]
        read_into(path, offset + at, piece)
        found = crc32(piece, found)
    return found


def _compare(archive: _Archive, name: str, found: int, recorded: int) -> None:
    if found == recorded:
        return
    if not recorded:  # what torch writes after set_crc32_options(False)
        raise _nothing_recorded(archive.where)
    raise ReadError(
        f"the bytes of {name!r} differ from those that were saved: CRC32 {recorded:08x} recorded, {found:08x} found",
        where=archive.where,
        fix="the copy is damaged: copy it again",
    )


def _nothing_recorded(where: str) -> ReadError:
    return ReadError("no checksums are recorded here", where=where, fix="drop --checksum: only torch.save's zip archives and named files have them")
