"""Positions and their names, joined: `RawState` + `Ordering` -> `NamedState`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import NamedTuple

from ostate.core.files import read_at, size_of
from ostate.core.naming import Adapter, NamedParameter, NamedState, Ordering, positions_of
from ostate.core.state import Entry, Finding, Group, Hyper, RawState, SourceFile
from ostate.core.tensors import Slot
from ostate.errors import CheckError, OrderingError
from ostate.optimizers import OPTIMIZERS, step_of

CLASSES = {
    "adamw": "torch.optim.AdamW", "adam": "torch.optim.Adam", "sgd": "torch.optim.SGD", "rmsprop": "torch.optim.RMSprop",
    "adagrad": "torch.optim.Adagrad", "adamax": "torch.optim.Adamax", "nadam": "torch.optim.NAdam", "radam": "torch.optim.RAdam",
}  # fmt: skip


class GivenHyper(NamedTuple):
    """What a person said of the run, where the file may not."""

    step: int | None
    betas: tuple[float, float] | None
    eps: float | None

    def hyper(self) -> dict[str, float | tuple[float, ...]]:
        """Return the hyperparameters that were said."""
        said: dict[str, float | tuple[float, ...] | None] = {"betas": None if self.betas is None else tuple(self.betas), "eps": self.eps}
        return {key: value for key, value in said.items() if value is not None}


def named_state(
    raw: RawState,
    ordering: Ordering,
    adapter: Adapter | None = None,
    *,
    step: int | None = None,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    sha256: str | None = None,
) -> NamedState:
    """Give every position that has a name and state its name; nothing is read but the adapter's digest.

    Args:
        raw: the state as stored.
        ordering: names and adapter keys by position; None drops the position.
        adapter: tells the shape of flat entries.
        step: updates taken, where the file does not say.
        betas: decay rates, where the file does not say.
        eps: in units of the gradient, where the file does not say.
        sha256: of the adapter file, for the manifest.

    Raises:
        OrderingError: names and positions do not fit each other.
        CheckError: a value given contradicts the file.
        ReadError: a flat entry has another number of elements than the adapter's tensor.
    """
    if len(ordering.names) != len(raw.entries) or len(ordering.keys) != len(raw.entries):
        raise OrderingError(f"{len(ordering.names)} names for {len(raw.entries)} positions", where=raw.source, fix="report this layout")
    given = GivenHyper(step, betas, eps)
    groups = [_with_overrides(group, given, raw.source) for group in raw.groups]
    hypers = {group.index: group.hyper for group in groups}
    parameters: dict[str, NamedParameter] = {}
    for entry, name, key in zip(raw.entries, ordering.names, ordering.keys):
        if name is None or not entry.has_state:
            continue
        if name in parameters:
            raise OrderingError(f"two positions are called {name!r}", where=f"position {entry.position}", fix="pass --order FILE")
        parameters[name] = _parameter(_with_step(entry, raw.optimizer, hypers), name, key, adapter, given)
    return NamedState(
        optimizer=raw.optimizer,
        optimizer_class=str(raw.facts.get("optimizer_class") or CLASSES.get(raw.optimizer, raw.optimizer)),
        groups=tuple(_named_group(group, ordering) for group in groups),
        parameters=parameters,
        ordering=replace(ordering, left_out=ordering.left_out or _left_out(raw, ordering)),
        adapter={} if adapter is None else _adapter_facts(adapter, sha256),
        source=_source(raw),
        findings=(*raw.findings, *_filled(raw, given)),
    )


def as_raw(state: NamedState) -> RawState:
    """Return a named state as positions again, each with its name; the source's positions where they run 0 to n - 1."""
    at = positions_of(state)
    group_of = {name: group.index for group in state.groups for name in group.names or ()}
    entries = [
        _entry(state.parameters[name], position) if name in state.parameters else Entry(position=position, key=name, group=group_of[name], name=name)
        for name, position in at.items()
    ]
    groups = [group._replace(positions=tuple(at[name] for name in group.names or ())) for group in state.groups]
    return RawState(
        source=state.path or "",
        layout="named",
        files=() if state.path is None else (_index_of(state.path),),
        groups=tuple(groups),
        entries=tuple(sorted(entries, key=lambda entry: entry.position)),
        optimizer=state.optimizer,
        recorded="named",
        facts={
            "optimizer_class": state.optimizer_class,
            "assumed": state.ordering.assumed if state.ordering is not None else (),
            "named_by": state.ordering.source if state.ordering is not None else "recorded",
            "searched": _was_searched(state.ordering),
        },
        findings=state.findings,
    )


def _was_searched(ordering: Ordering | None) -> bool:
    """Return True for names that `repair` found, or completed, by its search: of no other ones may `verify` say that the numbers alone give them."""
    return ordering is not None and (
        ordering.verdict == "recovered" or (ordering.verdict == "partial" and ordering.source in ("content", "convention"))
    )


def _entry(parameter: NamedParameter, position: int) -> Entry:
    return Entry(
        position=position,
        key=parameter.name,
        group=parameter.group,
        slots=parameter.slots,
        step=parameter.step,
        scalars=parameter.scalars,
        name=parameter.name,
        shape=parameter.shape,
    )


