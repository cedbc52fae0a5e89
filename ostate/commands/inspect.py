"""Describe a state: the `inspect` command as a function. Reads no tensor unless asked for values."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ostate import checks
from ostate.core.brief import brief
from ostate.core.files import announce, watched
from ostate.core.plain import plain_document
from ostate.core.state import Finding, RawState
from ostate.core.tensors import TensorRef, shape_text
from ostate.errors import ReadError, SeveralOptimizers, refusing
from ostate.read import ALL, named_file, read

if TYPE_CHECKING:
    from ostate.core.documents import InspectDocument, NextRow, SlotRow
    from ostate.core.naming import Adapter, NamedState

_BARE = re.compile(r"[\w@%+=:,./~-]+", re.ASCII)


class AdapterFit(NamedTuple):
    """How a state and an adapter go together, by shapes alone."""

    adapter: str
    tensors: int
    """Tensors in the adapter file."""
    with_state: int
    """Positions of the state that hold moments."""
    matched: int
    """Positions and tensors that can be paired by shape."""
    only_state: Mapping[str, int] = MappingProxyType({})
    """Shape -> how many more positions than tensors have it."""
    only_adapter: Mapping[str, int] = MappingProxyType({})
    """Shape -> how many more tensors than positions have it."""

    def __repr__(self) -> str:
        return brief(self)


class Inspection(NamedTuple):
    """A state as found, how it fits the adapter, and what a person should know."""

    raw: RawState
    """The state as stored."""
    fit: AdapterFit | None
    """How it fits the adapter by shapes; None: no adapter was passed."""
    findings: tuple[Finding, ...]
    """What a person should know, the worst first in print."""
    values: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    """Slot -> counts and ranges, only when asked for."""
    asked: str | None = None
    """`--adapter` as it was passed."""

    def __repr__(self) -> str:
        return brief(self)


@refusing
def inspect(
    path: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    values: bool = False,
    state: str | None = None,
    optimizer: int | str | None = None,
    checksum: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Return the state at `path` with its layout, findings, and how it fits an adapter by shapes.

    Args:
        path: a state file, a checkpoint folder, or a named file.
        adapter: a folder or file with the trained weights; shapes are compared.
        values: also read every number once and count zeros, negatives and the like.
        state: which file of the folder is the state, where several could be.
        optimizer: which optimizer, where the file holds several; None: all of them, one after another.
        checksum: first compare every byte with the checksums that were saved with it.
        progress: called with (bytes read, about how many there are) while values are read.

    Raises:
        ReadError: nothing readable is there, or a checksum is wrong.
    """
    try:
        raw = open_state(os.fsdecode(path), state=state, optimizer=optimizer, checksum=checksum)
    except SeveralOptimizers:
        raw = open_state(os.fsdecode(path), state=state, optimizer=ALL, checksum=checksum)
    weights: Adapter | None = None
    if adapter is not None:
        from ostate.read.adapters import read_adapter  # only with --adapter

        weights = read_adapter(os.fsdecode(adapter))
    fit = fit_of(raw, weights) if weights is not None else None
    findings = [*checks.structure(raw, weights), *(named_file.beside(raw.read or raw.source) if raw.layout != "named" else ())]
    if weights is not None and raw.recorded:
        findings += _names_not_in(raw, weights)
    found: Mapping[str, Mapping[str, object]] = {}
    if values:
        from ostate.checks import judging  # only with --values

        with watched(progress):
            announce(lambda: stored_bytes(raw))
            found, seen = judging.values(raw)
        findings += seen
    return Inspection(raw=raw, fit=fit, findings=tuple(findings), values=found, asked=None if adapter is None else os.fsdecode(adapter))


def _names_not_in(raw: RawState, adapter: Adapter) -> list[Finding]:
    """Say which recorded names no tensor of the adapter has."""
    from ostate.ordering import keys

    names = [entry.name for entry in raw.entries if entry.has_state]
    found, _ = keys.match_all(names, adapter)
    missing = tuple(name for name, key in zip(names, found) if name is not None and key is None)
    return [not_in_adapter(missing, "the file", adapter.file)] if missing else []


def not_in_adapter(names: Sequence[str], rule: str, adapter: str) -> Finding:
    """Return the finding that `names`, which `rule` gives, are no tensors of the adapter, so that nothing can be compared with them."""
    return Finding(
        rule="names-not-in-adapter",
        severity="warning",
        text=f"{len(names)} of the names that {rule} gives {'is' if len(names) == 1 else 'are'} not in {adapter}",
        fix="pass the adapter of this run, or the names of its live model (--order FILE); a parameter that was trained and not saved "
        "keeps its recorded name",
        names=tuple(names),
    )


def stored_bytes(state: RawState | NamedState) -> int:
    """Bytes of all slots as they are stored, about: a packed slot is taken for a byte an element."""
    rows = state.entries if isinstance(state, RawState) else state.parameters.values()
    slots = (slot for row in rows for slot in row.slots.values())
    return sum(slot.nbytes if isinstance(slot, TensorRef) else math.prod(slot.shape) for slot in slots)


