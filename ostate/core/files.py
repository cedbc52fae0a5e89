"""Bytes of a file by range, and what lies in a folder: the one place where ostate reads tensor bytes.

Descriptors are kept open, a few at a time, so that thousands of small reads cost one `open`. A path with a scheme goes to `remote`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from mmap import mmap
from typing import TypeVar

from ostate.errors import ReadError

from . import remote, system

_Read = TypeVar("_Read")
_Wanted = TypeVar("_Wanted")
_MOST_OPEN = 32
_LITTLE = 1 << 21
"""Bytes from which OpenSSL's faster code is worth loading it."""
_OWN = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
"""The interpreter's own; a build without it has hashlib alone."""
_watchers: list[Callable[[int, int], None]] = []
"""Called with (bytes read, bytes announced), both since the last call."""
_recorders: list[dict[str, None]] = []
"""Each keeps the paths that are read while it stands here."""
_local: OrderedDict[str, tuple[int, tuple[int, int]]] = OrderedDict()
"""Path -> (descriptor, which file it is)."""
_CLOSED = -1


def is_remote(path: str) -> bool:
    """True for a path with a scheme, such as `s3://bucket/optimizer.pt`."""
    return "://" in path


@contextmanager
def watched(step: Callable[[int, int], None] | None) -> Iterator[None]:
    """Call `step` at every read inside, with (bytes read so far, bytes announced: at least as many, 0 where unknown); None: no calls."""
    if step is None:
        yield
        return
    read = announced = 0

    def counted(more: int, to_come: int) -> None:
        nonlocal read, announced
        read, announced = read + more, announced + to_come
        step(read, announced and max(read, announced))

    _watchers.append(counted)
    try:
        yield
    finally:
        _watchers.remove(counted)


@contextmanager
def recorded() -> Iterator[dict[str, None]]:
    """Keep the path of every file that is read inside, in order: inputs, which no output may replace. Each stays the file that was read first."""
    paths: dict[str, None] = {}
    _recorders.append(paths)
    try:
        yield paths
    finally:
        _recorders[:] = [one for one in _recorders if one is not paths]


def _read_from(path: str) -> bool:
    """Keep the path in every `recorded`; return whether one of them has it already."""
    known = False
    for paths in _recorders:
        known |= path in paths
        paths[path] = None
    return known


def announce(count: Callable[[], int]) -> None:
    """Announce to a progress bar that about `count()` bytes will be read; `count` is called only where one watches."""
    for watcher in _watchers:
        watcher(0, count())