def _index_of(path: str) -> SourceFile:
    size = size_of(path)
    length = size if path.endswith(".json") else 8 + int.from_bytes(read_at(path, 0, 8), "little")
    return SourceFile(path, size, hashlib.sha256(read_at(path, 0, length)).hexdigest())


def _with_step(entry: Entry, optimizer: str, hypers: Mapping[int, Hyper]) -> Entry:
    """Take the step from the group, for optimizers that keep it there."""
    hyper = hypers.get(entry.group, {})
    return entry._replace(step=step_of(OPTIMIZERS[optimizer], entry.step, hyper)) if optimizer in OPTIMIZERS else entry


def _left_out(raw: RawState, ordering: Ordering) -> tuple[int, ...]:
    return tuple(entry.position for entry, name in zip(raw.entries, ordering.names) if name is None and entry.has_state)


def _named_group(group: Group, ordering: Ordering) -> Group:
    """Return the group with the names of its positions, with state or without: who loads by position counts them all."""
    named = [(position, name) for position in group.positions if (name := ordering.names[position]) is not None]
    return group._replace(positions=tuple(position for position, _ in named), names=tuple(name for _, name in named))


def _with_overrides(group: Group, given: GivenHyper, source: str) -> Group:
    hyper = {key: tuple(value) if isinstance(value, list) else value for key, value in group.hyper.items()}
    for key, wanted in given.hyper().items():
        if not group.positions:
            continue
        there = hyper.get(key)
        if there is not None and not _equal(there, wanted):
            raise CheckError(f"--{key} {wanted} contradicts the file, which has {there}", where=f"{source}: group {group.index}", fix=f"drop --{key}")
        hyper[key] = wanted
    return group._replace(hyper=hyper)


def _equal(there: object, wanted: float | tuple[float, ...]) -> bool:
    if isinstance(wanted, tuple):
        return isinstance(there, (tuple, list)) and len(there) == len(wanted) and all(_equal(a, b) for a, b in zip(there, wanted))
    return isinstance(there, (int, float)) and math.isclose(there, wanted, rel_tol=1e-9)


def _parameter(entry: Entry, name: str, key: str | None, adapter: Adapter | None, given: GivenHyper) -> NamedParameter:
    shape, slots = _shaped(entry, key, adapter)
    step = entry.step
    if given.step is not None:
        if step is not None and step != given.step:
            fix = "drop --step"
            raise CheckError(f"--step {given.step} contradicts the file, which has {step:g}", where=f"position {entry.position}", fix=fix)
        step = float(given.step)
    packed = sorted({slot.encoding for slot in slots.values()} - {"plain"})
    return NamedParameter(
        name=name,
        shape=shape,
        group=entry.group,
        slots=slots,
        step=step,
        position=entry.position,
        adapter_key=key,
        decoded_from="+".join(packed) or "plain",
        dtype=_stored_dtype(slots, packed),
        scalars={key: value for key, value in entry.scalars.items() if key != "step"},
    )


def _stored_dtype(slots: Mapping[str, Slot], packed: list[str]) -> str:
    for slot in ("exp_avg_sq", *slots):
        if slot in slots:
            return "packed" if packed and slots[slot].encoding != "plain" else slots[slot].dtype
    return "F32"


def _shaped(entry: Entry, key: str | None, adapter: Adapter | None) -> tuple[tuple[int, ...], dict[str, Slot]]:
    """Return shape and slots; flat ones take the shape of the adapter's tensor."""
    known = adapter.tensors[key].shape if adapter is not None and key is not None and key in adapter.tensors else None
    shape = entry.shape if entry.shape is not None and not entry.flat else known
    if shape is None:
        shape = entry.shape or ()
    if not entry.flat:
        return tuple(shape), dict(entry.slots)
    numel = math.prod(shape)
    return tuple(shape), {slot: value.with_shape(tuple(shape)) if math.prod(value.shape) == numel else value for slot, value in entry.slots.items()}


def _filled(raw: RawState, given: GivenHyper) -> list[Finding]:
    """Say which values came from the person and not from the file."""
    hyper = given.hyper()
    lacking = [f"{key} {hyper[key]}" for key in hyper if any(group.positions and group.hyper.get(key) is None for group in raw.groups)]
    if given.step is not None and any(entry.has_state and entry.step is None for entry in raw.entries):
        lacking.append(f"step {given.step}")
    if not lacking:
        return []
    values = ", ".join(lacking)
    return [Finding(rule="filled-in", severity="note", text=f"not in the file, given by hand: {values}")]


def _source(raw: RawState) -> dict[str, object]:
    rows = [{"name": PurePath(file.path).name, "size": file.size, "index_sha256": file.index_sha256} for file in raw.files]
    return {"layout": raw.layout, "files": tuple(rows), "positions": tuple(len(group.positions) for group in raw.groups)}


def _adapter_facts(adapter: Adapter, sha256: str | None) -> dict[str, object]:
    """Return the manifest's `adapter`."""
    rank = adapter.config.get("r")
    base = adapter.config.get("base_model_name_or_path")
    peft_type = adapter.config.get("peft_type")
    return {
        "name": adapter.name,
        "peft_type": peft_type if isinstance(peft_type, str) else None,
        "r": rank if isinstance(rank, int) else None,
        "base_model": base if isinstance(base, str) else None,
        "file": PurePath(adapter.file).name,
        "sha256": sha256,
    }
