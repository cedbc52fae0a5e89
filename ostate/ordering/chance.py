"""Is the best order better than the best order of pure chance? Asked of the file as a whole, before any name is believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.ordering.fitting import Match, path_moves, projected_moves
from ostate.ordering.paths import Paths
from ostate.ordering.tables import PairClass, Tables

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Array = NDArray[np.floating]

DRAWS = 16
ABOVE = 5.0
"""Deviations by which the order must stand above the mean of the chance draws' best orders."""
LEAST_COSINE = 0.35
"""Displacement that a true order reaches within the first steps; measured .55 to .95, see docs/evidence.md."""
LEAST_RANK = 3
LEAST_MODULES = 4


@dataclass(frozen=True, slots=True)
class Level:
    """Where the order stands."""

    significant: bool
    powerful: bool
    """True when a true order could not have stayed within chance."""
    why: str
    """What to say where it is not significant."""


def displacement_level(tables: Tables, match: Match, *, early: bool) -> Level:
    """Compare the matched displacement with the best assignments of noise that has each cell's own null deviation."""
    value, expected, drawn = 0.0, 0.0, np.zeros(DRAWS)
    noise = np.random.default_rng(0)
    for pair in tables.pairs:
        weight = float(np.sqrt(pair.numel))
        for row, module in enumerate(pair.modules):
            if module.zero in match:
                column = pair.zero_positions.index(match[module.zero])
                value += float(pair.cosine[row, column]) * weight
                expected += LEAST_COSINE * weight if float(pair.spread[row, column]) > 0 else 0.0
        for each in range(DRAWS):
            drawn[each] += _best(_signs(noise, pair.rank, pair.cosine.shape) * pair.spread * weight)
    return _level(value, drawn, powerful=early and expected > _bar(drawn))


def start_level(tables: Tables, match: Match) -> Level:
    """The same for tensors outside pairs whose start is known; each shape's noise is at least what its unmatched cells show."""
    value, drawn, noise = 0.0, np.zeros(DRAWS), np.random.default_rng(2)
    for lone in tables.lone:
        rows = [row for row, key in enumerate(lone.keys) if lone.known[row] and key in match]
        if not rows:
            continue
        scaled = lone.cosine[rows] / (lone.spread[rows] + 1e-30)
        columns = [lone.positions.index(match[lone.keys[row]]) for row in rows]
        value += float(scaled[np.arange(len(rows)), columns].sum())
        off = np.delete(scaled.reshape(-1), np.ravel_multi_index((np.arange(len(rows)), columns), scaled.shape))
        spread = max(1.0, float(np.sqrt(np.mean(off * off)))) if off.size else 1.0
        for each in range(DRAWS):
            drawn[each] += _best(np.asarray(noise.standard_normal(scaled.shape) * spread))
    return _level(value, drawn, powerful=False)


def balance_level(tables: Tables, paths: Paths, match: Match, *, late: bool, chosen: bool) -> Level:
    """Compare the matched balance with the best assignments of values drawn from the unmatched ones.

    With `chosen` the zero factors' places were sought by balance too: each drawn value is then the best of as many as there are places.
    """
    best = Level(False, False, "no better than chance")
    for moves in (path_moves(tables, paths, match), projected_moves(tables, match)):
        by_class: dict[int, tuple[PairClass, list[tuple[int | None, Array]]]] = {}
        for each in moves:
            by_class.setdefault(id(each.pair), (each.pair, []))[1].append((each.matched, each.values))
        level = _balance_level(by_class.values(), late=late, chosen=chosen)
        if level.significant:
            return level
        best = Level(False, best.powerful or level.powerful, best.why)
    return best


def _balance_level(classes: Iterable[tuple[PairClass, list[tuple[int | None, Array]]]], *, late: bool, chosen: bool) -> Level:
    value, drawn, noise, modules = 0.0, np.zeros(DRAWS), np.random.default_rng(1), 0
    for pair, rows in classes:
        table = np.stack([values for _, values in rows])
        on = np.zeros(table.shape, bool)
        for row, (matched, _) in enumerate(rows):
            if matched is not None:
                on[row, matched] = True
        if on.all():
            continue
        value += float(table[on].sum())
        modules += int(on.sum()) if pair.rank >= LEAST_RANK else 0
        off, places = np.sort(table[~on]), len(pair.zero_positions) if chosen else 1
        for each in range(DRAWS):
            drawn[each] += _best(off[(noise.random(table.shape) ** (1 / places) * off.size).astype(int)])
    return _level(value, drawn, powerful=late and modules >= LEAST_MODULES)


def _signs(noise: np.random.Generator, rank: int, shape: tuple[int, ...]) -> Array:
    """Return draws of variance 1 such as `rank` columns of random sign give: bounded by sqrt(rank), close to normal from 16 on."""
    if rank >= 16:
        return noise.standard_normal(shape)
    return np.asarray((2.0 * noise.binomial(rank, 0.5, shape) - rank) / np.sqrt(rank))


def _level(value: float, drawn: Array, *, powerful: bool) -> Level:
    if value > _bar(drawn):
        return Level(True, powerful, "")
    return Level(False, powerful, "no better than chance")


def _bar(drawn: Array) -> float:
    return float(drawn.mean() + ABOVE * max(drawn.std(), 1e-3 * abs(drawn.mean()), 1e-6))


def _best(table: Array) -> float:
    from scipy.optimize import linear_sum_assignment

    table = np.where(np.isfinite(table), table, 0.0)  # damaged moments say nothing
    return float(table[linear_sum_assignment(-table)].sum())
