"""Adam's arithmetic as pure functions. The paper's letters: g, m, v, beta1, beta2, eps, t (the step)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ostate.errors import ProbeError


def correction(beta: float, step: float) -> float:
    """Return 1 - beta**step, the bias correction of a moment after `step` updates.

    In Python floats: bfloat16 rounds 0.999 to 1.0 and the correction to 0; float32 is off by 1.3e-5 relative.

    Raises:
        ProbeError: beta outside [0, 1), or step < 1 (the correction would be 0, and v_hat 0/0).
    """
    if not 0.0 <= beta < 1.0:
        raise ProbeError(f"beta must lie in [0, 1), not {beta}", where="beta")
    if not (step >= 1 and math.isfinite(step)):
        raise ProbeError(f"step must be at least 1, not {step}", where="step", fix="a state that never stepped has no preconditioner")
    return float(1.0 - beta**step)


def adam_preconditioner(v: Tensor, *, step: float, beta2: float, eps: float) -> Tensor:
    """Adam's diagonal preconditioner, p = 1 / (sqrt(v / (1 - beta2**step)) + eps).

    Args:
        v: second moment as stored; any shape; float32 or float64; units grad**2.
        step: updates already taken; >= 1.
        beta2: decay of v; 0 <= beta2 < 1.
        eps: added outside the square root; units grad; >= 0.

    Returns:
        p, float64, the shape of v, units 1/grad; infinite where v == 0 and eps == 0.

    Raises:
        ProbeError: step < 1; v of another dtype (quantised codes look like numbers); v negative or not finite.

    Source: Kingma & Ba 2015, Algorithm 1; the place of eps as in torch.optim.AdamW.
    """
    _check_moment(v, eps)
    return v.to(torch.float64).div_(correction(beta2, step)).sqrt_().add_(eps).reciprocal_()


def next_step_update(
    g: Tensor, m: Tensor, v: Tensor, *, step: float, betas: tuple[float, float], eps: float, largest: Tensor | None = None
) -> Tensor:
    """The direction of torch's AdamW at the next step: m_hat / (sqrt(v_hat) + eps) after both moments took in g.

    Args:
        g: gradient; float32 or float64; may have leading batch dimensions.
        m: first moment as stored; units grad.
        v: second moment as stored; units grad**2.
        step: updates already taken; >= 0.
        betas: (beta1, beta2).
        eps: outside the root; units grad.
        largest: `max_exp_avg_sq` as stored, for amsgrad; None otherwise.

    Returns:
        The update that lr multiplies, float64, dimensionless, the shape of g; 0 where g, m and v are all 0.

    Source: torch/optim/adam.py `_single_tensor_adam`; decoupled weight decay is not part of it.
    """
    beta1, beta2 = betas
    g = g.to(torch.float64)
    m_next = m.to(torch.float64) * beta1 + g * (1.0 - beta1)
    v_next = v.to(torch.float64) * beta2 + (g * g).mul_(1.0 - beta2)
    if largest is not None:
        v_next = torch.maximum(v_next, largest.to(torch.float64))
    denominator = v_next.div_(correction(beta2, step + 1)).sqrt_().add_(eps)
    return _safe_ratio(m_next.div_(correction(beta1, step + 1)), denominator)


def less_update(g: Tensor, m: Tensor, v: Tensor, *, betas: tuple[float, float], eps: float) -> Tensor:
    """LESS's form of the Adam gradient: m' / sqrt(v' + eps), no bias correction, eps inside the root.

    With eps 1e-8 against a v of 1e-13 this is nearly the plain gradient; it is here so that its numbers can be had, by name.

    Returns:
        The update, float64, the shape of g.

    Source: princeton-nlp/LESS, less/data_selection/collect_grad_reps.py (Xia et al. 2024, section 3.2).
    """
    beta1, beta2 = betas
    g = g.to(torch.float64)
    m_next = m.to(torch.float64) * beta1 + g * (1.0 - beta1)
    v_next = v.to(torch.float64) * beta2 + (g * g).mul_(1.0 - beta2)
    return _safe_ratio(m_next, v_next.add_(eps).sqrt_())


def _safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    # 0/0 happens only with eps == 0 and no gradient ever: such an element does not move.
    return numerator.div_(denominator).masked_fill_(denominator == 0, 0.0)


def _check_moment(v: Tensor, eps: float) -> None:
    if v.dtype not in (torch.float32, torch.float64):
        raise ProbeError(
            f"the second moment must be float32 or float64, not {v.dtype}", where="v", fix="decode it first: quantised codes look like numbers"
        )
    if not (eps >= 0 and math.isfinite(eps)):
        raise ProbeError(f"eps must be finite and not negative, not {eps}", where="eps")
    if v.numel() == 0:
        return
    low, high = (float(x) for x in torch.aminmax(v))
    if not (low >= 0 and math.isfinite(high)):
        raise ProbeError("the second moment is negative or not finite", where="v", fix="use AdamPreconditioner, which falls back and counts")
