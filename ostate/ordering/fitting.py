"""The laws of one file, fitted to an order, and the log ratios that they give to every move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ostate.ordering import laws
from ostate.ordering.paths import LEAST, Held, Paths, residuals
from ostate.ordering.profiles import Profile
from ostate.ordering.score import RARE, TRUST, Fit, Law, fit, log_ratio
from ostate.ordering.tables import PairClass, Tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

Match = dict[str, int]
"""Adapter key -> position."""
PLAIN_RANK = 2
"""Up to this rank the drift's four directions would leave nothing of r * r numbers."""
_UNIT = Fit(0.0, 1.1)
"""The null of cosine / spread: variance 1 by symmetry, a little more for its tails."""


NOTHING = Law(Fit(0.0, 1.0), Fit(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Laws:
    """The laws of one file. A law that does not speak gives zeros."""

    projection: Law
    """Of cosine / spread."""
    magnitude: Law
    """Of log(spread * sqrt(numel))."""
    balance: Mapping[int, Law] = field(default_factory=dict)
    """By rank: of -log residual with the drift's directions projected out."""
    path: Mapping[int, Law] = field(default_factory=dict)
    """By rank: of -log residual after the path's terms; only where it tells more than `balance`."""
    lone: Law = NOTHING
    """Of cosine / spread of tensors outside pairs whose start is known."""
    profile: Law = NOTHING
    """Of the likeness of a vector's profile with its module's."""


@dataclass(frozen=True, slots=True)
class OtherMoves:
    """-log residual of one module with every position of its other factor, its zero factor held."""

    pair: PairClass
    row: int
    matched: int | None
    values: Array


def fit_laws(tables: Tables, paths: Paths, match: Match) -> Laws:
    """Return the laws as this order has them: its pairs against all others."""
    projection, magnitude = _Sample(), _Sample()
    balance: dict[int, _Sample] = {}
    path: dict[int, _Sample] = {}
    for pair in tables.pairs:
        rows = [row for row, module in enumerate(pair.modules) if module.zero in match]
        if tables.displaced and rows:
            columns = [pair.zero_positions.index(match[pair.modules[row].zero]) for row in rows]
            projection.split(pair.cosine / (pair.spread + laws.TINY), rows, columns)
            magnitude.split(np.log(pair.spread * np.sqrt(pair.numel) + laws.TINY), rows, columns)
        for row, column, values in zero_moves(pair, match) if tables.balanced else ():
            balance.setdefault(pair.rank, _Sample()).add_off(values, column)
            _ = row
    for sample, moves in ((balance, projected_moves(tables, match)), (path, path_moves(tables, paths, match))):
        for each in moves:
            if each.matched is not None:
                sample.setdefault(each.pair.rank, _Sample()).split(each.values[None], [0], [each.matched])
    found = {rank: sample.law(null_floor=0.1, true_floor=0.2, alike=RARE) for rank, sample in balance.items() if sample.on}
    sharper = {rank: sample.law(null_floor=0.1, true_floor=0.2, alike=RARE) for rank, sample in path.items() if sample.on}
    return Laws(
        Law(_UNIT, projection.law(null_floor=1, true_floor=0.4).true),
        magnitude.law(null_floor=0.15, true_floor=0.15),
        found,
        {rank: law for rank, law in sharper.items() if rank not in found or law.distance > found[rank].distance},
        _lone_law(tables, match),
        _profile_law(tables, match),
    )


def _lone_law(tables: Tables, match: Match) -> Law:
    sample = _Sample()
    for lone in tables.lone:
        for row, key in enumerate(lone.keys):
            if lone.known[row] and key in match:
                sample.split((lone.cosine[row] / (lone.spread[row] + laws.TINY))[None], [0], [lone.positions.index(match[key])])
    return sample.law(null_floor=1.1, true_floor=0.5)


def _profile_law(tables: Tables, match: Match) -> Law:
    sample = _Sample()
    for profile in tables.profiles:
        for key, values in profile_moves(profile, match):
            if key in match:
                sample.split(values[None], [0], [profile.positions.index(match[key])])
    return sample.law(null_floor=1.1, true_floor=0.5)


def profile_moves(profile: Profile, match: Match) -> Iterator[tuple[str, Array]]:
    """Yield (key of a vector, likeness at every position) where its module's zero factor has a place."""
    for key, zero in profile.tied:
        if zero in match:
            yield key, profile.table[:, profile.zero_positions.index(match[zero])]


def displacement_ratio(cosine: Array, spread: Array, numel: int, now: Laws) -> Array:
    """Return the log ratio of displacement: of its size, and of its projection given that size."""
    projection = log_ratio(cosine / (spread + laws.TINY), now.projection)
    return projection + log_ratio(np.log(spread * np.sqrt(numel) + laws.TINY), now.magnitude)


def other_ratios(tables: Tables, paths: Paths, match: Match, now: Laws) -> Iterator[tuple[OtherMoves, Array]]:
    """Yield, for every module whose zero factor has a place, the log ratios of its other factor at every position."""
    if now.path:
        for each in path_moves(tables, paths, match):
            if each.pair.rank in now.path:
                yield each, log_ratio(each.values, now.path[each.pair.rank])
    for each in projected_moves(tables, match):
        if each.pair.rank in now.balance and each.pair.rank not in now.path:
            yield each, log_ratio(each.values, now.balance[each.pair.rank])


def projected_moves(tables: Tables, match: Match) -> Iterator[OtherMoves]:
    """Yield drift-corrected balance for every module whose zero factor has a place."""
    for pair in tables.pairs if tables.balanced else ():
        every = np.arange(len(pair.other_positions))
        for row, column, matched in _held(pair, match):
            known = pair.known.get((row, column, False))
            if known is None:
                known = pair.known[row, column, False] = residual(pair, row, np.full(len(every), column), every)
            yield OtherMoves(pair, row, matched, known)


def path_moves(tables: Tables, paths: Paths, match: Match) -> list[OtherMoves]:
    """Return the path residuals for every module whose zero factor has a place; none when too few modules tell the coefficients."""
    if not tables.balanced:
        return []
    held = [
        Held(pair, row, column, paths.of(pair, row, column), matched)
        for pair in tables.pairs
        if pair.rank > 1
        for row, column, matched in _held(pair, match)
    ]
    if sum(each.matched is not None for each in held) < LEAST:
        return []
    return [OtherMoves(each.pair, each.row, each.matched, values) for each, values in zip(held, residuals(held))]


def zero_moves(pair: PairClass, match: Match) -> Iterator[tuple[int, int | None, Array]]:
    """Yield (row, column it has, drift-corrected balance at every zero position) with the other factor held."""
    every = np.arange(len(pair.zero_positions))
    for row, module in enumerate(pair.modules):
        if module.other in match:
            held = pair.other_positions.index(match[module.other])
            column = pair.zero_positions.index(match[module.zero]) if module.zero in match else None
            known = pair.known.get((row, held, True))
            if known is None:
                known = pair.known[row, held, True] = residual(pair, row, every, np.full(len(every), held))
            yield row, column, known


def residual(pair: PairClass, row: int, zero: Sequence[int] | NDArray[np.intp], other: Sequence[int] | NDArray[np.intp]) -> Array:
    """Return drift-corrected balance of module `row` with pairs of positions, given as columns of the class's tables."""
    drift = np.concatenate([pair.zero_drift[zero], pair.other_drift[other]], axis=1)
    if pair.rank <= PLAIN_RANK:
        drift = drift[:, :0]
    return laws.balance(pair.left[row, zero], pair.right[row, other], drift)


def _held(pair: PairClass, match: Match) -> Iterator[tuple[int, int, int | None]]:
    for row, module in enumerate(pair.modules):
        if module.zero in match:
            matched = pair.other_positions.index(match[module.other]) if module.other in match else None
            yield row, pair.zero_positions.index(match[module.zero]), matched


class _Sample:
    """Values of matched pairs and of all others."""

    def __init__(self) -> None:
        self.on: list[Array] = []
        self.off: list[Array] = []

    def split(self, table: Array, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Take a table apart: the cells (rows, columns) are matched."""
        mask = np.zeros(table.shape, bool)
        mask[rows, columns] = True
        self.on.append(table[mask])
        self.off.append(table[~mask])

    def add_off(self, values: Array, column: int | None) -> None:
        """Take all but one value as unmatched."""
        self.off.append(values if column is None else np.delete(values, column))

    def law(self, *, null_floor: float, true_floor: float, alike: float = TRUST) -> Law:
        """Return the two fits."""
        off = np.concatenate(self.off) if self.off else np.zeros(0)
        on = np.concatenate(self.on) if self.on else np.zeros(0)
        return Law(fit(off, floor=null_floor), fit(on, floor=true_floor, trim=True), alike)
