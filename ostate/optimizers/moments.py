"""The second moment: which slot holds it, in which form, and how its optimizer turns it into a denominator.

Every form ends in `sqrt(v / correction) + eps`, which is what the library divides by, up to a factor that is one number for the
whole tensor. numpy inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from ostate.core.hyper import all_betas
from ostate.core.state import Hyper
from ostate.errors import ProbeError

from .rows import OPTIMIZERS
from .spec import OptimizerSpec

if TYPE_CHECKING:
    import numpy as np

Tensors = Mapping[str, "np.ndarray"]


class StoredMoments(NamedTuple):
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


class Moment(NamedTuple):
    """A second moment, ready for `sqrt(v / correction) + eps`."""

    v: np.ndarray
    """float64, the parameter's shape, units grad**2."""
    correction: float
    """1 - beta2**step, or 1 where the optimizer applies none."""
    eps: float
    """To be added outside the root."""


class Form(NamedTuple):
    """One way to keep a second moment."""

    formula: str
    """What the optimizer divides by, for people; t is the step."""
    v: Callable[[StoredMoments], np.ndarray] | None = None
    """Return the second moment, float64, in the parameter's shape; None: it cannot be had from the file."""
    corrected: bool = True
    """True when the optimizer divides v by 1 - beta2**step."""
    eps: Literal["outside", "late", "inside"] = "outside"
    """Added outside the root; outside and then corrected with v; or part of v already."""
    length: float | None = None
    """RAdam: the length of the moving average above which a step is divided by v at all."""
    why_not: str = ""
    """Where `v` is None: why."""
    elementwise: bool = True
    """True when an element of v needs only its own element of each slot, so that a piece can be taken alone."""
    plain_means: bool = False
    """True when both moments are plain running means, of g and of g**2, so that each bounds the other."""
    approximate: str = ""
    """What is lost, where v is a reconstruction."""


def _beta2(hyper: Hyper) -> float:
    betas = all_betas(hyper)
    value = betas[1] if betas else hyper.get("beta2")
    if not isinstance(value, (int, float)):
        raise ProbeError("the file does not say beta2", fix="pass --betas B1,B2")
    if not 0 <= value < 1:
        raise ProbeError(f"beta2 is {value:g}, which no moving average has", fix="pass --betas B1,B2")
    return float(value)


def _eps(hyper: Hyper) -> float:
    value = hyper.get("eps")
    if value is None:
        raise ProbeError("the file does not say eps", fix="pass --eps E")
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ProbeError(f"eps is {value}, which is no small number", fix="pass --eps E")
    return float(value)


def _correction(hyper: Hyper, step: float | None) -> float:
    """1 - beta2**step in Python floats: float32 is off by 1e-5, and bfloat16 rounds beta2 to 1."""
    if step is None:
        raise ProbeError("the file does not say how many steps were taken", fix="pass --step N")
    if step < 1:
        raise ProbeError(f"no update was taken yet (step {step:g}): the second moment says nothing", fix="take a later checkpoint")
    return float(1.0 - _beta2(hyper) ** step)


def _divides(hyper: Hyper, step: float, correction: float, above: float) -> None:
    """RAdam's length of the moving average must exceed `above`, else its step is not divided by anything (Liu et al. 2020, Algorithm 2)."""
    length = 2 / (1 - _beta2(hyper)) - 1 - 2 * step * (1 - correction) / correction
    if length <= above:
        raise ProbeError(f"at step {step:g} RAdam does not divide by its second moment yet", fix="take a later checkpoint")


def _pick(stored: StoredMoments, *names: str) -> np.ndarray:
    """Return the first of these slots that is there, float64, in the parameter's shape."""
    for name in names:
        if name in stored.tensors:
            return stored.tensors[name].astype("float64").reshape(stored.shape)
    raise ProbeError(f"this parameter's state holds no {' and no '.join(names)}", fix="run `ostate inspect` on the file")


def _adam(stored: StoredMoments) -> np.ndarray:
    # amsgrad keeps the largest v before its correction, and corrects it as if it were v (torch/optim/adam.py, _single_tensor_adam).
    return _pick(stored, "max_exp_avg_sq", "exp_avg_sq")


