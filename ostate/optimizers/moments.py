"""The second moment: which slot holds it, in which form, and how its optimizer turns it into a denominator.

Every form ends in `sqrt(v / correction) + eps`, which is what the library divides by, up to a factor that is one number for the
whole tensor. numpy inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ProbeError
from ..model import Hyper

if TYPE_CHECKING:
    import numpy as np

Tensors = Mapping[str, "np.ndarray"]
"""One parameter's slots, read."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A second moment, ready for `sqrt(v / correction) + eps`."""

    v: np.ndarray
    """float64, the parameter's shape, units grad**2."""
    correction: float
    """1 - beta2**step, or 1 where the optimizer applies none."""
    eps: float
    """To be added outside the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to keep a second moment."""

    formula: str
    """What the optimizer divides by, for people; t is the step."""
    take: Callable[[Tensors, Hyper, float | None, tuple[int, ...]], Moment] | None = None
    why_not: str = ""
    """Where `take` is None: why no denominator can be had from the file."""
    needs: tuple[str, ...] = ()
    """Group keys it uses."""
    approximate: str = ""
    """What is lost, where v is a reconstruction."""


def _beta2(hyper: Hyper) -> float:
    betas = hyper.get("betas")
    value = betas[1] if betas else hyper.get("beta2")
    if value is None:
        raise ProbeError("the file does not say beta2", fix="give --betas B1,B2")
    return float(value)


def _eps(hyper: Hyper) -> float:
    value = hyper.get("eps")
    if value is None:
        raise ProbeError("the file does not say eps", fix="give --eps E")
    return float(value)


def _correction(hyper: Hyper, step: float | None) -> float:
    """1 - beta2**step in Python floats: float32 is off by 1e-5, and bfloat16 rounds beta2 to 1."""
    if step is None:
        raise ProbeError("the file does not say how many steps were taken", fix="give --step N")
    if step < 1:
        raise ProbeError(f"no update was taken yet (step {step:g}): the second moment says nothing")
    return float(1.0 - _beta2(hyper) ** step)


def _pick(tensors: Tensors, *names: str) -> np.ndarray:
    import numpy as np

    for name in names:
        if name in tensors:
            return tensors[name].astype(np.float64)
    raise ProbeError(f"none of {', '.join(names)} is in the state of this parameter")


def _adam(tensors: Tensors, hyper: Hyper, step: float | None, shape: tuple[int, ...]) -> Moment:
    # amsgrad keeps the maximum of v before its correction, and corrects it as if it were v (torch/optim/adam.py, _single_tensor_adam).
    return Moment(_pick(tensors, "max_exp_avg_sq", "exp_avg_sq", "exp_avg_sq_B").reshape(shape), _correction(hyper, step), _eps(hyper))


def _adam_late_eps(tensors: Tensors, hyper: Hyper, step: float | None, shape: tuple[int, ...]) -> Moment:
    plain = _pick(tensors, "exp_avg_sq", "exp_avg_sq_B").reshape(shape)
    if not hyper.get("correct_bias", True):
        return Moment(plain, 1.0, _eps(hyper))
    correction = _correction(hyper, step)
    return Moment(plain, correction, _eps(hyper) / math.sqrt(correction))


def _debiased(tensors: Tensors, hyper: Hyper, _step: float | None, shape: tuple[int, ...]) -> Moment:
    return Moment(_pick(tensors, "exp_avg_sq").reshape(shape), 1.0, _eps(hyper))


def _adamax(tensors: Tensors, _hyper: Hyper, _step: float | None, shape: tuple[int, ...]) -> Moment:
    return Moment(_pick(tensors, "exp_inf").reshape(shape) ** 2, 1.0, 0.0)


def _adagrad(tensors: Tensors, hyper: Hyper, _step: float | None, shape: tuple[int, ...]) -> Moment:
    return Moment(_pick(tensors, "sum").reshape(shape), 1.0, _eps(hyper))


def _rmsprop(tensors: Tensors, hyper: Hyper, _step: float | None, shape: tuple[int, ...]) -> Moment:
    v = _pick(tensors, "square_avg").reshape(shape)
    if hyper.get("centered") and "grad_avg" in tensors:
        v = v - _pick(tensors, "grad_avg").reshape(shape) ** 2
    return Moment(v, 1.0, _eps(hyper))


