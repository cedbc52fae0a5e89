"""Search: from a first order to the one that no single move improves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from . import laws
from .score import Fit, Law, fit, log_ratio
from .tables import PairClass, Shape, Tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

Match = dict[str, int]
"""Adapter key -> position."""
ROUNDS = 10
PLAIN_RANK = 2
"""Up to this rank the drift's four directions would leave nothing of r * r numbers."""


@dataclass(frozen=True, slots=True)
class Laws:
    """The laws of one file, fitted to an order. A law that does not speak gives zeros."""

    projection: Law
    """Of cosine / spread."""
    magnitude: Law
    """Of log(spread * sqrt(numel))."""
    balance: Mapping[int, Law] = field(default_factory=dict)
    """By rank."""


def from_keys(keys: Sequence[str | None], tables: Tables) -> Match:
    """Return the part of a claim that the tables know: positions with state and a key of their shape."""
    match = {}
    for position, key in enumerate(keys):
        shape = tables.shape_of_key.get(key) if key is not None else None
        if key is not None and shape is not None and position in tables.positions_of_shape.get(shape, ()):
            match[key] = position
    return match


def by_displacement(tables: Tables, fixed: Mapping[int, str]) -> Match:
    """Return the first order: zero factors by displacement, then the other ones by balance with what was found."""
    scores = _Scores(tables)
    if tables.displaced:
        for pair in tables.pairs:
            for row, module in enumerate(pair.modules):
                scores.put(module.zero, pair.zero_positions, pair.cosine[row] * np.sqrt(pair.numel))
    for lone in tables.lone:
        for row, key in enumerate(lone.keys):
            scores.put(key, lone.positions, lone.cosine[row] * np.sqrt(lone.numel))
    first = scores.assign(fixed)
    taken = {module.zero: first[module.zero] for pair in tables.pairs for module in pair.modules if module.zero in first}
    for pair in tables.pairs:
        for row, residual in _other_moves(pair, taken):
            scores.put(pair.modules[row].other, pair.other_positions, 4 * residual)
    return scores.assign(fixed)


def improve(tables: Tables, match: Match, fixed: Mapping[int, str]) -> tuple[Match, Laws]:
    """Return the order that no assignment of zero factors, other factors or whole modules improves, and its laws."""
    laws_now = fit_laws(tables, match)
    for _ in range(ROUNDS):
        before = dict(match)
        for moved in ("zero", "other"):
            match = _scores_of(tables, match, laws_now, moved).assign(fixed)
        match = _swap_modules(tables, match, laws_now, fixed)
        laws_now = fit_laws(tables, match)
        if match == before:
            break
    return match, laws_now


def _scores_of(tables: Tables, match: Match, now: Laws, moved: str) -> _Scores:
    """Return the scores of every key at every position of its shape, its partner held where it is.

    Keys of the factor that is not moved keep their place when the shapes of the two factors differ.
    """
    scores = single_moves(tables, match, now)
    still = {key for pair in tables.pairs for module in pair.modules for key in [module.other if moved == "zero" else module.zero]}
    for key in still & set(match):
        scores.hold(key, match[key])
    return scores


def single_moves(tables: Tables, match: Match, now: Laws) -> _Scores:
    """Return log ratios of every key at every position of its shape, all other keys held."""
    scores = _Scores(tables)
    for pair in tables.pairs:
        moved = displacement_ratio(pair.cosine, pair.spread, pair.numel, now) if tables.displaced else np.zeros(pair.cosine.shape)
        law = now.balance.get(pair.rank)
        if law is not None:
            for row, residual in _zero_moves(pair, match):
                moved[row] += log_ratio(residual, law)
            for row, residual in _other_moves(pair, match):
                scores.put(pair.modules[row].other, pair.other_positions, log_ratio(residual, law))
        for row, module in enumerate(pair.modules):
            scores.put(module.zero, pair.zero_positions, moved[row])
    for lone in tables.lone:
        ratio = displacement_ratio(lone.cosine, lone.spread, lone.numel, now)
        for row, key in enumerate(lone.keys):
            if lone.known[row]:
                scores.put(key, lone.positions, ratio[row])
    return scores


def module_moves(pair: PairClass, match: Match, now: Laws, *, displaced: bool) -> tuple[list[int], Array]:
    """Return (rows, S): S_ij is the log ratio of module rows[i] with both positions of module rows[j]."""
    rows = [row for row, module in enumerate(pair.modules) if module.zero in match and module.other in match]
    at_zero, at_other = _columns(pair, match, rows)
    score = np.zeros((len(rows), len(rows)))
    if displaced:
        cells = np.ix_(rows, at_zero)
        score += displacement_ratio(pair.cosine[cells], pair.spread[cells], pair.numel, now)
    law = now.balance.get(pair.rank)
    if law is not None:
        for i, row in enumerate(rows):
            score[i] += log_ratio(_residual(pair, row, at_zero, at_other), law)
    return rows, score


def displacement_ratio(cosine: Array, spread: Array, numel: int, now: Laws) -> Array:
    """Return the log ratio of displacement: of its size, and of its projection given that size."""
    projection = log_ratio(cosine / (spread + laws.TINY), now.projection)
    return projection + log_ratio(np.log(spread * np.sqrt(numel) + laws.TINY), now.magnitude)


