"""Combine ranks into digits: -log10 of the chance of all that was seen, if an alternative order were the true one."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ostate.evidence.gauge import Ranked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

EXPONENTS = (1.0, 2.0, 3.0, math.inf)
"""How steeply an e-value falls with the rank; inf asks for the first rank everywhere. Fixed, and averaged over: none is chosen by the data."""

CHANCES = {"asked": 0.45, "balance": 0.45, "signs": 0.1}
"""Share of a chance that each way of ranking is given. Signs say much where they are needed, at high rank early in a run, and pay most."""
_FIELDS = {"asked": 0, "balance": 2, "signs": 4}
"""Way -> which fields of a `Ranked` are its rank and, behind it, its size."""
EXACT = 64
"""Ranks up to which their sum's own distribution is computed."""
COUNTED = 1 << 16
"""Elements of a group up to which a sum over all of its ranks is taken term by term."""
GRID = 16
"""Steps, per factor e of a rank, in which that sum is taken."""


def log_evalues(ranked: Iterable[Ranked]) -> Array:
    """Return log10 of e-values of independent ranks, one for each of EXPONENTS and way of ranking, such that their mean is an e-value.

    f(rank) = rank^-x size / sum_k k^-x has mean 1 where the rank is uniform over 1 … size, and at most 1 where ties are counted up; so has a product.
    """
    found_by_way = []
    asked = weighed_ways(tuple(ranked))
    for chance, ranks in asked:
        found = np.full(len(EXPONENTS), math.log10(chance * len(asked)))
        for (rank, size), count in Counter(ranks).items():
            found += count * np.array([_log_evalue(rank, size, exponent) for exponent in EXPONENTS])
        found_by_way.append(found)
    return np.concatenate(found_by_way)


def ways(ranked: Sequence[Ranked]) -> dict[str, list[tuple[int, int]]]:
    """Return way of ranking (all statistics, balance alone, signs alone) -> (rank, group size) of each module, for each way that any module has."""
    return {way: by_way(ranked, way) for way, at in _FIELDS.items() if at == 0 or any(one[at + 1] for one in ranked)}


def by_way(ranked: Sequence[Ranked], way: str) -> list[tuple[int, int]]:
    """Return (rank, group size) of each module by one of `ways`; by all statistics for a module that has not that one."""
    at = _FIELDS[way]
    return [(one[at], one[at + 1]) if one[at + 1] else (one[0], one[1]) for one in ranked]


def weighed_ways(ranked: Sequence[Ranked]) -> list[tuple[float, list[tuple[int, int]]]]:
    """Return the ways, each with its share of the chance of being wrong: they sum to 1."""
    found = ways(ranked)
    total = sum(CHANCES[way] for way in found)
    return [(CHANCES[way] / total, ranks) for way, ranks in found.items()]


@lru_cache(maxsize=1 << 14)
def _log_evalue(rank: int, size: int, exponent: float) -> float:
    if size == 1:
        return 0.0
    if math.isinf(exponent):
        return math.log10(size) if rank == 1 else -math.inf
    head = min(size, COUNTED)
    total = float((np.arange(1, head + 1, dtype=np.float64) ** -exponent).sum())
    if head < size:  # the rest by its integral, which is more
        total += math.log(size / head) if exponent == 1 else (head ** (1 - exponent) - size ** (1 - exponent)) / (exponent - 1)
    return math.log10(size / total) - exponent * math.log10(rank)


def log_mean(log_values: Array) -> float:
    """Return log10 of the mean of 10^log_values: the mean of e-values is one."""
    largest = float(log_values.max())
    return largest + math.log10(float((10.0 ** (log_values - largest)).mean()))


def digits(ranked: Sequence[Ranked]) -> float:
    """Return the digits against an alternative under which these ranks are independent and uniform: its chance is at most 10^-digits.

    Few ranks are added up exactly, and of the ways of ranking the best counts, each at its share of the chance. For more ranks,
    P(e >= 1 / a) <= a for every e-value (Markov): about one digit less, of many.
    """
    if len(ranked) > EXACT:
        return max(0.0, log_mean(log_evalues(ranked)))
    return _digits_of_few(tuple(ranked))


@lru_cache(maxsize=4096)
def _digits_of_few(ranked: tuple[Ranked, ...]) -> float:
    """Return the same for at most EXACT ranks: asked of each module by itself, of thousands the same few values."""
    return max(0.0, max(exact_digits(ranks) + math.log10(chance) for chance, ranks in weighed_ways(ranked)))


def exact_digits(ranks: Sequence[tuple[int, int]]) -> float:
    """Return -log10 of the chance that the sum of ln rank, in steps of 1 / GRID, is at most what it is, if the ranks are independent and uniform.

    Fisher's statistic, of pairs (rank, size), with its own distribution, by convolution; ties counted up only make it smaller than the truth.
    """
    return _sum_digits(sum(_score(rank) for rank, _ in ranks), tuple(sorted(Counter(size for _, size in ranks).items())))


@lru_cache(maxsize=4096)
def _sum_digits(reached: int, sizes: tuple[tuple[int, int], ...]) -> float:
    """Return -log10 of the chance of a sum up to `reached`.

    Args:
        reached: in steps of 1 / GRID.
        sizes: pairs (size of a group, how many ranks have it).
    """
    chances = np.zeros(reached + 1)
    chances[0], scale = 1.0, 0.0
    for size, count in sizes:
        single = _chances(size)[: reached + 1]
        for _ in range(count):
            chances = np.convolve(chances, single)[: reached + 1]
            top = float(chances.max())
            chances, scale = chances / top, scale + math.log10(top)
    return max(0.0, -scale - math.log10(float(chances.sum())))


@lru_cache(maxsize=16)
def _chances(size: int) -> Array:
    upto = [bisect_right(range(1, size + 1), score, hi=size, key=_score) for score in range(_score(size) + 1)]  # no rank by itself: of 1e9 335 scores
    return np.diff(upto, prepend=0) / size


def _score(rank: int) -> int:
    return round(GRID * math.log(rank))


def permutations_bound(log_evalues_by_kind: Sequence[float], mute: int = 0) -> float:
    """Return log10 of the sum, over all orders of K exchangeable kinds that move one of these, of a bound on each one's chance; at most 0.

    A permutation's bound is the product of w_k = 1 / e_k over the kinds that it moves, less one of each cycle: the first, as the kinds stand.
    Built up kind by kind, the k-th kind either opens a cycle, and is its first, or stands behind one of the k - 1 before it, with w_k. So the
    sum over all permutations is the product of 1 + (k - 1) w_k, exactly.

    Kinds that nothing is asked of, e_k = 1, come first, so that each order of theirs stands beside every such sum.

    Args:
        log_evalues_by_kind: log10 e_k, in an order fixed beforehand.
        mute: kinds beside them that nothing is asked of.
    """
    total = 0.0
    for before, log_evalue in enumerate(log_evalues_by_kind, mute):
        total += math.log1p(before * 10.0 ** min(-log_evalue, 300.0))
    if total <= 0:
        return -math.inf
    return min(0.0, math.log10(math.expm1(total)) + math.log10(math.factorial(mute))) if total < 1 else 0.0
