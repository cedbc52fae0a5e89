"""The directory of a zip file as torch writes it: stored members, found by the central directory alone.

`zipfile` is not used: it costs 20 ms to import, takes compressed members, and reads one header a member. Layout: PKWARE APPNOTE 6.3.10.
Torch writes stored members with a data descriptor, padded to 64 bytes through an extra field, zip64 above 4 GB (inline_container.cc).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ..errors import ReadError
from ..files import read_at, size_of

MOST_DIRECTORY = 1 << 28
"""Bytes of a central directory: 3 million members."""

_END = Struct("<4sHHHHIIH")
_END64 = Struct("<4sQHHIIQQQQ")
_LOCATOR64 = Struct("<4sIQI")
_CENTRAL = Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = Struct("<4sHHHHHIIIHH")
_FULL32 = 0xFFFFFFFF
_TAIL = _END.size + 65535
_DAMAGED = "the copy is incomplete or damaged: copy it again"


class Member(NamedTuple):
    """One stored member. `offset` is the first byte of its data, from the start of the file."""

    offset: int
    size: int
    crc32: int


class _Listed(NamedTuple):
    name: str
    header: int
    size: int
    crc32: int
    flags: int


class ZipIndex:
    """Name -> `Member`, for a zip that is a whole file or lies at `start` within a larger one.

    Raises:
        ReadError: no zip, truncated, or with members that torch never writes (compressed, encrypted, listed twice, overlapping, `..`).
    """

    __slots__ = ("directory", "members", "path", "size", "start")

    def __init__(self, path: str, start: int = 0, length: int | None = None) -> None:
        self.path = path
        self.start = start
        self.size = size_of(path) - start if length is None else length
        count, self.directory, at = self._find_directory()
        listed = list(self._list(count))
        self.members = self._place(listed, at)

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str, most: int) -> bytes:
        """Return a member's bytes.

        Raises:
            ReadError: no such member, or more than `most` bytes.
        """
        if name not in self.members:
            raise ReadError(f"no member {name!r} in the archive", where=self.path, fix="give a file that torch.save wrote")
        member = self.members[name]
        if member.size > most:
            raise ReadError(f"the member {name!r} has {member.size} bytes, {most} at most are expected", where=self.path, fix=_DAMAGED)
        return read_at(self.path, member.offset, member.size)

    def _bytes(self, at: int, length: int) -> bytes:
        if at < 0 or length < 0 or at + length > self.size:
            raise ReadError("the archive's directory points outside the file", where=self.path, fix=_DAMAGED)
        return read_at(self.path, self.start + at, length)

    def _find_directory(self) -> tuple[int, bytes, int]:
        """Return the number of members, the central directory's bytes and its position."""
        for span in (min(self.size, 4096), min(self.size, _TAIL)):
            tail = self._bytes(self.size - span, span)
            at = tail.rfind(b"PK\5\6")
            if at >= 0 and at + _END.size <= span:
                break
        else:
            raise ReadError("no archive directory at the end of the file", where=self.path, fix=_DAMAGED)
        end = self.size - span + at
        _, disk, first, here, count, size, start, _ = _END.unpack_from(tail, at)
        if start == _FULL32 or size == _FULL32 or count == 0xFFFF or (end >= 20 and self._bytes(end - 20, 4) == b"PK\6\7"):
            _, _, record, _ = _LOCATOR64.unpack(self._bytes(end - _LOCATOR64.size, _LOCATOR64.size))
            signature, _, _, _, disk, first, here, count, size, start = _END64.unpack(self._bytes(record, _END64.size))
            end = record
            if signature != b"PK\6\6":
                raise ReadError("the archive's zip64 record is damaged", where=self.path, fix=_DAMAGED)
        if disk or first or here != count:
            raise ReadError("an archive of several disks", where=self.path, fix=_DAMAGED)
        if start + size != end or size > MOST_DIRECTORY or count * _CENTRAL.size > size:
            raise ReadError("the archive's directory does not lie where its end record says", where=self.path, fix=_DAMAGED)
        return count, self._bytes(start, size), start

    def _list(self, count: int) -> list[_Listed]:
        """Return what the central directory lists, each member checked."""
        raw, at, unpack, listed = self.directory, 0, _CENTRAL.unpack_from, []
        for _ in range(count):
            if at + _CENTRAL.size > len(raw):
                raise ReadError("the archive's directory ends early", where=self.path, fix=_DAMAGED)
            signature, _, _, flags, method, _, _, crc, packed, size, named, extra, comment, _, _, _, header = unpack(raw, at)
            after = at + 46 + named
            name = raw[at + 46 : after].decode("utf-8", "replace")
            if packed == _FULL32 or size == _FULL32 or header == _FULL32:
                size, packed, header = self._zip64(raw[after : after + extra], size, packed, header)
            if signature != b"PK\1\2" or len(name) == 0:
                raise ReadError("the archive's directory is damaged", where=self.path, fix=_DAMAGED)
            if method or flags & 0x2041 or packed != size:
                how = "encrypted" if flags & 0x2041 else "compressed"
                raise ReadError(f"the member {name!r} is {how}; torch.save never does that", where=self.path, fix="save it again with torch.save")
            if "\\" in name or name[0] == "/" or (".." in name and ".." in name.split("/")):
                raise ReadError(f"a member named {name!r} points outside the archive", where=self.path, fix="do not use this file")
            listed.append(_Listed(name, header, size, crc, flags))
            at = after + extra + comment
        if at != len(raw):
            raise ReadError("the archive's directory lists more than it counts", where=self.path, fix=_DAMAGED)
        return listed

    def _zip64(self, extra: bytes, *fields: int) -> tuple[int, ...]:
        """Return (size, packed size, header) with those that are full replaced from the zip64 extra field."""
        at = 0
        while at + 4 <= len(extra):
            kind = int.from_bytes(extra[at : at + 2], "little")
            end = at + 4 + int.from_bytes(extra[at + 2 : at + 4], "little")
            if kind == 1:
                wide = iter(extra[place : place + 8] for place in range(at + 4, end, 8))
                found = [int.from_bytes(next(wide, b""), "little") if field == _FULL32 else field for field in fields]
                return tuple(found)
            at = end
        raise ReadError("a large member without its zip64 sizes", where=self.path, fix=_DAMAGED)

    def _place(self, listed: list[_Listed], end: int) -> dict[str, Member]:
        """Return where each member's data lies.

        Each member must end where the next begins. Headers are therefore not read one by one (that is a request a tensor on a remote
        path): the next header, less the descriptor, less the size, is the first byte. Torch's alignment settles 16 or 24 bytes of descriptor.
        """
        members: dict[str, Member] = {}
        for one in sorted(listed, key=lambda member: member.header, reverse=True):
            least = one.header + _LOCAL.size + len(one.name.encode())
            offset = self._deduced(one, end, least)
            if offset < least or offset + one.size > end:
                raise ReadError(f"the member {one.name!r} overlaps another, or reaches past the end", where=self.path, fix=_DAMAGED)
            if one.name in members:
                raise ReadError(f"two members are named {one.name!r}", where=self.path, fix="do not use this file")
            members[one.name] = Member(self.start + offset, one.size, one.crc32)
            end = one.header
        return members

    def _deduced(self, one: _Listed, end: int, least: int) -> int:
        if not one.flags & 8:
            offset = end - one.size
            if offset % 64 == 0 and offset - least < 65536:
                return offset
        else:
            fits = [end - one.size - width for width in (16, 24) if (end - one.size - width) % 64 == 0]
            if len(fits) == 1 and 0 <= fits[0] - least < 65536:
                return fits[0]
        return self._read_header(one, least)

    def _read_header(self, one: _Listed, least: int) -> int:
        """Return the data's position as the local header has it, checked against the directory."""
        raw = self._bytes(one.header, least - one.header)
        signature, _, _, method, _, _, crc, _, size, _, extra = _LOCAL.unpack_from(raw)
        same = (one.flags & 8 and not size) or size in {one.size, _FULL32}
        if signature != b"PK\3\4" or method or raw[_LOCAL.size :] != one.name.encode() or not same or crc not in {0, one.crc32}:
            raise ReadError(f"the member {one.name!r} differs from what the directory says of it", where=self.path, fix=_DAMAGED)
        return int(least + extra)
