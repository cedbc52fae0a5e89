"""What the index of a state tells; no number is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostate.core.state import Finding, RawState

from .context import Structure, name_of, structure_of
from .structure import STRUCTURE

if TYPE_CHECKING:
    from ostate.core.naming import Adapter, NamedState


def structure(raw: RawState, adapter: Adapter | None = None) -> list[Finding]:
    """Return what the index of a state tells; no number is read."""
    return [*raw.findings, *_structure(structure_of(raw, adapter))]


def run(raw: RawState, named: NamedState, adapter: Adapter | None = None) -> list[Finding]:
    """Return what the index tells of a state whose names are settled; the numbers are judged `while_copying`."""
    names: list[str | None] = [None] * len(raw.entries)
    for group in named.groups:
        for position, name in zip(group.positions, group.names or ()):
            names[position] = name
    own = {group.index: group.hyper for group in reversed(named.groups)}
    groups = tuple(group._replace(hyper=own.get(group.index, group.hyper)) for group in raw.groups)
    return [*named.findings, *_structure(structure_of(raw, adapter, names=names, groups=groups))]


def _structure(seen: Structure) -> list[Finding]:
    return [finding._replace(rule=name_of(rule)) for rule in STRUCTURE for finding in rule(seen)]
