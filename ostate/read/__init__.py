"""READ: from a path to a `RawState`. One module a layout, one row a module; nothing of a file is ever run.

A new layout is a module with `detect` and `read` as `readers.Reader` says, and a row here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ostate.core.state import RawState

from .detect import find_state
from .peek import Peek
from .pickle.collector import Paused
from .readers import Reader

if TYPE_CHECKING:
    from .adapters import adapter_from_weights, read_adapter
    from .named_file import is_named

__all__ = ["READERS", "Peek", "Reader", "adapter_from_weights", "is_named", "read", "read_adapter"]

READERS: dict[str, Reader] = {
    "torch": Reader(module="torch_file"),
    "dcp": Reader(module="dcp", folder=True, marks=(".metadata",)),
    "zero": Reader(module="deepspeed_zero", folder=True, marks=("*_states.pt",)),
    "universal": Reader(module="deepspeed_universal", folder=True, marks=("zero",)),
    "hfstorage": Reader(module="hf_storage", folder=True, marks=("*.safetensors",)),
    "fsdp-ranks": Reader(module="fsdp_ranks", folder=True, marks=("*rank*",)),
}
"""Layout -> who reads it. Exactly one row accepts a path, or the path is refused."""

_LATER = {
    "named_file": {"is_named"},
    "adapters": {"read_adapter", "adapter_from_weights", "read_model", "find_adapter", "base_weights"},
}
"""Module -> what it gives to this room, imported when it is asked for."""


def read(path: str, *, state: str | None = None, optimizer: int | str | None = None) -> RawState:
    """Return the state at `path` exactly as stored: no cast, no name guessed, no tensor read.

    Args:
        path: a state file, or a folder whose only state lies in it or below it.
        state: which file of the folder, where several could be meant.
        optimizer: which optimizer, where several lie in the file: its number from 0, or its name.

    Raises:
        UnknownFormat: no state there, or more than one.
        UnsafePickle: a file asks for a class that no state needs.
        ReadError: missing, truncated, damaged, or contradicting itself.
    """
    with Paused():
        seen, row, optimizer = find_state(path, READERS, state=state, optimizer=optimizer)
        return READERS[row].read(seen, optimizer)


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
