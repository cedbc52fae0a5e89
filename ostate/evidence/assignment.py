"""The best one-to-one assignment of a table of scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]
    Places = NDArray[np.intp]


def assign(scores: Array) -> tuple[Places, Places]:
    """Return (rows, columns) of the assignment whose scores, (k, p), sum to most; as many as the smaller side has.

    A score that is not finite counts as less than any other.
    """
    turned = scores.shape[0] > scores.shape[1]
    table = np.asarray(scores.T if turned else scores, np.float64)
    rows = np.arange(len(table))
    finite = np.isfinite(table)
    if not finite.all():
        table = np.where(finite, table, table[finite].min(initial=0.0) - 1)
    if not table.size or table.min() == table.max():  # nothing is known yet: as they stand
        columns = rows
    else:
        if table.shape[0] == table.shape[1]:  # each column is taken once: what is taken off a whole column changes no choice, and fewer rows collide
            table = table - table.max(axis=0)
        columns = _rearranged(-table)
    if not turned:
        return rows, columns
    order = np.argsort(columns)
    return columns[order], rows[order]


def _rearranged(cost: Array) -> Places:
    """Return the column of each row in the assignment of least cost, starting from each row's best column.

    Rows that share one are placed one by one along the shortest augmenting path. Nothing is to be done where all lie apart.

    Source: Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Trans. Aerosp. Electron. Syst. 52 (2016).
    """
    rows, columns = cost.shape
    of_row, of_column = cost.min(axis=1), np.zeros(columns)  # what each row and column is worth: feasible, and tight at each row's best
    best = np.argmin(cost, axis=1)
    owner, place = np.full(columns, -1), np.full(rows, -1)
    owner[best[::-1]] = np.arange(rows)[::-1]  # the first of those that share a column
    first = owner[owner >= 0]
    place[first] = best[first]
    for free in np.flatnonzero(place < 0):
        shortest, beaten, before = np.full(columns, np.inf), np.full(columns, np.inf), np.full(columns, -1)
        row, low, reached = int(free), 0.0, [int(free)]
        done: list[int] = []
        lengths: list[float] = []
        while True:
            through = cost[row] - of_column
            through += low - of_row[row]
            better = through < beaten
            np.copyto(shortest, through, where=better)
            np.copyto(beaten, through, where=better)
            before[better] = row
            column = int(shortest.argmin())
            low = float(shortest[column])
            done.append(column)
            lengths.append(low)
            shortest[column], beaten[column] = np.inf, -np.inf  # never looked at, never beaten again
            if owner[column] < 0:
                break
            row = int(owner[column])
            reached.append(row)
        of_row[reached] += low - np.array([0.0, *lengths[:-1]])
        of_column[done] -= low - np.array(lengths)
        while True:
            row = int(before[column])
            owner[column] = row
            place[row], column = column, int(place[row])
            if row == free:
                break
    return place


def at_most(scores: Array) -> float:
    """Return a bound on the sum of the best assignment: the largest score of each row, or column, whichever side is the smaller."""
    if not scores.size:
        return 0.0
    by_row, by_column = scores.max(axis=1), scores.max(axis=0)
    if len(by_row) == len(by_column):
        return float(min(by_row.sum(), by_column.sum()))
    return float(by_row.sum() if len(by_row) < len(by_column) else by_column.sum())
