"""What goes wrong where names are written down: a count that is one off, a list that runs the other way, groups in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

from .kinds import kinds_of
from .layers import Arrangement
from .selections import selections
from .sequence import ClaimRows

MOST_GROUPS = 4
"""Groups whose every order is tried; of more, two at a time that follow each other, and all in reverse."""


def reversed_orders(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield the order from its end: all of it, each group, each factor."""
    for where, parts in selections(sequence):
        yield f"the order reversed{where}", _by_parts(len(sequence.rows), parts, lambda part: part[::-1])


def sorted_names(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield the names sorted as text, within each group and over all of them."""
    names = [row.name for row in sequence.rows]
    size = len(names)
    yield "names sorted as text", sorted(range(size), key=names.__getitem__)
    yield "names sorted as text, group by group", _by_parts(size, sequence.groups, lambda part: sorted(part, key=names.__getitem__))


def groups_exchanged(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield the groups listed in another order."""
    count = len(sequence.groups)
    if count < 2:
        return
    own = tuple(range(count))
    orders: list[tuple[int, ...]]
    if count <= MOST_GROUPS:
        orders = list(permutations(own))
    else:
        orders = [own[::-1], *((*own[:at], at + 1, at, *own[at + 2 :]) for at in range(min(count - 1, 2 * MOST_GROUPS)))]
    for order in orders:
        numbers = ", ".join(str(sequence.group_numbers[group]) for group in order)
        yield f"groups listed in the order {numbers}", [row for group in order for row in sequence.groups[group]]


def shifted(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield every count that is one off: over all positions, over all positions of one shape, over equal modules."""
    size = len(sequence.rows)
    everything = tuple(range(size))
    by_shape: dict[int, list[int]] = {}
    for slot in everything:
        by_shape.setdefault(sequence.places[slot], []).append(slot)
    parts: list[tuple[str, Sequence[Sequence[int]]]] = [
        ("every name", [everything]),
        ("every name, group by group,", sequence.groups),
        ("every name, among those of one shape,", list(by_shape.values())),
    ]
    for what, chosen in parts:
        for how, by in (("one place later", -1), ("one place earlier", 1)):
            yield f"{what} {how}", _by_parts(size, chosen, lambda part, by=by: [*part[by:], *part[:by]])  # type: ignore[misc]
        if what != "every name":
            yield f"{what} reversed", _by_parts(size, chosen, lambda part: part[::-1])
    for how, by in (("one module later", -1), ("one module earlier", 1)):
        yield f"every name, among modules of equal shapes, {how}", _modules_shifted(sequence, by)


def _modules_shifted(sequence: ClaimRows, by: int) -> list[int]:
    alike: dict[tuple[tuple[str, int], ...], list[tuple[int, ...]]] = {}
    modules = [module for kind in kinds_of(sequence).values() for module in kind.values()]
    for module in sorted(modules, key=lambda one: one.rows):
        by_factor = sorted(module.rows, key=lambda row: sequence.rows[row].factor)
        alike.setdefault(module.shapes, []).append(tuple(by_factor))
    order = list(range(len(sequence.rows)))
    for same in alike.values():
        for one, other in zip(same, [*same[by:], *same[:by]]):
            for slot, row in zip(one, other):
                order[slot] = row
    return order


def _by_parts(size: int, parts: Sequence[Sequence[int]], arrange: Callable[[list[int]], list[int]]) -> list[int]:
    order = list(range(size))
    for part in parts:
        for slot, row in zip(part, arrange(list(part))):
            order[slot] = row
    return order
