"""Slots as torch tensors: mapped from their file where they lie in one run, read otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ostate.files import is_remote
from ostate.model import NamedParameter, NamedState, Slot, TensorRef
from ostate.optimizers import OPTIMIZERS

from .base import MARKS, Wishes, groups_of

if TYPE_CHECKING:
    import torch

_MAPPED = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
_TENSORS = frozenset({"mu_product", "eta", "mu"})
"""Single numbers that torch's NAdam and ASGD change in place, so they must be 0-d tensors."""


def tensor(slot: Slot) -> torch.Tensor:
    """Return a slot's numbers: float32, or the stored dtype of mapped ones; the logical shape.

    Raises:
        ReadError: the source cannot be read.
    """
    import numpy as np
    import torch

    run = slot.run if isinstance(slot, TensorRef) else None
    if run is not None and slot.dtype in _MAPPED and not is_remote(run[0]) and 0 not in slot.shape:
        values = np.memmap(run[0], _MAPPED[slot.dtype], "c", run[1], slot.shape)
        if values.flags.aligned:
            return torch.from_numpy(np.asarray(values))
    return torch.from_numpy(np.array(slot.read(), copy=True))


def entry(parameter: NamedParameter, *, step: bool = True) -> dict[str, Any]:
    """Return a parameter's entry as torch's optimizers keep it: step first, then slots, then single numbers."""
    import torch

    made: dict[str, Any] = {}
    if step and parameter.step is not None:
        made["step"] = torch.tensor(parameter.step, dtype=torch.float32)
    for slot, value in parameter.slots.items():
        made[slot] = tensor(value)
    for key, value in parameter.scalars.items():
        if key not in MARKS:
            made[key] = torch.tensor(float(value)) if key in _TENSORS else value
    return made


def step_in_entry(state: NamedState) -> bool:
    """True unless the optimizer keeps its step in the group."""
    spec = OPTIMIZERS.get(state.optimizer)
    return spec is None or spec.step.startswith("entry")


def hyper_of(state: NamedState, names: tuple[str, ...], index: int) -> Mapping[str, Any]:
    """Return the hyperparameters for a group of `names`: those of the first that the state knows, else of the group of that index."""
    for name in names:
        if name in state.parameters:
            return state.hyper(name)
    return state.groups[min(index, len(state.groups) - 1)].hyper if state.groups else {}


def numbered(state: NamedState, wishes: Wishes, *, names: bool) -> dict[str, Any]:
    """Return a state dict by position, as `optimizer.state_dict()` gives it.

    Args:
        state: what to number.
        wishes: the groups to number for.
        names: also record `param_names`.
    """
    made: dict[str, Any] = {"state": {}, "param_groups": []}
    position = 0
    for index, group in enumerate(groups_of(state, wishes)):
        ids = list(range(position, position + len(group)))
        position += len(group)
        made["param_groups"].append({**hyper_of(state, group, index), "params": ids} | ({"param_names": list(group)} if names else {}))
        for number, name in zip(ids, group):
            if name in state.parameters and state.parameters[name].slots:
                made["state"][number] = entry(state.parameters[name], step=step_in_entry(state))
    return made


def named(state: NamedState, wishes: Wishes) -> dict[str, Any]:
    """Return a state dict by name, as FSDP's full state dict and torch.distributed.checkpoint have it."""
    made: dict[str, Any] = {"state": {}, "param_groups": []}
    for index, group in enumerate(groups_of(state, wishes)):
        made["param_groups"].append({**hyper_of(state, group, index), "params": list(group)})
        for name in group:
            if name in state.parameters and state.parameters[name].slots:
                made["state"][name] = entry(state.parameters[name], step=step_in_entry(state))
    return made
