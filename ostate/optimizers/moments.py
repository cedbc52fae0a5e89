"""The second moment: which slot holds it, in which form, and how its optimizer turns it into a denominator.

Every form ends in `sqrt(v / correction) + eps`, which is what the library divides by, up to a factor that is one number for the
whole tensor. numpy inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostate.errors import ProbeError
from ostate.model import Hyper

if TYPE_CHECKING:
    import numpy as np

Tensors = Mapping[str, "np.ndarray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an optimizer kept for one parameter."""

    tensors: Tensors
    """Its slots, read."""
    hyper: Hyper
    """Its group's hyperparameters."""
    step: float | None
    """Updates already taken."""
    shape: tuple[int, ...]
    """The parameter's."""
    dtype: str = "F32"
    """The moments' dtype in the source, in safetensors' words."""


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
    take: Callable[[Kept], Moment] | None = None
    why_not: str = ""
    """Where `take` is None: why no denominator can be had from the file."""
    needs: tuple[str, ...] = ()
    """Group keys it uses."""
    approximate: str = ""
    """What is lost, where v is a reconstruction."""


def _beta2(kept: Kept) -> float:
    betas = kept.hyper.get("betas")
    value = betas[1] if betas else kept.hyper.get("beta2")
    if value is None:
        raise ProbeError("the file does not say beta2", fix="give --betas B1,B2")
    return float(value)


def _eps(kept: Kept) -> float:
    value = kept.hyper.get("eps")
    if value is None:
        raise ProbeError("the file does not say eps", fix="give --eps E")
    return float(value)


def _correction(kept: Kept) -> float:
    """1 - beta2**step in Python floats: float32 is off by 1e-5, and bfloat16 rounds beta2 to 1."""
    if kept.step is None:
        raise ProbeError("the file does not say how many steps were taken", fix="give --step N")
    if kept.step < 1:
        raise ProbeError(f"no update was taken yet (step {kept.step:g}): the second moment says nothing", fix="take a later checkpoint")
    return float(1.0 - _beta2(kept) ** kept.step)


def _pick(kept: Kept, *names: str) -> np.ndarray:
    """Return the first of these slots that is there, float64, in the parameter's shape."""
    import numpy as np

    for name in names:
        if name in kept.tensors:
            return kept.tensors[name].astype(np.float64).reshape(kept.shape)
    raise ProbeError(f"this parameter's state holds no {' and no '.join(names)}", fix="run `ostate inspect` on the file")


def _adam(kept: Kept) -> Moment:
    # amsgrad keeps the largest v before its correction, and corrects it as if it were v (torch/optim/adam.py, _single_tensor_adam).
    return Moment(_pick(kept, "max_exp_avg_sq", "exp_avg_sq"), _correction(kept), _eps(kept))


def _adam_late_eps(kept: Kept) -> Moment:
    v = _pick(kept, "exp_avg_sq")
    if not kept.hyper.get("correct_bias", True):
        return Moment(v, 1.0, _eps(kept))
    correction = _correction(kept)
    return Moment(v, correction, _eps(kept) / math.sqrt(correction))


def _tractable(kept: Kept, above: float) -> None:
    """RAdam's length of the moving average must exceed `above`, else its step is not divided by anything (Liu et al. 2020, Algorithm 2)."""
    correction, beta2 = _correction(kept), _beta2(kept)
    assert kept.step is not None
    length = 2 / (1 - beta2) - 1 - 2 * kept.step * (1 - correction) / correction
    if length <= above:
        raise ProbeError(f"at step {kept.step:g} RAdam does not divide by its second moment yet", fix="take a later checkpoint")


def _radam(kept: Kept) -> Moment:
    _tractable(kept, 5.0)
    return _adam_late_eps(kept)


def _radam_schedulefree(kept: Kept) -> Moment:
    _tractable(kept, 4.0)
    return _adam(kept)


def _debiased(kept: Kept) -> Moment:
    return Moment(_pick(kept, "exp_avg_sq"), 1.0, _eps(kept))


def _adamax(kept: Kept) -> Moment:
    return Moment(_pick(kept, "exp_inf") ** 2, 1.0, 0.0)


def _adagrad(kept: Kept) -> Moment:
    return Moment(_pick(kept, "sum"), 1.0, _eps(kept))


def _rmsprop(kept: Kept) -> Moment:
    v = _pick(kept, "square_avg")
    if kept.hyper.get("centered"):
        v = v - _pick(kept, "grad_avg") ** 2
    return Moment(v, 1.0, _eps(kept))


