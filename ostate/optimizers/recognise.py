"""Which optimizer wrote a state, and what shape a parameter has, from what the file holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .rows import OPTIMIZERS
from .slots import Shape, row_of
from .spec import OptimizerSpec

_COMMON = {"betas", "beta1", "beta2", "alpha", "weight_decay", "maximize", "foreach"}
"""Keys that many optimizers have: no mark by themselves, where a state that never stepped shows no slots."""


def recognise(slots: Collection[str], group_keys: Collection[str], scalars: Collection[str] = ()) -> str:
    """Return the row of `OPTIMIZERS` that fits best, or `unknown`.

    Args:
        slots: every slot name of every entry, as `read.quantized.slots_of` gives them; empty for a state that never stepped.
        group_keys: the keys of the groups. Given as a mapping (a group's hyperparameters, or all groups merged), the values decide
            where keys alone do not: Adam or AdamW, bitsandbytes' Lion or SGD.
        scalars: every scalar's name of every entry.
    """
    return max(fitting(slots, group_keys, scalars), key=lambda row: row[1], default=("unknown", ()))[0]


def fitting(slots: Collection[str], group_keys: Collection[str], scalars: Collection[str] = ()) -> list[tuple[str, tuple[int, ...]]]:
    """Return every row that slots and group keys do not contradict, with its weight: the number of things it requires."""
    stems = {slot.partition(".")[0] for slot in slots}
    return [(name, _weight(spec)) for name, spec in OPTIMIZERS.items() if _fits(spec, stems, group_keys, set(scalars))]


def _fits(spec: OptimizerSpec, slots: set[str], keys: Collection[str], scalars: set[str]) -> bool:
    if not set(spec.marks) <= set(keys) or set(spec.lacks) & set(keys) or not set(spec.tells) <= scalars:
        return False
    if not slots and not set(spec.marks) - _COMMON:
        return False
    if slots and not (set(spec.always) <= slots <= set(spec.slots)):
        return False
    if spec.when is None:
        return True
    return isinstance(keys, Mapping) and spec.when(keys)


def _weight(spec: OptimizerSpec) -> tuple[int, ...]:
    return len(spec.tells), len(spec.marks) + len(spec.lacks), spec.when is not None, len(spec.always) - len(spec.slots)


def parameter_shape(shapes: Mapping[str, tuple[int, ...]], optimizer: str = "unknown") -> tuple[int, ...] | None:
    """Return the shape of the parameter that slots of these shapes belong to, or None when they do not tell it.

    Args:
        shapes: slot name -> shape.
        optimizer: the row of `OPTIMIZERS`; `unknown`: the slots' names alone decide.
    """
    spec = OPTIMIZERS.get(optimizer)
    if spec is not None and spec.moment == "projected":
        return None
    found: dict[Shape, tuple[int, ...]] = {}
    for slot, shape in shapes.items():
        known = spec is None or slot in spec.slots or slot.partition(".")[0] in spec.slots
        rule = row_of(slot).shape if known else "other"
        if rule == "param":
            return shape
        found.setdefault(rule, shape)
    if "row" in found and "col" in found and found["col"]:
        return (*found["row"], found["col"][-1])
    if "row1" in found and "col1" in found and found["col1"]:
        return (*found["row1"][:-1], found["col1"][-1])
    return None
