"""The test of `exchanged` for factors stored flat, turned by signed permutations: a B (n, r) and an A (r, n) that are runs of n r numbers.

Were the two exchanged, the run beside B would hold A's moments and the run beside A B's. Turning the pair by g = (s, p), latent dimension j becomes
p(j) with the sign s_j in B's columns and A's rows, and in the moments as what they would be. Number f of a run lies in column f mod r of a B and in
row f // n of an A, so every product that the claim compares splits into cells: its latent dimension j' as claimed, and k' as exchanged. With

    W[j, k, j', k'] = sum over f in cell (j', k') of B[f // r, j] X[k, f mod n],

X the run beside B as an A, the turned L_j'j' is the sum over k' of s_j s_k W[j, k, j', k'] where p(j) = j', p(k) = k'; R likewise from A and the
run beside it.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Turns = tuple[NDArray[np.intp], Array]

MOST_RANK = 32
"""Rank up to which its cells, (r, r, r, r), are worth its memory: 8 MB."""
ENUMERATED = 4
"""Rank up to which every signed permutation is tried (g and -g are one): 192. Of more, DRAWS of them, an exact test too."""
DRAWS = 1023


def products(tall: Array, wide: Array, *, turn: tuple[bool, bool], permuted: bool) -> Array:
    """Return the sums over the cells of a tall (n, r) and a wide (r, n) array for every turn of the exchanged pair, (turns, r, r).

    The last two indices are the latent dimensions of `tall` and of `wide`, one of them as claimed; the identity is the first turn.

    Args:
        tall: B, or the moments beside A as those of B.
        wide: the moments beside B as those of A, or A.
        turn: whether `tall` and `wide` turn with the pair; moments of another module stay.
        permuted: turn by signed permutations, not by signs alone.
    """
    cells = _cells(tall, wide)
    orders, signs = turns(tall.shape[1], permuted=permuted)
    still = np.broadcast_to(np.arange(tall.shape[1]), orders.shape), np.ones_like(signs)
    (one, one_signs), (two, two_signs) = ((orders, signs) if each else still for each in turn)
    columns, rows = np.arange(tall.shape[1])[None, :, None], np.arange(tall.shape[1])[None, None, :]
    return np.asarray(cells[one[:, :, None], two[:, None, :], columns, rows] * one_signs[:, :, None] * two_signs[:, None, :])


def _cells(tall: Array, wide: Array) -> Array:
    """Return W of two arrays that are the same run of numbers each, (r, r, r, r)."""
    (n, rank), place = tall.shape, np.arange(tall.size)
    cells = np.zeros((rank,) * 4)
    for row in range(rank):
        within = place[row * n : (row + 1) * n]
        for column in range(rank):
            first = (column - row * n) % rank
            here = within[first::rank]
            cells[:, :, column, row] = tall[here // rank].T @ wide[:, here - row * n].T
    return cells


@lru_cache(maxsize=4)
def turns(rank: int, *, permuted: bool) -> Turns:
    """Return turns as (for each new dimension the old one, the old one's sign), (count, r) each, the identity first."""
    if permuted and rank <= ENUMERATED:
        pairs = [(order, (1, *rest)) for order in itertools.permutations(range(rank)) for rest in itertools.product((1, -1), repeat=rank - 1)]
        return np.array([order for order, _ in pairs]), np.array([signs for _, signs in pairs], np.float64)
    draw = np.random.default_rng(rank)
    orders = np.array([np.arange(rank), *(draw.permutation(rank) if permuted else np.arange(rank) for _ in range(DRAWS))])
    signs = np.vstack([np.ones(rank), draw.choice((1.0, -1.0), (DRAWS, rank))])
    return orders, signs
