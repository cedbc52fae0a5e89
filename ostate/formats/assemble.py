"""From a state dict whose tensors lie in many files to the `RawState` that travels on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import ReadError
from ..model import Entry, Finding, Group, RawState, Slot, SourceFile, TensorRef
from ..optimizers import recognise
from .encodings import slots_of

Key = int | str
_NOT_HYPER = {"params", "param_names"}
_WHOLE = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "z", "prev")
"""Slots that have the parameter's own shape in every optimizer that keeps them, most telling first."""


class Deferred(Mapping[str, TensorRef]):
    """Named weights whose place in the files is looked up only when one is asked for."""

    def __init__(self, items: Mapping[str, Any], find: Any) -> None:
        self._items = items
        self._find = find

    def __getitem__(self, name: str) -> TensorRef:
        found: TensorRef = self._find(self._items[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def assemble(
    state: Mapping[Key, Mapping[str, object]],
    param_groups: Sequence[Mapping[str, Any]],
    *,
    source: str,
    layout: str,
    files: Sequence[SourceFile],
    recorded: str | None = None,
    shapes: Mapping[Key, tuple[int, ...]] | None = None,
    flat: bool = False,
    weights: Mapping[str, TensorRef] | None = None,
    master: Mapping[Key, Slot] | None = None,
    facts: Mapping[str, Any] | None = None,
    findings: Sequence[Finding] = (),
) -> RawState:
    """Return the state with positions counted through the groups in order.

    Args:
        state: one mapping of slot -> tensor or number for each key (integer or name).
        param_groups: each with `params`, a list of keys, and hyperparameters.
        source: the path that was asked for.
        layout: the row of `READERS`.
        files: what was read.
        recorded: where names come from; None when keys are integers.
        shapes: the parameters' shapes by key, where the files record them.
        flat: True when the files tell only the number of elements.
        weights: named model weights of the same checkpoint.
        master: float32 master weights by key.
        facts: `folder`, `world_size`, ….
        findings: what reading noticed.

    Raises:
        ReadError: a key is in two groups, or an entry of the state in none.
    """
    entries: list[Entry] = []
    groups: list[Group] = []
    positions: dict[Key, int] = {}
    for index, group in enumerate(param_groups):
        hyper = {name: value for name, value in group.items() if name not in _NOT_HYPER}
        first = len(entries)
        for key in group["params"]:
            if key in positions:
                raise ReadError(f"parameter {key!r} is listed in two groups", where=source, fix="save the optimizer again")
            positions[key] = len(entries)
            shape = shapes.get(key) if shapes else None
            entries.append(_entry(len(entries), key, index, state.get(key, {}), hyper, recorded, shape, flat))
        groups.append(Group(index=index, positions=tuple(range(first, len(entries))), hyper=hyper, names=_names(group)))
    if lost := [key for key in state if key not in positions]:
        raise ReadError(f"{len(lost)} entries belong to no parameter group, first {lost[0]!r}", where=source, fix="save the optimizer again")
    slots = {name for entry in entries for name in entry.slots}
    scalars = {name for entry in entries for name in entry.scalars} | ({"step"} if any(entry.step is not None for entry in entries) else set())
    return RawState(
        source=source,
        layout=layout,
        files=tuple(files),
        groups=tuple(groups),
        entries=tuple(entries),
        optimizer=recognise(slots, {name for group in groups for name in group.hyper}, scalars),
        recorded=recorded,
        weights=weights or {},
        master={positions[key]: slot for key, slot in (master or {}).items() if key in positions},
        facts=facts or {},
        findings=tuple(findings),
    )


def _names(group: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = group.get("param_names")
    return tuple(names) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else None


def _entry(
    position: int,
    key: Key,
    group: int,
    stored: Mapping[str, object],
    hyper: Mapping[str, Any],
    recorded: str | None,
    shape: tuple[int, ...] | None,
    flat: bool,
) -> Entry:
    slots, scalars = slots_of(stored, hyper)
    step = scalars.pop("step", None)
    return Entry(
        position=position,
        key=key,
        group=group,
        slots=slots,
        step=None if step is None else float(step),
        scalars=scalars,
        name=key if recorded and isinstance(key, str) else None,
        shape=_shape(slots) if shape is None else shape,
        flat=flat and shape is None and bool(slots),
    )


def _shape(slots: Mapping[str, Slot]) -> tuple[int, ...] | None:
    for name in _WHOLE:
        if name in slots:
            return slots[name].shape
    shapes = {slot.shape for slot in slots.values()}
    return shapes.pop() if len(shapes) == 1 else None