def open_state(path: str, *, state: str | None = None, optimizer: int | str | None = None, checksum: bool = False) -> RawState:
    """Return the state at `path` in any layout, the named format too.

    Raises:
        ReadError: nothing readable is there; with `checksum`, also when a byte is not what was saved, or when nothing tells.
    """
    if named_file.is_named(path):
        from ostate.ordering.join import as_raw
        from ostate.store import load

        if checksum:
            _refuse_what_changed(path)
        return as_raw(load(path))
    raw = read(path, state=state, optimizer=optimizer)
    if checksum:
        from ostate.read import checksums

        return raw._replace(findings=(*raw.findings, checksums.check(raw)))
    return raw


def _refuse_what_changed(path: str) -> None:
    """Compare a named file with its digests.

    Raises:
        ReadError: it is not as it was written.
    """
    from ostate.store.validating import validate

    for finding in validate(path, deep=True):
        if finding.severity == "error":
            raise ReadError(": ".join((finding.text, *finding.names[:1])), where=path, fix=finding.fix)


def fit_of(raw: RawState, adapter: Adapter) -> AdapterFit:
    """Compare shapes of positions with state and of the adapter's tensors, as multisets."""
    flat = any(entry.flat for entry in raw.entries)
    there = Counter(_sized(entry.shape, flat) for entry in raw.entries if entry.has_state and entry.shape is not None)
    wanted = Counter(_sized(ref.shape, flat) for ref in adapter.tensors.values())
    return AdapterFit(
        adapter=adapter.file,
        tensors=len(adapter.tensors),
        with_state=sum(1 for entry in raw.entries if entry.has_state),
        matched=sum((there & wanted).values()),
        only_state=dict(there - wanted),
        only_adapter=dict(wanted - there),
    )


def _sized(shape: tuple[int, ...], flat: bool) -> str:
    return f"{math.prod(shape)} elements" if flat else shape_text(shape)


def stored_dtype(slot: object) -> str:
    """The dtype on disk: a packed slot says it by its encoding."""
    return slot.dtype if isinstance(slot, TensorRef) else "packed"


def as_document(seen: Inspection, *, digests: bool = True) -> InspectDocument:
    """Return the JSON document that schemas/inspect-v1.schema.json describes; text says nothing of the files' `digests`, and leaves them out."""
    raw = seen.raw
    return {
        "document": "ostate-inspect",
        "version": 1,
        "source": raw.source,
        "read": raw.read or raw.source,
        "not_read": list(raw.not_read),
        "layout": raw.layout,
        "optimizer": raw.optimizer,
        "files": [{"path": file.path, "size": file.size, "index_sha256": file.index_sha256 if digests else None} for file in raw.files],
        "positions": len(raw.entries),
        "with_state": sum(1 for entry in raw.entries if entry.has_state),
        "names": raw.recorded,
        "groups": [
            {
                "index": group.index,
                "positions": list(group.positions),
                "hyper": {key: plain_document(value) for key, value in group.hyper.items()},
                "names": list(group.names) if group.names else None,
            }
            for group in raw.groups
        ],
        "entries": [
            {
                "position": entry.position,
                "group": entry.group,
                "name": entry.name,
                "shape": list(entry.shape) if entry.shape is not None else None,
                "step": plain_document(entry.step),
                "slots": {name: _slot_document(stored_dtype(slot), slot.encoding, slot.shape) for name, slot in entry.slots.items()},
            }
            for entry in raw.entries
        ],
        "facts": {key: plain_document(value) for key, value in raw.facts.items()},
        "fit": None
        if seen.fit is None
        else {
            "adapter": seen.fit.adapter,
            "tensors": seen.fit.tensors,
            "with_state": seen.fit.with_state,
            "matched": seen.fit.matched,
            "only_state": dict(seen.fit.only_state),
            "only_adapter": dict(seen.fit.only_adapter),
        },
        "values": {slot: {key: plain_document(number) for key, number in row.items()} for slot, row in seen.values.items()} or None,
        "findings": [finding.as_dict() for finding in seen.findings],
        "next": _next(seen),
    }


def _next(seen: Inspection) -> NextRow | None:
    """Return what would go wrong with the state as it is, and the command to run next; None where no command helps."""
    raw = seen.raw
    if not any(entry.has_state for entry in raw.entries) or any(finding.severity == "error" for finding in seen.findings):
        return None
    path = quoted(raw.source)
    adapter = f" --adapter {quoted(seen.asked)}" if seen.asked is not None else ""
    if raw.layout == "named":
        risk = "the names were written by ostate; the tensor values can be compared with the adapter again at any time"
        return {"risk": risk, "command": f"ostate verify {path}{adapter or ' --adapter DIR'}"}
    if raw.recorded and raw.layout != "torch":
        risk = "names are recorded; `ostate repair` proves them from the tensor values and writes one file that loads by name"
    elif raw.recorded:
        risk = "names are recorded, but torch ignores them: it loads by position, and compares neither names nor shapes"
    else:
        risk = "without names torch loads by position, and compares neither names nor shapes: other parameters get these moments without an error"
    name = os.path.basename(os.path.abspath(raw.source)).rpartition(".")
    return {"risk": risk, "command": f"ostate repair {path}{adapter} -o {quoted(name[0] or name[2])}.ostate.safetensors"}


def quoted(path: str) -> str:
    """Return a path as a shell takes it."""
    return path if _BARE.fullmatch(path) else "'" + path.replace("'", "'\\''") + "'"


@cache  # a state has thousands of slots, of a few kinds
def _slot_document(dtype: str, encoding: str, shape: tuple[int, ...]) -> SlotRow:
    return {"dtype": dtype, "encoding": encoding, "shape": list(shape)}
