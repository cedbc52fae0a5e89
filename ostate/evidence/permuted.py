"""Gauge tests over permutations, for units that keep their signs: the neurons of a block, the dimensions of a head's values.

As in `gauge`, permutations act within blocks of units, each of them a test by itself: uniform over 1 … b! and independent from block to block.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from . import gauge
from .gauge import SIGNED, TIE, Ranked
from .residual import Products

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


def of_neurons(products: Products, how: Literal["whole", "zero", "other"]) -> list[tuple[Ranked, ...]]:
    """Return the ranks of a block's neurons: by displacement where the state keeps their weights, by balance where it keeps first moments alone.

    A gate has the order of its block's neurons and not their sign, and what it keeps may stand beside the other factor: that one is asked of signs.
    """
    if not products.displacement.any():
        return balanced(products, how)
    return gauge.moved(products.displacement, signs_only=True) if how == "other" else moved(products.displacement)


def balanced(products: Products, how: Literal["whole", "zero", "other"]) -> list[tuple[Ranked, ...]]:
    """Return the same by balance of single units, L_jj = R_jj: both factors or the zero one in every order, the other one with every sign.

    A neuron may change its scale, so the two sides balance neuron by neuron, and between neurons nothing does: their activation is not linear.
    A gate has the order of its block's neurons and not their sign, and its moments may be what stands beside the other factor.

    Args:
        products: L = down^T m_down, (B, n, n), the first index the weight's; R = m_up up^T, the first index the moment's; and what L2 decay
            adds to a neuron's own, which is the weights' and stays where it is.
        how: what is turned.
    """
    columns = []
    size = SIGNED if how == "other" else BLOCK
    for at in range(0, products.left.shape[1] - size + 1, size):
        part = products.block(slice(at, at + size), slice(None))
        one, two = part.left, part.right
        lost, spent = (0.0 if decay is None else np.einsum("bjj->bj", decay)[:, None] for decay in (part.zero_decay, part.other_decay))
        if how != "other":
            orders, places = _orders(), np.arange(BLOCK)
            lefts = one[:, places, orders] - lost
            rights = (two[:, orders, places] if how == "whole" else two[:, places, places][:, None]) - spent
            sizes = np.sqrt((lefts * lefts).sum(axis=2)) + np.sqrt((rights * rights).sum(axis=2))
            apart = np.sqrt(((lefts - rights) ** 2).sum(axis=2))
            columns.append(ranks(-np.divide(apart, sizes, out=np.ones_like(apart), where=sizes > 0)))
        else:
            columns.append(ranks(((np.einsum("bjj->bj", one)[:, None] - lost) * np.einsum("bjj->bj", two)[:, None])[:, 0] @ _signs().T))
    return list(zip(*columns)) if columns else [() for _ in products.left]


def ranks(values: Array) -> list[Ranked]:
    """Return where the first of each row of values (B, |group|) stands among all of its row; ties count against it, and equal rows tell nothing."""
    spread = values.std(axis=1, keepdims=True)
    found = (values >= values[:, :1] - TIE * spread).sum(axis=1)
    return [Ranked(int(rank), values.shape[1]) if each > 0 else Ranked(1, 1) for rank, each in zip(found, spread[:, 0])]


@lru_cache(maxsize=1)
def _signs() -> Array:
    return np.array(list(itertools.product((1.0, -1.0), repeat=SIGNED)))


@lru_cache(maxsize=1)
def _orders() -> NDArray[np.intp]:
    return np.array(list(itertools.permutations(range(BLOCK))), np.intp)
