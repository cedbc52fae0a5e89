"""The directory of a zip file as torch writes it: stored members, found by the central directory alone.

`zipfile` is not used: it costs 20 ms to import, takes compressed members, and reads one header a member. Layout: PKWARE APPNOTE 6.3.10.
Torch writes stored members with a data descriptor, padded to 64 bytes through an extra field, zip64 above 4 GB (inline_container.cc).
"""

from __future__ import annotations

from operator import lt
from struct import Struct

from ostate.core.files import read_at, size_of
from ostate.errors import ReadError

MOST_DIRECTORY = 1 << 28
"""Bytes of a central directory: 3 million members."""

_END = Struct("<4sHHHHIIH")
_END64 = Struct("<4sQHHIIQQQQ")
_LOCATOR64 = Struct("<4sIQI")
_CENTRAL = Struct("<4s4xHH4xIIIHHH8xI")
"""Signature, flags, method, CRC32, packed size, size, lengths of name, extra field and comment, position of the local header."""
_LOCAL = Struct("<4sHHHHHIIIHH")
_FULL32 = 0xFFFFFFFF
_TAIL = _END.size + 65535
_DESCRIPTORS = {0: (0,), 8: (16, 24)}
"""Bytes between a member's data and the next member, by bit 3 of its flags."""
_DAMAGED = "the copy is incomplete or damaged: copy it again"


Member = tuple[int, int, int]
"""A stored member: first byte of its data from the start of the file, bytes, CRC32."""
_Listed = tuple[str, int, int, int, int, int, int]
"""Name, position of the header, least position of the data, where torch puts the data, size, CRC32, flags."""


