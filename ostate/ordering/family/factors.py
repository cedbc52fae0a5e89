"""Factor orders: by module or all of one factor first, A before B or B before A; and the adapters of one model, together or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import TypeVar

from .layers import Arrangement
from .names import NameParts
from .selections import selections
from .sequence import ClaimRows

MOST_ADAPTERS = 3
"""Adapters whose every order is tried."""
SortKey = bool | int | tuple[int, ...]
Key = Callable[[int], SortKey]
One = TypeVar("One", bound=Hashable)


def factor_orders(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield every way in which programs line up the factors of the modules."""
    rows = sequence.rows
    if len({row.factor for row in rows}) < 2:
        return
    module = _first_seen([row.path for row in rows])
    block = _first_seen([_block(row) for row in rows])
    swapped = {row.rank: row.rank for row in rows}
    first = sorted(swapped)[:2]
    swapped.update(zip(first, reversed(first)))
    a, b = (next(row.factor for row in rows if row.rank == rank) for rank in first) if len(first) == 2 else ("", "")
    keys: list[tuple[str, Key]] = [
        (f"{a} before {b}, module by module", lambda at: (module[at], rows[at].rank)),
        (f"{b} before {a}, module by module", lambda at: (module[at], swapped[rows[at].rank])),
        ("the last factor first, module by module", lambda at: (module[at], -rows[at].rank)),
        (f"all {a} before all {b}", lambda at: rows[at].rank),
        (f"all {b} before all {a}", lambda at: swapped[rows[at].rank]),
        ("all of the last factor first", lambda at: -rows[at].rank),
        (f"all {a} of a block before its {b}", lambda at: (block[at], rows[at].rank)),
        (f"all {b} of a block before its {a}", lambda at: (block[at], swapped[rows[at].rank])),
    ]
    if len({row.tuned for row in rows}) == 2:
        keys += [
            ("whole tensors after all adapter weights", lambda at: not rows[at].tuned),
            ("whole tensors before all adapter weights", lambda at: rows[at].tuned),
        ]
    for where, parts in selections(sequence, each_factor=False):
        for what, key in keys:
            yield what + where, sorted_within(sequence, parts, key)


def adapter_orders(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield the adapters of one model in other orders: exchanged, factor by factor, module by module, one whole adapter after the other."""
    adapters = list(dict.fromkeys(row.adapter for row in sequence.rows if row.adapter))
    if len(adapters) < 2:
        return
    for one, other in combinations(adapters, 2):
        yield f"adapters {one} and {other} exchanged", _adapters_exchanged(sequence, {one: other, other: one})
    orders = permutations(adapters) if len(adapters) <= MOST_ADAPTERS else (adapters, adapters[::-1])
    for ordered in orders:
        for what, key in _adapter_keys(sequence, ordered):
            for where, parts in selections(sequence, each_group=False, each_factor=False):
                yield what + where, sorted_within(sequence, parts, key)


def _adapters_exchanged(sequence: ClaimRows, others: Mapping[str, str]) -> list[int]:
    return relabelled(sequence, lambda row: row._replace(adapter=others.get(row.adapter, row.adapter)))


def _adapter_keys(sequence: ClaimRows, ordered: Sequence[str]) -> list[tuple[str, Key]]:
    rows = sequence.rows
    module = _first_seen([row.path for row in rows])
    place = {"": -1, **{name: at for at, name in enumerate(ordered)}}
    said = " before ".join(ordered)
    return [
        (f"adapter {said}, factor by factor", lambda at: (module[at], rows[at].rank, place[rows[at].adapter])),
        (f"adapter {said}, module by module", lambda at: (module[at], place[rows[at].adapter], rows[at].rank)),
        (f"all of adapter {said}", lambda at: place[rows[at].adapter]),
    ]


def relabelled(sequence: ClaimRows, twin: Callable[[NameParts], NameParts]) -> list[int]:
    """Return each row under the name of its counterpart, where the claim has it; `twin` maps each of the two to the other."""
    at = {(row.path, row.factor, row.adapter): index for index, row in enumerate(sequence.rows)}
    if len(at) < len(sequence.rows):
        return list(range(len(sequence.rows)))
    found = (twin(row) for row in sequence.rows)
    return [at.get((row.path, row.factor, row.adapter), index) for index, row in enumerate(found)]


def sorted_within(sequence: ClaimRows, parts: list[list[int]], key: Key) -> list[int]:
    """Return the arrangement in which the rows of each part stand sorted."""
    order = list(range(len(sequence.rows)))
    for slots in parts:
        for slot, row in zip(slots, sorted(slots, key=key)):
            order[slot] = row
    return order


def _first_seen(values: list[One]) -> list[int]:
    """Return for each value the number of distinct ones before it."""
    seen: dict[One, int] = {}
    return [seen.setdefault(value, len(seen)) for value in values]


def _block(row: NameParts) -> tuple[str, ...]:
    """Return the path down to its last number: the innermost layer."""
    last = max((at for at, part in enumerate(row.path) if part.isdigit()), default=-1)
    return row.path[: last + 1]
