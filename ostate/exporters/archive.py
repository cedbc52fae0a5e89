"""A file of `torch.save`, written from slots: a zip of a pickle and of each tensor's bytes, which go from file to file a chunk at a time.

Torch would have all of them in memory. Read at torch 2.13, torch/serialization.py (`_save`, `_load`) and caffe2/serialize/inline_container.cc:
members are stored, a tensor's bytes begin at a multiple of 64; zip64 (PKWARE APPNOTE 6.3.10) from 4 GB or 65,535 members on. Left out is
`.format_version`, which would allow a reader to work out offsets from the sizes of torch's own headers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple
from zlib import crc32

from ostate.core.files import new_buffer, sha256_of
from ostate.core.system import reserve
from ostate.core.tensors import ITEMSIZE, Slot, TensorRef, raw_chunks
from ostate.errors import ExportError

from .pickling import kind_of, pickled
from .tensors import Number

_ALIGNMENT = 64
_CHUNK = 1 << 20
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_LOCAL = Struct("<4sHHHHHIIIHH")
_CENTRAL = Struct("<4sHHHHHHIIIHHHHHII")
_END64 = Struct("<4sQHHIIQQQQ")
_LOCATOR64 = Struct("<4sIQI")
_END = Struct("<4sHHHHIIH")
_PLAIN, _ZIP64 = 20, 45
"""Versions of the format that a reader must know."""


class _ZipMember(NamedTuple):
    name: bytes
    header: int
    """Position of its header in the file."""
    size: int
    crc: int


def save(value: object, place: Path) -> None:
    """Write plain data with `Slot` leaves; `torch.load` gives each of these as a tensor of its own.

    Checksums that are known of the source's bytes are passed on, so that damage on the way can be found (`inspect --checksum`).

    Raises:
        ExportError: a value that is neither plain nor a slot, or a source that gives another number of elements than its shape says.
        ReadError: a source cannot be read.
        OSError: the file cannot be written.
    """
    pickle, slots = pickled(value)
    buffer = new_buffer(_CHUNK)
    with place.open("xb") as file:
        reserve(file.fileno(), sum(math.prod(slot.shape) * ITEMSIZE[kind_of(slot).dtype] for slot in slots if not isinstance(slot, Number)))
        members = [_small(file, "data.pkl", pickle), _small(file, "byteorder", b"little")]
        for key, slot in enumerate(slots):
            members.append(_small(file, f"data/{key}", slot.raw) if isinstance(slot, Number) else _large(file, f"data/{key}", slot, buffer))
        mark = str(int(sha256_of(pickle), 16))[:40].encode()
        members += [_small(file, "version", b"3\n"), _small(file, ".data/serialization_id", mark)]
        _close(file, members)
        file.truncate()


def _small(file: BinaryIO, name: str, raw: bytes) -> _ZipMember:
    """Write one member where the file ends."""
    member = _ZipMember(f"archive/{name}".encode(), file.tell(), len(raw), crc32(raw))
    file.write(_local(member) + raw)
    return member


def _large(file: BinaryIO, name: str, slot: Slot, buffer: memoryview) -> _ZipMember:
    """Write a slot as one member where the file ends; its header again, where its checksum is known only then."""
    kind = kind_of(slot)
    known = slot.crc32 if kind.stored and isinstance(slot, TensorRef) else None
    member = _ZipMember(f"archive/{name}".encode(), file.tell(), math.prod(slot.shape) * ITEMSIZE[kind.dtype], known or 0)
    file.write(_local(member))
    written = crc = 0
    for piece in _bytes_of(slot, buffer):
        written += file.write(piece)
        crc = crc32(piece, crc) if known is None else known
    if written != member.size:
        raise ExportError(
            f"{written} bytes were written, {member.size} expected",
            where=name,
            fix="wait until the run has finished writing its files, and try again",
        )
    if known is None:
        member = member._replace(crc=crc)
        file.seek(member.header)
        file.write(_local(member))
        file.seek(0, os.SEEK_END)
    return member


def _bytes_of(slot: Slot, buffer: memoryview) -> Iterator[bytes | memoryview]:
    """Yield a slot's bytes as they will lie in the file; those of one run lie in `buffer`, each piece over the one before."""
    kind = kind_of(slot)
    if kind.stored and isinstance(slot, TensorRef) and slot.run is not None:
        yield from raw_chunks(slot, buffer)
        return
    for chunk in slot.chunks():
        yield chunk.astype(kind.numpy, copy=False).tobytes()


def _local(member: _ZipMember) -> bytes:
    """Return the header before a member's bytes, padded so that these begin aligned."""
    large = member.size >= _FULL32
    size = _FULL32 if large else member.size
    extra = Struct("<HHQQ").pack(1, 16, member.size, member.size) if large else b""
    padding = -(member.header + _LOCAL.size + len(member.name) + len(extra) + 4) % _ALIGNMENT
    extra += b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    version = _ZIP64 if large else _PLAIN
    return _LOCAL.pack(b"PK\3\4", version, 0, 0, 0, 0, member.crc, size, size, len(member.name), len(extra)) + member.name + extra


def _close(file: BinaryIO, members: list[_ZipMember]) -> None:
    """Write the directory."""
    start = file.tell()
    for member in members:
        wide = [number for number in (member.size, member.size, member.header) if number >= _FULL32]
        extra = Struct(f"<HH{len(wide)}Q").pack(1, 8 * len(wide), *wide) if wide else b""
        size, header = min(member.size, _FULL32), min(member.header, _FULL32)
        version = _ZIP64 if wide else _PLAIN
        head = (b"PK\1\2", version, version, 0, 0, 0, 0, member.crc, size, size, len(member.name), len(extra), 0, 0, 0, 0, header)
        file.write(_CENTRAL.pack(*head) + member.name + extra)
    end, count = file.tell(), len(members)
    if count >= _FULL16 or end >= _FULL32:
        file.write(_END64.pack(b"PK\6\6", _END64.size - 12, _ZIP64, _ZIP64, 0, 0, count, count, end - start, start))
        file.write(_LOCATOR64.pack(b"PK\6\7", 0, end, 1))
    few = min(count, _FULL16)
    file.write(_END.pack(b"PK\5\6", 0, 0, few, few, min(end - start, _FULL32), min(start, _FULL32), 0))
