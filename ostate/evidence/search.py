"""Search for the order of the highest score, improving a first one until no single change does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .assignment import assign
from .densities import (
    FittedDensities,
    Match,
    displacement_ratio,
    fit_densities,
    other_ratios,
    profile_scores,
    projected_scores,
    residual,
    zero_scores,
)
from .likelihood import log_ratio
from .paths import Paths
from .statistics import TINY
from .tables.tables import PairClass, Shape, Tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

ROUNDS = 10
_TOGETHER = 1 << 20
"""Numbers of a table that are compared at a time."""
_CANDIDATES = 512
"""Pairs of positions a module that balance is computed for when nothing else is known, best plain cosine first."""


ALONE_LOG_RATIO = -14.0
"""Log ratio of a factor that has state while its module's zero factor has none: both step together or not at all."""


def search(tables: Tables, paths: Paths, *, claimed: Match | None) -> tuple[Match, FittedDensities]:
    """Return the best order found and its densities: from displacement, from the claim, and from balance alone where that is not enough."""
    starts = [claimed] if claimed else []
    displaced = _complete(tables, paths, _by_displacement(tables))
    starts += [displaced] if displaced != claimed or not starts else []
    ends = [improve(tables, paths, start) for start in starts]
    best = max(ends, key=lambda end: total(tables, paths, *end)) if len(ends) > 1 else ends[0]
    if tables.balanced and _unsettled(tables, paths, *best):
        other = improve(tables, paths, _complete(tables, paths, _by_balance(tables)))
        best = max([best, other], key=lambda end: total(tables, paths, *end))
    return best


def _unsettled(tables: Tables, paths: Paths, match: Match, now: FittedDensities) -> bool:
    """True when a module's own numbers do not favour the place it has."""
    scores = single_scores(tables, paths, match, now)
    keys = [key for pair in tables.pairs for module in pair.modules for key in (module.zero, module.other) if key in match]
    return any(scores.at(key, match[key]) <= 0 for key in keys)


def total(tables: Tables, paths: Paths, match: Match, now: FittedDensities) -> float:
    """Return the sum of all log ratios of an order."""
    scores = single_scores(tables, paths, match, now)
    return sum(scores.at(key, position) for key, position in match.items())


def from_keys(keys: Sequence[str | None], tables: Tables) -> Match:
    """Return the part of a claim that the tables know: positions with state and a key of their shape."""
    match = {}
    for position, key in enumerate(keys):
        shape = tables.shape_of_key.get(key) if key is not None else None
        if key is not None and shape is not None and position in tables.positions_of_shape.get(shape, ()):
            match[key] = position
    return match


def improve(tables: Tables, paths: Paths, match: Match) -> tuple[Match, FittedDensities]:
    """Return the order that no assignment of zero factors, other factors or whole modules improves, and its densities."""
    now = fit_densities(tables, paths, match)
    for _ in range(ROUNDS):
        before = dict(match)
        for still in ("other", "zero"):
            scores = single_scores(tables, paths, match, now)
            for module in (module for pair in tables.pairs for module in pair.modules):
                key = getattr(module, still)
                if key in match:
                    scores.hold(key, match[key])
            match = scores.assign(prefer=match)
        match = _swap_modules(tables, match, now)
        now = fit_densities(tables, paths, match)
        if match == before:
            break
    return match, now


