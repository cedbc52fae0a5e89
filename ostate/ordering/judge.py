"""From the best order and its laws to what may be said of each position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..model import Evidence, PairScore, RawState
from .match import Laws, Match, module_moves, single_moves
from .score import odds_against
from .tables import PairClass, Tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

FALSE = 1e-6
"""The odds of a wrong name in a file that is called verified."""
DOUBT = 1e-3
"""Odds below which a claim that differs from the best order is contradicted rather than undecided."""


def judge(tables: Tables, found: tuple[Match, Laws], raw: RawState, *, claimed: Sequence[str | None] | None) -> Evidence:
    """Return the evidence for a claim, or for the best order itself when there is none."""
    match, now = found
    with_state = [entry.position for entry in raw.entries if entry.has_state]
    order: list[str | None] = [None] * len(raw.entries)
    for key, position in match.items():
        order[position] = key
    speaks, silent, foreign = _significant(tables, match, now)
    odds, rivals = _odds(tables, match, now) if speaks else ({}, {})
    limit = FALSE / max(len(with_state), 1)
    sure = {position for position, value in odds.items() if value <= limit}
    said = order if claimed is None else list(claimed)
    proven = frozenset(position for position in sure if said[position] == order[position])
    contradictions = tuple(
        (position, str(said[position]), str(order[position]))
        for position in with_state
        if said[position] is not None and said[position] != order[position] and odds.get(position, 1.0) <= DOUBT
    )
    undecided = tuple(position for position in with_state if position not in proven)
    scores = sorted(
        (PairScore(name=str(order[p]), position=p, score=0.0, rival=rivals.get(p), margin=_margin(odds[p])) for p in odds), key=lambda s: s.margin
    )
    verdict = "contradicted" if contradictions or foreign else "verified" if proven else "silent"
    return Evidence(
        verdict=verdict,  # type: ignore[arg-type]
        proven=proven,
        undecided=undecided,
        order=tuple(order),
        margin=min((s.margin for s in scores if s.position in proven), default=None),
        contradictions=contradictions,
        weakest=tuple(scores[:20]),
        foreign=foreign,
        used=tuple(speaks),
        silent=dict(tables.silent) | silent,
    )


def _margin(odds: float) -> float:
    return float(min(-np.log10(max(odds, 1e-30)), 30.0)) if np.isfinite(odds) else 0.0


def _odds(tables: Tables, match: Match, now: Laws) -> tuple[dict[int, float], dict[int, str]]:
    odds: dict[int, float] = {}
    rivals: dict[int, str] = {}
    scores = single_moves(tables, match, now)
    for shape, table in scores.by_shape.items():
        keys, positions = tables.keys_of_shape[shape], tables.positions_of_shape[shape]
        for key, value, rival in _square(table, keys, positions, match):
            odds[match[key]] = odds.get(match[key], 0.0) + value
            if rival:
                rivals[match[key]] = rival
    for pair in tables.pairs:
        rows, score = module_moves(pair, match, now, displaced=tables.displaced)
        for row, value in zip(rows, odds_against(score)):
            for key in (pair.modules[row].zero, pair.modules[row].other):
                odds[match[key]] = odds.get(match[key], 0.0) + float(value)
    return odds, rivals


def _square(table: Array, keys: Sequence[str], positions: Sequence[int], match: Match) -> list[tuple[str, float, str | None]]:
    """Return (key, odds against its position, strongest rival), what is not assigned gathered in one row and column."""
    rows = [row for row, key in enumerate(keys) if key in match]
    if not rows:
        return []
    columns = [positions.index(match[keys[row]]) for row in rows]
    free_rows = [row for row in range(len(keys)) if row not in set(rows)]
    free_columns = [column for column in range(len(positions)) if column not in set(columns)]
    n = len(rows)
    square = np.full((n + 1, n + 1), -60.0)
    square[:n, :n] = table[np.ix_(rows, columns)]
    square[n, n] = 0.0
    if free_rows:  # position j goes to an unused key, key j is left over
        square[n, :n] = np.logaddexp.reduce(table[np.ix_(free_rows, columns)], axis=0)
        square[:n, n] = 0.0
    if free_columns:
        square[:n, n] = np.logaddexp.reduce(table[np.ix_(rows, free_columns)], axis=1)
        square[n, :n] = np.maximum(square[n, :n], 0.0)
    odds = odds_against(square)
    off = square[:n, :n] - np.diag(square)[:n, None]
    np.fill_diagonal(off, -np.inf)
    return [
        (keys[row], float(odds[i]), keys[rows[int(np.argmax(square[:n, i] - np.where(np.arange(n) == i, np.inf, 0)))]] if n > 1 else None)
        for i, row in enumerate(rows)
    ]


def _significant(tables: Tables, match: Match, now: Laws) -> tuple[list[str], dict[str, str], bool]:
    """Return (laws that speak, reasons of those that do not, whether the adapter must be another run's)."""
    used, silent = [], {}
    if tables.displaced and tables.pairs:
        value, noise = _displacement_level(tables.pairs, match)
        if value > noise:
            used.append("displacement")
        else:
            silent["displacement"] = "no better than chance"
    if now.balance and any(law.speaks for law in now.balance.values()):
        used.append("balance")
    return used, silent, False


def _displacement_level(pairs: Sequence[PairClass], match: Match) -> tuple[float, float]:
    """Return the matched displacement of all pairs, and what the best assignment of pure noise reaches (mean and six deviations)."""
    from scipy.optimize import linear_sum_assignment

    noise = np.random.default_rng(0)
    value, drawn = 0.0, np.zeros(16)
    for pair in pairs:
        for row, module in enumerate(pair.modules):
            if module.zero in match:
                value += float(pair.cosine[row, pair.zero_positions.index(match[module.zero])]) * np.sqrt(pair.numel)
        for each in range(len(drawn)):
            sham = noise.standard_normal(pair.cosine.shape) * pair.spread * np.sqrt(pair.numel)
            drawn[each] += sham[linear_sum_assignment(-sham)].sum()
    return value, float(drawn.mean() + 6 * max(drawn.std(), 1.0))
