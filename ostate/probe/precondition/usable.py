"""What may be computed with: kinds of tensors, of parameters and of constants; anything else is refused by name before it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ostate.core.hyper import shown
from ostate.errors import ProbeError, ProbeTypeError

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Dtypes of gradients and of trainable parameters. torch multiplies complex and whole numbers too: by what would be no preconditioner."""


def check_gradient(gradient: object, where: str, device: torch.device | None = None) -> Tensor:
    """Return the gradient, or refuse one that cannot be preconditioned as it is.

    Args:
        gradient: anything.
        where: the parameter's name, or what the gradients are called.
        device: where it is multiplied; None: wherever it lies.

    Raises:
        ProbeTypeError: no tensor.
        ProbeError: sparse, nested, quantised, complex, of whole numbers or float8; without data; on another device.
    """
    if not isinstance(gradient, Tensor):
        what = f"the gradient is a {type(gradient).__name__}, not a tensor"
        raise ProbeTypeError(what, where=where, fix="a parameter that took no part has no gradient: leave it out")
    if gradient.is_nested or gradient.layout is not torch.strided:
        kind = "nested" if gradient.is_nested else str(gradient.layout).removeprefix("torch.")
        raise ProbeError(f"the gradient is a {kind} tensor", where=where, fix="gradient.to_dense()")
    if gradient.dtype not in FLOATS:
        raise ProbeError(f"the gradient is of {gradient.dtype}", where=where, fix="pass real gradients in float32, bfloat16, float16 or float64")
    if gradient.is_meta:
        raise ProbeError("the gradient lies on the meta device and has no numbers", where=where, fix="load the model's weights")
    if device is not None and gradient.device != device:
        raise ProbeError(f"the gradient lies on {gradient.device}, the moments on {device}", where=where, fix=f"gradient.to({str(device)!r})")
    return gradient


def check_parameter(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a parameter that no moments can be put beside.

    Raises:
        ProbeError: it lies on the meta device, so that its moments would be lost; it is complex, of float8, or of whole numbers.
    """
    if device.type == "meta":
        fix = "load the model's weights first: a model half loaded has such parameters"
        raise ProbeError("the parameter lies on the meta device: moments put there would be lost", where=name, fix=fix)
    if dtype not in FLOATS:
        fix = "load the trainable weights in float32, bfloat16 or float16"
        raise ProbeError(f"the parameter is of {dtype}, whose moments are not numbers of their own", where=name, fix=fix)


def check_twice(parameters: Sequence[Tensor]) -> None:
    """Refuse an optimizer that holds one parameter twice: which of its positions the moments are of, nobody could say.

    Raises:
        ProbeError: it does.
    """
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        fix = "pass each parameter once: torch.optim.AdamW(model.parameters()) leaves out what two modules share"
        raise ProbeError("the optimizer holds a parameter twice", where="param_groups", fix=fix)


def rates(betas: object, eps: object, where: str) -> tuple[tuple[float, float], float]:
    """Return (beta1, beta2) and eps as numbers that a preconditioner can be made of.

    Raises:
        ProbeError: betas that are not two numbers in [0, 1); an eps that is not a finite number from 0.
    """
    pair = [number(beta) for beta in betas[:2]] if isinstance(betas, (list, tuple)) else []
    if len(pair) != 2 or not all(beta is not None and 0.0 <= beta < 1.0 for beta in pair):
        raise ProbeError(f"betas must be two numbers from 0 to below 1, not {shown(betas)}", where=where, fix="betas=(0.9, 0.999)")
    added = number(eps)
    if added is None or added < 0:
        raise ProbeError(f"eps must be a finite number from 0, not {shown(eps)}", where=where, fix="eps=1e-8")
    return (pair[0] or 0.0, pair[1] or 0.0), added


def number(value: object) -> float | None:
    """Return a finite number that stands as such or as a tensor of one element; None for anything else, truth values too."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta and not value.is_complex() and value.dtype != torch.bool:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
