"""The named format, version 1: write it, read it, check it (`schemas/manifest-v1.schema.json`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ostate.core.atomic import check_target

from .loading import load
from .plan import shard_path
from .writing import Written, write, write_index

if TYPE_CHECKING:
    from .digesting import digested
    from .validating import validate

__all__ = ["Written", "check_target", "digested", "load", "shard_path", "validate", "write", "write_index"]

_LATER = {"digested": "digesting", "validate": "validating"}
"""What reads a file again, imported when it is asked for: name -> module."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
