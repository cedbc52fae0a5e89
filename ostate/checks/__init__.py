"""What is odd in a state: one rule, one function; its docstring says why it matters. Rules judge, they never change anything.

Severity: a note needs nobody; a warning should be looked at; an error makes the state unusable, and `repair` refuses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .run import run, structure

if TYPE_CHECKING:
    from .copied import copies
    from .judging import explain, judged, refuse, values, while_copying
    from .rules import RULES

__all__ = ["RULES", "copies", "explain", "judged", "refuse", "run", "structure", "values", "while_copying"]

_LATER = {"copies": "copied", "RULES": "rules", **dict.fromkeys(("explain", "judged", "refuse", "values", "while_copying"), "judging")}
"""What looks at numbers, imported when it is asked for: name -> module."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
