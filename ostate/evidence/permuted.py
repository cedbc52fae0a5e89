"""The gauge test where units may stand in any order but keep their signs: the neurons of a block, the dimensions of a head's values.

As in `gauge`, permutations act within blocks of units, each of them a test by itself: uniform over 1 … b! and independent from block to block.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .gauge import TIE, Ranked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

BLOCK = 4
"""Units that are exchanged among themselves: 24 orders, 1.4 digits a block."""


def moved(displacement: Array) -> list[tuple[Ranked, ...]]:
    """Return one rank per block of each unit, for "these are another's moments": by the trace of D in every order of the moments.

    Args:
        displacement: D, (B, n, n), the first index the weight's, the second the moment's; what lies behind the last whole block is left out.
    """
    orders, places = _orders(), np.arange(BLOCK)
    blocks = [displacement[:, at : at + BLOCK, at : at + BLOCK] for at in range(0, displacement.shape[1] - BLOCK + 1, BLOCK)]
    columns = [ranks(block[:, places, orders].sum(axis=2)) for block in blocks]
    return list(zip(*columns)) if columns else [() for _ in displacement]


def ranks(values: Array) -> list[Ranked]:
    """Return where the first of each row of values (B, |group|) stands among all of its row; ties count against it, and equal rows tell nothing."""
    spread = values.std(axis=1, keepdims=True)
    found = (values >= values[:, :1] - TIE * spread).sum(axis=1)
    return [Ranked(int(rank), values.shape[1]) if each > 0 else Ranked(1, 1) for rank, each in zip(found, spread[:, 0])]


@lru_cache(maxsize=1)
def _orders() -> NDArray[np.intp]:
    return np.array(list(itertools.permutations(range(BLOCK))), np.intp)
