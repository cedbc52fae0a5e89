"""States whose parameters stand in the file as tensors, not as numbers: the values come with it, and give the positions.

A pickled optimizer object lists its parameters themselves in `param_groups`; GrokAdamW keeps each group's state within the group, by parameter
(grokadamw.py, step). Numbered in the groups' order, both are what `state_dict()` would have written, and the weights are kept as master weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from ostate.core.tensors import TensorRef
from ostate.errors import ReadError

from .pickle.records import Inert

Numbered = tuple[Mapping[object, object], object, dict[int | str, TensorRef]]


def params_of(group: Mapping[str, object]) -> Sequence[object]:
    """Return what a group lists as its parameters; nothing where it has no list."""
    found = group.get("params")
    return found if isinstance(found, (list, tuple)) else ()


def numbered(state: Mapping[object, object], groups: object, where: str) -> Numbered:
    """Return the state and its groups by number, and the parameters' own values by number, where the file holds them.

    Raises:
        ReadError: parameters that cannot be distinguished, or entries that no group lists.
    """
    if not isinstance(groups, (list, tuple)) or not all(type(group) is dict for group in groups):
        return state, groups, {}
    if any(type(one) is TensorRef for group in groups for one in params_of(group)):
        return _object(state, groups, where)
    if any(_by_parameter(group.get("state")) for group in groups):
        return _within_groups(state, groups, where)
    return state, groups, {}


def _by_parameter(state: object) -> TypeGuard[dict[TensorRef, object]]:
    return type(state) is dict and bool(state) and all(type(key) is TensorRef for key in state)


def _object(state: Mapping[object, object], groups: Sequence[dict[str, object]], where: str) -> Numbered:
    listed = [one for group in groups for one in params_of(group)]
    order = [one for one in listed if type(one) is TensorRef]
    places: dict[object, int] = {one: index for index, one in enumerate(order)} if len(order) == len(listed) else {}
    if len(places) != len(listed) or not set(state) <= set(places):
        raise ReadError("the optimizer object's parameters are not those of its state", where=where, fix="save optimizer.state_dict() instead")
    found, at = [], 0
    for group in groups:
        end = at + len(params_of(group))
        found.append({**group, "params": list(range(at, end))})
        at = end
    return {places[key]: entry for key, entry in state.items()}, found, dict(enumerate(order))


def _within_groups(state: Mapping[object, object], groups: Sequence[dict[str, object]], where: str) -> Numbered:
    entries, found = dict(state), []
    weights: dict[int | str, TensorRef] = {}
    for index, group in enumerate(groups):
        inner, params = group.get("state"), [key for key in params_of(group) if type(key) is int or type(key) is str]
        rest = {key: value for key, value in group.items() if key != "state"}
        found.append(rest)
        if not inner:
            continue
        if not _by_parameter(inner) or not len(inner) == len(params) == len(params_of(group)):
            count = f"{len(inner)} entries" if type(inner) is dict else "something else than entries"
            raise ReadError(
                f"group {index} keeps {count} by parameter object for {len(params_of(group))} parameters: which is whose is not in the file",
                where=where,
                fix="save the state with the optimizer's parameters all trained, or with names (torch >= 2.6: AdamW(model.named_parameters()))",
            )
        for key, (parameter, entry) in zip(params, inner.items()):
            entries[key], weights[key] = entry, parameter
    return entries, found, weights


def whole_tensor(value: object, where: str) -> object:
    """Return the tensor within a DTensor record that one process holds whole; anything else as it is.

    Raises:
        ReadError: only a piece of it is in this file.
    """
    if type(value) is not Inert or not value.name.endswith(".DTensor") or type(value.state) is not dict:
        return value
    local, shape = value.state.get("_local_tensor"), value.kwargs.get("shape")
    if type(local) is not TensorRef:
        raise ReadError("a DTensor without its local tensor", where=where, fix="copy the file again")
    if local.shape != shape:
        raise ReadError(
            f"one process's piece, {local.shape}, of a tensor of shape {shape}",
            where=where,
            fix="pass the folder with the files of all ranks",
        )
    return local
