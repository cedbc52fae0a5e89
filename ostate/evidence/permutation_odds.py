"""Bound the chance that a row of log-likelihood ratios is matched wrongly, over all permutations. Fitted scores go in: this proves no claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


def odds_against(scores: Array) -> Array:
    """Return, for a square matrix whose diagonal is the order in question, a bound (n,) on the chance that each row is matched wrongly.

    Every permutation is a set of cycles. With E_ij = exp(S_ij - S_ii), i != j, those that move row i hold a share of all permutations'
    weight that is at most the weight of the cycles through i, and so at most [(I - E)^-1]_ii - 1 where the powers of E fall.

    Rows that the scores cannot distinguish, a block K, get infinity. Cycles of the others may pass through it, in at row b and out from row a.
    All ways from b to a weigh at most the sum of E_KK^l over l < |K|. And whatever K's rows do beside such a way, they would with row a in
    column b in its place, so that all ways together hold at most 1 / E_ab of all weight. K is replaced by the smaller of the two, pair by pair;
    a row that is then led back to itself too often cannot be distinguished either.
    """
    edges = np.exp(np.clip(scores - np.diag(scores)[:, None], -60, 60))  # one that was cut at 60 makes a cycle of weight 1 or more: infinity
    np.fill_diagonal(edges, 0.0)
    odds, left, weights = np.full(len(scores), np.inf), np.arange(len(scores)), edges
    for linked in (1e-1, 1e-2, 1e-4, 1e-8, 0.0):
        if _radius(weights) < _CONVERGES:
            break
        gone = np.zeros(len(left), bool)
        for members in _components(weights > linked):
            part = weights[np.ix_(members, members)]
            if _radius(part) < _CONVERGES:
                continue
            ways, power = np.eye(len(members)), np.eye(len(members))
            with np.errstate(over="ignore", invalid="ignore"):
                for _ in range(len(members) - 1):
                    power = power @ part
                    ways += power
                through = np.fmin(ways, 1 / (edges[np.ix_(left[members], left[members])].T + np.eye(len(members))))
                weights = weights + weights[:, members] @ through @ weights[members]
            weights = np.where(np.isnan(weights), np.inf, weights)  # infinity times zero: as good as infinity
            weights[members], weights[:, members], gone[members] = 0.0, 0.0, True
        weights, left = weights[np.ix_(~gone, ~gone)], left[~gone]
    if len(left) and _radius(weights) < _CONVERGES:
        odds[left] = np.maximum(np.diag(np.linalg.inv(np.eye(len(left)) - weights)) - 1, 0)
    return odds


_CONVERGES = 0.9


def _radius(weights: Array) -> float:
    """Return the spectral radius, or a bound on it where that is small enough: no row's sum is exceeded (Perron, Frobenius)."""
    bound = float(weights.sum(axis=1).max()) if len(weights) else 0.0
    if not np.isfinite(bound):
        return np.inf
    return bound if bound < _CONVERGES else float(np.max(np.abs(np.linalg.eigvals(weights))))


def _components(linked: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Return the sets of rows that all reach one another, every row in one of them: Kosaraju's two walks, each along one row a step."""
    finished: list[int] = []
    for _ in _walks(linked, range(len(linked)), finished):
        pass
    return list(_walks(linked.T, reversed(finished), []))


def _walks(linked: NDArray[np.bool_], starts: Iterable[int], finished: list[int]) -> Iterator[NDArray[np.intp]]:
    """Yield what is reached first from each start, sorted, depth first; rows are added to `finished` as their last way out is taken."""
    new = np.ones(len(linked), bool)
    for start in starts:
        if not new[start]:
            continue
        new[start], way, reached = False, [start], [start]
        while way:
            onward = linked[way[-1]] & new
            after = int(onward.argmax())
            if onward[after]:
                new[after] = False
                way.append(after)
                reached.append(after)
            else:
                finished.append(way.pop())
        yield np.array(sorted(reached), np.intp)