def is_file(path: str) -> bool:
    """True for a file, here or behind a scheme; nothing is looked for beside a page of the web, whose folders cannot be listed."""
    return remote.is_file(path) if is_remote(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    """True for a folder, here or behind a scheme. A web server has none: asking it would fetch the page."""
    return remote.is_folder(path) if is_remote(path) else os.path.isdir(path)


def names_in(folder: str) -> list[str]:
    """Return the names of what lies in the folder, sorted.

    Raises:
        ReadError: it cannot be listed.
    """
    if is_remote(folder):
        return remote.names_in(folder)
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ReadError(f"cannot list the folder: {error.strerror}", where=folder, fix="check the path and the permissions") from error


def parent(path: str) -> str:
    """Return the absolute path of the folder that a file or folder lies in; the top is its own parent."""
    path = absolute(path)
    if not is_remote(path):
        return os.path.dirname(path)
    above = path.rpartition("/")[0]
    return path if above.endswith(("/", ":")) else above


def absolute(path: str) -> str:
    """Return the path from the root, without a last slash; one behind a scheme is so already."""
    return path.rstrip("/") if is_remote(path) else os.path.abspath(path)


def size_of(path: str) -> int:
    """Return the file's size in bytes.

    Raises:
        ReadError: no such file.
    """
    if is_remote(path):
        return remote.size_of(path)
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise ReadError(f"cannot read the file: {error.strerror}", where=path, fix="check the path") from error


def read_at(path: str, offset: int, length: int) -> bytes:
    """Return exactly `length` bytes from `offset`.

    Raises:
        ReadError: the file is shorter, is gone, or cannot be read.
    """
    _read_from(path)
    if length == 0:
        return b""
    data = remote.read(path, offset, length) if is_remote(path) else _read_local(path, offset, length)
    if len(data) != length:
        fix = "the copy is incomplete or still being written: copy it again"
        raise ReadError(f"the file ends early: {length} bytes expected at {offset}, {len(data)} present", where=path, fix=fix)
    for watcher in _watchers:
        watcher(length, 0)
    return data


def read_into(path: str, offset: int, view: memoryview, *, on: bool = False) -> None:
    """Fill `view` from `offset`: `read_at` without a new buffer, for whoever reads much.

    Args:
        path: the file.
        offset: first byte.
        view: where to.
        on: this goes on with what was begun a moment ago; whether another file lies under that name now is not asked again.

    Raises:
        ReadError: the file is shorter, is gone, or cannot be read.
    """
    done = 0
    begun = _read_from(path)
    if not is_remote(path):
        descriptor = _descriptor(path, on=on or begun)  # to ask once a tensor which file it is takes 1 % of a `repair`
        try:
            if not on and len(view) >= remote.LONG:
                system.read_ahead(descriptor, offset)
            while done < len(view):
                count = _despite_stale(path, descriptor, system.read_into, view[done:], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            raise ReadError(f"cannot read the file: {error.strerror}", where=path, fix="check the disk") from error
        finally:
            _let_go(path)
        for watcher in _watchers:
            watcher(done, 0)
    if done < len(view):
        view[done:] = read_at(path, offset + done, len(view) - done)


def sha256_of(*pieces: bytes) -> str:
    """Return the SHA-256 of `pieces` one after another, in hexadecimal digits. Without OpenSSL, which takes longer to load than an index needs."""
    own = sum(map(len, pieces)) <= _LITTLE and find_spec(_OWN) is not None
    digest = import_module(_OWN if own else "hashlib").sha256()
    for piece in pieces:
        digest.update(piece)
    return str(digest.hexdigest())


def new_buffer(size: int) -> memoryview:
    """Return memory for `size` bytes on pages of its own, to read into again and again.

    The memory of a large bytearray begins a few bytes after a page. Bytes that lie on a page of the file are copied there at a sixth of the speed by
    AMD's processors (Zen 3), which take the two addresses for overlapping.
    """
    return memoryview(mmap(-1, size))


def _read_local(path: str, offset: int, length: int) -> bytes:
    descriptor = _descriptor(path)
    pieces = []
    while length > 0:
        try:
            piece = _despite_stale(path, descriptor, system.read, length, offset)
        except OSError as error:
            _let_go(path)
            raise ReadError(f"cannot read the file: {error.strerror}", where=path, fix="check the disk") from error
        if not piece:
            break
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    _let_go(path)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _descriptor(path: str, *, on: bool = False) -> int:
    known = _local.get(path)
    if on and known is not None and known[0] != _CLOSED:
        return known[0]
    try:
        seen = os.stat(path)
        identity = (seen.st_dev, seen.st_ino)
        if known is not None:
            if known[1] == identity and known[0] != _CLOSED:
                _local.move_to_end(path)
                return known[0]
            if on and known[1] != identity:
                raise ReadError("another file took this name while it was read", where=path, fix="wait until the run has finished writing it")
            _close(_local.pop(path)[0])
        descriptor = system.open_to_read(path)
    except OSError as error:
        raise ReadError(f"cannot open the file: {error.strerror}", where=path, fix="check the path") from error
    _local[path] = (descriptor, identity)
    if len(_local) > _MOST_OPEN:
        _close(_local.popitem(last=False)[1][0])
    return descriptor


def close_kept() -> None:
    """Close the files that are kept open between reads, so that others may be opened; each is remembered, and opened again where it is read."""
    for path in _local:
        _let_go(path, all_systems=True)


def _let_go(path: str, *, all_systems: bool = False) -> None:
    """Close the file again where an open file cannot be replaced (Windows); remember which it was."""
    if path in _local and (all_systems or not system.KEEPS_OPEN):
        _close(_local[path][0])
        _local[path] = (_CLOSED, _local[path][1])


def _despite_stale(path: str, descriptor: int, read: Callable[[int, _Wanted, int], _Read], wanted: _Wanted, offset: int) -> _Read:
    """Read; where the server of a network disk has forgotten the handle (ESTALE), open the same file once more and read again.

    Raises:
        OSError: the disk.
        ReadError: another file has that name now, or none.
    """
    try:
        return read(descriptor, wanted, offset)
    except OSError as error:
        if error.errno != errno.ESTALE or path not in _local:
            raise
    _, identity = _local.pop(path)
    with suppress(OSError):
        os.close(descriptor)
    descriptor = _descriptor(path)
    if _local[path][1] != identity:
        raise ReadError("another file took this name while it was read", where=path, fix="wait until the run has finished writing it")
    return read(descriptor, wanted, offset)


def _close(descriptor: int) -> None:
    if descriptor != _CLOSED:
        os.close(descriptor)
