"""Balance along the zero factor's path: where it was during the steps that the first moment averages over.

m_A A^T = sum_k w_k B_k^T g_k, with B_k the factor before step k and g_k its gradient. Neither is stored, but each element's path from 0 to
B_t is tied to what is: B_t, u = m_hat / sqrt(v_hat), sqrt(v). The conditional means E[B_k | ...] and E[g_k | ...] are odd functions of these,
the same ones for all elements of a file (same schedule, same betas), so that

    m_A A^T  ~  sum over f, h of c_fh * f(B, u)^T h(B, u, m, v)  +  what A itself moved,

with a handful of numbers c that the file's own pairs tell. The derivation and its power are in docs/evidence.md, "Paths".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from . import statistics
from .tables.factor_tables import features_of
from .tables.read_moments import MomentReader
from .tables.tables import PairClass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

LEAST = 4
"""Pairs below which the coefficients are not fitted."""
_RIDGE = 1e-4


@dataclass(slots=True)
class Paths:
    """What a search for an order computes and asks for again: features of (module, position of its zero factor), residuals."""

    reader: MomentReader
    displaced: bool
    precomputed: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    """What was computed while the tensors were read."""
    known: dict[tuple[str, int], Array] = field(default_factory=dict)
    balance: dict[tuple[str, int, bool], Array] = field(default_factory=dict)
    """Drift-corrected balance of (a module's zero key, column that one factor is held at, True where that is the zero factor)."""
    last: tuple[Mapping[str, int], list[tuple[HeldModules, Array]]] | None = None
    """The order that was looked at last, and its residuals class by class."""

    def of(self, pair: PairClass, row: int, column: int) -> Array:
        """Return the features of module `row` with zero position `column` of its class, (d, q), in the units of the class's tables."""
        module, position = pair.modules[row], pair.zero_positions[column]
        found = self.known.get((module.zero, position))
        if found is None:
            features = self.precomputed.get((module.zero, position))
            if features is None:
                features = features_of(self.reader, module.zero, position, module, displaced=self.displaced)
            found = np.concatenate([features * np.float32(pair.unit), pair.zero_drift[column, 1:]])
            self.known[module.zero, position] = found
        return found


@dataclass(frozen=True, slots=True)
class HeldModules:
    """Modules of a class whose zero factors are held at a position each, ready for the other factors' candidates."""

    pair: PairClass
    rows: Sequence[int]
    features: Array
    """(rows, d, q)."""
    matched: Sequence[int | None]
    """By row: the column of the other factor's position in the order at hand."""


def residuals(held: Sequence[HeldModules]) -> list[Array]:
    """Return for each class -log of the path residual, (rows, f); a module's own pair never tells its coefficients."""
    systems = [_systems(each) for each in held]
    total = sum((gram.sum(axis=0) for gram, _ in systems), start=np.zeros(systems[0][0].shape[1:]))
    aimed = sum((aim.sum(axis=0) for _, aim in systems), start=np.zeros(len(total)))
    scale = np.sqrt(np.diag(total)) + statistics.TINY
    found = []
    for each, (gram, aim) in zip(held, systems):
        matrix = (total - gram) / scale[:, None] / scale[None] + _RIDGE * np.eye(len(scale))
        coefficients = np.linalg.solve(matrix, ((aimed - aim) / scale)[..., None])[..., 0] / scale
        found.append(_residuals(each, coefficients))
    return found


def _systems(each: HeldModules) -> tuple[Array, Array]:
    """Return each module's part of the normal equations, (rows, d, d) and (rows, d); a module without a match takes no part."""
    width = each.features.shape[1] + each.pair.other_drift.shape[1]
    gram, aim = np.zeros((len(each.rows), width, width)), np.zeros((len(each.rows), width))
    there = [index for index, column in enumerate(each.matched) if column is not None]
    if there:
        columns = [column for column in each.matched if column is not None]
        design = np.concatenate([each.features[there], each.pair.other_drift[columns]], axis=1).astype(np.float64)
        target = each.pair.right[[each.rows[index] for index in there], columns].astype(np.float64)
        first = design[:, 0]
        weight = 1 / ((target * target).sum(axis=1) + 0.16 * (first * first).sum(axis=1) + statistics.TINY)
        gram[there] = (design @ design.transpose(0, 2, 1)) * weight[:, None, None]
        aim[there] = (design @ target[..., None])[..., 0] * weight[:, None]
    return gram, aim


def _residuals(each: HeldModules, coefficients: Array) -> Array:
    split, drifts = each.features.shape[1], each.pair.other_drift
    path = np.einsum("kd,kdq->kq", coefficients[:, :split], each.features)
    flat = drifts.transpose(1, 0, 2).reshape(drifts.shape[1], -1)
    found = np.empty((len(each.rows), len(drifts)))
    for index, row in enumerate(each.rows):  # a class's table may be large: one module at a time
        right = each.pair.right[row]
        apart = right - path[index] - (coefficients[index, split:] @ flat).reshape(right.shape)
        size = np.sqrt(path[index] @ path[index]) + np.sqrt(np.einsum("fq,fq->f", right, right))
        found[index] = -np.log((np.sqrt(np.einsum("fq,fq->f", apart, apart)) + 1e-9 * size + statistics.TINY) / (size + statistics.TINY))
    return found