def _adopt(stored: StoredMoments) -> np.ndarray:
    return _pick(stored, "exp_avg_sq").clip(min=_eps(stored.hyper) ** 2)


def _belief(stored: StoredMoments) -> np.ndarray:
    return _pick(stored, "exp_avg_var")


def _adamax(stored: StoredMoments) -> np.ndarray:
    return _pick(stored, "exp_inf") ** 2


def _adagrad(stored: StoredMoments) -> np.ndarray:
    return _pick(stored, "sum")


def _rmsprop(stored: StoredMoments) -> np.ndarray:
    v = _pick(stored, "square_avg")
    return v - _pick(stored, "grad_avg") ** 2 if stored.hyper.get("centered") else v


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

    row, col = row.astype("float64"), col.astype("float64")
    mean = row.mean(axis=-1, keepdims=True)
    scaled = np.divide(row, mean, out=np.zeros_like(row), where=mean != 0)
    return np.asarray(scaled[..., :, None] * col[..., None, :])


def _factored(stored: StoredMoments) -> np.ndarray:
    if "exp_avg_sq_row" not in stored.tensors:
        return _pick(stored, "exp_avg_sq")
    return outer(stored.tensors["exp_avg_sq_row"], stored.tensors["exp_avg_sq_col"]).reshape(stored.shape)


_FLOAT_EPS = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
"""torch.finfo(dtype).eps."""


def _factored_torch(stored: StoredMoments) -> np.ndarray:
    v: np.ndarray
    eps = stored.hyper.get("eps")
    smallest = eps[0] if isinstance(eps, (tuple, list)) else None
    if smallest is None:
        smallest = _FLOAT_EPS.get(stored.dtype, 2.0**-23)
    if "row_var" in stored.tensors:
        row, col = stored.tensors["row_var"].astype("float64"), stored.tensors["col_var"].astype("float64")
        v = (row * col / row.mean(axis=-2, keepdims=True).clip(min=smallest)).reshape(stored.shape)
    else:
        v = _pick(stored, "variance")
    return v.clip(min=smallest * smallest)


