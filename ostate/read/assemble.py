"""From a state dict whose tensors lie in many files to the `RawState` that travels on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from ostate.core.state import Entry, Finding, RawState, SourceFile
from ostate.core.tensors import Slot, TensorRef

from ..errors import ReadError
from .state_dict import Key, raw_state

__all__ = ["Deferred", "Key", "assemble"]


T = TypeVar("T")
K = TypeVar("K")


class Deferred(Generic[T], Mapping[str, TensorRef]):
    """Named weights whose place in the files is looked up only when one is asked for."""

    def __init__(self, items: Mapping[str, T], find: Callable[[T], TensorRef]) -> None:
        self._items = items
        self._find = find

    def __getitem__(self, name: str) -> TensorRef:
        return self._find(self._items[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def assemble(
    state: Mapping[K, object],
    param_groups: object,
    *,
    source: str,
    layout: str,
    files: Sequence[SourceFile],
    recorded: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    flat: bool = False,
    weights: Mapping[str, TensorRef] | None = None,
    master: Mapping[Key, Slot] | None = None,
    facts: Mapping[str, object] | None = None,
    findings: Sequence[Finding] = (),
) -> RawState:
    """Return the state with positions counted through the groups in order.

    Args:
        state: one dict of slot -> tensor or number for each key (integer or name); anything else is refused.
        param_groups: a list of mappings, each with `params`, a list of keys, and hyperparameters; anything else is refused.
        source: the path that was asked for.
        layout: the row of `READERS`.
        files: what was read.
        recorded: where names come from, when keys are names.
        shapes: the parameters' shapes by name, where the files record them.
        flat: True when the files tell only the number of elements.
        weights: named model weights of the same checkpoint.
        master: float32 master weights by key.
        facts: `folder`, `world_size`, ….
        findings: what reading noticed.

    Raises:
        ReadError: a key is in two groups, or an entry of the state in none; a slot without the shape its parameter has on record.
    """
    raw = raw_state(
        {"state": state, "param_groups": param_groups},
        source=source,
        layout=layout,
        files=tuple(files),
        where=source,
        weights=weights,
        facts=facts,
        findings=tuple(findings),
        master=master,
    )
    entries = tuple(_shaped(entry, shapes or {}, flat, source) for entry in raw.entries)
    return raw._replace(entries=entries, recorded=recorded if raw.recorded == "name-keyed" and recorded else raw.recorded)


def _shaped(entry: Entry, shapes: Mapping[str, tuple[int, ...]], flat: bool, source: str) -> Entry:
    known = shapes.get(entry.name) if entry.name is not None else None
    if known is not None and entry.shape not in {known, None}:
        raise ReadError(f"{entry.name} has the shape {known} on record, its state {entry.shape}", where=source, fix="copy the checkpoint again")
    return entry._replace(shape=entry.shape if known is None else known, flat=flat and known is None and entry.has_state)
