"""A row of the table of layouts: which module reads it, imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from ostate.core.state import RawState

from .peek import Peek


class Reader(NamedTuple):
    """A layout on disk, and the module that reads it.

    A folder's module has `detect(folder: str) -> bool` and `read(folder: str, *, optimizer: int | str | None = None) -> RawState`.
    A file's module has the same two with a `Peek` in place of the path, so that a file is opened once.
    """

    module: str
    """Name within `ostate.read.layouts`."""
    folder: bool = False
    """True when the layout is a folder; False: one file."""
    marks: tuple[str, ...] = ()
    """For a folder: each must be a name in it (`*rank*`: a part of a name) before the module is imported."""

    def accepts(self, seen: Peek) -> bool:
        """True when `seen` is of this layout. Two rows never accept the same path."""
        if seen.is_folder != self.folder:
            return False
        if not all(any(mark == name or (mark[0] == "*" and mark.strip("*") in name) for name in seen.names) for mark in self.marks):
            return False
        return bool(self._module.detect(seen.path if self.folder else seen))

    def read(self, seen: Peek, optimizer: int | str | None) -> RawState:
        """Return the state exactly as stored."""
        state: RawState = self._module.read(seen.path if self.folder else seen, optimizer=optimizer)
        return state._replace(source=seen.asked, facts={**seen.facts, **state.facts})

    @property
    def _module(self) -> ModuleType:
        return import_module(f"{__package__}.layouts.{self.module}")
