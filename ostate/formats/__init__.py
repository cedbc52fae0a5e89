"""READ: from a path to a `RawState`. One module a layout, one row a module; nothing of a file is ever run.

A new layout is a module with `detect` and `read` as `readers.Reader` says, and a row here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..model import RawState
from .folders import find_state
from .peek import Peek
from .readers import Reader

if TYPE_CHECKING:
    from .adapters import adapter_from_weights, read_adapter

__all__ = ["READERS", "Peek", "Reader", "adapter_from_weights", "is_named", "read", "read_adapter"]

READERS: dict[str, Reader] = {
    "torch": Reader(module="torch_file"),
    "dcp": Reader(module="dcp", folder=True, marks=(".metadata",)),
    "zero": Reader(module="zero", folder=True, marks=("*_states.pt",)),
    "universal": Reader(module="universal", folder=True, marks=("zero",)),
    "hfstorage": Reader(module="hfstorage", folder=True, marks=("*.safetensors",)),
    "fsdp-ranks": Reader(module="fsdp_pieces", folder=True, marks=("*rank*",)),
}
"""Layout -> who reads it. Exactly one row accepts a path, or the path is refused."""

_ADAPTERS = {"read_adapter", "adapter_from_weights", "read_model", "find_adapter", "base_weights"}


def read(path: str, *, state: str | None = None, optimizer: int | None = None) -> RawState:
    """Return the state at `path` exactly as stored: no cast, no name guessed, no tensor read.

    Args:
        path: a state file, or a folder whose only state lies in it or below it.
        state: which file of the folder, where several could be meant.
        optimizer: which optimizer, where several lie in the file, counted from 0.

    Raises:
        UnknownFormat: no state there, or more than one.
        UnsafePickle: a file asks for a class that no state needs.
        ReadError: missing, truncated, damaged, or contradicting itself.
    """
    seen, row = find_state(path, READERS, state=state, optimizer=optimizer)
    return READERS[row].read(seen, optimizer)


def is_named(path: str) -> bool:
    """True when `path` is a file of the named format: a safetensors file with `__metadata__["ostate"]`, or the index of several."""
    seen = Peek(path)
    return not seen.is_folder and "ostate" in seen.header[1]


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        from . import adapters

        return getattr(adapters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
