"""READ: from a path to a `RawState`. One module a layout, one row a module; nothing of a file is ever run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from ostate.core.state import RawState
from ostate.errors import SeveralOptimizers

from .bounds import within_limits
from .detect import READERS, LayoutReader, choice, find_state, others
from .peek import Peek
from .together import ALL, together

__all__ = ["ALL", "READERS", "LayoutReader", "Peek", "read"]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Put off Python's search for dead cycles while an index is read: nothing dies there, and looking takes half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read(path: str, *, state: str | None = None, optimizer: int | str | None = None) -> RawState:
    """Return the state at `path` exactly as stored: no cast, no name guessed, no tensor read.

    Args:
        path: a state file, or a folder whose only state lies in it or below it.
        state: which file of the folder, where several could be meant.
        optimizer: which optimizer, where several lie in the file: its number from 0, or its name; `all`: all of them as one state.

    Raises:
        UnknownFormat: no state there, or more than one.
        UnsafePickle: a file asks for a class that no state needs.
        ReadError: missing, truncated, damaged, or contradicting itself.
    """
    if optimizer == ALL:
        return _all(path, state)
    with _uncollected():
        found = find_state(path, state=state, optimizer=optimizer)
        seen = found.seen
        raw = within_limits(READERS[found.row].read(seen, found.optimizer))
        not_read = others(seen, [file.path for file in raw.files]) if state is None else ()
        return raw._replace(read=seen.path, not_read=not_read, findings=(*raw.findings, *choice(seen, not_read, found.skipped)))


def _all(path: str, state: str | None) -> RawState:
    try:
        return read(path, state=state)
    except SeveralOptimizers as several:
        return together([read(path, state=state, optimizer=number) for number in several.texts], list(several.texts.values()))
