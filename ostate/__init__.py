"""ostate: give a saved optimizer state its parameter names back, prove them from the numbers, probe with it safely.

Importing this module imports nothing else; each name is fetched when first used, and none of them imports torch
except what lies in `ostate.probe`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC: dict[str, str] = {
    # name -> module that defines it
    "load": "ostate.store",
    "save": "ostate.commands.save",
    "validate": "ostate.store",
    "export": "ostate.commands.export",
    "diff": "ostate.commands.diff",
    "inspect": "ostate.commands.inspect",
    "repair": "ostate.commands.repair",
    "verify": "ostate.commands.repair",
    "names": "ostate.commands.repair",
    "names_of": "ostate.integrations",
    "record_names": "ostate.integrations",
    "OstateError": "ostate.errors",
    "NamedState": "ostate.core.state",
    "Finding": "ostate.core.state",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'ostate' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
