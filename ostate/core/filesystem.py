"""The type of fsspec's file systems, as far as they are asked here. For type checkers alone: imported nowhere when a program runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO, Protocol


class FileSystem(Protocol):
    """fsspec's AbstractFileSystem."""

    def isfile(self, path: str) -> bool:
        """True for an object."""

    def isdir(self, path: str) -> bool:
        """True for a folder."""

    def ls(self, path: str, detail: bool) -> Sequence[Mapping[str, object]]:
        """Return what lies in a folder, each with its `name`."""

    def size(self, path: str) -> int | None:
        """Return an object's bytes, where its server tells."""

    def open(self, path: str, mode: str, cache_type: str) -> BinaryIO:
        """Return a handle that seeks and reads."""
