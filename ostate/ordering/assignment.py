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

    Where the largest scores of all rows lie in different columns nothing can be better, and scipy (70 MB, half a second) stays out.
    """
    turned = scores.shape[0] > scores.shape[1]
    table = scores.T if turned else scores
    best = np.argmax(table, axis=1) if table.size else np.zeros(0, np.intp)
    if len(np.unique(best)) == len(best):
        rows, columns = np.arange(len(best)), best
    else:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(-table)
    if not turned:
        return rows, columns
    order = np.argsort(columns)
    return columns[order], rows[order]


def at_most(scores: Array) -> float:
    """Return a bound on the sum of the best assignment: the largest score of each row, or column, whichever side is the smaller."""
    if not scores.size:
        return 0.0
    by_row, by_column = scores.max(axis=1), scores.max(axis=0)
    if len(by_row) == len(by_column):
        return float(min(by_row.sum(), by_column.sum()))
    return float(by_row.sum() if len(by_row) < len(by_column) else by_column.sum())
