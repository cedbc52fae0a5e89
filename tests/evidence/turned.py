"""Signed permutations written out, and what they do to the products of one look: the slow way, for tests to compare with."""

from __future__ import annotations

import itertools

import numpy as np

from ostate.evidence.residual import Products

TURNED = {  # what a gauge of the moments turns: D, L, R, and the drifts of either factor
    "whole": (True, True),
    "zero": (True, False),
    "other": (False, True),
}


def signed_permutations(size: int, *, signs_only: bool = False) -> np.ndarray:
    orders = [tuple(range(size))] if signs_only else itertools.permutations(range(size))
    return np.array([np.diag(signs).astype(float)[:, order] for order in orders for signs in itertools.product((1, -1), repeat=size)])


def turn(products: Products, g: np.ndarray, kind: str) -> Products:
    """Return the products of the same modules with their moments in gauge g, (r, r) or one for each module."""
    of_zero, of_other = TURNED[kind]
    back = np.swapaxes(g, -1, -2)
    d, left, right, *drifts = products[:7]
    turns = (of_zero, of_other, of_zero, of_other)
    drifts = [part if not turned else g @ part @ back if part.ndim == 3 else _permuted(part, g) for part, turned in zip(drifts, turns)]
    return Products(d @ back if of_zero else d, left @ back if of_zero else left, g @ right if of_other else right, *drifts, *products[7:])


def _permuted(part: np.ndarray, g: np.ndarray) -> np.ndarray:
    return np.einsum("...ab,...b->...a", np.abs(g), part)


def anything(count: int, rank: int, rng: np.random.Generator, *, decay: bool = False) -> Products:
    matrices = [rng.standard_normal((count, rank, rank)) for _ in range(5)]
    found = Products(*matrices, *(rng.random((count, rank)) + 0.1 for _ in range(2)))
    if not decay:
        return found
    roots = [3 * rng.standard_normal((count, rank, 9)) for _ in range(2)]  # far above the gradients
    decays = [root @ root.swapaxes(1, 2) for root in roots]
    return found._replace(left=found.left + decays[0], right=found.right + decays[1], zero_decay=decays[0], other_decay=decays[1])


def repeated(products: Products, count: int) -> Products:
    return Products(*(part if part is None else np.repeat(part, count, axis=0) for part in products))