def outer(row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Return Adafactor's V = r c^T / mean(r), over the last two axes.

    Args:
        row: shape (..., n): mean of v over the last axis.
        col: shape (..., m): mean of v over the axis before it.

    Returns:
        float64, shape (..., n, m); 0 where all of row is 0.

    Source: Shazeer & Stern 2018, Algorithm 4; transformers.Adafactor._approx_sq_grad.
    """
    import numpy as np

    row, col = row.astype(np.float64), col.astype(np.float64)
    mean = row.mean(axis=-1, keepdims=True)
    scaled = np.divide(row, mean, out=np.zeros_like(row), where=mean != 0)
    return np.asarray(scaled[..., :, None] * col[..., None, :])


def _factored(kept: Kept) -> Moment:
    if "exp_avg_sq_row" not in kept.tensors:
        return Moment(_pick(kept, "exp_avg_sq"), 1.0, 0.0)
    return Moment(outer(kept.tensors["exp_avg_sq_row"], kept.tensors["exp_avg_sq_col"]).reshape(kept.shape), 1.0, 0.0)


_FLOAT_EPS = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
"""torch.finfo(dtype).eps."""


def _factored_torch(kept: Kept) -> Moment:
    import numpy as np

    eps = kept.hyper.get("eps")
    smallest = eps[0] if isinstance(eps, (tuple, list)) else None
    if smallest is None:
        smallest = _FLOAT_EPS.get(kept.dtype, 2.0**-23)
    if "row_var" in kept.tensors:
        row, col = kept.tensors["row_var"].astype(np.float64), kept.tensors["col_var"].astype(np.float64)
        v = (row * col / np.maximum(row.mean(axis=-2, keepdims=True), smallest)).reshape(kept.shape)
    else:
        v = _pick(kept, "variance")
    return Moment(np.maximum(v, smallest * smallest), 1.0, 0.0)


def _blocks(kept: Kept) -> Moment:
    import numpy as np

    if "v" in kept.tensors:
        v = _pick(kept, "v")
    else:
        means, count = kept.tensors["vmean"].astype(np.float64).reshape(-1), math.prod(kept.shape)
        if means.size == 0 or count % means.size:
            raise ProbeError(f"{means.size} block means do not divide {count} elements", fix="run `ostate inspect` on the file")
        v = np.repeat(means, count // means.size).reshape(kept.shape)
    return Moment(v, _correction(kept), _eps(kept))


_ADAM_NEEDS = ("betas", "eps")
_FACTORED_LOSS = "v is rebuilt from its row and column means"
SECOND_MOMENTS: dict[str, Form] = {
    "adam": Form(formula="sqrt(v / (1 - beta2^t)) + eps; v = exp_avg_sq, with amsgrad max_exp_avg_sq", take=_adam, needs=_ADAM_NEEDS),
    "adam_late_eps": Form(formula="(sqrt(exp_avg_sq) + eps) / sqrt(1 - beta2^t)", take=_adam_late_eps, needs=_ADAM_NEEDS),
    "radam": Form(
        formula="(sqrt(exp_avg_sq) + eps) / sqrt(1 - beta2^t); refused in the first steps, where RAdam does not divide",
        take=_radam, needs=_ADAM_NEEDS,
    ),
    "radam_schedulefree": Form(
        formula="sqrt(exp_avg_sq / (1 - beta2^t)) + eps; refused in the first steps, where RAdam does not divide",
        take=_radam_schedulefree, needs=_ADAM_NEEDS,
    ),
    "debiased": Form(formula="sqrt(exp_avg_sq) + eps; the average is kept without bias", take=_debiased, needs=("eps",)),
    "adamax": Form(formula="exp_inf; a running maximum of the size of g, no correction", take=_adamax),
    "adagrad": Form(formula="sqrt(sum) + eps; no correction", take=_adagrad, needs=("eps",)),
    "rmsprop": Form(formula="sqrt(square_avg) + eps; centered: v = square_avg - grad_avg^2; no correction", take=_rmsprop, needs=("eps",)),
    "factored": Form(formula="sqrt(r c^T / mean(r)); one-dimensional: v = exp_avg_sq; no correction", take=_factored, approximate=_FACTORED_LOSS),
    "factored_torch": Form(
        formula="sqrt(max(r c^T / mean(r), eps1^2)); one-dimensional: v = variance; no correction",
        take=_factored_torch, needs=("eps",), approximate=_FACTORED_LOSS,
    ),
    "blocks": Form(
        formula="sqrt(vmean / (1 - beta2^t)) + eps; one vmean a block", take=_blocks, needs=("beta2", "eps"),
        approximate="v is one mean for a block of elements",
    ),
    "transformed": Form(formula="-", why_not="its second moment is of a gradient that was first multiplied by (A A^T)^-1"),
    "two_averages": Form(formula="-", why_not="its step is scaled by an average of earlier steps too"),
    "none": Form(formula="-", why_not="it keeps no second moment"),
    "weighted": Form(formula="-", why_not="its second moment is weighted by an estimated distance that changes from step to step"),
    "rotated": Form(formula="-", why_not="its second moment lives in a rotated basis, not in the parameter's own"),
    "projected": Form(formula="-", why_not="its second moment lives in a projected space, not in the parameter's own"),
}  # fmt: skip
"""By `OptimizerSpec.moment`."""


def second_moment(optimizer: str, tensors: Tensors, hyper: Hyper, *, step: float | None, shape: tuple[int, ...], dtype: str = "F32") -> Moment:
    """Return one parameter's second moment in the form `sqrt(v / correction) + eps`.

    Args:
        optimizer: the row of `OPTIMIZERS`.
        tensors: the parameter's slots, read.
        hyper: its group's hyperparameters.
        step: updates already taken, from where the row says it lies (`step_of`).
        shape: the parameter's shape.
        dtype: the moments' dtype in the source; torch's Adafactor takes its floor from it.

    Raises:
        ProbeError: this optimizer keeps no such thing, or a number that the formula wants is missing.
    """
    from .rows import OPTIMIZERS

    spec = OPTIMIZERS.get(optimizer)
    if spec is None:
        raise ProbeError("the optimizer is not known, so neither is the meaning of its state", fix="docs/optimizers.md lists the known ones")
    form = SECOND_MOMENTS[spec.moment]
    if form.take is None:
        raise ProbeError(f"{spec.classes}: {form.why_not}", fix="probe a state of Adam's kind, or without a preconditioner")
    return form.take(Kept(tensors=tensors, hyper=hyper, step=step, shape=shape, dtype=dtype))
