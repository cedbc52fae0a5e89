"""Names that stand elsewhere than the other names of their layer do: what a list looks like in which a few were exchanged by hand.

Where programs list a model's parameters, those of one layer lie a fixed number of places apart, the same in all layers: a layer's block comes whole,
or all layers of one kind come together. A name is where the others of its layer say, or it is misplaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import permutations

from .layers import Arrangement
from .levels import Pattern, star
from .sequence import ClaimRows

FEWEST = 3
"""Layers from which a distance that most of them share is one."""
Kind = tuple[Pattern, str, str]
"""(path with its numbers left open, factor, adapter)."""
Layer = tuple[str, ...]
"""The numbers in a path."""
Slots = Mapping[Layer, int]


def misplaced(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield all misplaced names put where the others of their layer say, then those of each kind alone: of two kinds either may be the false one."""
    kinds: dict[Kind, dict[Layer, int]] = {}
    for slot, row in enumerate(sequence.rows):
        kinds.setdefault((star(row.path), row.factor, row.adapter), {})[tuple(part for part in row.path if part.isdigit())] = slot
    targets = _targets(kinds)
    if targets:
        yield "misplaced names put where the rest of their layer is", _moved(len(sequence.rows), targets)
    for (path, factor, _), slots in kinds.items() if targets else ():
        own = {slot: targets[slot] for slot in slots.values() if slot in targets}
        if own:
            kind = ".".join((*path[-1:], factor))
            yield f"misplaced names of {kind} put where the rest of their layer is", _moved(len(sequence.rows), own)


def _targets(kinds: Mapping[Kind, Slots]) -> dict[int, int]:
    """Return by slot where most others of its layer say that its row stands, for those where that is elsewhere."""
    alike: dict[frozenset[Layer], list[Slots]] = {}
    for slots in kinds.values():
        if len(slots) >= FEWEST:
            alike.setdefault(frozenset(slots), []).append(slots)
    found = {}
    for members in alike.values():
        if all(_distance(members[0], other)[1] == len(other) for other in members):
            continue  # all at fixed distances: the names of nearly every list
        votes: dict[int, Counter[int]] = {slot: Counter() for slots in members for slot in slots.values()}
        for one, other in permutations(members, 2):
            distance, layers = _distance(one, other)
            if 2 * layers > len(one):
                for layer, slot in one.items():
                    votes[slot][other[layer] + distance] += 1
        for slot, said in votes.items():
            place, count = said.most_common(1)[0] if said else (slot, 0)
            if place != slot and 2 * count > said.total():
                found[slot] = place
    return found


def _distance(one: Slots, other: Slots) -> tuple[int, int]:
    """Return how many places one kind most often stands behind another, and in how many layers."""
    return Counter(one[layer] - other[layer] for layer in one).most_common(1)[0]


def _moved(size: int, targets: Mapping[int, int]) -> list[int]:
    """Return the arrangement that moves rows to their targets, as far as these are each other's places."""
    moves, left = dict(targets), len(targets) + 1
    while len(moves) < left:
        left, taken = len(moves), Counter(moves.values())
        moves = {slot: place for slot, place in moves.items() if place in moves and slot in taken and taken[place] == 1}
    order = list(range(size))
    for slot, place in moves.items():
        order[place] = slot
    return order
