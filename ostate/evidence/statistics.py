"""The test statistics: what training leaves in weights and moments, as pure functions on whole classes of tensors.

Letters: a LoRA module i holds A (r, in) and B (out, r); u = m_hat / (sqrt(v_hat) + eps) is the direction of Adam's last update.
Z is the factor that starts at zero (lora_B; lora_embedding_A transposed), written (n, r); F is the other one, written (r, n).
k counts keys of the adapter, n positions of the state. The derivations are in docs/evidence.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

TINY = 1e-30


def update_direction(m: Array, root: Array, *, step: float | None, betas: tuple[float, float], eps: float, out: Array | None = None) -> Array:
    """Return u = m_hat / (sqrt(v_hat) + eps) from m and sqrt(v), any shape, no unit; into `out` where given.

    Without `step` the bias corrections are left out: they are one factor for the whole tensor, and eps is then below its true weight.

    Source: Kingma & Ba 2015, Algorithm 1.
    """
    first, second = (1 - betas[0] ** step, 1 - betas[1] ** step) if step else (1.0, 1.0)
    below = np.multiply(root, np.float32(first / np.sqrt(second)), out=out)  # both corrections in one pass, then two more in place
    below += np.float32(first * (eps + TINY))
    return np.asarray(np.divide(m, below, out=below))


def quantile(values: Array, share: float) -> float:
    """Return what np.quantile does of a flat array, NaN where one is. That one, and np.median, import numpy.ma, for 15 ms."""
    at = (values.size - 1) * share
    low = int(at)
    part = np.partition(values, (low, min(low + 1, values.size - 1), values.size - 1))
    one, two = float(part[low]), float(part[min(low + 1, values.size - 1)])
    return float("nan") if np.isnan(part[-1]) else one + (two - one) * (at - low)


def median(values: Array) -> float:
    """Return what np.median does of a flat array, to the bit, NaN where one is; see `quantile`."""
    low = (values.size - 1) // 2
    part = np.partition(values, (low, values.size // 2, values.size - 1))
    return float("nan") if np.isnan(part[-1]) else float((part[low] + part[values.size // 2]) / 2)


SKETCH_ROWS = 8, 16
"""Rows that wide factors are projected to, at the first look and at the second: SKETCH_ROWS^2 numbers a pair of tensors, as at this rank.

