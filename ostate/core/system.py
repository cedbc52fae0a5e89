"""Every system call that is not on Linux, macOS and Windows alike, each with what does the same elsewhere.

Reading and writing at an offset: `preadv`, `pread` and `pwrite` where they are; else the position is moved first, under a lock, since a descriptor
has one position. macOS refuses to read or write more than 2 GB at once; nothing here asks for more than `_MOST`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Event, Lock, Thread, current_thread, get_ident, main_thread
from types import FrameType
from typing import NoReturn

_preadv: Callable[[int, list[memoryview], int], int] | None = getattr(os, "preadv", None)
_pread: Callable[[int, int, int], bytes] | None = getattr(os, "pread", None)
_pwrite: Callable[[int, bytes | memoryview, int], int] | None = getattr(os, "pwrite", None)
_fadvise: Callable[[int, int, int, int], None] | None = getattr(os, "posix_fadvise", None)
_link: Callable[..., None] | None = getattr(os, "link", None)
_setitimer: Callable[..., object] | None = getattr(signal, "setitimer", None)
_SEQUENTIAL: int = getattr(os, "POSIX_FADV_SEQUENTIAL", 0)
_DIRECTORY: int = getattr(os, "O_DIRECTORY", 0)
_ALLOCATES = hasattr(os, "posix_fallocate") and sys.platform.startswith("linux") and sys.maxsize > 1 << 32
KEEPS_OPEN = _pread is not None
"""True where a file that is open may be replaced or removed. Windows, which has no `pread`, refuses both."""
_MOST = 1 << 30
"""Bytes asked for in one call."""
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Not for children; and on Windows bytes as they are, where text would lose its carriage returns and end at a Ctrl-Z."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""
_position = Lock()


def open_to_read(path: str) -> int:
    """Return a descriptor.

    Raises:
        OSError: no such file, no permission.
    """
    return os.open(path, os.O_RDONLY | _FLAGS)


def open_new(path: str | os.PathLike[str]) -> int:
    """Return a descriptor of a new file, to write and to read again.

    Raises:
        OSError: it is there already, or cannot be made.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)


