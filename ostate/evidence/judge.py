"""From the best order and its densities to the evidence for each position."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.naming import Evidence, PairScore
from ostate.core.state import RawState

from .densities import FittedDensities, Match, displacement_ratio, path_scores, projected_scores
from .paths import Paths
from .permutation_odds import odds_against
from .profiles import module_of
from .search import Scores, module_scores, single_scores
from .significance import Significance, balance_level, displacement_level, start_level
from .tables.tables import PairClass, Shape, Tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

MAX_FALSE_NAME_ODDS = 1e-6
"""Odds of a wrong name in a file that is called verified."""
FEWEST_MODULES = 4
"""Modules of a class from which fitted densities overthrow a claim, and one test alone names a position: two or three values tell little."""
LEAST_RANK = 4
"""Rank from which fitted tails are used: a residual of few numbers is small by chance now and then."""
MAX_SUSPECT_ODDS = 1e-3
"""Odds of the best order below which a position where the claim differs is suspect: not contradicted, but not proven either."""
MIN_LOG_RATIO = -3.0
"""A log ratio below which a pair's own numbers are against it."""
DISPLACEMENT_STEPS = 30.0
"""Steps up to which displacement of the true order cannot hide; from BALANCE_STEPS on, balance cannot."""
BALANCE_STEPS = 10.0
_WEAKEST = 20


@dataclass(slots=True)
class Odds:
    """Odds against each position's key in the best order, and its strongest rival."""

    wrong: dict[int, float] = field(default_factory=dict)
    rival: dict[int, str] = field(default_factory=dict)
    score: dict[int, float] = field(default_factory=dict)
    scores: Scores | None = None
    """All single moves, from the best order."""

    def add(self, position: int, odds: float) -> None:
        """Add the odds of one more way to be wrong."""
        self.wrong[position] = self.wrong.get(position, 0.0) + odds


def judge(tables: Tables, paths: Paths, match: Match, now: FittedDensities, raw: RawState, *, claimed: Sequence[str | None] | None) -> Evidence:
    """Return the evidence for a claim, or for the best order itself when there is none."""
    levels = _levels(tables, paths, match)
    used = tuple(name for name, level in levels.items() if level.significant)
    silent = dict(tables.silent) | {name: level.why for name, level in levels.items() if not level.significant and name not in tables.silent}
    other_run = not used and any(level.powerful for level in levels.values())
    odds = _odds_of(tables, paths, match, now) if used else Odds()
    believed, overthrown = _believed(tables, both=len(used) > 1), _overthrown(tables)
    found = weigh(odds, match, raw, believed=believed, overthrown=overthrown, claimed=claimed)
    without = _without_their_factor(tables, match, found.proven)
    if not without.isdisjoint(found.proven):
        found = weigh(odds, match, raw, believed=believed - without, overthrown=overthrown, claimed=claimed)
    return replace(found, verdict="contradicted" if other_run else found.verdict, other_run=other_run, used=used, silent=silent)


def weigh(
    odds: Odds, match: Match, raw: RawState, *, believed: Collection[int], overthrown: Mapping[int, float], claimed: Sequence[str | None] | None
) -> Evidence:
    """Return what the odds against the best order say of a claim.

    Args:
        odds: of each position's key in the best order.
        match: the best order.
        raw: the state.
        believed: positions that may be proven.
        overthrown: position -> odds below which the claim is contradicted there.
        claimed: by position; None: the best order itself.
    """
    with_state = [entry.position for entry in raw.entries if entry.has_state]
    order: list[str | None] = [None] * len(raw.entries)
    for key, position in match.items():
        if odds.wrong.get(position, np.inf) < 1:
            order[position] = key
    said = order if claimed is None else list(claimed)
    agreed = [position for position in with_state if order[position] is not None and said[position] == order[position] and position in believed]
    proven = _within_budget(agreed, odds)
    contradictions = tuple(
        (position, str(said[position]), str(order[position]))
        for position in with_state
        if said[position] is not None and order[position] not in (None, said[position]) and odds.wrong[position] <= overthrown.get(position, 0.0)
    )
    suspects = tuple(p for p in with_state if said[p] is not None and order[p] not in (None, said[p]) and odds.wrong[p] <= MAX_SUSPECT_ODDS)
    scores = sorted((_pair_score(position, str(order[position]), odds) for position in agreed), key=lambda score: score.margin)
    return Evidence(
        verdict="contradicted" if contradictions else "verified" if proven else "silent",
        proven=proven,
        undecided=tuple(position for position in with_state if position not in proven),
        order=tuple(order),
        margin=min((score.margin for score in scores if score.position in proven), default=None),
        contradictions=contradictions,
        apart=suspects,
        weakest=tuple(scores[:_WEAKEST]),
    )


