"""A claim laid out for rearranging: one row for each position with state, in the order in which the optimizer walks them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ostate.core.naming import Adapter, Claim
from ostate.core.state import Entry, RawState

from ..grouping.refute import positions_of
from .levels import Level, levels_of
from .names import NameParts, row_of

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClaimRows:
    """What every row of the family works on. An arrangement is a list `order`: position i takes the name of row `order[i]`."""

    claim: Claim
    rows: tuple[NameParts, ...]
    positions: tuple[int, ...]
    """Position of each row; they ascend group by group as the optimizer walks them."""
    groups: tuple[tuple[int, ...], ...]
    """Indices of the rows of each group that has any."""
    group_numbers: tuple[int, ...]
    """The file's number of each of those groups."""
    places: tuple[int, ...]
    """Class of each position's stored shape; -1: unknown, anything fits."""
    shapes: tuple[int, ...]
    """Class of each row's own shape, in the same numbering; -1: the adapter does not hold it."""
    levels: tuple[Level, ...]
    """Where the names branch, the outermost first."""

    def fit(self, order: Sequence[int]) -> bool:
        """True unless some position would get a parameter that is known to be of another shape."""
        shapes, places = self.shapes, self.places
        own = [shapes[row] for row in order]
        return own == list(places) or all(shape == place or place < 0 or shape < 0 for shape, place in zip(own, places))

    def arranged(self, order: Sequence[int]) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
        """Return keys and names of all positions under an arrangement; positions without state keep the claim's."""
        keys, names = list(self.claim.keys), list(self.claim.names)
        for position, row in zip(self.positions, order):
            keys[position], names[position] = self.rows[row].key, self.rows[row].name
        return tuple(keys), tuple(names)


def sequence_of(claim: Claim, raw: RawState, adapter: Adapter | None) -> ClaimRows:
    """Lay the claim out over the positions with state that it names."""
    walk = [position for position in positions_of(raw) if raw.entries[position].has_state and claim.names[position] is not None]
    rows = tuple(row_of(claim.names[position] or "", claim.keys[position]) for position in walk)
    groups: dict[int, list[int]] = {}
    for index, position in enumerate(walk):
        groups.setdefault(raw.entries[position].group, []).append(index)
    places, shapes = _classes([raw.entries[position] for position in walk], rows, adapter)
    return ClaimRows(claim, rows, tuple(walk), tuple(map(tuple, groups.values())), tuple(groups), places, shapes, levels_of(rows))


def _classes(entries: Sequence[Entry], rows: Sequence[NameParts], adapter: Adapter | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Number the shapes so that a row fits a position exactly when the numbers are equal. One flat piece, and sizes alone are compared."""
    flat = any(entry.flat for entry in entries)
    numbers: dict[Shape, int] = {}

    def number(shape: Shape | None) -> int:
        if shape is None:
            return -1
        return numbers.setdefault((math.prod(shape),) if flat else tuple(shape), len(numbers))

    stored = [adapter.tensors[row.key].shape if adapter is not None and row.key is not None else None for row in rows]
    return tuple(number(entry.shape) for entry in entries), tuple(map(number, stored))
