"""Bytes of a file by range: the one place where ostate reads tensor bytes.

Descriptors are kept open, a few at a time, so that thousands of small reads cost one `open`. A path with a scheme
(`hf://`, `s3://`) goes through fsspec, range by range.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

from .errors import ReadError

_MOST_OPEN = 32
_local: OrderedDict[str, tuple[int, tuple[int, int]]] = OrderedDict()
_remote: dict[str, Any] = {}


def is_remote(path: str) -> bool:
    """True for a path with a scheme, such as `s3://bucket/optimizer.pt`."""
    return "://" in path


def size_of(path: str) -> int:
    """Return the file's size in bytes.

    Raises:
        ReadError: no such file.
    """
    if is_remote(path):
        return int(_filesystem(path).size(path))
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise ReadError(f"cannot read the file: {error.strerror}", where=path, fix="check the path") from error


def read_at(path: str, offset: int, length: int) -> bytes:
    """Return exactly `length` bytes from `offset`.

    Raises:
        ReadError: the file is shorter, is gone, or cannot be read.
    """
    if length == 0:
        return b""
    data = _read_remote(path, offset, length) if is_remote(path) else _read_local(path, offset, length)
    if len(data) != length:
        raise ReadError(
            f"the file ends early: {length} bytes wanted at {offset}, {len(data)} there",
            where=path,
            fix="the copy is incomplete or still being written: copy it again",
        )
    return data


def read_into(path: str, offset: int, view: memoryview) -> None:
    """Fill `view` from `offset`: `read_at` without a new buffer, for whoever reads much.

    Raises:
        ReadError: the file is shorter, is gone, or cannot be read.
    """
    done = 0
    if not is_remote(path):
        descriptor = _descriptor(path)
        try:
            while done < len(view):
                count = os.preadv(descriptor, [view[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            raise ReadError(f"cannot read the file: {error.strerror}", where=path, fix="check the disk") from error
    if done < len(view):
        view[done:] = read_at(path, offset + done, len(view) - done)


def _read_local(path: str, offset: int, length: int) -> bytes:
    descriptor = _descriptor(path)
    pieces = []
    while length > 0:
        try:
            piece = os.pread(descriptor, length, offset)
        except OSError as error:
            raise ReadError(f"cannot read the file: {error.strerror}", where=path, fix="check the disk") from error
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _descriptor(path: str) -> int:
    try:
        seen = os.stat(path)
        identity = (seen.st_dev, seen.st_ino)
        known = _local.get(path)
        if known is not None:
            if known[1] == identity:
                _local.move_to_end(path)
                return known[0]
            os.close(_local.pop(path)[0])
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise ReadError(f"cannot open the file: {error.strerror}", where=path, fix="check the path") from error
    _local[path] = (descriptor, identity)
    if len(_local) > _MOST_OPEN:
        os.close(_local.popitem(last=False)[1][0])
    return descriptor


def _filesystem(path: str) -> Any:
    scheme = path.partition("://")[0]
    if scheme not in _remote:
        try:
            import fsspec
        except ImportError as error:
            raise ReadError("remote paths need fsspec", where=path, fix="pip install 'ostate[remote]'") from error
        _remote[scheme] = fsspec.filesystem(scheme)
    return _remote[scheme]


def _read_remote(path: str, offset: int, length: int) -> bytes:
    return bytes(_filesystem(path).cat_file(path, start=offset, end=offset + length))
