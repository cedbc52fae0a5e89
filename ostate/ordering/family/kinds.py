"""Kinds of module: which may stand in each other's place, and the orders that other conventions give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

from ostate.core.family import Exchangeable
from ostate.core.naming import Adapter

from ..sources.module_orders import FAMILIES
from .layers import Arrangement
from .levels import Arrange, Level, Pattern, rearranged, short_labels, star
from .names import inner_part
from .sequence import ClaimRows

MOST_KINDS = 12
"""Kinds of module every two of which are tried in each other's place; of more, only those that lie side by side."""
Where = tuple[tuple[str, ...], str]
"""The numbers in a module's path (all of the path that lies outside its block, in a U-Net), and its adapter."""


class ModuleRows(NamedTuple):
    """The rows of one module."""

    rows: tuple[int, ...]
    shapes: tuple[tuple[str, int], ...]
    """(factor, class of shape), sorted."""


Kinds = Mapping[Pattern, Mapping[Where, ModuleRows]]


def kinds_of(sequence: ClaimRows) -> Kinds:
    """Return the modules of every kind, by their place in the layers."""
    rows: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for index, row in enumerate(sequence.rows):
        rows.setdefault((row.path, row.adapter), []).append(index)
    kinds: dict[Pattern, dict[Where, ModuleRows]] = {}
    for (path, adapter), members in rows.items():
        shapes = tuple(sorted((sequence.rows[index].factor, sequence.shapes[index]) for index in members))
        inner = inner_part(path)
        where = (*path[:inner], *[part for part in path[inner:] if part.isdigit()])
        kinds.setdefault(star(path[inner:]), {})[where, adapter] = ModuleRows(tuple(members), shapes)
    return kinds


def exchangeable(sequence: ClaimRows, adapter: Adapter | None) -> tuple[Exchangeable, ...]:
    """Return the sets of kinds whose modules agree in place and shape throughout; kinds that the adapter does not hold are not among them.

    What a convention puts before all layers and what it puts behind them, an embedding and a head, are not in the same place.
    """
    if adapter is None:
        return ()
    alike: dict[tuple[tuple[Where, str, tuple[tuple[str, int], ...]], ...], list[Pattern]] = {}
    kinds = kinds_of(sequence)
    layered = [row for modules in kinds.values() for (path, _), module in modules.items() if path for row in module.rows]
    for pattern, modules in kinds.items():
        if all(sequence.rows[row].key is not None for module in modules.values() for row in module.rows):
            places = sorted((where, "" if where[0] else _end(module, layered), module.shapes) for where, module in modules.items())
            alike.setdefault(tuple(places), []).append(pattern)
    labels = short_labels(kinds)
    return tuple(
        Exchangeable(
            kinds=tuple(labels[pattern] for pattern in patterns),
            modules=tuple(tuple(_keys_of(sequence, kinds[pattern][where]) for where, *_ in places) for pattern in patterns),
        )
        for places, patterns in alike.items()
        if len(patterns) > 1
    )


def _end(module: ModuleRows, layered: Sequence[int]) -> str:
    """Return on which side of the rows of all layers a module outside them stands."""
    if not layered:
        return ""
    return "before" if max(module.rows) < min(layered) else "behind" if min(module.rows) > max(layered) else "between"


def _keys_of(sequence: ClaimRows, module: ModuleRows) -> tuple[str, ...]:
    return tuple(key for row in module.rows if (key := sequence.rows[row].key) is not None)


