"""How many of a group's digits a module reaches: 1 where its gauge stands first of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ostate.evidence import combine
from ostate.evidence.gauge import Ranked
from ostate.evidence.looks import Looks, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


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
    """Return each module's share in a way of ranking, or in all that was asked where that is more: what stands in its gauge so is no other's."""
    return np.array([max(share(each, way), share(each)) for each in ranked])


def by_shape(live: Sequence[Place], looks: Looks) -> list[list[Place]]:
    """Return the modules of each pair of shapes."""
    found: dict[object, list[Place]] = {}
    for place in live:
        found.setdefault(looks.shapes(place.module), []).append(place)
    return list(found.values())
