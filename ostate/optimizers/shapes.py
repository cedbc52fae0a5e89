"""A parameter's shape, as far as its slots tell it."""

from __future__ import annotations

from collections.abc import Mapping

from .rows import OPTIMIZERS
from .slots import Shape, row_of


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