More than 16 * 16 numbers tell no more: the fitted scales have floors for what the formulas leave out.
"""


@dataclass(frozen=True, slots=True)
class RandomProjection:
    """Two fixed random projections of a factor's r rows: X -> P^T X and X -> Q^T X, (r, n) to (rows, n).

    All that is compared are r x r matrices M, and M = N means P^T M Q = P^T N Q; the work falls by (r / rows)^2. Norms are kept up to
    rows / r and a few per cent, since P and Q are random. Fewer numbers tell less: what they prove is proven, what they leave undecided is
    asked of more of them. Factors that are narrow, or shared by experts, stay as they are.
    """

    rows: int
    """What is left of r: all of it where nothing is projected."""
    first: Array | None = None
    """P^T, (rows, r)."""
    second: Array | None = None
    """Q^T."""

    def diagonal(self, sums: Array) -> Array:
        """Return P^T diag(sums) Q."""
        return np.diag(sums) if self.first is None or self.second is None else (self.first * sums) @ self.second.T


def sketch_rows_to_try(widest: int) -> tuple[int, ...]:
    """Return the numbers of rows to try where the widest factor has so many rows; the last one decides; 0: all stay whole."""
    if widest < 2 * SKETCH_ROWS[0]:
        return (0,)
    return SKETCH_ROWS if widest >= 2 * SKETCH_ROWS[1] else (SKETCH_ROWS[0], 0)


@lru_cache(maxsize=32)
def random_projection(width: int, blocks: int, *, sketch_rows: int) -> RandomProjection:
    """Return a projection to `sketch_rows` rows for factors of `width` rows, the same one every time; identity where they are no fewer than half."""
    if not sketch_rows or blocks > 1 or width < 2 * sketch_rows:
        return RandomProjection(width // blocks)
    numbers = np.random.default_rng(width)
    first, second = (np.linalg.qr(numbers.standard_normal((width, sketch_rows)))[0].T.astype(np.float32) for _ in range(2))
    return RandomProjection(sketch_rows, np.ascontiguousarray(first), np.ascontiguousarray(second))


def displacement(inner: Array, squares: Array, moved: Array, update: Array, *, rank: int) -> tuple[Array, Array]:
    """Return (cosine, spread), both (k, p), of k displacements Z (n, r) with p update directions -u.

    What started at zero is the sum of its own updates, Z_t = -sum lr_s u_s, so cos(Z, -u) is large and positive for the true pair.
    Null: the columns of a module of another origin may be permuted and change sign without changing its law (A starts with independent,
    symmetric rows, and Adam treats all alike), so the cosine has mean 0 and the variance spread^2 = ||Z^T u||^2 / r, whatever the rows of
    the two have in common (modules that write to one residual stream share a good deal). Experts that share a tensor are exchanged within
    themselves only: their squares add.

    Args:
        inner: sums of Z_i * u_j, (k, p).
        squares: ||Z_i^T u_j||^2, (k, p), or an estimate of it.
        moved: norms of the displacements, (k,).
        update: norms of the update directions, (p,).
        rank: r.

    Source: docs/evidence.md, "Displacement".
    """
    scale = moved[:, None] * update[None] + TINY
    return -inner / scale, np.sqrt(squares / rank) / scale


def displacement_elementwise(moved: Array, u: Array) -> tuple[Array, Array]:
    """Return (cosine, spread) of one displacement (n,) with p update directions -u (p, n), for tensors without a rank.

    Null: signs of the elements are independent, so the variance of the cosine is the sum of squared products.
    """
    scale = np.sqrt((moved @ moved) * np.einsum("pn,pn->p", u, u)) + TINY
    products = u * moved
    return -products.sum(axis=1) / scale, np.sqrt((products * products).sum(axis=1)) / scale


def zero_blocks(rows: Array, blocks: int) -> Array:
    """Return rows (c, w) of a zero factor, stored (n, w), by expert: (blocks, c, r). Expert e has the columns k * blocks + e.

    Source: peft tuners/lora/layer.py, `ParamWrapper.get_delta_weight`.
    """
    return rows[None] if blocks == 1 else rows.reshape(len(rows), -1, blocks).transpose(2, 0, 1)


def other_blocks(rows: Array, blocks: int) -> Array:
    """Return the same for the other factors; expert e has there e * r + k."""
    return rows[None] if blocks == 1 else rows.reshape(len(rows), blocks, -1).transpose(1, 0, 2)


def balance(left: Array, right: Array, *drifts: Array) -> Array:
    """Return -log of the residual of B^T m_B = m_A A^T: left and right (..., q), each of the drifts (..., d, q), leading axes broadcast -> (...).

    The loss sees A and B only through B A, so B^T dL/dB = dL/dA A^T at every step. The moments average over steps in which A and B move a
    little; what that adds lies to first order in the span of the drifts, which is projected out of both sides.
    residual = |left - right| / (|left| + |right|): 0 for the true pair, about .7 for unrelated ones.

    Source: docs/evidence.md, "Balance".
    """
    sides = [np.asarray(side, np.float64)[..., None, :] for side in (left, right)]
    spans = [np.asarray(drift, np.float64) / (np.linalg.norm(drift, axis=-1, keepdims=True) + TINY) for drift in drifts if drift.shape[-2]]
    shape = np.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    squares = np.empty((3, *shape))
    squares[0], squares[1] = (np.einsum("...q,...q->...", side, side)[..., 0] for side in sides)
    squares[2] = squares[0] + squares[1] - 2 * _inner(*sides)[..., 0, 0]
    if spans:
        ends = np.cumsum([0, *(span.shape[-2] for span in spans)])
        gram, along = np.empty((ends[-1], ends[-1], *shape)), np.empty((ends[-1], 3, *shape))
        for i, one in enumerate(spans):
            for j, two in enumerate(spans):
                gram[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = np.moveaxis(_inner(one, two), (-2, -1), (0, 1))
            for side in range(2):
                along[ends[i] : ends[i + 1], side] = np.moveaxis(_inner(one, sides[side])[..., 0], -1, 0)
        along[:, 2] = along[:, 0] - along[:, 1]
        squares -= _within(gram, along)
    norms = np.sqrt(np.maximum(squares, 0))
    size = norms[0] + norms[1]
    return np.asarray(-np.log((norms[2] + FLOOR * size + TINY) / (size + TINY)))


def _inner(one: Array, two: Array) -> Array:
    """Return the products of vectors (..., d, q) with vectors (..., e, q) -> (..., d, e), leading axes broadcast.

    Of two leading axes one is often broadcast: those are a few large products in place of many small ones.
    """
    if one.ndim == two.ndim == 4:
        if one.shape[1] == 1:
            found = two.reshape(len(two), two.shape[1] * two.shape[2], two.shape[3]) @ one[:, 0].swapaxes(1, 2)
            return np.asarray(found.reshape(len(found), *two.shape[1:3], one.shape[2]).swapaxes(2, 3))
        if two.shape[1] == 1:
            return np.asarray(_inner(two, one).swapaxes(2, 3))
        if len(one) == 1 or len(two) == 1:
            return np.asarray(_inner(one.swapaxes(0, 1), two.swapaxes(0, 1)).swapaxes(0, 1))
    return np.asarray(np.einsum("...dq,...eq->...de", one, two))


def _within(gram: Array, along: Array) -> Array:
    """Return the squared norms (c, ...) of the projections on the span of d vectors, from their products (d, d, ...) and (d, c, ...).

    Elimination over all problems at once; both inputs are used up.
    """
    found = np.zeros_like(along[0])
    for first in range(len(gram)):
        pivot = gram[first, first] + 1e-9  # vectors that are nearly in the span of those before add nothing
        found += along[first] ** 2 / pivot
        for later in range(first + 1, len(gram)):
            factor = gram[later, first] / pivot
            along[later] -= factor * along[first]
            gram[later, first + 1 :] -= factor * gram[first, first + 1 :]
    return np.asarray(found)


FLOOR = 1e-6
"""Smallest residual that counts as above zero."""
