"""The preconditioner that this project began from: a loop over parameters, each one's state looked up and scaled on the way.

Rewritten from its description, guard for guard, so that speed and numbers can be compared with it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


def seed_apply(optimizer: Optimizer, parameter: Tensor, gradient: Tensor, checkpoint_step: int | None = None) -> Tensor:
    """Return gradient / (sqrt(v_hat) + eps), the scale at most 1e3, the gradient itself where there is no usable v."""
    state = optimizer.state.get(parameter, {})
    v = state.get("exp_avg_sq")
    if not isinstance(v, Tensor):
        return gradient
    beta2, eps = 0.999, 1e-8
    for group in optimizer.param_groups:
        if any(parameter is member for member in group["params"]):
            beta2, eps = group["betas"][1], group["eps"]
            break
    step = state.get("step")
    if isinstance(step, Tensor):
        step = int(step.item())
    step = checkpoint_step if step is None else step
    v_hat = v / (1.0 - beta2**step) if step else v
    denominator = torch.sqrt(v_hat) + eps
    if torch.isnan(denominator).any() or denominator.max() < 1e-12:
        return gradient
    scale = (1.0 / denominator).to(torch.float64).clamp(max=1e3)
    return (gradient.to(torch.float64) * scale).to(gradient.dtype)
