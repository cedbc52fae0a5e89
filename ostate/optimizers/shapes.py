"""A parameter's shape, as far as its slots tell it."""

from __future__ import annotations

from collections.abc import Mapping

from .rows import OPTIMIZERS, OTHERS, PACKED, TORCH
from .spec import Shape

_RULES: dict[str, Shape] = {slot: rule for spec in (*TORCH.values(), *PACKED.values(), *OTHERS.values()) for slot, rule in spec.slots.items()}


def parameter_shape(shapes: Mapping[str, tuple[int, ...]], optimizer: str = "unknown") -> tuple[int, ...] | None:
    """Return the shape of the parameter that slots of these shapes belong to, or None when they do not tell it.

    Args:
        shapes: slot name -> shape.
        optimizer: the row of `OPTIMIZERS`; `unknown`: the slots' names alone decide.
    """
    spec = OPTIMIZERS.get(optimizer)
    if spec is not None and spec.moment == "projected":
        return None
    rules = spec.slots if spec is not None else _RULES
    found: dict[Shape, tuple[int, ...]] = {}
    for slot, shape in shapes.items():
        rule = rules.get(slot) or rules.get(slot.partition(".")[0], "other")
        if rule == "param":
            return shape
        found.setdefault(rule, shape)
    if "row" in found and "col" in found and found["col"]:
        return (*found["row"], found["col"][-1])
    if "row1" in found and "col1" in found and found["col1"]:
        return (*found["row1"][:-1], found["col1"][-1])
    return None