def _believed(tables: Tables, *, both: bool) -> set[int]:
    """Return the positions that fitted tails may name: of rank LEAST_RANK, in classes of FEWEST_MODULES or where two tests are significant."""
    found = {position for unpaired in tables.unpaired for position in unpaired.positions}
    for pair in tables.pairs:
        if pair.rank >= LEAST_RANK and (both or len(pair.modules) >= FEWEST_MODULES):
            found |= {*pair.zero_positions, *pair.other_positions}
    return found


def _without_their_factor(tables: Tables, match: Match, proven: Collection[int]) -> set[int]:
    """Return the positions of magnitudes and biases whose module's zero factor is not proven.

    They are few, and all of them may go one way: beside a state of other layers, of none of these modules, they fitted each other's places.
    """
    modules = [module for pair in tables.pairs for module in pair.modules]
    vectors = {key: module_of(key, modules) for unpaired in tables.unpaired for key in unpaired.keys if key in match}
    return {match[key] for key, module in vectors.items() if module is not None and match.get(module.zero) not in proven}


def _overthrown(tables: Tables) -> dict[int, float]:
    """Return the odds of the best order below which a claim is contradicted, for the positions where it can be.

    A search looks at every position that a factor could have gone to: its price is their number.
    """
    found: dict[int, float] = {}
    for pair in tables.pairs:
        if len(pair.modules) >= FEWEST_MODULES and pair.rank >= LEAST_RANK:
            for positions in (pair.zero_positions, pair.other_positions):
                found.update(dict.fromkeys(positions, MAX_FALSE_NAME_ODDS / max(len(positions), 1)))
    for unpaired in tables.unpaired:
        found.update(dict.fromkeys(unpaired.positions, MAX_FALSE_NAME_ODDS / max(len(unpaired.positions), 1)))
    return found


def _within_budget(positions: Sequence[int], odds: Odds) -> frozenset[int]:
    """Return the positions, surest first, whose odds of being wrong sum to MAX_FALSE_NAME_ODDS at most."""
    spent, taken = 0.0, []
    for position in sorted(positions, key=lambda position: odds.wrong[position]):
        spent += odds.wrong[position]
        if spent > MAX_FALSE_NAME_ODDS:
            break
        taken.append(position)
    return frozenset(taken)


def _levels(tables: Tables, paths: Paths, match: Match) -> dict[str, Significance]:
    """Return how far each test stands above chance for the order as a whole."""
    steps = [entry.step for pair in tables.pairs for entry in (tables.reader.raw.entries[position] for position in pair.zero_positions)]
    known = [step for step in steps if step is not None]
    levels = {}
    if tables.pairs and tables.displaced:
        levels["displacement"] = displacement_level(tables, match, early=bool(known) and max(known) <= DISPLACEMENT_STEPS)
    if tables.pairs and tables.balanced:
        chosen = "displacement" not in levels or not levels["displacement"].significant
        levels["balance"] = balance_level(tables, paths, match, late=bool(known) and min(known) >= BALANCE_STEPS, chosen=chosen)
    if any(any(unpaired.known) for unpaired in tables.unpaired):
        levels["start"] = start_level(tables, match)
    return levels


def _pair_score(position: int, key: str, odds: Odds) -> PairScore:
    wrong = odds.wrong[position]
    margin = float(min(-np.log10(max(wrong, 1e-30)), 30.0))
    return PairScore(name=key, position=position, score=odds.score.get(position, 0.0), rival=odds.rival.get(position), margin=margin)