class ZipIndex:
    """Name -> `Member`, for a zip that is a whole file or lies at `start` within a larger one.

    Raises:
        ReadError: no zip, truncated, or with members that torch never writes (compressed, encrypted, listed twice, overlapping, `..`).
    """

    __slots__ = ("directory", "members", "path", "size", "start", "tail")

    def __init__(self, path: str, start: int = 0, length: int | None = None) -> None:
        self.path = path
        self.start = start
        self.size = size_of(path) - start if length is None else length
        self.tail = b""
        count, self.directory, at = self._find_directory()
        self.members = self._members(count, at)

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str, most: int) -> bytes:
        """Return a member's bytes.

        Raises:
            ReadError: no such member, or more than `most` bytes.
        """
        if name not in self.members:
            raise ReadError(f"no member {name!r} in the archive", where=self.path, fix="pass a file that torch.save wrote")
        offset, size, _ = self.members[name]
        if size > most:
            raise ReadError(f"the member {name!r} has {size} bytes, {most} at most are expected", where=self.path, fix=_DAMAGED)
        return read_at(self.path, offset, size)

    def _bytes(self, at: int, length: int) -> bytes:
        if at < 0 or length < 0 or at + length > self.size:
            raise ReadError("the archive's directory points outside the file", where=self.path, fix=_DAMAGED)
        if at >= self.size - len(self.tail):
            return self.tail[at - self.size + len(self.tail) :][:length]
        return read_at(self.path, self.start + at, length)

    def _find_directory(self) -> tuple[int, bytes, int]:
        """Return the number of members, the central directory's bytes and its position."""
        for span in (min(self.size, 16384), min(self.size, _TAIL)):
            self.tail = self._bytes(self.size - span, span)
            at = self.tail.rfind(b"PK\5\6", 0, max(0, span - 18))
            if at >= 0:
                break
        else:
            raise ReadError("no archive directory at the end of the file", where=self.path, fix=_DAMAGED)
        end = self.size - span + at
        _, disk, first, here, count, size, start, _ = _END.unpack_from(self.tail, at)
        if start == _FULL32 or size == _FULL32 or count == 0xFFFF or (end >= 20 and self._bytes(end - 20, 4) == b"PK\6\7"):
            _, _, record, _ = _LOCATOR64.unpack(self._bytes(end - _LOCATOR64.size, _LOCATOR64.size))
            signature, length, _, _, disk, first, here, count, size, start = _END64.unpack(self._bytes(record, _END64.size))
            if signature != b"PK\6\6":
                raise ReadError("the archive's zip64 record is damaged", where=self.path, fix=_DAMAGED)
            if record + 12 + length != end - _LOCATOR64.size:
                what = "the archive's end does not belong to its beginning: two files one after another, or an interrupted copy that was resumed"
                raise ReadError(what, where=self.path, fix="copy it again, each file by itself")
            end = record
        if disk or first or here != count:
            raise ReadError("an archive of several disks", where=self.path, fix=_DAMAGED)
        if start + size < end:
            what = (
                f"the archive begins {end - start - size} bytes into the file: two files one after another, or an interrupted copy that was resumed"
            )
            raise ReadError(what, where=self.path, fix="copy it again; each file by itself")
        if start + size != end or size > MOST_DIRECTORY or count * _CENTRAL.size > size:
            raise ReadError("the archive's directory does not lie where its end record says", where=self.path, fix=_DAMAGED)
        return count, self._bytes(start, size), start

    def _members(self, count: int, end: int) -> dict[str, Member]:
        """Return where each member's data lies.

        Reading each member's own header would be a request a tensor on a remote path. Torch lists members as they lie, starts each one's
        data at the next multiple of 64 and ends it, with a descriptor, where the next member begins: where all that holds, no header is read.
        """
        listed, tight = self._list(count, end)
        if tight and self._alignment(listed) == b"64":
            members = {name: (self.start + offset, size, crc) for name, _, _, offset, size, crc, _ in listed}
            if len(members) == count:
                return members
        return self._place(listed, end)

    def _list(self, count: int, end: int) -> tuple[list[_Listed], bool]:
        """Return what the central directory lists, each member checked; True when each ends, laid out as torch does, where the next begins."""
        raw, at, unpack = self.directory, 0, _CENTRAL.unpack_from
        listed: list[_Listed] = []
        tight, ended, between = True, 0, _DESCRIPTORS[0]
        for _ in range(count):
            if at + _CENTRAL.size > len(raw):
                raise ReadError("the archive's directory ends early", where=self.path, fix=_DAMAGED)
            signature, flags, method, crc, packed, size, named, extra, comment, header = unpack(raw, at)
            after = at + 46 + named
            name = raw[at + 46 : after].decode("utf-8", "replace")
            if packed == _FULL32 or size == _FULL32 or header == _FULL32:
                size, packed, header = self._zip64(raw[after : after + extra], size, packed, header)
            if signature != b"PK\1\2" or not name:
                raise ReadError("the archive's directory is damaged", where=self.path, fix=_DAMAGED)
            if method or flags & 0x2041 or packed != size:
                how = "encrypted" if flags & 0x2041 else "compressed"
                what = f"the member {name!r} is {how}; torch.save never does that"
                if name.endswith(".npy"):
                    what = "numpy arrays (.npz), compressed"
                elif "/code/" in name:
                    what = "a TorchScript program, not a state"
                raise ReadError(what, where=self.path, fix="unpack it and pass what was in it, or save it again with torch.save")
            if "\\" in name or name[0] == "/" or (".." in name and ".." in name.split("/")):
                raise ReadError(f"a member named {name!r} points outside the archive", where=self.path, fix="do not use this file")
            if header - ended not in between:
                tight = False
            least = header + 30 + named
            wide = 4 + 16 * (size >= _FULL32) + 8 * (header >= _FULL32) if size >= _FULL32 or header >= _FULL32 else 0
            offset = (least + 4 + wide + 63) & -64
            ended, between = offset + size, _DESCRIPTORS[flags & 8]
            listed.append((name, header, least, offset, size, crc, flags))
            at = after + extra + comment
        if at != len(raw):
            raise ReadError("the archive's directory lists more than it counts", where=self.path, fix=_DAMAGED)
        return listed, tight and end - ended in between

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
        """Return where each member's data lies, by the header of each one that does not lie as torch puts it, held to the directory."""
        headers = [one[1] for one in listed]
        usual = all(map(lt, headers, headers[1:])) and self._alignment(listed) == b"64"
        members: dict[str, Member] = {}
        for one in reversed(listed) if usual else sorted(listed, key=_header, reverse=True):
            name, header, least, offset, size, crc, flags = one
            if not usual or end - size - offset not in _DESCRIPTORS[flags & 8]:
                offset = self._read_header(one)
            if offset < least or offset + size > end:
                raise ReadError(f"the member {name!r} overlaps another, or reaches past the end", where=self.path, fix=_DAMAGED)
            if name in members:
                raise ReadError(f"two members are named {name!r}", where=self.path, fix="do not use this file")
            members[name] = (self.start + offset, size, crc)
            end = header
        return members

    def _alignment(self, listed: list[_Listed]) -> bytes:
        """Return what torch recorded as its alignment; releases that record none use 64."""
        for one in listed[:8]:
            if one[0].endswith("/.storage_alignment"):
                return self._bytes(self._read_header(one), min(one[4], 16))
        return b"64"

    def _read_header(self, one: _Listed) -> int:
        """Return the data's position as the local header has it, checked against the directory."""
        name, header, least, _, listed_size, listed_crc, flags = one
        raw = self._bytes(header, least - header)
        signature, _, _, method, _, _, crc, _, size, named, extra = _LOCAL.unpack_from(raw)
        same = (flags & 8 and not size) or size in {listed_size, _FULL32}
        expected = name.encode()
        if signature != b"PK\3\4" or method or named != len(expected) or raw[_LOCAL.size :] != expected or not same or crc not in {0, listed_crc}:
            raise ReadError(f"the member {name!r} differs from what the directory says of it", where=self.path, fix=_DAMAGED)
        return int(least + extra)


def _header(one: _Listed) -> int:
    return one[1]