def outer(row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Return Adafactor's V = r c^T / mean(r), over the last two axes.

    Args:
        row: shape (..., n): mean of v over the last axis.
        col: shape (..., m): mean of v over the axis before it.

    Returns:
        float64, shape (..., n, m).

    Source: Shazeer & Stern 2018, Algorithm 4; transformers.Adafactor._approx_sq_grad.
    """
    import numpy as np

    row, col = row.astype(np.float64), col.astype(np.float64)
    mean = row.mean(axis=-1, keepdims=True)
    scaled = np.divide(row, mean, out=np.zeros_like(row), where=mean > 0)
    return np.asarray(scaled[..., :, None] * col[..., None, :])


def _factored(tensors: Tensors, _hyper: Hyper, _step: float | None, shape: tuple[int, ...]) -> Moment:
    if "exp_avg_sq_row" in tensors:
        return Moment(outer(tensors["exp_avg_sq_row"], tensors["exp_avg_sq_col"]).reshape(shape), 1.0, 0.0)
    return Moment(_pick(tensors, "exp_avg_sq").reshape(shape), 1.0, 0.0)


def _factored_torch(tensors: Tensors, hyper: Hyper, _step: float | None, shape: tuple[int, ...]) -> Moment:
    import numpy as np

    eps = hyper.get("eps")
    smallest = eps[0] if isinstance(eps, (tuple, list)) and eps[0] is not None else float(np.finfo(np.float32).eps)
    if "row_var" in tensors:
        row, col = tensors["row_var"].astype(np.float64), tensors["col_var"].astype(np.float64)
        v = row * col / np.maximum(row.mean(axis=-2, keepdims=True), smallest)
    else:
        v = _pick(tensors, "variance")
    return Moment(np.maximum(v, smallest * smallest).reshape(shape), 1.0, 0.0)


def _blocks(tensors: Tensors, hyper: Hyper, step: float | None, shape: tuple[int, ...]) -> Moment:
    import numpy as np

    if "v" in tensors:
        v = _pick(tensors, "v").reshape(shape)
    else:
        means = _pick(tensors, "vmean").reshape(-1)
        count = math.prod(shape)
        if means.size == 0 or count % means.size:
            raise ProbeError(f"{means.size} block means do not divide {count} elements")
        v = np.repeat(means, count // means.size).reshape(shape)
    return Moment(v, _correction(hyper, step), _eps(hyper))


_ADAM_NEEDS = ("betas", "eps")
_FACTORED_LOSS = "v is rebuilt from its row and column means"
SECOND_MOMENTS: dict[str, Form] = {
    "adam": Form(formula="sqrt(v / (1 - beta2^t)) + eps; v = exp_avg_sq, with amsgrad max_exp_avg_sq", take=_adam, needs=_ADAM_NEEDS),
    "adam_late_eps": Form(formula="(sqrt(exp_avg_sq) + eps) / sqrt(1 - beta2^t)", take=_adam_late_eps, needs=_ADAM_NEEDS),
    "debiased": Form(formula="sqrt(exp_avg_sq) + eps: the average is kept without bias", take=_debiased, needs=("eps",)),
    "adamax": Form(formula="exp_inf, a running maximum of |g|; no correction", take=_adamax),
    "adagrad": Form(formula="sqrt(sum) + eps; no correction", take=_adagrad, needs=("eps",)),
    "rmsprop": Form(formula="sqrt(square_avg) + eps, centered: sqrt(square_avg - grad_avg^2) + eps; no correction", take=_rmsprop, needs=("eps",)),
    "factored": Form(formula="sqrt(r c^T / mean(r)), one-dimensional: sqrt(exp_avg_sq); no correction", take=_factored, approximate=_FACTORED_LOSS),
    "factored_torch": Form(
        formula="sqrt(max(r c^T / mean(r), eps1^2)), one-dimensional: sqrt(variance); no correction",
        take=_factored_torch, needs=("eps",), approximate=_FACTORED_LOSS,
    ),
    "blocks": Form(
        formula="sqrt(vmean / (1 - beta2^t)) + eps, one vmean a block", take=_blocks, needs=("beta2", "eps"),
        approximate="v is one mean for a block of elements",
    ),
    "none": Form(formula="-", why_not="it keeps no second moment"),
    "weighted": Form(formula="-", why_not="its second moment is weighted by an estimated distance that changes from step to step"),
    "rotated": Form(formula="-", why_not="its second moment lives in a rotated basis, not in the parameter's own"),
    "projected": Form(formula="-", why_not="its second moment lives in a projected space, not in the parameter's own"),
}  # fmt: skip
"""By `OptimizerSpec.moment`."""


def second_moment(optimizer: str, tensors: Tensors, hyper: Hyper, *, step: float | None, shape: tuple[int, ...]) -> Moment:
    """Return one parameter's second moment in the form `sqrt(v / correction) + eps`.

    Args:
        optimizer: the row of `OPTIMIZERS`.
        tensors: the parameter's slots, read.
        hyper: its group's hyperparameters.
        step: updates already taken, from where the row says it lies.
        shape: the parameter's shape.

    Raises:
        ProbeError: this optimizer keeps no such thing, or a number that the formula wants is missing.
    """
    from .rows import OPTIMIZERS

    spec = OPTIMIZERS.get(optimizer)
    if spec is None:
        raise ProbeError("the optimizer is not known, so neither is the meaning of its state", fix="see docs/optimizers.md for the known ones")
    form = SECOND_MOMENTS[spec.moment]
    if form.take is None:
        raise ProbeError(f"{spec.classes}: {form.why_not}", fix="probe with a state of Adam's kind, or without a preconditioner")
    return form.take(tensors, hyper, step, shape)
