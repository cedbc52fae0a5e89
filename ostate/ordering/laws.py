"""What training must have left in the numbers: each test a pure function on whole classes of tensors.

Letters: a LoRA module i holds A (r, in) and B (out, r); u = m_hat / (sqrt(v_hat) + eps) is the direction of Adam's last update.
Z is the factor that starts at zero (lora_B; lora_embedding_A transposed), written (n, r); F is the other one, written (r, n).
k counts keys of the adapter, n positions of the state. The derivations are in docs/evidence.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

TINY = 1e-30


def update_direction(m: Array, v: Array, *, step: float | None, betas: tuple[float, float], eps: float) -> Array:
    """Return u = m_hat / (sqrt(v_hat) + eps), any shape, no unit.

    Without `step` the bias corrections are left out: they are one factor for the whole tensor, and eps is then below its true weight.

    Source: Kingma & Ba 2015, Algorithm 1.
    """
    first, second = (1 - betas[0] ** step, 1 - betas[1] ** step) if step else (1.0, 1.0)
    root = np.sqrt(np.maximum(v, 0) / second)
    root += eps + TINY
    return np.asarray((m / first) / root)


def displacement(Z: Array, u: Array) -> tuple[Array, Array]:
    """Return (cosine, spread) of every displacement Z (k, n, r) with every update direction -u (p, n, r); both (k, p).

    What started at zero is the sum of its own updates, Z_t = -sum lr_s u_s, so cos(Z, -u) is large and positive for the true pair.
    Null: the columns of a module of another origin may be permuted and change sign without changing its law (A starts with independent,
    symmetric rows, and Adam treats all alike), so the cosine has mean 0 and the variance spread^2 = ||Z^T u||^2 / r, whatever the rows of
    the two have in common (modules that write to one residual stream share a good deal).

    Source: docs/evidence.md, "Displacement".
    """
    k, n, r = Z.shape
    p = u.shape[0]
    left = _unit(Z).transpose(0, 2, 1).reshape(k * r, n)
    right = _unit(u).transpose(1, 0, 2).reshape(n, p * r)
    products = -(left @ right).reshape(k, r, p, r)
    cosine = np.einsum("krpr->kp", products)
    spread = np.sqrt(np.einsum("krps,krps->kp", products, products) / r)
    return cosine, spread


def displacement_elementwise(moved: Array, u: Array) -> tuple[Array, Array]:
    """Return (cosine, spread) of one displacement (n,) with p update directions -u (p, n), for tensors without a rank.

    Null: signs of the elements are independent, so the variance of the cosine is the sum of squared products.
    """
    scale = np.sqrt((moved @ moved) * np.einsum("pn,pn->p", u, u)) + TINY
    products = u * moved
    return -products.sum(axis=1) / scale, np.sqrt((products * products).sum(axis=1)) / scale


def left_products(Z: Array, m: Array, blocks: int) -> Array:
    """Return Z_i^T m_j for all i and j, (k, p, blocks * r * r): one matrix product.

    With experts in one tensor, Z is (n, r * blocks) with expert e in columns k * blocks + e (peft `target_parameters`); only products
    within an expert are kept.
    """
    k, n, width = Z.shape
    p = m.shape[0]
    flat = Z.transpose(0, 2, 1).reshape(k * width, n) @ m.transpose(1, 0, 2).reshape(n, p * width)
    r = width // blocks
    split = flat.reshape(k, r, blocks, p, r, blocks)
    return np.ascontiguousarray(np.einsum("kaepbe->kpeab", split)).reshape(k, p, -1)


def right_products(F: Array, m: Array, blocks: int) -> Array:
    """Return m_j F_i^T for all i and j, (k, p, blocks * r * r); expert e has the rows e * r + k."""
    k, width, n = F.shape
    p = m.shape[0]
    flat = F.reshape(k * width, n) @ m.reshape(p * width, n).T
    r = width // blocks
    split = flat.reshape(k, blocks, r, p, blocks, r)
    return np.ascontiguousarray(np.einsum("kebpea->kpeab", split)).reshape(k, p, -1)


def zero_drift(m: Array, root: Array, u: Array, blocks: int) -> Array:
    """Return the two directions along which the zero factor's own movement disturbs balance, (p, 2, blocks * r * r).

    Z moved by -lr u while m remembered: u^T m, and its expectation under noise, the diagonal of sum sqrt(v).
    """
    own = np.stack([left_products(one[None], two[None], blocks)[0, 0] for one, two in zip(u, m)])
    return _directions(own, root.sum(axis=1), blocks, by_expert_last=True)


def other_drift(m: Array, root: Array, u: Array, blocks: int) -> Array:
    """Return the same for the other factor: m u^T and the diagonal of sum sqrt(v), (p, 2, blocks * r * r)."""
    own = np.stack([right_products(one[None], two[None], blocks)[0, 0] for one, two in zip(u, m)])
    return _directions(own, root.sum(axis=2), blocks, by_expert_last=False)


def _directions(own: Array, diagonal: Array, blocks: int, *, by_expert_last: bool) -> Array:
    p, width = diagonal.shape
    r = width // blocks
    by_expert = diagonal.reshape(p, r, blocks).transpose(0, 2, 1) if by_expert_last else diagonal.reshape(p, blocks, r)
    full = np.zeros((p, blocks, r, r), own.dtype)
    full[:, :, np.arange(r), np.arange(r)] = by_expert
    return np.stack([own, full.reshape(p, -1)], axis=1)


def balance(left: Array, right: Array, drift: Array) -> Array:
    """Return -log of the residual of B^T m_B = m_A A^T, for n triples: left (n, q), right (n, q), drift (n, d, q) -> (n,).

    The loss sees A and B only through B A, so B^T dL/dB = dL/dA A^T at every step. The moments average over steps in which A and B move a
    little; what that adds lies to first order in the span of `drift`, which is projected out of both sides.
    residual = |left - right| / (|left| + |right|): 0 for the true pair, about .7 for unrelated ones.

    Source: docs/evidence.md, "Balance".
    """
    if drift.shape[1]:
        unit = drift / (np.sqrt(np.einsum("ndq,ndq->nd", drift, drift))[:, :, None] + TINY)
        gram = np.einsum("ndq,neq->nde", unit, unit) + 1e-9 * np.eye(drift.shape[1])
        both = np.stack([left, right], axis=2)
        along = np.einsum("ndq,nqs->nds", unit, both)
        both = both - np.einsum("ndq,nds->nqs", unit, np.linalg.solve(gram, along))
        left, right = both[:, :, 0], both[:, :, 1]
    size = np.sqrt((left * left).sum(1)) + np.sqrt((right * right).sum(1))
    apart = np.sqrt(((left - right) ** 2).sum(1))
    return np.asarray(-np.log((apart + 1e-12 * size + TINY) / (size + TINY)))


def _unit(x: Array) -> Array:
    norms = np.sqrt(np.einsum("kij,kij->k", x, x))
    return np.asarray(x / (norms[:, None, None] + TINY))
