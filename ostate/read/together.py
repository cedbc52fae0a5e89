"""All optimizers of one checkpoint as one state: lora_A in one and lora_B in the other, an adapter and its head, two models of one program."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ostate.core.state import Entry, Finding, RawState
from ostate.errors import ReadError

ALL = "all"
"""`--optimizer all`."""
RULE = "several-optimizers"


def together(states: Sequence[RawState], texts: Sequence[str]) -> RawState:
    """Return several optimizers' states as one: positions and groups follow one another in the checkpoint's own order.

    Args:
        states: of one checkpoint, each numbered from 0.
        texts: where each lies, for people.

    Raises:
        ReadError: they are of different optimizers, or some record names and others do not.
    """
    first = states[0]
    kinds = {state.optimizer: text for state, text in zip(states, texts)}
    if len(kinds) > 1:
        said = ", ".join(f"{text}: {kind}" for kind, text in kinds.items())
        raise ReadError(f"different optimizers, which are no one state ({said})", where=first.source, fix="choose one with --optimizer K or NAME")
    if len({state.recorded for state in states}) > 1:
        raise ReadError("some of the optimizers record names and others do not", where=first.source, fix="choose one with --optimizer K or NAME")
    starts = list(accumulate((len(state.entries) for state in states), initial=0))
    groups_before = list(accumulate((len(state.groups) for state in states), initial=0))
    groups = tuple(
        group._replace(index=before + group.index, positions=tuple(start + position for position in group.positions))
        for state, start, before in zip(states, starts, groups_before)
        for group in state.groups
    )
    entries = tuple(_moved(entry, start, before) for state, start, before in zip(states, starts, groups_before) for entry in state.entries)
    files = {file.path: file for state in states for file in state.files}
    listed = "; ".join(f"{text}: from position {start} on" for text, start in zip(texts, starts))
    finding = Finding(
        rule=RULE,
        severity="note",
        text=f"{len(states)} optimizers are read as one state: {listed}",
        fix="choose one with --optimizer K or NAME",
    )
    return first._replace(
        weights=first.weights if all(_same_weights(state, first) for state in states) else {},
        files=tuple(files.values()),
        groups=groups,
        entries=entries,
        master={start + position: slot for state, start in zip(states, starts) for position, slot in state.master.items()},
        findings=(*dict.fromkeys(one for state in states for one in state.findings if one.rule != "other-states"), finding),
        not_read=tuple(place for place in first.not_read if all(place in state.not_read for state in states)),
    )


def _same_weights(one: RawState, other: RawState) -> bool:
    """True where two optimizers lie beside the same weights, and not each beside its own model's."""
    return one.weights.keys() == other.weights.keys() and all(one.weights[key] == other.weights[key] for key in list(one.weights)[:1])


def _moved(entry: Entry, start: int, before: int) -> Entry:
    key = start + entry.key if type(entry.key) is int else entry.key
    return entry._replace(position=start + entry.position, key=key, group=before + entry.group)
