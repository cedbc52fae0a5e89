"""What lies behind a path with a scheme (`hf://`, `s3://`, `https://`), by fsspec where it is installed: only the ranges asked for are fetched."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ostate.errors import ReadError

from .extras import needed

if TYPE_CHECKING:
    from typing import BinaryIO

    from .filesystem import FileSystem

_ABSENT = (FileNotFoundError, NotADirectoryError)
_AHEAD = 8 << 20
"""Bytes fetched at once for a reader that goes on where it stopped."""
LONG = 1 << 16
"""Bytes from which a read is one of a run of them."""
_MOST_OPEN = 8
_WEB = ("http://", "https://")
_INSTALL = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "az": "adlfs"}
_FOREIGN = ("aiohttp.ClientError", "botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError", "httpx.HTTPError")
"""Errors of transports that are no OSError; looked up only where their package was imported."""


def is_file(path: str) -> bool:
    """True for an object; nothing is looked for beside a page of the web, whose folders cannot be listed."""
    if path.startswith(_WEB):
        return False
    system, inner = _system(path)
    with suppress(*_ABSENT), _looking(path):
        return system.isfile(inner)
    return False


def is_folder(path: str) -> bool:
    """True for a folder. A web server has none: asking it would fetch the page."""
    if path.startswith(_WEB):
        return False
    system, inner = _system(path)
    with suppress(*_ABSENT), _looking(path):
        return system.isdir(inner)
    return False


def names_in(folder: str) -> list[str]:
    """Return the names of what lies in the folder, sorted; nothing where there is no such folder.

    Raises:
        ReadError: it cannot be listed.
    """
    system, inner = _system(folder)
    with suppress(*_ABSENT), _looking(folder):
        return sorted({str(one["name"]).rstrip("/").rpartition("/")[2] for one in system.ls(inner, detail=True)} - {""})
    return []


def size_of(path: str) -> int:
    """Return the object's size in bytes.

    Raises:
        ReadError: no such object, or its server does not tell or gives no ranges.
    """
    return _object(path).size


class _Object:
    __slots__ = ("buffer", "end", "handle", "size", "start")

    def __init__(self, handle: BinaryIO, size: int) -> None:
        self.handle = handle
        self.size = size
        self.start = 0
        self.buffer = b""
        self.end = -1
        """Where the last read stopped."""


_open: OrderedDict[str, _Object] = OrderedDict()


def read(path: str, offset: int, length: int) -> bytes:
    """Return at most `length` bytes: fewer where the object ends. A reader that goes on where it stopped is given more at a time."""
    one = _object(path)
    if one.start <= offset and offset + length <= one.start + len(one.buffer):
        one.end = offset + length
        return one.buffer[offset - one.start : offset - one.start + length]
    goes_on, one.end = offset == one.end and length >= LONG, offset + length
    wanted = max(length, _AHEAD) if goes_on else length
    data = _fetch(path, one, offset, min(wanted, max(0, one.size - offset)))
    if goes_on:
        one.start, one.buffer = offset, data
    return data[:length]


def _fetch(path: str, one: _Object, offset: int, length: int) -> bytes:
    try:
        one.handle.seek(offset)
        return bytes(one.handle.read(length))
    except _failures() as error:  # fsspec: ValueError where a server answers with more than the range
        raise ReadError(
            f"cannot read bytes {offset} to {offset + length}: {_first_line(error)}", where=path, fix="try again, or download it"
        ) from error


def _object(path: str) -> _Object:
    if path in _open:
        _open.move_to_end(path)
        return _open[path]
    system, inner = _system(path)
    try:
        size = system.size(inner)
        handle = system.open(inner, "rb", cache_type="none")
    except FileNotFoundError as error:
        raise ReadError("no such object", where=path, fix="check the path") from error
    except _failures() as error:
        raise ReadError(f"cannot open: {_first_line(error)}", where=path, fix="check the path and your access, or download it") from error
    if not isinstance(size, int) or not handle.seekable():
        raise ReadError("the server sends no file size or does not support byte ranges", where=path, fix="download it, and pass the path of the file")
    _open[path] = _Object(handle, size)
    while len(_open) > _MOST_OPEN:
        _open.popitem(last=False)[1].handle.close()
    return _open[path]


@contextmanager
def _looking(path: str) -> Iterator[None]:
    """Say in words why the filesystem behind a scheme cannot be asked; that there is no such object is raised as it is."""
    try:
        yield
    except _ABSENT:
        raise
    except _failures() as error:
        raise ReadError(f"cannot look there: {_first_line(error)}", where=path, fix="check the path and your access, or download it") from error


def _system(path: str) -> tuple[FileSystem, str]:
    scheme = path.partition("://")[0]
    with needed("a path with a scheme", where=path):
        from fsspec.core import url_to_fs
    try:
        system, inner = url_to_fs(path)
    except ImportError as error:
        raise ReadError(f"{scheme}:// needs another package", where=path, fix=f"pip install {_INSTALL.get(scheme, scheme + 'fs')}") from error
    except _failures() as error:
        raise ReadError(f"cannot open: {_first_line(error)}", where=path, fix="check the path and your access, or download it") from error
    return system, inner


def _failures() -> tuple[type[BaseException], ...]:
    found: list[type[BaseException]] = [OSError, ValueError]
    for full in _FOREIGN:
        module, _, name = full.rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            found.append(kind)
    return tuple(found)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
