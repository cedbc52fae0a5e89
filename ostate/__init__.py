"""ostate: give a saved optimizer state its parameter names back, prove them from the numbers, probe with it safely.

Importing this module imports nothing else; each name is fetched when first used, and none of them imports torch
except what lies in `ostate.probe`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .commands.api import names, repair, verify
    from .commands.diff import diff
    from .commands.export import export
    from .commands.inspect import inspect
    from .commands.record import names_of, record_names
    from .commands.save import save
    from .core.naming import NamedState
    from .core.state import Finding
    from .errors import OstateError
    from .store.loading import load
    from .store.validating import validate
    from .store.writing import write

__version__ = "0.2.0"

__all__ = [
    "Finding",
    "NamedState",
    "OstateError",
    "__version__",
    "diff",
    "export",
    "inspect",
    "load",
    "names",
    "names_of",
    "record_names",
    "repair",
    "save",
    "validate",
    "verify",
    "write",
]

_PUBLIC: dict[str, str] = {
    # name -> module that defines it; the imports above say the same to a type checker, and a test holds them together
    "load": "store.loading",
    "write": "store.writing",
    "save": "commands.save",
    "validate": "store.validating",
    "export": "commands.export",
    "diff": "commands.diff",
    "inspect": "commands.inspect",
    "repair": "commands.api",
    "verify": "commands.api",
    "names": "commands.api",
    "names_of": "commands.record",
    "record_names": "commands.record",
    "OstateError": "errors",
    "NamedState": "core.naming",
    "Finding": "core.state",
}


if not TYPE_CHECKING:  # else every name that is not there would be of type Any

    def __getattr__(name: str) -> object:
        module = _PUBLIC.get(name)
        if module is None:
            raise AttributeError(f"module 'ostate' has no attribute {name!r}", name=name, obj=import_module(__name__))  # for its "Did you mean"
        value = getattr(import_module(f"ostate.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
