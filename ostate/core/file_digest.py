"""The SHA-256 of whole files, one of them taken in a thread while other work goes on: reading and hashing let go of the interpreter's lock."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from ostate.errors import ReadError

from . import system
from .files import is_file, is_folder, is_remote, names_in, new_buffer, read_at, size_of
from .named_file import named_alone

CHUNK = 1 << 22
"""Bytes hashed at a time: each asks for the lock again, which other work may hold for 5 ms."""
SMALL = 1 << 20
"""Bytes up to which a file is hashed whole where `sha256_of_place` is asked."""
STRETCHES, STRETCH = 16, 1 << 12
"""Of a larger one: so many stretches of so many bytes. Weights of another run, step or model differ in every one of them."""
_CONFIGURATIONS = frozenset({"config.json", "adapter_config.json", "model_index.json"})
_WEIGHTS = (".safetensors", ".bin", ".index.json")


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


def sha256_of_place(path: str) -> str:
    """Return one SHA-256 for a file, or for the configurations and weights of a folder: 64 hexadecimal digits that do not depend on where it lies.

    It is made of names below the place, sizes, and contents: of files above `SMALL` of short stretches at even distances. So it tells a base model or
    an adapter from another one for the price of a few reads a file; that a few bytes were changed in between it does not tell. What is not here is
    known by its path or address alone; a named file of ostate's is no part of a place.

    Raises:
        ReadError: a folder cannot be listed.
    """
    digest = hashlib.sha256()
    if is_remote(path) or not (is_file(path) or is_folder(path)):
        digest.update(path.encode(errors="surrogateescape"))
        return digest.hexdigest()
    for name, file in [("", path)] if is_file(path) else _files_of(path):
        digest.update(f"{name}\0".encode(errors="surrogateescape"))
        try:
            size = size_of(file)
            digest.update(f"{size}\0".encode())
            for at, length in [(0, size)] if size <= SMALL else _stretches(size):
                digest.update(read_at(file, at, length))
        except ReadError:  # whoever needs the file says what is wrong with it
            digest.update(b"unreadable")
    return digest.hexdigest()


def _stretches(size: int) -> list[tuple[int, int]]:
    return [((size - STRETCH) * number // (STRETCHES - 1), STRETCH) for number in range(STRETCHES)]


def _files_of(folder: str, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name below the place, path) of a folder's configurations and weights, and of those in the folders in it but a run's checkpoints."""
    for name in names_in(folder):
        path = f"{folder}/{name}"
        if is_file(path):
            if (name in _CONFIGURATIONS or name.endswith(_WEIGHTS)) and not named_alone(path):
                yield before + name, path
        elif not before and not name.startswith("checkpoint") and is_folder(path):
            yield from _files_of(path, f"{name}/")


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