def read(descriptor: int, length: int, offset: int) -> bytes:
    """Return at most `length` bytes from `offset`, perhaps fewer; none at the end.

    Raises:
        OSError: the disk.
    """
    length = min(length, _MOST)
    if _pread is not None:
        return _pread(descriptor, length, offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def read_into(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill the front of `view` from `offset`; return how many bytes came, 0 at the end.

    Raises:
        OSError: the disk.
    """
    if _preadv is not None:
        return _preadv(descriptor, [view[:_MOST]], offset)
    piece = read(descriptor, len(view), offset)
    view[: len(piece)] = piece
    return len(piece)


def write_all(descriptor: int, raw: bytes | memoryview, offset: int) -> None:
    """Write all bytes; a short write goes on where it stopped.

    Raises:
        OSError: disk full, quota, file size limit.
    """
    written = _write(descriptor, raw, offset)
    while written < len(raw):
        raw, offset = memoryview(raw)[written:], offset + written
        written = _write(descriptor, raw, offset)


def _write(descriptor: int, raw: bytes | memoryview, offset: int) -> int:
    if len(raw) > _MOST:
        raw = memoryview(raw)[:_MOST]
    if _pwrite is not None:
        return _pwrite(descriptor, raw, offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, raw)


def read_ahead(descriptor: int, offset: int) -> None:
    """Tell the system that this will be read from `offset` to the end; Linux then reads twice as far ahead. Nothing elsewhere."""
    if _fadvise is not None:
        _fadvise(descriptor, offset, 0, _SEQUENTIAL)


def reserve(descriptor: int, size: int) -> None:
    """Ask for the room of a new file at once, where the file system can: a full disk is an error before a byte is written, and writing costs less.

    Through Linux's own `fallocate(2)`: `os.posix_fallocate` writes into every block of a file system that has none, a slow one over a network.
    Nothing elsewhere.

    Raises:
        OSError: there is no room for it, or it may not become that large.
    """
    if not _ALLOCATES:
        return
    import ctypes

    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None:
        return
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(descriptor, 0, 0, size) and ctypes.get_errno() in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def keep_freed_memory() -> None:
    """Have the C library keep up to 16 MB of what is freed, for a program of its own that makes and drops arrays: new memory costs a fault a page.

    By itself glibc gives back what is above its last large piece, and asks for it again at the next array: 30,000 faults in a proven `repair`.
    Pieces of a megabyte or more still come from the system and go back there. Nothing where there is no `mallopt(3)`.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 24)


def flush_file(path: str | os.PathLike[str]) -> None:
    """Have a whole file on the disk. Opened to write, without which Windows flushes nothing.

    Raises:
        OSError: the disk.
    """
    descriptor = os.open(path, os.O_RDWR | _FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: str | os.PathLike[str]) -> None:
    """Have a folder's names on the disk. Nothing on Windows, which opens no folder and writes names down by itself.

    Raises:
        OSError: the disk.
    """
    if not _DIRECTORY:
        return
    descriptor = os.open(path, os.O_RDONLY | _DIRECTORY | _FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_new(path: str | os.PathLike[str], final: str | os.PathLike[str]) -> None:
    """Rename, but never over a file that another writer put there meanwhile.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be renamed.
    """
    if _link is not None:
        try:
            _link(path, final)
        except FileExistsError:
            raise
        except OSError:
            pass  # a file system without hard links
        else:
            return
    if os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(final))
    Path(path).rename(final)


def folds_case(folder: str | os.PathLike[str]) -> bool:
    """True where `A` and `a` are one file in this folder, as macOS and Windows have it unless set otherwise."""
    probe = os.path.join(folder, f".ostate-{os.getpid()}-{os.urandom(4).hex()}-case")
    try:
        os.close(open_new(probe))
    except OSError:
        return False
    try:
        return os.path.exists(os.path.join(folder, os.path.basename(probe).upper()))
    finally:
        os.unlink(probe)


def most_address_space() -> int | None:
    """Return the bytes of address space that this process may take (`ulimit -v`); None where nothing limits it, as on Windows."""
    try:
        resource = import_module("resource")
    except ImportError:
        return None
    least: int = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if least == resource.RLIM_INFINITY else least


def raise_at_sigterm(error: type[BaseException]) -> None:
    """Raise `error` in the main thread when SIGTERM arrives, where nobody else has said what it should do."""

    def arrive(_number: int, _frame: FrameType | None) -> NoReturn:
        raise error

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, arrive)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM until what runs inside is done; in a thread that is not the main one no signal raises anything."""
    if current_thread() is not main_thread():
        yield
        return
    arrived: list[int] = []
    before = {one: signal.signal(one, lambda got, _: arrived.append(got)) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        for number in arrived[:1]:
            signal.raise_signal(number)


@contextmanager
def cpu_limit(seconds: float, late: type[Exception]) -> Iterator[None]:
    """Raise `late()` in what runs inside after so much processor time, and again each second that it goes on.

    By a signal, which also interrupts a regular expression; on Windows, and in a thread that is not the main one, by another thread that looks at
    the clock, which cannot interrupt one call of a library.
    """
    if _setitimer is None or current_thread() is not main_thread():
        with _watched(seconds, late):
            yield
        return
    timer, alarm = getattr(signal, "ITIMER_VIRTUAL"), getattr(signal, "SIGVTALRM")  # noqa: B009 - no such names on Windows

    def ring(*_: object) -> None:
        raise late

    before = signal.signal(alarm, ring)
    try:
        _setitimer(timer, seconds, 1.0)
        yield
    finally:
        _setitimer(timer, 0)
        signal.signal(alarm, before)


@contextmanager
def _watched(seconds: float, late: type[Exception]) -> Iterator[None]:
    import ctypes

    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    here, began, over, turn = ctypes.c_ulong(get_ident()), time.process_time(), Event(), Lock()

    def watch() -> None:
        wait = seconds
        while not over.wait(min(wait, 1.0)):
            wait = seconds - (time.process_time() - began)
            with turn:
                if wait <= 0 and not over.is_set():
                    raise_in(here, ctypes.py_object(late))
                    wait = 1.0

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        while True:
            try:
                with turn:
                    over.set()
                for _ in range(2):  # one that was on its way arrives here; to take it back would leave the interpreter waiting for it for ever
                    pass
                break
            except late:
                continue
