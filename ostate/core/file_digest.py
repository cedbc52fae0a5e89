"""The SHA-256 of whole files, one of them taken in a thread while other work goes on: reading and hashing let go of the interpreter's lock."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from ostate.errors import ReadError

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
        self._error: OSError | None = None

    def run(self) -> None:
        """Read to the end, or until nobody wants it any more."""
        try:
            descriptor = system.open_to_read(self._path)
            try:
                self._read(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._error = error

    def _read(self, descriptor: int) -> None:
        buffer, at = new_buffer(CHUNK), 0
        system.read_ahead(descriptor, 0)
        while not self._unwanted.is_set() and (count := system.read_into(descriptor, buffer, at)):
            self._digest.update(buffer[:count])
            at += count

    def result(self) -> str:
        """Wait for the end and return the digits.

        Raises:
            ReadError: the file could not be read.
        """
        self.join()
        if self._error is not None:
            raise ReadError(f"cannot read the file: {self._error.strerror}", where=self._path, fix="check the disk") from self._error
        return self._digest.hexdigest()

    def stop(self) -> None:
        """Leave off, at the end of a chunk at the latest."""
        self._unwanted.set()
        self.join()
