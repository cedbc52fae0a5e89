"""The sharper form of balance: where the zero factor was during the steps that the first moment remembers.

m_A A^T = sum_k w_k B_k^T g_k, with B_k the factor before step k and g_k its gradient. Neither is stored, but each element's path from 0 to
B_t is tied to what is: B_t, u = m_hat / sqrt(v_hat), sqrt(v). The conditional means E[B_k | ...] and E[g_k | ...] are odd functions of these,
the same ones for all elements of a file (same schedule, same betas), so that

    m_A A^T  ~  sum over f, h of c_fh * f(B, u)^T h(B, u, m, v)  +  what A itself moved,

with a handful of numbers c that the file's own pairs tell. The derivation and its power are in docs/evidence.md, "Paths".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ostate.ordering import laws
from ostate.ordering.reading import Reader
from ostate.ordering.sides import zero_features
from ostate.ordering.tables import PairClass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

LEAST = 4
"""Pairs below which the coefficients are not fitted."""
_RIDGE = 1e-4


@dataclass(slots=True)
class Paths:
    """Features of (module, position of its zero factor), kept once computed."""

    reader: Reader
    displaced: bool
    early: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    """What was computed while the tensors were read."""
    known: dict[tuple[str, int], Array] = field(default_factory=dict)

    def of(self, pair: PairClass, row: int, column: int) -> Array:
        """Return the features of module `row` with zero position `column` of its class, (d, q), in the units of the class's tables."""
        module, position = pair.modules[row], pair.zero_positions[column]
        found = self.known.get((module.zero, position))
        if found is None:
            features = self.early.get((module.zero, position))
            if features is None:
                moments = self.reader.moments(position, module.zero, module, zero=True)
                weight = self.reader.weight(module.zero, module, zero=True)
                mixer = laws.mixer(len(weight), module.blocks, thin=self.reader.thin)
                features = zero_features(weight, moments, module.blocks, mixer, displaced=self.displaced)
            found = np.concatenate([features * np.float32(pair.unit), pair.zero_drift[column, 1:]])
            self.known[module.zero, position] = found
        return found


@dataclass(frozen=True, slots=True)
class Held:
    """A module whose zero factor is held at a position, ready for the other factor's candidates."""

    pair: PairClass
    row: int
    column: int
    features: Array
    """(d, q)."""
    matched: int | None
    """Column of the other factor's position in the order at hand."""


def residuals(held: list[Held]) -> list[Array]:
    """Return for each held module -log of the path residual at every other position; its own pair never tells its coefficients."""
    systems = [_system(each) for each in held]
    total = sum((gram for gram, _ in systems), start=np.zeros_like(systems[0][0]))
    aimed = sum((aim for _, aim in systems), start=np.zeros_like(systems[0][1]))
    scale = np.sqrt(np.diag(total)) + laws.TINY
    found = []
    for each, (gram, aim) in zip(held, systems):
        matrix = (total - gram) / scale[:, None] / scale[None] + _RIDGE * np.eye(len(scale))
        coefficients = np.linalg.solve(matrix, (aimed - aim) / scale) / scale
        found.append(_residual(each, coefficients))
    return found


def _system(each: Held) -> tuple[Array, Array]:
    """Return this module's part of the normal equations; a module without a match takes no part."""
    width = len(each.features) + each.pair.other_drift.shape[1]
    if each.matched is None:
        return np.zeros((width, width)), np.zeros(width)
    design = np.concatenate([each.features, each.pair.other_drift[each.matched]]).astype(np.float64)
    target = each.pair.right[each.row, each.matched].astype(np.float64)
    weight = 1 / (target @ target + 0.16 * design[0] @ design[0] + laws.TINY)
    return (design @ design.T) * weight, (design @ target) * weight


def _residual(each: Held, coefficients: Array) -> Array:
    split = len(each.features)
    path = coefficients[:split] @ each.features
    drift = np.einsum("d,fdq->fq", coefficients[split:], each.pair.other_drift)
    right = each.pair.right[each.row]
    apart = right - path - drift
    size = np.sqrt(path @ path) + np.sqrt(np.einsum("fq,fq->f", right, right))
    return np.asarray(-np.log((np.sqrt(np.einsum("fq,fq->f", apart, apart)) + 1e-9 * size + laws.TINY) / (size + laws.TINY)))
