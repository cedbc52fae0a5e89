"""What the numbers of a state tell, read at once or measured while they are copied; and why a rule exists."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ostate.core.state import Entry, Finding, RawState
from ostate.core.stream import Summary
from ostate.errors import CheckError
from ostate.optimizers import OPTIMIZERS

from .context import CheckedRow, Structure, name_of, structure_of
from .measuring import measure
from .numbers import NUMBERS, Measured, MeasuredState
from .structure import STRUCTURE

if TYPE_CHECKING:
    from ostate.core.naming import NamedState

Summaries = Mapping[tuple[str, str], Summary]
Rule = Callable[[Structure], Iterator[Finding]] | Callable[[MeasuredState], Iterator[Finding]]
_ALL: tuple[Rule, ...] = (*STRUCTURE, *NUMBERS)
RULES: dict[str, Rule] = {name_of(rule): rule for rule in _ALL}
"""Every rule by its name in findings."""


def explain(rule: str) -> str:
    """Return why a rule exists, as its docstring says; empty for a finding of another place."""
    return inspect.getdoc(RULES[rule]) or "" if rule in RULES else ""


def while_copying(named: NamedState) -> Callable[[Summaries], list[Finding]]:
    """Return the check that `store.write` calls once all numbers were seen.

    The returned function raises CheckError when the numbers make the state unusable.
    """

    def check(seen: Summaries) -> list[Finding]:
        found = _numbers(MeasuredState(_named_rows(named, seen), OPTIMIZERS.get(named.optimizer)))
        refuse(found, named.path or "")
        return found

    return check


def refuse(found: Iterable[Finding], where: str) -> None:
    """Raise the first error among findings.

    Raises:
        CheckError: there is one.
    """
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        first = errors[0]
        raise CheckError(first.text, where=", ".join(first.names[:3]) or where, fix=first.fix)


def values(state: RawState | NamedState) -> tuple[dict[str, dict[str, float | int]], list[Finding]]:
    """Stream once over every number.

    Args:
        state: in any layout, or named.

    Returns:
        slot -> counts and ranges over all parameters; and what the rules say of them.
    """
    measured = _measured(state, table=True)
    return _table(measured), _numbers(MeasuredState(measured, OPTIMIZERS.get(state.optimizer), exact=True))


def judged(state: RawState | NamedState) -> list[Finding]:
    """Stream once over every number, as `values`; return what the rules say, and no counts."""
    return _numbers(MeasuredState(_measured(state, table=False), OPTIMIZERS.get(state.optimizer), exact=True))


def _measured(state: RawState | NamedState, *, table: bool) -> tuple[Measured, ...]:
    rows = _raw_rows(state) if isinstance(state, RawState) else tuple(one.row for one in _named_rows(state, {}))
    return tuple(measure(row, table=table) for row in rows)


def _numbers(seen: MeasuredState) -> list[Finding]:
    return [finding._replace(rule=name_of(rule)) for rule in NUMBERS for finding in rule(seen)]


def _raw_rows(raw: RawState) -> tuple[CheckedRow, ...]:
    return structure_of(raw, None).with_state


def _named_rows(named: NamedState, seen: Summaries) -> tuple[Measured, ...]:
    rows = []
    for name, parameter in named.parameters.items():
        entry = Entry(position=parameter.position or 0, key=name, group=parameter.group, slots=parameter.slots, step=parameter.step)
        row = CheckedRow(name, True, entry, named.groups[parameter.group].hyper, parameter.step)
        rows.append(Measured(row, {slot: seen[name, slot] for slot in parameter.slots if (name, slot) in seen}))
    return tuple(rows)


def _table(rows: Sequence[Measured]) -> dict[str, dict[str, float | int]]:
    table: dict[str, dict[str, float | int]] = {}
    for slot in dict.fromkeys(slot for one in rows for slot in one.slots):
        seen = [one.slots[slot] for one in rows if slot in one.slots]
        finite = [summary for summary in seen if summary.elements > summary.bad]
        table[slot] = {
            "elements": sum(s.elements for s in seen),
            "zero": sum(s.zeros for s in seen),
            "tiny": sum(s.tiny or 0 for s in seen),
            "negative": sum(s.negative for s in seen),
            "nan": sum(s.nan for s in seen),
            "inf": sum(s.inf for s in seen),
            "smallest": min((s.low for s in finite), default=0.0),
            "largest": max((s.high for s in finite), default=0.0),
            "mean": sum((s.mean or 0.0) * (s.elements - s.bad) for s in finite) / max(1, sum(s.elements - s.bad for s in finite)),
        }
    return table
