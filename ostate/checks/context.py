"""What rules on the index look at: the structure of a state; positions are called by their names where known."""

# No `from __future__ import annotations`: a named tuple compiles each annotation that is text, on every start (docs/performance.md).

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ostate.core.state import Entry, Finding, Group, Hyper, RawState, Severity
from ostate.optimizers import OPTIMIZERS, OptimizerSpec, step_of

if TYPE_CHECKING:
    from ostate.core.naming import Adapter


class CheckedRow(NamedTuple):
    """One position with what the rules ask of it."""

    label: str
    """Its name, or `position 7`."""
    named: bool
    entry: Entry
    hyper: Hyper
    step: float | None
    """From wherever its optimizer keeps it."""


class Structure(NamedTuple):
    """A state as its index tells it; no number was read."""

    rows: tuple[CheckedRow, ...]
    groups: tuple[Group, ...]
    optimizer: str
    spec: OptimizerSpec | None
    facts: Mapping[str, object]
    adapter: "Adapter | None"
    naming: bool
    """True when the names are settled (`repair`); False when the file is only looked at."""

    with_state: tuple[CheckedRow, ...] = ()
    """Rows that hold a tensor."""
    stored: frozenset[tuple[str, str]] = frozenset()
    """(encoding, dtype) of every slot."""


def say(severity: Severity, text: str, fix: str = "", rows: Sequence[CheckedRow] = ()) -> Finding:
    """Return a finding without its rule's name, which `run` fills in."""
    return Finding(rule="", severity=severity, text=text, fix=fix, names=tuple(row.label for row in rows))


def structure_of(
    raw: RawState, adapter: "Adapter | None", *, names: Sequence[str | None] | None = None, groups: Sequence[Group] | None = None
) -> Structure:
    """Return what the rules look at.

    Args:
        raw: the state as stored.
        adapter: the weights beside it, where known.
        names: by position, where settled.
        groups: with values filled in by hand, where there are any.
    """
    spec = OPTIMIZERS.get(raw.optimizer)
    chosen = tuple(groups if groups is not None else raw.groups)
    hyper = {group.index: group.hyper for group in chosen}
    rows = []
    for entry in raw.entries:
        name = names[entry.position] if names is not None else entry.name
        own = hyper.get(entry.group, {})
        step = entry.step if spec is None else step_of(spec, entry.step, own)
        rows.append(CheckedRow(name or f"position {entry.position}", name is not None, entry, own, step))
    there = tuple([row for row in rows if row.entry.slots])
    stored = frozenset([(slot.encoding, slot.dtype) for row in there for slot in row.entry.slots.values()])
    return Structure(tuple(rows), chosen, raw.optimizer, spec, raw.facts, adapter, names is not None, there, stored)


def plural(count: int, what: str) -> str:
    """`1 parameter`, `3 parameters`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def name_of(rule: Callable[..., Iterator[Finding]]) -> str:
    """Return a rule's name in findings: its function's, with dashes."""
    return rule.__name__.replace("_", "-")