def single_scores(tables: Tables, paths: Paths, match: Match, now: FittedDensities) -> Scores:
    """Return log ratios of every key at every position of its shape, all other keys held."""
    scores = Scores(tables)
    for pair in tables.pairs:
        moved = displacement_ratio(pair.cosine, pair.spread, pair.numel, now) if tables.displaced else np.zeros(pair.cosine.shape)
        for row, module in enumerate(pair.modules):
            scores.put(module.zero, moved[row])
            if module.zero not in match:
                scores.put(module.other, np.full(len(pair.other_positions), ALONE_LOG_RATIO))
    for each in zero_scores(tables, paths, match):
        density = now.balance.get(each.pair.rank)
        if density is not None and density.is_informative:
            for row, ratio in zip(each.rows, log_ratio(each.values, density)):
                scores.add(each.pair.modules[row].zero, ratio)
    for each, ratios in other_ratios(tables, paths, match, now):
        for row, ratio in zip(each.rows, ratios):
            scores.put(each.pair.modules[row].other, ratio)
    for pair in tables.pairs:
        if pair.moved_cosine is not None and pair.moved_spread is not None:
            ratio = displacement_ratio(pair.moved_cosine, pair.moved_spread, pair.other_numel, now)
            for row, module in enumerate(pair.modules):
                scores.add(module.other, ratio[row])
    for unpaired in tables.unpaired:
        ratio = log_ratio(unpaired.cosine / (unpaired.spread + TINY), now.unpaired)
        for row, key in enumerate(unpaired.keys):
            if unpaired.known[row]:
                scores.put(key, ratio[row])
    for profile in tables.profiles:
        for key, values in profile_scores(profile, match):
            scores.add(key, log_ratio(values, now.profile))
    return scores


