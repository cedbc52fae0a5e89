"""Small healthy LoRA runs in a few lines: Adam by hand on gradients of a product, many modules side by side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ostate.evidence.gauge import Products

INTO, OUT = 12, 10
BETAS, EPS = (0.9, 0.999), 1e-8


class Trained(NamedTuple):
    """Weights and moments of M modules, each (M, r, INTO) or (M, OUT, r)."""

    a: np.ndarray
    b: np.ndarray
    m_a: np.ndarray
    v_a: np.ndarray
    m_b: np.ndarray
    v_b: np.ndarray
    step: int

    def moments_of(self, origins: np.ndarray) -> Trained:
        """Return the same weights beside the moments of other modules."""
        return self._replace(**{name: getattr(self, name)[origins] for name in ("m_a", "v_a", "m_b", "v_b")})


def train(rng: np.random.Generator, count: int, rank: int, *, steps: int, rate: float = 1e-2, noise: float = 1.0, shared: float = 0.5) -> Trained:
    """Train M modules whose loss is |(B A - T) x|^2 / 2, batches of 4; A starts uniform, B at zero, as PEFT has them.

    Args:
        rng: numbers.
        count: M.
        rank: r.
        steps: of Adam.
        rate: of learning.
        noise: of the gradient dL/dW, in units of its target.
        shared: share of target, data and noise that all modules have in common, as modules of one residual stream do.
    """
    mixed = lambda *shape: np.sqrt(shared) * rng.standard_normal(shape) + np.sqrt(1 - shared) * rng.standard_normal((count, *shape))  # noqa: E731
    a, b = rng.uniform(-1, 1, (count, rank, INTO)) / np.sqrt(INTO / 3), np.zeros((count, OUT, rank))
    target = mixed(OUT, INTO)
    m_a, v_a, m_b, v_b = (np.zeros_like(one) for one in (a, a, b, b))
    for step in range(1, steps + 1):
        x = mixed(INTO, 4)
        gradient = ((b @ a - target) @ x) @ x.swapaxes(1, 2) / 4 + noise * mixed(OUT, INTO)
        for weight, moment, square, slope in ((a, m_a, v_a, b.swapaxes(1, 2) @ gradient), (b, m_b, v_b, gradient @ a.swapaxes(1, 2))):
            moment += (1 - BETAS[0]) * (slope - moment)
            square += (1 - BETAS[1]) * (slope**2 - square)
            weight -= rate * direction(moment, square, step)
    return Trained(*(one.astype(np.float32) for one in (a, b, m_a, v_a, m_b, v_b)), step=steps)


def direction(m: np.ndarray, v: np.ndarray, step: int) -> np.ndarray:
    return (m / (1 - BETAS[0] ** step)) / (np.sqrt(v / (1 - BETAS[1] ** step)) + EPS)


def products(runs: Trained) -> Products:
    """Return what one look at each module leaves."""
    a, b, m_a, v_a, m_b, v_b = (one.astype(np.float64) for one in runs[:6])
    u_a, u_b = direction(m_a, v_a, runs.step), direction(m_b, v_b, runs.step)
    turned = lambda one: one.swapaxes(1, 2)  # noqa: E731
    return Products(
        -turned(b) @ u_b, turned(b) @ m_b, m_a @ turned(a), turned(u_b) @ m_b, m_a @ turned(u_a), np.sqrt(v_b).sum(axis=1), np.sqrt(v_a).sum(axis=2)
    )
