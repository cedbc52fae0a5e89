"""State dicts with slots in place of tensors, and slots as torch tensors: mapped from their file where they lie in one run, read otherwise."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from ostate.core.files import is_remote
from ostate.core.naming import NamedParameter, NamedState
from ostate.core.tensors import CHUNK, NUMPY, Slot, TensorRef, is_slot
from ostate.optimizers import OPTIMIZERS

from .base import MARKS

if TYPE_CHECKING:
    import numpy as np
    import torch

_MAPPED = frozenset({"F32", "F64", "F16", "I64", "I32"})
"""Types whose bytes in a file torch can take as they are."""
_TENSORS = frozenset({"mu_product", "eta", "mu", "eps_sq", "avg_lr", "lr"})
"""Single numbers that NAdam, ASGD, StableAdamW and Automagic change in place or hand to tensors' methods, so they must be 0-d tensors."""


@dataclass(frozen=True, slots=True)
class Number:
    """A 0-d float32, as torch keeps a step, or int32. Satisfies `Slot`."""

    value: float
    shape: tuple[int, ...] = ()
    encoding: str = "plain"
    dtype: str = "F32"

    @property
    def raw(self) -> bytes:
        """Its four bytes; infinite beyond float32, as `torch.tensor` makes it."""
        if self.dtype == "I32":
            return struct.pack("<i", int(self.value))
        try:
            return struct.pack("<f", self.value)
        except OverflowError:
            return struct.pack("<f", math.copysign(math.inf, self.value))

    def read(self) -> np.ndarray:
        """Return the value, 0-d."""
        import numpy as np

        return np.frombuffer(self.raw, "<i4" if self.dtype == "I32" else "<f4").reshape(self.shape)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:  # noqa: ARG002
        """Yield the value, flat."""
        yield self.read().reshape(-1)

    def with_shape(self, shape: tuple[int, ...]) -> Number:
        """Return the same under another shape of one element."""
        return Number(self.value, shape, dtype=self.dtype)


Entry: TypeAlias = "dict[str, object]"
"""What a state dict holds for one parameter, or for one group: slots stand for tensors."""


class Numbered(TypedDict):
    """`optimizer.state_dict()`: entries by position, groups that list positions."""

    state: dict[int, Entry]
    param_groups: list[Entry]


class ByName(TypedDict):
    """A state dict whose entries stand under names, and whose groups list names."""

    state: dict[str, Entry]
    param_groups: list[Entry]


def with_tensors(values: Mapping[str, object]) -> Entry:
    """Return an entry, a group or a mapping of these with torch's tensors in place of slots, for those who hand it to torch.

    Raises:
        ReadError: a source cannot be read.
    """
    return {key: _with_tensors(value) for key, value in values.items()}


def _with_tensors(value: object) -> object:
    if isinstance(value, dict):
        return {key: _with_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_tensors(item) for item in value)
    return tensor(value) if is_slot(value) else value


def tensor(slot: Slot) -> torch.Tensor:
    """Return a slot's numbers: float32, or the stored dtype of mapped ones; the logical shape.

    Raises:
        ReadError: the source cannot be read.
    """
    import numpy as np
    import torch

    run = slot.run if isinstance(slot, TensorRef) else None
    if run is not None and slot.dtype in _MAPPED and not is_remote(run[0]) and 0 not in slot.shape:
        values = np.memmap(run[0], "<" + NUMPY[slot.dtype], "c", run[1], slot.shape)
        if values.flags.aligned:
            return torch.from_numpy(np.asarray(values))
    return torch.from_numpy(np.array(slot.read(), copy=True))


def entry(parameter: NamedParameter, *, step: bool = True) -> Entry:
    """Return a parameter's entry as torch's optimizers keep it: step first, then slots, then single numbers."""
    made: Entry = {}
    if step and parameter.step is not None:
        made["step"] = Number(parameter.step)
    made |= parameter.slots
    for key, value in parameter.scalars.items():
        if key not in MARKS:
            made[key] = Number(float(value)) if key in _TENSORS and isinstance(value, (int, float)) else value
    return made


def step_in_entry(state: NamedState) -> bool:
    """True unless the optimizer keeps its step in the group."""
    spec = OPTIMIZERS.get(state.optimizer)
    return spec is None or spec.step.startswith("entry")


def numbered(state: NamedState, *, names: bool) -> Numbered:
    """Return a state dict by position, as `optimizer.state_dict()` gives it, with slots for tensors.

    Args:
        state: what to number; a name without state takes its position too.
        names: also record `param_names`.
    """
    made: Numbered = {"state": {}, "param_groups": []}
    position = 0
    for group in state.groups:
        own = group.names or ()
        ids = list(range(position, position + len(own)))
        position += len(own)
        made["param_groups"].append({**group.hyper, "params": ids} | ({"param_names": list(own)} if names else {}))
        for number, name in zip(ids, own):
            if name in state.parameters and state.parameters[name].slots:
                made["state"][number] = entry(state.parameters[name], step=step_in_entry(state))
    return made


def named(state: NamedState) -> ByName:
    """Return a state dict by name, as FSDP's full state dict and torch.distributed.checkpoint have it, with slots for tensors."""
    made: ByName = {"state": {}, "param_groups": []}
    for group in state.groups:
        made["param_groups"].append({**group.hyper, "params": list(group.names or ())})
        for name in group.names or ():
            if name in state.parameters and state.parameters[name].slots:
                made["state"][name] = entry(state.parameters[name], step=step_in_entry(state))
    return made
