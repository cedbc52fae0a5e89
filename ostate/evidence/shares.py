"""How many of a group's digits a module reaches: 1 where its gauge stands first of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ostate.evidence import combine
from ostate.evidence.gauge import Ranked
from ostate.evidence.looks import How, Looks, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


HOWS: tuple[How, ...] = ("whole", "zero", "other")
BULK = 0.5
"""Share of the digits below which a module's gauge may be any other: two such of one shape are suspect, since names exchanged by hand are two."""
TAIL = 5.0
"""Times as many low shares as the others thin out to, from which they are none of them."""
OWN_DIGITS = 1.3
"""Digits from which a module's gauge is said to be its own: of moments that are another run's one in twenty has them, in each way of ranking."""


def elements(ranked: Sequence[Ranked], way: str = "asked") -> float:
    """Return the size of a module's group: of all its blocks together."""
    return float(math.prod(float(size) for _, size in combine.by_way(ranked, way)))


def share(ranked: Sequence[Ranked], way: str = "asked") -> float:
    """Return the digits reached over the digits that the group has: 1 at the floor, about .17 for unrelated modules.

    Args:
        ranked: of a module's blocks.
        way: of ranking them, a key of `combine.ways`; by all that was asked where it has no such.
    """
    return _share(tuple(ranked), way)


@lru_cache(maxsize=4096)
def _share(ranked: tuple[Ranked, ...], way: str) -> float:
    """Return the same: the same modules are asked for in several ways."""
    pairs = combine.by_way(ranked, way)
    full = sum(math.log(size) for _, size in pairs)
    return sum(math.log(size / rank) for rank, size in pairs) / full if full > 0 else math.nan


def reached_by(ranked: Sequence[Sequence[Ranked]], way: str) -> Array:
    """Return each module's share by one way of ranking, or by all statistics together where that is larger: high where its moments are its own."""
    return np.array([max(share(each, way), share(each)) for each in ranked])


def best_digits(ranked: Sequence[Ranked]) -> float:
    """Return the digits of a module by the way of ranking that gives most; by each way, one in twenty unrelated modules has more than 1.3."""
    return max(combine.exact_digits(pairs) for _, pairs in combine.weighed_ways(ranked))


def by_shape(live: Sequence[Place], looks: Looks) -> list[list[Place]]:
    """Return the modules of each pair of shapes."""
    found: dict[object, list[Place]] = {}
    for place in live:
        found.setdefault(looks.shapes(place.module), []).append(place)
    return list(found.values())


def of_another_run(lost: set[int], live: Sequence[Place], looks: Looks) -> set[int]:
    """Return the lost modules whose moments, or one factor's, may be of another run: in no way of ranking do they say that they are their own.

    Args:
        lost: modules that stand apart by what they say where they are.
        live: pairs of one group.
        looks: at them.
    """
    mine = [place for place in live if place.module in lost]
    ranked = [looks.ranked(mine, how) for how in HOWS]
    return {place.module for place, *each in zip(mine, *ranked) if any(best_digits(one) < OWN_DIGITS for one in each if one)}


def is_tail(shares: Array) -> bool:
    """Return True when the low shares (n,) are the end of a falling distribution: no more lie below BULK than its decline above BULK predicts.

    Of those that are not at 1, some are below 3/4, and of these as small a part is expected below 1/2. Names exchanged by hand leave a gap.
    """
    missed = 1 - shares
    some, much, most = ((missed > bound).sum() for bound in (1e-9, (1 - BULK) / 2, 1 - BULK))
    return bool(most <= TAIL * (much - most) ** 2 / max(some - most, 1))