def module_scores(pair: PairClass, match: Match, now: FittedDensities, *, displaced: bool) -> tuple[list[int], Array]:
    """Return (rows, S): S_ij is the log ratio of module rows[i] with both positions of module rows[j]."""
    rows = [row for row, module in enumerate(pair.modules) if module.zero in match and module.other in match]
    at_zero = [pair.zero_at[match[pair.modules[row].zero]] for row in rows]
    at_other = [pair.other_at[match[pair.modules[row].other]] for row in rows]
    score = np.zeros((len(rows), len(rows)))
    if displaced and rows:
        cells = np.ix_(rows, at_zero)
        score += displacement_ratio(pair.cosine[cells], pair.spread[cells], pair.numel, now)
    if pair.moved_cosine is not None and pair.moved_spread is not None and rows:
        cells = np.ix_(rows, at_other)
        score += displacement_ratio(pair.moved_cosine[cells], pair.moved_spread[cells], pair.other_numel, now)
    density = now.balance.get(pair.rank)
    if density is not None and density.is_informative and rows:
        step = max(1, _TOGETHER // (len(rows) * pair.left.shape[-1]))
        for at in range(0, len(rows), step):
            some = np.array(rows[at : at + step])[:, None]
            score[at : at + step] += log_ratio(residual(pair, some, np.array(at_zero)[None], np.array(at_other)[None]), density)
    return rows, score


def _by_displacement(tables: Tables) -> Scores:
    scores = Scores(tables)
    for pair in tables.pairs if tables.displaced else ():
        for row, module in enumerate(pair.modules):
            scores.put(module.zero, pair.cosine[row] * np.sqrt(pair.numel))
    for unpaired in tables.unpaired:
        for row, key in enumerate(unpaired.keys):
            scores.put(key, unpaired.cosine[row] * np.sqrt(unpaired.numel))
    return scores


def _by_balance(tables: Tables) -> Scores:
    """Score zero factors by the best balance that any position of the other factor gives them."""
    scores = Scores(tables)
    for pair in tables.pairs:
        for row, module in enumerate(pair.modules):
            zero, other = _likely(pair, row)
            best = np.full(len(pair.zero_positions), -1.0)
            np.maximum.at(best, zero, residual(pair, row, zero, other))
            scores.put(module.zero, best)
    return scores


def _likely(pair: PairClass, row: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return columns of the pairs of positions that may balance for a module: all of them, or those of the largest plain cosine."""
    shape = len(pair.zero_positions), len(pair.other_positions)
    if shape[0] * shape[1] <= _CANDIDATES:
        zero, other = np.indices(shape)
        return zero.reshape(-1), other.reshape(-1)
    left, right = pair.left[row], pair.right[row]
    cosine = (left / (np.linalg.norm(left, axis=1, keepdims=True) + 1e-30)) @ (right / (np.linalg.norm(right, axis=1, keepdims=True) + 1e-30)).T
    found = np.argpartition(-cosine.reshape(-1), _CANDIDATES)[:_CANDIDATES]
    zero, other = np.unravel_index(found, shape)
    return zero, other


def _complete(tables: Tables, paths: Paths, scores: Scores) -> Match:
    """Return the assignment of the scores, then the other factors by balance with the zero factors found."""
    match = scores.assign()
    for module in (module for pair in tables.pairs for module in pair.modules):
        if module.zero in match:
            scores.hold(module.zero, match[module.zero])
    for each in projected_scores(tables, paths, match):
        for row, values in zip(each.rows, each.values):
            scores.put(each.pair.modules[row].other, values)
    for pair in tables.pairs:
        if pair.moved_cosine is not None:
            for row, module in enumerate(pair.modules):
                scores.add(module.other, pair.moved_cosine[row] * np.sqrt(pair.other_numel))
    for profile in tables.profiles:
        for key, values in profile_scores(profile, match):
            scores.add(key, values)
    return scores.assign()


def _swap_modules(tables: Tables, match: Match, now: FittedDensities) -> Match:
    match = dict(match)
    for pair in tables.pairs:
        rows, score = module_scores(pair, match, now, displaced=tables.displaced)
        if len(rows) < 2:
            continue
        before = [(match[pair.modules[row].zero], match[pair.modules[row].other]) for row in rows]
        _, taken = assign(score + 1e-9 * np.eye(len(rows)))
        for row, column in zip(rows, taken):
            match[pair.modules[row].zero], match[pair.modules[row].other] = before[column]
    return match


class Scores:
    """Scores of keys at positions, by shape; what is never put scores zero."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.by_shape: dict[Shape, Array] = {
            shape: np.zeros((len(keys), len(tables.positions_of_shape[shape]))) for shape, keys in tables.keys_of_shape.items()
        }
        self.row = {key: (shape, row) for shape, keys in tables.keys_of_shape.items() for row, key in enumerate(keys)}

    def put(self, key: str, values: Array) -> None:
        """Set the scores of a key at all positions of its shape, in the tables' order; a shape without positions has none.

        Moments that are NaN or infinite say nothing: zero.
        """
        if key in self.row:
            shape, row = self.row[key]
            self.by_shape[shape][row] = np.where(np.isfinite(values), values, 0.0)

    def add(self, key: str, values: Array) -> None:
        """Add to the scores of a key; as above, one that no position has the shape of, such as a frozen factor, has none."""
        if key in self.row:
            shape, row = self.row[key]
            self.by_shape[shape][row] = self.by_shape[shape][row] + np.where(np.isfinite(values), values, 0.0)

    def at(self, key: str, position: int) -> float:
        """Return one score."""
        shape, row = self.row[key]
        return float(self.by_shape[shape][row, self.tables.positions_of_shape[shape].index(position)])

    def value(self, key: str, position: int) -> float:
        """Return one score, or 0 where the key and the position are not of one shape."""
        shape, _ = self.row.get(key, ((), 0))
        return self.at(key, position) if position in self.tables.positions_of_shape.get(shape, ()) else 0.0

    def hold(self, key: str, position: int) -> None:
        """Keep a key where it is, whatever the numbers say."""
        shape, row = self.row[key]
        self.by_shape[shape][row] = -1e6
        self.by_shape[shape][row, self.tables.positions_of_shape[shape].index(position)] = 1e6

    def assign(self, *, prefer: Match | None = None) -> Match:
        """Return the best assignment, shape by shape; where nothing decides, as in `prefer`."""
        for key, position in (prefer or {}).items():
            shape, row = self.row[key]
            self.by_shape[shape][row, self.tables.positions_of_shape[shape].index(position)] += 1e-6
        match: Match = {}
        for shape, table in self.by_shape.items():
            if table.size:
                keys, positions = self.tables.keys_of_shape[shape], self.tables.positions_of_shape[shape]
                match |= {keys[row]: positions[column] for row, column in zip(*assign(table))}
        return match
