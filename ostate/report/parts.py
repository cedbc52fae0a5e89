"""A parameter's layer and kind by its name, for rows and columns of a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ostate.core.names import tuner_at

NOWHERE = "-"
"""The layer of a parameter outside every layer."""


@dataclass(frozen=True, slots=True)
class GridPlace:
    """Row and column of a parameter."""

    layer: str
    """`0`, `encoder 0` where the model has several stacks, or `-`."""
    kind: str
    """`q_proj.lora_A`, `norm.weight`."""
    order: tuple[str, int]
    """Sorts layers: stack, number."""


def places(names: Iterable[str]) -> Mapping[str, GridPlace]:
    """Return the place of every name; a stack's name is part of the layer only where there are several."""
    cut = {name: _cut(name) for name in names}
    stacks = {stack for stack, number, _ in cut.values() if number is not None}
    short = dict(zip(sorted(stacks), _distinct(sorted(stacks))))
    out = {}
    for name, (stack, number, kind) in cut.items():
        if number is None:
            out[name] = GridPlace(NOWHERE, kind, ("\U0010ffff", 0))
        else:
            label = f"{short[stack]} {number}".strip()
            out[name] = GridPlace(label, kind, (short[stack], number))
    return out


def _cut(name: str) -> tuple[str, int | None, str]:
    """Return (what stands before the layer's number, the number, the kind)."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isascii() and part.isdecimal() and len(part) < 9), None)
    if at is None:
        return "", None, _kind(parts)
    return ".".join(parts[:at]), int(parts[at]), _kind(parts[at + 1 :])


def _kind(parts: list[str]) -> str:
    mark = tuner_at(parts, after=1)
    if mark is not None:
        last = [parts[-1]] if parts[-1] == "bias" else []
        return ".".join([parts[mark - 1], parts[mark], *last])
    return ".".join(parts[-2:])


def _distinct(stacks: list[str]) -> list[str]:
    """Return the first dotted component in which the stacks differ, for each; nothing for a single stack."""
    if len(stacks) < 2:
        return [""] * len(stacks)
    split = [stack.split(".") for stack in stacks]
    shared = 0
    while all(len(parts) > shared for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    first = [".".join(parts[shared : shared + 1]) for parts in split]
    return first if len(set(first)) == len(first) else [".".join(parts[shared:]) for parts in split]
