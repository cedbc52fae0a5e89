"""A row of the table of layouts: which module reads it, imported when it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module

from ..model import RawState
from .peek import Peek


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A layout on disk. Its module has `detect(seen: Peek) -> bool` and `read(seen: Peek, optimizer: int | None) -> RawState`."""

    module: str
    """Name within `ostate.formats`."""
    folder: bool = False
    """True when the layout is a folder; False: one file."""
    marks: tuple[str, ...] = ()
    """For a folder: patterns of which each must match a name in it, before the module is imported."""

    def accepts(self, seen: Peek) -> bool:
        """True when `seen` is of this layout. Two rows never accept the same path."""
        if seen.is_folder != self.folder:
            return False
        if not all(any(fnmatchcase(name, mark) for name in seen.names) for mark in self.marks):
            return False
        return bool(import_module(f"{__package__}.{self.module}").detect(seen))

    def read(self, seen: Peek, optimizer: int | None) -> RawState:
        """Return the state exactly as stored."""
        state: RawState = import_module(f"{__package__}.{self.module}").read(seen, optimizer)
        return state