def _odds_of(tables: Tables, paths: Paths, match: Match, now: FittedDensities) -> Odds:
    """Return the odds against every position: of moving one factor at a time within its shape, and of moving whole modules."""
    odds = Odds()
    scores = single_scores(tables, paths, match, now)
    odds.scores = scores
    complete = all(len(tables.keys_of_shape[shape]) == len(positions) for shape, positions in tables.positions_of_shape.items())
    for shape in scores.by_shape:
        _odds_of_shape(odds, tables, scores, shape, match, complete=complete)
    chances = _chances(tables, paths, match, now)
    for pair in tables.pairs:
        rows, table = module_scores(pair, match, now, displaced=tables.displaced)
        if len(rows) > 1:
            for row, value, elsewhere in zip(rows, odds_against(table), _elsewhere(tables, pair, rows, match, now, chances)):
                odds.add(match[pair.modules[row].zero], float(value + elsewhere))
                odds.add(match[pair.modules[row].other], float(value + elsewhere))
    return odds


def _elsewhere(tables: Tables, pair: PairClass, rows: Sequence[int], match: Match, now: FittedDensities, found: dict[str, float]) -> Array:
    """Return a bound on the odds that a module's two factors both lie elsewhere, at positions that no single move reaches.

    Displacement names the zero factor whatever the other one is. Where it does not, balance alone chose the best of z * f pairs of
    positions, and as many unrelated pairs had the chance to balance as well as this one does.
    """
    chance = np.array([found.get(pair.modules[row].other, 1.0) for row in rows])
    alone = np.ones(len(rows))
    if tables.displaced:
        cells = np.ix_(rows, [pair.zero_at[match[pair.modules[row].zero]] for row in rows])
        alone = np.minimum(odds_against(displacement_ratio(pair.cosine[cells], pair.spread[cells], pair.numel, now)), 1)
    return np.asarray(alone * np.minimum(chance * len(pair.zero_positions) * len(pair.other_positions), 1))


def _chances(tables: Tables, paths: Paths, match: Match, now: FittedDensities) -> dict[str, float]:
    """Return, by key of the other factor, the chance that an unrelated pair balances as well; of two densities the better, at the price of two."""
    found: dict[str, float] = {}
    for candidates, densities in (
        (projected_scores(tables, paths, match), now.balance),
        (path_scores(tables, paths, match) if now.path else (), now.path),
    ):
        for each in candidates:
            density = densities.get(each.pair.rank)
            for row, matched, values in zip(each.rows, each.matched, each.values) if density is not None else ():
                if density is not None and matched is not None:
                    key = each.pair.modules[row].other
                    found[key] = min(found.get(key, 1.0), 2 * float(density.null.beyond(values[matched])))
    return found


def _odds_of_shape(odds: Odds, tables: Tables, scores: Scores, shape: Shape, match: Match, *, complete: bool) -> None:
    """Add the odds of all other assignments within one shape; what is not assigned is gathered in one row and one column."""
    table, keys, positions = scores.by_shape[shape], tables.keys_of_shape[shape], tables.positions_of_shape[shape]
    rows = [row for row, key in enumerate(keys) if key in match]
    if not rows:
        return
    columns = [positions.index(match[keys[row]]) for row in rows]
    free_rows = sorted(set(range(len(keys))) - set(rows))
    free_columns = sorted(set(range(len(positions))) - set(columns))
    n = len(rows)
    square = np.full((n + 1, n + 1), -60.0)
    square[n, n] = 0.0
    square[:n, :n] = table[np.ix_(rows, columns)]
    if free_rows:
        square[n, :n] = np.logaddexp.reduce(table[np.ix_(free_rows, columns)], axis=0)
        square[:n, n] = 0.0
    if free_columns:
        square[:n, n] = np.logaddexp.reduce(table[np.ix_(rows, free_columns)], axis=1)
        square[n, :n] = np.maximum(square[n, :n], 0.0)
    own = np.diag(square)[:n].copy()
    wrong = odds_against(square)[:n]
    others = square[:n, :n].copy()
    np.fill_diagonal(others, -np.inf)
    for i, row in enumerate(rows):
        position = match[keys[row]]
        alone = n == 1 and not free_rows and not free_columns
        against = own[i] < MIN_LOG_RATIO or (own[i] == 0 and (not alone or not complete))
        odds.add(position, np.inf if against else float(wrong[i]))
        odds.score[position] = float(own[i])
        if n > 1:
            odds.rival[position] = keys[rows[int(np.argmax(others[:, i]))]]