def fit_laws(tables: Tables, match: Match) -> Laws:
    """Return the laws as this order has them: matched pairs against all others."""
    projection: tuple[list[Array], list[Array]] = ([], [])
    magnitude: tuple[list[Array], list[Array]] = ([], [])
    balance: dict[int, tuple[list[Array], list[Array]]] = {}
    for pair in tables.pairs:
        rows = [row for row, module in enumerate(pair.modules) if module.zero in match]
        if tables.displaced and rows:
            columns = [pair.zero_positions.index(match[pair.modules[row].zero]) for row in rows]
            _split(projection, pair.cosine / (pair.spread + laws.TINY), rows, columns)
            _split(magnitude, np.log(pair.spread * np.sqrt(pair.numel) + laws.TINY), rows, columns)
        seen = balance.setdefault(pair.rank, ([], []))
        for row, residual in _other_moves(pair, match):
            if pair.modules[row].other in match:
                _split(seen, residual[None], [0], [pair.other_positions.index(match[pair.modules[row].other])])
        for row, residual in _zero_moves(pair, match):
            column = pair.zero_positions.index(match[pair.modules[row].zero]) if pair.modules[row].zero in match else None
            seen[1].append(np.delete(residual, column) if column is not None else residual)
    projection_null = Fit(0.0, 1.1)
    return Laws(
        Law(projection_null, fit(_join(projection[0]), floor=0.4)),
        Law(fit(_join(magnitude[1]), floor=0.15), fit(_join(magnitude[0]), floor=0.15)),
        {rank: Law(fit(_join(off), floor=0.1), fit(_join(on), floor=0.2)) for rank, (on, off) in balance.items() if on},
    )


def _split(into: tuple[list[Array], list[Array]], table: Array, rows: Sequence[int], columns: Sequence[int]) -> None:
    mask = np.zeros(table.shape, bool)
    mask[rows, columns] = True
    into[0].append(table[mask])
    into[1].append(table[~mask])


def _join(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0)


def _columns(pair: PairClass, match: Match, rows: Sequence[int]) -> tuple[list[int], list[int]]:
    zero = [pair.zero_positions.index(match[pair.modules[row].zero]) for row in rows]
    other = [pair.other_positions.index(match[pair.modules[row].other]) for row in rows]
    return zero, other


def _zero_moves(pair: PairClass, match: Match) -> Iterator[tuple[int, Array]]:
    """Yield (row, balance at every zero position) with the other factor held."""
    every = np.arange(len(pair.zero_positions))
    for row, module in enumerate(pair.modules):
        if module.other in match:
            held = pair.other_positions.index(match[module.other])
            yield row, _residual(pair, row, every, np.full(len(every), held))


def _other_moves(pair: PairClass, match: Match) -> Iterator[tuple[int, Array]]:
    """Yield (row, balance at every other position) with the zero factor held."""
    every = np.arange(len(pair.other_positions))
    for row, module in enumerate(pair.modules):
        if module.zero in match:
            held = pair.zero_positions.index(match[module.zero])
            yield row, _residual(pair, row, np.full(len(every), held), every)


def _residual(pair: PairClass, row: int, zero: Sequence[int] | NDArray[np.intp], other: Sequence[int] | NDArray[np.intp]) -> Array:
    drift = np.concatenate([pair.zero_drift[zero], pair.other_drift[other]], axis=1)
    if pair.rank <= PLAIN_RANK:
        drift = drift[:, :0]
    return laws.balance(pair.left[row, zero], pair.right[row, other], drift)


def _swap_modules(tables: Tables, match: Match, now: Laws, fixed: Mapping[int, str]) -> Match:
    from scipy.optimize import linear_sum_assignment

    match = dict(match)
    kept = set(fixed.values())
    for pair in tables.pairs:
        rows, score = module_moves(pair, match, now, displaced=tables.displaced)
        if len(rows) < 2 or any({pair.modules[row].zero, pair.modules[row].other} & kept for row in rows):
            continue
        before = [(match[pair.modules[row].zero], match[pair.modules[row].other]) for row in rows]
        _, taken = linear_sum_assignment(-(score + 1e-9 * np.eye(len(rows))))
        for row, column in zip(rows, taken):
            match[pair.modules[row].zero], match[pair.modules[row].other] = before[column]
    return match


class _Scores:
    """Scores of keys at positions, by shape; what is never put scores zero."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.by_shape: dict[Shape, Array] = {
            shape: np.zeros((len(keys), len(tables.positions_of_shape[shape]))) for shape, keys in tables.keys_of_shape.items()
        }
        self.row = {key: (shape, row) for shape, keys in tables.keys_of_shape.items() for row, key in enumerate(keys)}

    def put(self, key: str, positions: Sequence[int], values: Array) -> None:
        """Set the scores of a key; `positions` are all of its shape, in the tables' order."""
        shape, row = self.row[key]
        assert len(positions) == self.by_shape[shape].shape[1]
        self.by_shape[shape][row] = values

    def hold(self, key: str, position: int) -> None:
        """Keep a key where it is, whatever the numbers say."""
        shape, row = self.row[key]
        self.by_shape[shape][row] = -1e6
        self.by_shape[shape][row, self.tables.positions_of_shape[shape].index(position)] = 1e6

    def assign(self, fixed: Mapping[int, str]) -> Match:
        """Return the best assignment, shape by shape."""
        from scipy.optimize import linear_sum_assignment

        for position, key in fixed.items():
            if key in self.row and position in self.tables.positions_of_shape[self.row[key][0]]:
                self.hold(key, position)
        match: Match = {}
        for shape, table in self.by_shape.items():
            if table.size:
                keys, positions = self.tables.keys_of_shape[shape], self.tables.positions_of_shape[shape]
                match |= {keys[row]: positions[column] for row, column in zip(*linear_sum_assignment(-table))}
        return match
