"""A live optimizer's state, written by name: on one device, or each rank its share. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ostate.core.foreign import too_deep
from ostate.core.hyper import shown
from ostate.core.names import first_names
from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Group
from ostate.core.tensors import CHUNK, Slot
from ostate.errors import OstateError, ProbeError, ProbeTypeError, StoreError
from ostate.optimizers import recognise
from ostate.optimizers.slots import PARAM_SHAPED
from ostate.probe.fill.live import SLOT_KEYS, moment
from ostate.probe.precondition.shards import is_sharded
from ostate.probe.precondition.usable import check_twice, number
from ostate.store import shard_path, write, write_index
from ostate.store.plan import index_path

_LISTS = {"params", "param_names"}
"""Keys of a live group that are no hyperparameters. How its kernel runs (`fused`, `foreach`, …) is one: another kernel rounds otherwise."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """A slot whose numbers are at hand."""

    values: np.ndarray
    encoding: str = "plain"

    @property
    def dtype(self) -> str:
        """F64 for float64, else F32."""
        return "F64" if self.values.dtype.itemsize == 8 else "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return tuple(self.values.shape)

    def read(self) -> np.ndarray:
        """Return the values."""
        return self.values

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order."""
        flat = self.values.reshape(-1)
        for at in range(0, flat.size, elements):
            yield flat[at : at + elements]

    def with_shape(self, shape: tuple[int, ...]) -> InMemory:
        """Return the same numbers under another shape."""
        return replace(self, values=self.values.reshape(shape))


@dataclass(frozen=True, slots=True)
class _LiveEntry:
    """One parameter of the live optimizer."""

    name: str
    group: int
    position: int
    parameter: Tensor
    state: Mapping[str, object]


def save(optimizer: Optimizer, model: nn.Module, path: str | os.PathLike[str], *, force: bool) -> str:
    """Write the state; arguments, result and errors as of `ostate.save`."""
    held = _held(optimizer, model)
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    sharded = several and any(is_sharded(row.parameter) for row in held)
    rank, size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    writers = min(size, len(held)) if sharded else 1
    owner = _owners(held, writers)
    parameters = {}
    for row in held:
        found = _parameter(row, keep=owner[row.name] == rank)  # collective where the parameter is sharded
        if found is not None:
            parameters[row.name] = found
    without = _without_state(optimizer, model) if rank == 0 else {}
    state = _named(optimizer, parameters, without)
    if not several:
        return _write(state, Path(os.fsdecode(path)), 1, 1, force)
    problem = ""
    if rank < writers:
        try:
            _write(state, Path(os.fsdecode(path)), rank + 1, writers, force)
        except OstateError as error:
            problem = str(error)
    problem = _worst(problem)
    result = os.fsdecode(path)
    if not problem and writers > 1:
        result = str(index_path(Path(os.fsdecode(path))))
        if rank == 0:
            try:
                write_index(path, [str(shard_path(Path(os.fsdecode(path)), number, writers)) for number in range(1, writers + 1)], force=force)
            except OstateError as error:
                problem = str(error)
        problem = _worst(problem)
    if problem:
        raise StoreError(f"saving failed on a rank: {problem}", where=os.fsdecode(path), fix="mend what that rank says, and save again")
    return result


def _worst(problem: str) -> str:
    """Return the first rank's problem, on every rank."""
    every: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, problem)
    return next((text for text in every if text), "")


def _held(optimizer: Optimizer, model: nn.Module) -> list[_LiveEntry]:
    if not hasattr(optimizer, "param_groups") or not hasattr(model, "named_parameters"):
        what = f"an optimizer and its model are expected, not a {type(optimizer).__name__} and a {type(model).__name__}"
        raise ProbeTypeError(what, where="ostate.save", fix="ostate.save(optimizer, model, path)")
    names = first_names(model, error=ProbeError)
    check_twice([parameter for line in optimizer.param_groups for parameter in line["params"]])
    out = []
    for group, line in enumerate(optimizer.param_groups):
        for parameter in line["params"]:
            if id(parameter) not in names:
                raise ProbeError("the optimizer holds a parameter that the model does not have", fix="pass the model that it was made for")
            state = optimizer.state.get(parameter)
            if state and not isinstance(state, Mapping):
                raise ProbeError(
                    f"an entry of the optimizer's state is a {type(state).__name__}, not a mapping", where=names[id(parameter)], fix="fill it anew"
                )
            if state:
                out.append(_LiveEntry(names[id(parameter)], group, sum(len(g["params"]) for g in optimizer.param_groups[:group]), parameter, state))
    if not out:
        raise ProbeError("the optimizer has no state to save: it never stepped", fix="save after the first optimizer.step()")
    return _numbered(optimizer, out)


