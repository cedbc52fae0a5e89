"""What training must have left in the numbers: each test a pure function on whole classes of tensors.

Letters: a LoRA module i holds A (r, in) and B (out, r); u = m_hat / (sqrt(v_hat) + eps) is the direction of Adam's last update.
Z is the factor that starts at zero (lora_B; lora_embedding_A transposed), written (n, r); F is the other one, written (r, n).
k counts keys of the adapter, n positions of the state. The derivations are in docs/evidence.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

TINY = 1e-30


def update_direction(m: Array, root: Array, *, step: float | None, betas: tuple[float, float], eps: float) -> Array:
    """Return u = m_hat / (sqrt(v_hat) + eps) from m and sqrt(v), any shape, no unit.

    Without `step` the bias corrections are left out: they are one factor for the whole tensor, and eps is then below its true weight.

    Source: Kingma & Ba 2015, Algorithm 1.
    """
    first, second = (1 - betas[0] ** step, 1 - betas[1] ** step) if step else (1.0, 1.0)
    below = root * np.float32(first / np.sqrt(second))  # both corrections in one pass, then two more in place
    below += np.float32(first * (eps + TINY))
    return np.asarray(np.divide(m, below, out=below))


THIN = 8
"""Rows that are left of a wide factor: THIN * THIN numbers a pair of tensors, as an adapter of this rank has by itself."""


@dataclass(frozen=True, slots=True)
class Mixer:
    """Two fixed sets of orthonormal mixtures of a factor's r rows: X -> P^T X and X -> Q^T X, (r, n) to (THIN, n).

    All that is compared are r x r matrices M, and M = N means P^T M Q = P^T N Q; the work falls by (r / THIN)^2. Norms are kept up to
    THIN / r and a few per cent, since P and Q are random. Fewer numbers tell less: what they prove is proven, what they leave undecided is
    asked of the whole factors again. Factors that are narrow, or shared by experts, stay as they are.
    """

    first_rows: Array | None
    second_rows: Array | None

    @property
    def mixes(self) -> bool:
        """True when the factors become thinner."""
        return self.first_rows is not None

    def first(self, x: Array) -> Array:
        """Return P^T x."""
        return x if self.first_rows is None else self.first_rows @ x

    def second(self, x: Array) -> Array:
        """Return Q^T x."""
        return x if self.second_rows is None else self.second_rows @ x

    def diagonal(self, sums: Array) -> Array:
        """Return P^T diag(sums) Q."""
        return np.diag(sums) if self.first_rows is None or self.second_rows is None else (self.first_rows * sums) @ self.second_rows.T


def is_wide(width: int, blocks: int) -> bool:
    """True for factors that a `Mixer` makes thinner."""
    return blocks == 1 and width >= 4 * THIN


@lru_cache(maxsize=32)
def mixer(width: int, blocks: int, *, thin: bool) -> Mixer:
    """Return the mixtures for factors of `width` rows, the same ones every time; none unless `thin`."""
    if not (thin and is_wide(width, blocks)):
        return Mixer(None, None)
    numbers = np.random.default_rng(width)
    first, second = (np.linalg.qr(numbers.standard_normal((width, THIN)))[0].T.astype(np.float32) for _ in range(2))
    return Mixer(np.ascontiguousarray(first), np.ascontiguousarray(second))


def displacement(inner: Array, products: Array, moved: Array, update: Array, *, rank: int) -> tuple[Array, Array]:
    """Return (cosine, spread), both (k, p), of k displacements Z (n, r) with p update directions -u.

    What started at zero is the sum of its own updates, Z_t = -sum lr_s u_s, so cos(Z, -u) is large and positive for the true pair.
    Null: the columns of a module of another origin may be permuted and change sign without changing its law (A starts with independent,
    symmetric rows, and Adam treats all alike), so the cosine has mean 0 and the variance spread^2 = ||Z^T u||^2 / r, whatever the rows of
    the two have in common (modules that write to one residual stream share a good deal).

    Args:
        inner: sums of Z_i * u_j, (k, p).
        products: Z_i^T u_j, (k, p, r, r), or what a `Mixer` leaves of it.
        moved: norms of the displacements, (k,).
        update: norms of the update directions, (p,).
        rank: r.

    Source: docs/evidence.md, "Displacement".
    """
    scale = moved[:, None] * update[None] + TINY
    left = rank / products.shape[-1]
    return -inner / scale, np.sqrt(np.einsum("kprs,kprs->kp", products, products) / rank) * left / scale


def displacement_elementwise(moved: Array, u: Array) -> tuple[Array, Array]:
    """Return (cosine, spread) of one displacement (n,) with p update directions -u (p, n), for tensors without a rank.

    Null: signs of the elements are independent, so the variance of the cosine is the sum of squared products.
    """
    scale = np.sqrt((moved @ moved) * np.einsum("pn,pn->p", u, u)) + TINY
    products = u * moved
    return -products.sum(axis=1) / scale, np.sqrt((products * products).sum(axis=1)) / scale


def cross_products(ones: Sequence[Array], twos: Sequence[Array]) -> Array:
    """Return X_i Y_j^T for all i and j, (k, p, w, w): X (w, n), Y (w, n), one matrix product, some columns at a time."""
    k, p, width, n = len(ones), len(twos), ones[0].shape[0], ones[0].shape[1]
    out = np.zeros((k * width, p * width), np.float32)
    step = max(1, _CHUNK // (max(k, p) * width))
    for at in range(0, n, step):
        one = np.concatenate([x[:, at : at + step] for x in ones])
        two = np.concatenate([y[:, at : at + step] for y in twos])
        out += one @ two.T
    return np.ascontiguousarray(out.reshape(k, width, p, width).transpose(0, 2, 1, 3))


_CHUNK = 1 << 22
"""Elements of one side of a product held at a time."""


def zero_blocks(products: Array, blocks: int) -> Array:
    """Return (..., w, w) products of zero factors as (..., blocks * r * r): only within an expert, which has the columns k * blocks + e.

    Source: peft tuners/lora/layer.py, `ParamWrapper.get_delta_weight`.
    """
    r = products.shape[-1] // blocks
    split = products.reshape(*products.shape[:-2], r, blocks, r, blocks)
    return np.ascontiguousarray(np.einsum("...aebe->...eab", split)).reshape(*products.shape[:-2], -1)


def other_blocks(products: Array, blocks: int) -> Array:
    """Return the same for the other factors; expert e has the rows e * r + k."""
    r = products.shape[-1] // blocks
    split = products.reshape(*products.shape[:-2], blocks, r, blocks, r)
    return np.ascontiguousarray(np.einsum("...eaeb->...eab", split)).reshape(*products.shape[:-2], -1)


def balance(left: Array, right: Array, drift: Array) -> Array:
    """Return -log of the residual of B^T m_B = m_A A^T, for n triples: left (n, q), right (n, q), drift (n, d, q) -> (n,).

    The loss sees A and B only through B A, so B^T dL/dB = dL/dA A^T at every step. The moments average over steps in which A and B move a
    little; what that adds lies to first order in the span of `drift`, which is projected out of both sides.
    residual = |left - right| / (|left| + |right|): 0 for the true pair, about .7 for unrelated ones.

    Source: docs/evidence.md, "Balance".
    """
    both = np.stack([left, right, left - right], axis=1).astype(np.float64)
    squares = np.einsum("ncq,ncq->nc", both, both)
    if drift.shape[1]:
        unit = drift / (np.sqrt(np.einsum("ndq,ndq->nd", drift, drift))[:, :, None] + TINY)
        unit = unit.astype(np.float64)
        gram = unit @ unit.transpose(0, 2, 1) + 1e-9 * np.eye(drift.shape[1])
        along = unit @ both.transpose(0, 2, 1)
        squares = squares - np.einsum("ndc,ndc->nc", along, np.linalg.solve(gram, along))
    norms = np.sqrt(np.maximum(squares, 0))
    size = norms[:, 0] + norms[:, 1]
    return np.asarray(-np.log((norms[:, 2] + FLOOR * size + TINY) / (size + TINY)))


FLOOR = 1e-6
"""Smallest residual told apart from zero."""
