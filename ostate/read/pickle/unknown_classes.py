"""Classes without a row in the table that lie beside a state: a configuration, an enumeration, a whole model.

They are kept as records of their name and contents, like every other class: nothing is imported or called. What a state itself never needs and
what could only be meant to do harm stays refused: a name of Python's standard library, of torch's or numpy's own functions, of an installer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

from ostate.core.state import Finding
from ostate.errors import UnsafePickle

from .records import RECORD, Inert, Named

_REFUSED = (sys.stdlib_module_names - {"__main__"}) | {"__builtin__", "copy_reg", "distutils", "pip", "setuptools", "pkg_resources", "torch", "numpy"}
_MODULES = ("torch.nn.", "torch.optim.")
"""Of torch: a whole model, or a scheduler's object."""
_MOST_NAMED = 5
_MOST_DEPTH = 6


class PermissiveTable(dict[str, object]):
    """A table of globals that also gives a record for every other class beside the state; `met` are those that a file asked for."""

    def __init__(self, table: Mapping[str, object], *, unknown_classes: bool) -> None:
        super().__init__(table)
        self.unknown_classes = unknown_classes
        self.met: set[str] = set()

    def unknown_class(self, full: str) -> object | None:
        """Return what stands in for a class without a row, and note that the file asks for it; None where it is refused."""
        if not self.unknown_classes or not is_strange(full):
            return None
        self.met.add(full)
        return RECORD


def is_strange(full: str) -> bool:
    """True for the full name of a class that may lie beside a state without meaning harm."""
    parts = full.split(".")
    plain = len(full) < 200 and len(parts) > 1 and all(part.isidentifier() for part in parts)
    return plain and (parts[0] not in _REFUSED or full.startswith(_MODULES))


def refuse_within(state: object, unknown_classes: Iterable[str], where: str) -> None:
    """Refuse a state whose own entries hold such a class.

    Raises:
        UnsafePickle: one does.
    """
    wanted = frozenset(unknown_classes)
    if wanted and (found := _first(state, wanted, 0, set())):
        raise UnsafePickle(
            f"an entry of the state is a {found}, which no optimizer state uses", where=where, fix="save the optimizer's state_dict() alone"
        )


def _first(value: object, wanted: frozenset[str], depth: int, seen: set[tuple[int, int]]) -> str:
    if isinstance(value, (Inert, Named)):
        return value.name if value.name in wanted else ""
    if depth > _MOST_DEPTH or not isinstance(value, (dict, list, tuple)) or (id(value), depth) in seen:
        return ""
    seen.add((id(value), depth))  # a list that stands in many places is looked into once at each depth
    inner = value.values() if isinstance(value, dict) else value
    return next((found for one in inner if (found := _first(one, wanted, depth + 1, seen))), "")


def noted(unknown_classes: Sequence[str]) -> tuple[Finding, ...]:
    """Say which classes were left alone."""
    if not unknown_classes:
        return ()
    shown = ", ".join(unknown_classes[:_MOST_NAMED]) + (
        f" and {len(unknown_classes) - _MOST_NAMED} more" if len(unknown_classes) > _MOST_NAMED else ""
    )
    return (Finding(rule="classes-left-alone", severity="note", text=f"the file also holds objects of {shown}: they were neither imported nor run"),)
