"""Layer orders: each numbered level ascending, descending, or sorted as text, everywhere or in one group or for one factor alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .levels import Arrange, Level, rearranged
from .selections import selections
from .sequence import ClaimRows

Arrangement = tuple[str, list[int]]
"""(what such a program does, row by slot)."""


SHORT = 4
"""Numbers at one level that make a list of layers, however few of the rows lie below it; a shorter one must hold a tenth of them."""


def ascending(children: list[str]) -> list[str]:
    """Return numbers in their order."""
    return sorted(children, key=int)


def descending(children: list[str]) -> list[str]:
    """Return numbers from the last to the first."""
    return sorted(children, key=int, reverse=True)


def _rotated(children: list[str], by: int) -> list[str]:
    at = by % len(children)
    ordered = ascending(children)
    return ordered[at:] + ordered[:at]


ORDERS: tuple[tuple[str, Arrange], ...] = (
    ("in ascending order", ascending),
    ("in descending order", descending),
    ("sorted as text (0, 1, 10, 11, 2)", sorted),
)
ROTATIONS: tuple[tuple[str, Arrange], ...] = (
    ("one place later, the last first", lambda children: _rotated(children, -1)),
    ("one place earlier, the first last", lambda children: _rotated(children, 1)),
)


def layer_orders(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield every order of the numbers of every level, and of all levels at once."""
    numeric = [level for level in sequence.levels if level.numeric]
    main = _main(numeric)
    for where, parts in selections(sequence):
        for how, arrange in ORDERS:
            for level in main:
                yield f"{level.label} {how}{where}", _at_levels(sequence, parts, [level], arrange)
            if len(numeric) > 1:
                yield f"all numbers {how}{where}", _at_levels(sequence, parts, numeric, arrange)


def layers_rotated(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield the layers counted from one place off, as a framework that counts from 1, or takes the embedding for a layer, records them."""
    everything = [list(range(len(sequence.rows)))]
    for level in _main([level for level in sequence.levels if level.numeric]):
        for how, arrange in ROTATIONS:
            yield f"{level.label} {how}", _at_levels(sequence, everything, [level], arrange)


def _main(levels: Sequence[Level]) -> list[Level]:
    """Return the levels that a program may walk in an order of its own; a head's two or three layers go with all numbers at once."""
    return [
        level for level in levels if len(level.children) >= SHORT or 10 * sum(member is not None for member in level.members) >= len(level.members)
    ]


def _at_levels(sequence: ClaimRows, parts: list[list[int]], levels: Sequence[Level], arrange: Arrange) -> list[int]:
    order = list(range(len(sequence.rows)))
    for level in levels:
        for slots in parts:
            order = rearranged(order, slots, level, arrange)
    return order