def _without_state(optimizer: Optimizer, model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (group, position) of the parameters that have no state, since no gradient ever came, by name."""
    names = first_names(model, error=ProbeError)
    rows = [(group, parameter) for group, line in enumerate(optimizer.param_groups) for parameter in line["params"]]
    return {names[id(parameter)]: (group, at) for at, (group, parameter) in enumerate(rows) if not optimizer.state.get(parameter)}


def _numbered(optimizer: Optimizer, rows: list[_LiveEntry]) -> list[_LiveEntry]:
    order = {id(p): at for at, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    return [replace(row, position=order[id(row.parameter)]) for row in rows]


def _owners(held: list[_LiveEntry], writers: int) -> dict[str, int]:
    """Give each rank its share: the largest first, each to the one with least."""
    load = [0] * writers
    owner = {}
    for row in sorted(held, key=lambda row: (-row.parameter.numel(), row.position)):
        least = load.index(min(load))
        owner[row.name] = least
        load[least] += row.parameter.numel()
    return owner


def _parameter(row: _LiveEntry, *, keep: bool) -> NamedParameter | None:
    slots: dict[str, Slot] = {}
    for key, value in row.state.items():
        if key == "step" or key in _PACKING or not _is_stored(row, key, value):
            continue
        slot = SLOT_KEYS.get(key, key)
        try:
            stored = moment(row.state, slot)
        except ProbeError as error:
            raise error.at(row.name) from error
        if stored is None:
            continue
        if slot in PARAM_SHAPED and stored.shape != row.parameter.shape:
            what = f"{slot} has shape {tuple(stored.shape)}, its parameter {tuple(row.parameter.shape)}"
            raise ProbeError(what, where=row.name, fix="the state was put there by position: fill it by name")
        whole = stored.full_tensor() if is_sharded(stored) else stored
        if keep:
            exact = whole if whole.dtype == torch.float64 else whole.to(torch.float32)
            slots[slot] = InMemory(exact.cpu().contiguous().numpy())
    if not keep:
        return None
    step = row.state.get("step")
    count = number(step)
    if step is not None and count is None:
        raise ProbeError(f"the step is {shown(step)}, which is no count of updates", where=row.name, fix="save after a step of the optimizer")
    return NamedParameter(name=row.name, shape=tuple(row.parameter.shape), group=row.group, slots=slots, step=count, position=row.position)


def _is_stored(row: _LiveEntry, key: object, value: object) -> bool:
    """True for a tensor, which is written; False for a single value, which is not.

    Raises:
        ProbeError: a slot that is not called by a text; numbers in a form that no slot has, which would be lost.
    """
    if not isinstance(key, str):
        raise ProbeError(f"a slot is called {shown(key)}, which is no text", where=row.name, fix="take it out of the optimizer's state")
    if isinstance(value, torch.Tensor):
        return True
    within = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(one, torch.Tensor) or (type(one).__module__ == "numpy" and getattr(one, "ndim", 0)) for one in within):
        what = f"{key} is a {type(value).__name__} of tensors or arrays, which the named format has no place for"
        raise ProbeError(what, where=row.name, fix="save the optimizer's own state_dict() with torch.save")
    return False


_PACKING = {"qmap1", "qmap2", "absmax1", "absmax2", "unorm_vec"}


def _named(optimizer: Optimizer, parameters: dict[str, NamedParameter], without: Mapping[str, tuple[int, int]]) -> NamedState:
    """Return this process's share: its parameters, and on the first one the names of those `without` state, so that no position is lost."""
    groups = []
    for index, line in enumerate(optimizer.param_groups):
        hyper = {key: _plain(value, f"group {index}: {key}") for key, value in line.items() if key not in _LISTS}
        members = {p.position or 0: p.name for p in parameters.values() if p.group == index}
        members |= {position: name for name, (group, position) in without.items() if group == index}
        groups.append(Group(index=index, positions=tuple(sorted(members)), names=tuple(members[at] for at in sorted(members)), hyper=hyper))
    cls = type(_innermost(optimizer))
    seen = {slot for parameter in parameters.values() for slot in parameter.slots}
    family = recognise(seen, {key for group in groups for key in group.hyper}, ("step",)) if seen else "unknown"
    if cls.__name__.lower().startswith("adamw"):
        family = "adamw"
    return NamedState(
        optimizer=family,
        optimizer_class=f"{cls.__module__}.{cls.__qualname__}",
        groups=tuple(groups),
        parameters=parameters,
        source={"layout": "live", "files": (), "positions": tuple(len(line["params"]) for line in optimizer.param_groups)},
    )


def _innermost(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer itself, out of wrappers that hold it (accelerate/optimizer.py `AcceleratedOptimizer`)."""
    inner = getattr(optimizer, "optimizer", None)
    return _innermost(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer


def _plain(value: object, where: str) -> object:
    """Return a hyperparameter that stands as a tensor or a number of numpy's as Python's own.

    Raises:
        ProbeError: a tensor of several elements, or without numbers; values within values without end.
    """
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        if value.numel() == 1 and not value.is_meta if isinstance(value, torch.Tensor) else value.size == 1:
            return value.item()
        raise ProbeError(f"a hyperparameter is {shown(value)}, not one number", where=where, fix="one number a group")
    if isinstance(value, (list, tuple, dict)) and too_deep(value):
        raise ProbeError("a hyperparameter holds values within values without end", where=where, fix="take it out of the optimizer's group")
    if isinstance(value, (list, tuple)):  # betas may be tensors, so that a captured graph can change them
        return tuple([_plain(one, where) for one in value])
    return value


def _write(state: NamedState, path: Path, number: int, of: int, force: bool) -> str:
    return write(state, shard_path(path, number, of), force=force, shard=(number, of) if of > 1 else None).path
