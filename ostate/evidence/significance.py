"""Test whether the best order's score exceeds the best order of random tables; of the file as a whole, before any name is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .assignment import assign, at_most
from .densities import CandidateScores, Match, path_scores, projected_scores
from .paths import Paths
from .tables.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
class Significance:
    """Whether an order's score exceeds chance."""

    significant: bool
    powerful: bool
    """True when a true order could not have stayed within chance."""
    why: str
    """What to say where it is not significant."""


def displacement_level(tables: Tables, match: Match, *, early: bool) -> Significance:
    """Compare the matched displacement with the best assignments of noise that has each cell's own null deviation."""
    value, expected = 0.0, 0.0
    for pair in tables.pairs:
        weight = float(np.sqrt(pair.numel))
        for row, module in enumerate(pair.modules):
            if module.zero in match:
                column = pair.zero_at[match[module.zero]]
                value += float(pair.cosine[row, column]) * weight
                expected += LEAST_COSINE * weight if float(pair.spread[row, column]) > 0 else 0.0

    def drawn(noise: np.random.Generator) -> Iterator[Array]:
        for pair in tables.pairs:
            yield _signs(noise, pair.rank, pair.cosine.shape) * pair.spread * np.sqrt(pair.numel)

    above, bar = _above(value, drawn, seed=0)
    return _level(above, powerful=early and expected > bar)


def start_level(tables: Tables, match: Match) -> Significance:
    """The same for tensors outside pairs whose start is known; each shape's noise is at least what its unmatched cells show."""
    value, shapes = 0.0, []
    for unpaired in tables.unpaired:
        rows = [row for row, key in enumerate(unpaired.keys) if unpaired.known[row] and key in match]
        if not rows:
            continue
        scaled = unpaired.cosine[rows] / (unpaired.spread[rows] + 1e-30)
        columns = [unpaired.positions.index(match[unpaired.keys[row]]) for row in rows]
        value += float(scaled[np.arange(len(rows)), columns].sum())
        off = np.delete(scaled.reshape(-1), np.ravel_multi_index((np.arange(len(rows)), columns), scaled.shape))
        shapes.append((scaled.shape, max(1.0, float(np.sqrt(np.mean(off * off)))) if off.size else 1.0))

    def drawn(noise: np.random.Generator) -> Iterator[Array]:
        for shape, spread in shapes:
            yield np.asarray(noise.standard_normal(shape) * spread)

    above, _ = _above(value, drawn, seed=2)
    return _level(above, powerful=False)


def balance_level(tables: Tables, paths: Paths, match: Match, *, late: bool, chosen: bool) -> Significance:
    """Compare the matched balance with the best assignments of values drawn from the unmatched ones.

    With `chosen` the zero factors' places were sought by balance too: each drawn value is then the best of as many as there are places.
    """
    powerful = False
    for candidates in (path_scores(tables, paths, match), projected_scores(tables, paths, match)):
        level = _balance_level(candidates, late=late, chosen=chosen)
        if level.significant:
            return level
        powerful = powerful or level.powerful
    return _level(False, powerful=powerful)


def _balance_level(candidates: Iterable[CandidateScores], *, late: bool, chosen: bool) -> Significance:
    value, modules, classes = 0.0, 0, []
    for each in candidates:
        on = np.zeros(each.values.shape, bool)
        on[each.cells()] = True
        if not on.all():
            value += float(each.values[on].sum())
            modules += int(on.sum()) if each.pair.rank >= LEAST_RANK else 0
            classes.append((on.shape, np.sort(each.values[~on]), len(each.pair.zero_positions) if chosen else 1))

    def drawn(noise: np.random.Generator) -> Iterator[Array]:
        for shape, off, places in classes:
            yield off[(noise.random(shape) ** (1 / places) * off.size).astype(int)]

    above, _ = _above(value, drawn, seed=1)
    return _level(above, powerful=late and modules >= LEAST_MODULES)


def _signs(noise: np.random.Generator, rank: int, shape: tuple[int, ...]) -> Array:
    """Return draws of variance 1 such as `rank` columns of random sign give: bounded by sqrt(rank), close to normal from 16 on."""
    if rank >= 16:
        return noise.standard_normal(shape)
    return np.asarray((2.0 * noise.binomial(rank, 0.5, shape) - rank) / np.sqrt(rank))


def _level(above: bool, *, powerful: bool) -> Significance:
    return Significance(above, powerful, "" if above else "no better than chance")


def _above(value: float, drawn: Callable[[np.random.Generator], Iterable[Array]], *, seed: int) -> tuple[bool, float]:
    """Tell whether a sum of scores stands ABOVE deviations over the best assignments of tables drawn by chance, and over what.

    Where it stands far over a bound on them the assignments themselves need not be found.
    """
    bar = 0.0
    for best, deviations in ((at_most, 2 * ABOVE), (_best, ABOVE)):
        noise = np.random.default_rng(seed)
        sums = np.array([sum(best(_sound(table)) for table in drawn(noise)) for _ in range(DRAWS)])
        bar = float(sums.mean() + deviations * max(sums.std(), 1e-3 * abs(sums.mean()), 1e-6))
        if value > bar:
            return True, bar
    return False, bar


def _sound(table: Array) -> Array:
    return np.where(np.isfinite(table), table, 0.0)  # damaged moments say nothing


def _best(table: Array) -> float:
    return float(table[assign(table)].sum())
