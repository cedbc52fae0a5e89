"""The SHA-256 of whole files, one of them taken in a thread while other work goes on: reading and hashing let go of the interpreter's lock."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from . import system
from .files import is_remote, new_buffer, read_at, size_of

CHUNK = 1 << 22
"""Bytes hashed at a time: each asks for the lock again, which other work may hold for 5 ms."""


@contextmanager
def sha256_beside(path: str | None) -> Iterator[Callable[[str], str]]:
    """Take a local file's SHA-256 in a thread while the block runs; None, or a path with a scheme: no thread.

    Yields:
        A function from a path to 64 hexadecimal digits. It waits for the thread where the path is that file's; any other file is hashed then.
        It raises ReadError where the file cannot be read.
    """
    if path is None or is_remote(path):
        yield sha256_of_file
        return
    beside = _Beside(path)
    beside.start()
    try:
        yield lambda wanted: beside.result() if wanted == path else sha256_of_file(wanted)
    finally:
        beside.stop()


def sha256_of_file(path: str) -> str:
    """Return a file's SHA-256, 64 hexadecimal digits.

    Raises:
        ReadError: it cannot be read.
    """
    digest, size = hashlib.sha256(), size_of(path)
    for at in range(0, size, CHUNK):
        digest.update(read_at(path, at, min(CHUNK, size - at)))
    return digest.hexdigest()


class _Beside(Thread):
    """Hashes one file through a descriptor of its own: those of `files` belong to one thread."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._unwanted = Event()
        self._digest = hashlib.sha256()
        self._whole = False

    def run(self) -> None:
        """Read to the end, or until nobody wants it any more."""
        with suppress(OSError, ImportError, MemoryError):  # `mmap` is imported late: without descriptors or memory that fails; `result` reads again
            descriptor = system.open_to_read(self._path)
            try:
                self._read(descriptor)
            finally:
                os.close(descriptor)

    def _read(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        buffer, at = new_buffer(CHUNK), 0
        system.read_ahead(descriptor, 0)
        while not self._unwanted.is_set() and (count := system.read_into(descriptor, buffer, at)):
            self._digest.update(buffer[:count])
            at += count
        self._whole = at == size

    def result(self) -> str:
        """Wait for the end and return the digits; where the thread did not read the whole file, read it here.

        Raises:
            ReadError: the file cannot be read.
        """
        self.join()
        return self._digest.hexdigest() if self._whole else sha256_of_file(self._path)

    def stop(self) -> None:
        """Leave off, at the end of a chunk at the latest."""
        self._unwanted.set()
        self.join()