def kinds_exchanged(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield every two kinds exchanged in all the layers that hold both in equal shapes; of whole tensors only where nothing else is trained."""
    kinds = kinds_of(sequence)
    tuned = {pattern: modules for pattern, modules in kinds.items() if any(sequence.rows[module.rows[0]].tuned for module in modules.values())}
    kinds = tuned or kinds
    near = len(kinds) > MOST_KINDS
    labels = short_labels(kinds)
    for one, other in combinations(kinds, 2):
        if not near or one[:-1] == other[:-1]:
            yield _exchanged(sequence, kinds, labels, one, other)


def pairs_within(sequence: ClaimRows, sets: Sequence[Exchangeable]) -> Iterator[Arrangement]:
    """Yield every two kinds of one set exchanged."""
    kinds = kinds_of(sequence) if sets else {}
    labels = short_labels(kinds)
    pattern_of = {label: pattern for pattern, label in labels.items()}
    for one in sets:
        for left, right in combinations(one.kinds, 2):
            yield _exchanged(sequence, kinds, labels, pattern_of[left], pattern_of[right])


def _exchanged(sequence: ClaimRows, kinds: Kinds, labels: Mapping[Pattern, str], one: Pattern, other: Pattern) -> Arrangement:
    order = list(range(len(sequence.rows)))
    left, right = kinds[one], kinds[other]
    for where in left:
        if where not in right or left[where].shapes != right[where].shapes:
            continue
        by_factor = {sequence.rows[row].factor: row for row in right[where].rows}
        for row in left[where].rows:
            twin = by_factor[sequence.rows[row].factor]
            order[row], order[twin] = twin, row
    return f"{labels[one]} and {labels[other]} exchanged in every layer", order


def by_other_conventions(sequence: ClaimRows, adapter: Adapter | None) -> Iterator[Arrangement]:
    """Yield the modules within their blocks in the order of the alphabet, of `target_modules`, and of every other family of models."""
    levels = [level for level in sequence.levels if not level.numeric]
    targets = adapter.config.get("target_modules") if adapter is not None else None
    everywhere: list[tuple[str, Arrange]] = [
        ("modules of a block in the order of the alphabet", sorted),
        ("modules of a block in reverse", lambda children: children[::-1]),
    ]
    for what, arrange in everywhere:
        yield what, _at_every_level(sequence, levels, arrange)
    listed = [("target_modules", targets)] if isinstance(targets, list) else []
    for name, words in [*listed, *((name, words) for name, _, words in FAMILIES)]:
        known = frozenset(words)
        concerned = [level for level in levels if len(known.intersection(level.children)) > 1]
        if concerned:
            yield f"modules of a block in the order of {name}", _at_every_level(sequence, concerned, _by_list(words))


def siblings_exchanged(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield every two modules that lie side by side (blocks, components, halves of a model) exchanged with all they hold, in all layers."""
    alike: dict[Pattern, list[Level]] = {}
    for level in sequence.levels:
        if not level.numeric:
            alike.setdefault(level.pattern[inner_part(level.pattern) :], []).append(level)
    for pattern, levels in alike.items():
        yield from _pairs_at(sequence, pattern, levels)


def components_exchanged(sequence: ClaimRows) -> Iterator[Arrangement]:
    """Yield the components of a pipeline (text encoders, unet) in other orders: the outermost level of words."""
    outer = next((level for level in sequence.levels if not level.numeric), None)
    if outer is not None and set(outer.pattern) <= {"lora", "lycoris"}:
        yield from _pairs_at(sequence, outer.pattern, [outer])


def _pairs_at(sequence: ClaimRows, pattern: Pattern, levels: Sequence[Level]) -> Iterator[Arrangement]:
    within = f"{'.'.join(pattern)}: " if pattern else ""
    children = list(dict.fromkeys(child for level in levels for child in level.children))
    pairs = combinations(children, 2) if len(children) <= MOST_KINDS else pairwise(children)
    for one, other in pairs:
        yield f"{within}{one} and {other} exchanged, with all they hold", _at_every_level(sequence, levels, _swap(one, other))


def _swap(one: str, other: str) -> Arrange:
    swapped = {one: other, other: one}
    return lambda children: [swapped.get(child, child) for child in children] if swapped.keys() <= set(children) else children


def _at_every_level(sequence: ClaimRows, levels: Sequence[Level], arrange: Arrange) -> list[int]:
    order = list(range(len(sequence.rows)))
    for level in levels:
        order = rearranged(order, range(len(order)), level, arrange)
    return order


def _by_list(words: Sequence[str]) -> Arrange:
    place = {word: at for at, word in enumerate(words)}
    return lambda children: sorted(children, key=place.__getitem__) if place.keys() >= set(children) else children