def _blocks(stored: StoredMoments) -> np.ndarray:
    if "v" in stored.tensors:
        return _pick(stored, "v")
    means, count = stored.tensors["vmean"].astype("float64").reshape(-1), math.prod(stored.shape)
    if means.size == 0 or count % means.size:
        raise ProbeError(f"{means.size} block means do not divide {count} elements", fix="run `ostate inspect` on the file")
    return means.repeat(count // means.size).reshape(stored.shape)


_FACTORED_LOSS = "v is rebuilt from its row and column means"
_UNTIL = "refused in the first steps, where RAdam does not divide"
SECOND_MOMENTS: dict[str, Form] = {
    "adam": Form(formula="sqrt(v / (1 - beta2^t)) + eps; v = exp_avg_sq, with amsgrad max_exp_avg_sq", v=_adam, plain_means=True),
    "adam_late_eps": Form(formula="(sqrt(exp_avg_sq) + eps) / sqrt(1 - beta2^t)", v=_adam, eps="late", plain_means=True),
    "radam": Form(
        formula=f"(sqrt(exp_avg_sq) + eps) / sqrt(1 - beta2^t); {_UNTIL}", v=_adam, eps="late", length=5.0,
        plain_means=True,
    ),
    "radam_schedulefree": Form(formula=f"sqrt(exp_avg_sq / (1 - beta2^t)) + eps; {_UNTIL}", v=_adam, length=4.0),
    "debiased": Form(formula="sqrt(exp_avg_sq) + eps; the average is kept without bias", v=_adam, corrected=False),
    "uncorrected": Form(formula="sqrt(exp_avg_sq) + eps; no correction", v=_adam, corrected=False),
    "adopt": Form(formula="max(sqrt(exp_avg_sq), eps); no correction", v=_adopt, corrected=False, eps="inside"),
    "belief": Form(formula="sqrt(exp_avg_var / (1 - beta2^t)) + eps; exp_avg_var is of g - m", v=_belief),
    "adamax": Form(formula="exp_inf; a running maximum of the size of g, no correction", v=_adamax, corrected=False, eps="inside"),
    "adagrad": Form(formula="sqrt(sum) + eps; no correction", v=_adagrad, corrected=False),
    "rmsprop": Form(
        formula="sqrt(square_avg) + eps; centered: v = square_avg - grad_avg^2; no correction", v=_rmsprop, corrected=False,
    ),
    "factored": Form(
        formula="sqrt(r c^T / mean(r)); one-dimensional: v = exp_avg_sq; no correction", v=_factored, corrected=False, eps="inside",
        elementwise=False, approximate=_FACTORED_LOSS,
    ),
    "factored_torch": Form(
        formula="sqrt(max(r c^T / mean(r), eps1^2)); one-dimensional: v = variance; no correction", v=_factored_torch, corrected=False,
        eps="inside", elementwise=False, approximate=_FACTORED_LOSS,
    ),
    "blocks": Form(
        formula="sqrt(vmean / (1 - beta2^t)) + eps; one vmean a block", v=_blocks, elementwise=False,
        approximate="v is one mean for a block of elements",
    ),
    "transformed": Form(formula="-", why_not="its second moment is of a gradient that was first multiplied by (A A^T)^-1"),
    "two_averages": Form(formula="-", why_not="its step is scaled by an average of earlier steps too"),
    "none": Form(formula="-", why_not="it keeps no second moment"),
    "weighted": Form(formula="-", why_not="its second moment is weighted by an estimated distance that changes from step to step"),
    "with_change": Form(formula="-", why_not="its second moment is of the gradient and its change together"),
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
    form = form_of(optimizer)
    assert form.v is not None
    correction, eps = divisor(optimizer, hyper, step)
    return Moment(form.v(StoredMoments(tensors=tensors, hyper=hyper, step=step, shape=shape, dtype=dtype)), correction, eps)


def has_second_moment(spec: OptimizerSpec) -> bool:
    """True when a denominator can be had from this optimizer's state."""
    return SECOND_MOMENTS[spec.moment].v is not None


def form_of(optimizer: str) -> Form:
    """Return the form of an optimizer's second moment.

    Raises:
        ProbeError: it keeps none that a gradient could be divided by, or is not known.
    """
    spec = OPTIMIZERS.get(optimizer)
    if spec is None:
        raise ProbeError("the optimizer is not known, so neither is the meaning of its state", fix="docs/optimizers.md lists the known ones")
    form = SECOND_MOMENTS[spec.moment]
    if form.v is None:
        raise ProbeError(f"{spec.classes}: {form.why_not}", fix="probe a state of Adam's kind, or without a preconditioner")
    return form


def confirmed(optimizer: str) -> None:
    """Refuse to use the moments of an optimizer that was only taken for another.

    Raises:
        ProbeError: its row says that something was assumed.
    """
    spec = OPTIMIZERS.get(optimizer)
    if spec is not None and spec.assumed:
        raise ProbeError(spec.assumed, fix='where it is of Adam\'s kind, say so: --as adamw; in Python dataclasses.replace(state, optimizer="adamw")')


def fits_adamw(optimizer: str) -> bool:
    """True when `exp_avg_sq` in torch's AdamW gives what this optimizer divides by, but for where eps stands; an unknown one is not judged."""
    spec = OPTIMIZERS.get(optimizer)
    return spec is None or (SECOND_MOMENTS[spec.moment].v is _adam and SECOND_MOMENTS[spec.moment].corrected)


def divisor(optimizer: str, hyper: Hyper, step: float | None) -> tuple[float, float]:
    """Return (correction, eps) of `sqrt(v / correction) + eps`, which no tensor is needed for.

    Args:
        optimizer: the row of `OPTIMIZERS`.
        hyper: the group's hyperparameters.
        step: updates already taken.

    Raises:
        ProbeError: as `second_moment`.
    """
    form = form_of(optimizer)
    corrected = form.corrected and bool(hyper.get("correct_bias", True))
    correction = _correction(hyper, step) if corrected else 1.0
    if form.length is not None and step is not None:
        _divides(hyper, step, correction, form.length)
    eps = 0.0 if form.eps == "inside" else _eps(hyper)
    return correction, eps / math.sqrt(correction) if form.eps == "late" else eps
