"""The densities fitted to one file for an order, and the log ratios that they give to every candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from . import statistics
from .likelihood import RARE, TRUST, DensityPair, Fit, fit, log_ratio
from .paths import LEAST, HeldModules, Paths, residuals
from .profiles import Profile
from .tables.tables import PairClass, Tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

Match = dict[str, int]
"""Adapter key -> position."""
PLAIN_RANK = 2
"""Up to this rank the drift's four directions would leave nothing of r * r numbers."""
_UNIT = Fit(0.0, 1.1)
"""The null of cosine / spread: variance 1 by symmetry, a little more for its tails."""


NOTHING = DensityPair(Fit(0.0, 1.0), Fit(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class FittedDensities:
    """The densities fitted to one file. A pair of them that is not informative gives zeros."""

    projection: DensityPair
    """Of cosine / spread."""
    magnitude: DensityPair
    """Of log(spread * sqrt(numel))."""
    balance: Mapping[int, DensityPair] = field(default_factory=dict)
    """By rank: of -log residual with the drift's directions projected out."""
    path: Mapping[int, DensityPair] = field(default_factory=dict)
    """By rank: of -log residual after the path's terms; only where it tells more than `balance`."""
    unpaired: DensityPair = NOTHING
    """Of cosine / spread of tensors outside pairs whose start is known."""
    profile: DensityPair = NOTHING
    """Of the likeness of a vector's profile with its module's."""


@dataclass(frozen=True, slots=True)
class CandidateScores:
    """-log residual of a class's modules with every position of one of their factors, the other one held."""

    pair: PairClass
    rows: Sequence[int]
    """Modules whose held factor has a place."""
    matched: Sequence[int | None]
    """By row: the column that the factor has in the order at hand."""
    values: Array
    """(rows, columns)."""

    def cells(self) -> tuple[list[int], list[int]]:
        """Return indices into `values` of what is matched."""
        there = [(index, column) for index, column in enumerate(self.matched) if column is not None]
        return [index for index, _ in there], [column for _, column in there]


def fit_densities(tables: Tables, paths: Paths, match: Match) -> FittedDensities:
    """Return the densities under this order: its pairs against all others."""
    projection, magnitude = _Sample(), _Sample()
    balance: dict[int, _Sample] = {}
    path: dict[int, _Sample] = {}
    for pair in tables.pairs:
        rows = [row for row, module in enumerate(pair.modules) if module.zero in match]
        if tables.displaced and rows:
            columns = [pair.zero_at[match[pair.modules[row].zero]] for row in rows]
            spread = np.where(pair.spread > 0, pair.spread, np.nan)  # a module that never trained tells nothing of the others
            projection.split(pair.cosine / spread, rows, columns)
            magnitude.split(np.log(spread * np.sqrt(pair.numel)), rows, columns)
    for each in zero_scores(tables, paths, match):
        balance.setdefault(each.pair.rank, _Sample()).split(_trained(each, zero_columns=True), *each.cells(), only_off=True)
    for sample, candidates in ((balance, projected_scores(tables, paths, match)), (path, path_scores(tables, paths, match))):
        for each in candidates:
            rows, columns = each.cells()
            if rows:
                sample.setdefault(each.pair.rank, _Sample()).split(_trained(each, zero_columns=False)[rows], range(len(rows)), columns)
    found = {rank: sample.densities(null_floor=0.1, true_floor=0.2, alike=RARE) for rank, sample in balance.items() if sample.on}
    sharper = {rank: sample.densities(null_floor=0.1, true_floor=0.2, alike=RARE) for rank, sample in path.items() if sample.on}
    return FittedDensities(
        DensityPair(_UNIT, projection.densities(null_floor=1, true_floor=0.4).true),
        magnitude.densities(null_floor=0.15, true_floor=0.15),
        found,
        {rank: density for rank, density in sharper.items() if rank not in found or density.distance > found[rank].distance},
        _unpaired_densities(tables, match),
        _profile_densities(tables, match),
    )


def _trained(candidates: CandidateScores, *, zero_columns: bool) -> Array:
    """Return the values with NaN for modules whose factors are all zero, and for positions whose moments are."""
    pair, rows = candidates.pair, list(candidates.rows)
    alive = np.asarray(pair.left[rows].any(axis=(1, 2)) & pair.right[rows].any(axis=(1, 2)))
    stated = np.asarray((pair.left if zero_columns else pair.right).any(axis=(0, 2)))
    return np.where(alive[:, None] & stated[None], candidates.values, np.nan)


def _unpaired_densities(tables: Tables, match: Match) -> DensityPair:
    sample = _Sample()
    for unpaired in tables.unpaired:
        for row, key in enumerate(unpaired.keys):
            if unpaired.known[row] and key in match:
                sample.split((unpaired.cosine[row] / (unpaired.spread[row] + statistics.TINY))[None], [0], [unpaired.positions.index(match[key])])
    return sample.densities(null_floor=1.1, true_floor=0.5)


def _profile_densities(tables: Tables, match: Match) -> DensityPair:
    sample = _Sample()
    for profile in tables.profiles:
        for key, values in profile_scores(profile, match):
            if key in match:
                sample.split(values[None], [0], [profile.positions.index(match[key])])
    return sample.densities(null_floor=1.1, true_floor=0.5)


def profile_scores(profile: Profile, match: Match) -> Iterator[tuple[str, Array]]:
    """Yield (key of a vector, likeness at every position) where its module's zero factor has a place."""
    for key, zero in profile.tied:
        if zero in match:
            yield key, profile.table[:, profile.zero_positions.index(match[zero])]


def displacement_ratio(cosine: Array, spread: Array, numel: int, now: FittedDensities) -> Array:
    """Return the log ratio of displacement: of its size, and of its projection given that size."""
    projection = log_ratio(cosine / (spread + statistics.TINY), now.projection)
    return projection + log_ratio(np.log(spread * np.sqrt(numel) + statistics.TINY), now.magnitude)


def other_ratios(tables: Tables, paths: Paths, match: Match, now: FittedDensities) -> Iterator[tuple[CandidateScores, Array]]:
    """Yield, for every class, its modules whose zero factor has a place, and the log ratios of their other factors at every position."""
    if now.path:
        for each in path_scores(tables, paths, match):
            if each.pair.rank in now.path:
                yield each, log_ratio(each.values, now.path[each.pair.rank])
    for each in projected_scores(tables, paths, match):
        if each.pair.rank in now.balance and not (each.pair.rank in now.path and has_paths(each.pair)):
            yield each, log_ratio(each.values, now.balance[each.pair.rank])


def projected_scores(tables: Tables, paths: Paths, match: Match) -> Iterator[CandidateScores]:
    """Yield drift-corrected balance at every position of the other factors, for the modules whose zero factor has a place."""
    for pair in tables.pairs if tables.balanced else ():
        held = [(row, pair.zero_at[match[module.zero]], module.other) for row, module in enumerate(pair.modules) if module.zero in match]
        if held:
            values = _held_residuals(paths, pair, [(row, column) for row, column, _ in held], zero_held=True)
            yield CandidateScores(pair, [row for row, _, _ in held], [_place(pair.other_at, key, match) for _, _, key in held], values)


def zero_scores(tables: Tables, paths: Paths, match: Match) -> Iterator[CandidateScores]:
    """Yield drift-corrected balance at every position of the zero factors, for the modules whose other factor has a place."""
    for pair in tables.pairs if tables.balanced else ():
        held = [(row, pair.other_at[match[module.other]], module.zero) for row, module in enumerate(pair.modules) if module.other in match]
        if held:
            values = _held_residuals(paths, pair, [(row, column) for row, column, _ in held], zero_held=False)
            yield CandidateScores(pair, [row for row, _, _ in held], [_place(pair.zero_at, key, match) for _, _, key in held], values)


def _place(places: Mapping[int, int], key: str, match: Match) -> int | None:
    return places[match[key]] if key in match else None


def has_paths(pair: PairClass) -> bool:
    """True where the path's coefficients are the file's: not of rank 1, and not of embeddings, whose rows have a gradient now and then only."""
    return pair.rank > 1 and not pair.modules[0].flipped


def path_scores(tables: Tables, paths: Paths, match: Match) -> Sequence[CandidateScores]:
    """Return the path residuals for every module whose zero factor has a place; none when too few modules tell the coefficients."""
    if not tables.balanced:
        return ()
    if paths.last is not None and paths.last[0] == match:
        return [CandidateScores(each.pair, each.rows, each.matched, values) for each, values in paths.last[1]]
    held = []
    for pair in tables.pairs:
        rows = [row for row, module in enumerate(pair.modules) if has_paths(pair) and module.zero in match]
        if rows:
            modules = [pair.modules[row] for row in rows]
            features = np.stack([paths.of(pair, row, pair.zero_at[match[module.zero]]) for row, module in zip(rows, modules)])
            held.append(HeldModules(pair, rows, features, [_place(pair.other_at, module.other, match) for module in modules]))
    enough = sum(matched is not None for each in held for matched in each.matched) >= LEAST
    paths.last = dict(match), list(zip(held, residuals(held))) if enough else []
    return path_scores(tables, paths, match)


_TOGETHER = 1 << 20
"""Numbers of a table that are compared at a time."""


def _held_residuals(paths: Paths, pair: PairClass, held: Sequence[tuple[int, int]], *, zero_held: bool) -> Array:
    """Return drift-corrected balance of modules (row, column that one factor is held at) with every position of the other factor."""
    known = paths.balance
    keys = [(pair.modules[row].zero, column, zero_held) for row, column in held]
    new = [each for each, key in zip(held, keys) if key not in known]
    places = pair.other_positions if zero_held else pair.zero_positions
    step = max(1, _TOGETHER // (len(places) * pair.left.shape[-1] + 1))
    for at in range(0, len(new), step):
        rows, columns = (list(part) for part in zip(*new[at : at + step]))
        if zero_held:
            left, right = pair.left[rows, columns][:, None], pair.right[rows]
            drifts = pair.zero_drift[columns][:, None], pair.other_drift[None]
        else:
            left, right = pair.left[rows], pair.right[rows, columns][:, None]
            drifts = pair.zero_drift[None], pair.other_drift[columns][:, None]
        values = statistics.balance(left, right, *(drifts if pair.rank > PLAIN_RANK else ()))
        known.update({(pair.modules[row].zero, column, zero_held): value for row, column, value in zip(rows, columns, values)})
    return np.stack([known[key] for key in keys])


def residual(pair: PairClass, rows: int | Array, zero: Sequence[int] | NDArray[np.intp], other: Sequence[int] | NDArray[np.intp]) -> Array:
    """Return drift-corrected balance of modules with pairs of positions, given as columns of the class's tables; leading axes broadcast."""
    drifts = (pair.zero_drift[zero], pair.other_drift[other]) if pair.rank > PLAIN_RANK else ()
    return statistics.balance(pair.left[rows, zero], pair.right[rows, other], *drifts)


class _Sample:
    """Values of matched pairs and of all others."""

    def __init__(self) -> None:
        self.on: list[Array] = []
        self.off: list[Array] = []

    def split(self, table: Array, rows: Sequence[int], columns: Sequence[int], *, only_off: bool = False) -> None:
        """Add a table's values: the cells (rows, columns) to the matched ones, unless `only_off`, all others to the rest."""
        mask = np.zeros(table.shape, bool)
        mask[rows, columns] = True
        finite = np.isfinite(table)
        if not only_off:
            self.on.append(table[mask & finite])
        self.off.append(table[~mask & finite])

    def densities(self, *, null_floor: float, true_floor: float, alike: float = TRUST) -> DensityPair:
        """Return the two fits."""
        off = np.concatenate(self.off) if self.off else np.zeros(0)
        on = np.concatenate(self.on) if self.on else np.zeros(0)
        return DensityPair(fit(off, floor=null_floor), fit(on, floor=true_floor, trim=True), alike)
