"""What callers may hand to a preconditioner, and in which order: programs differ in it, so each argument is known by its kind."""

from __future__ import annotations

import logging
import math
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ostate.core.naming import NamedState
from ostate.errors import ProbeError, ProbeTypeError

from .guards import Guards

Form = Literal["frozen", "next_step", "less"]


class PreconditionerOptions(TypedDict, total=False):
    """Arguments of `AdamPreconditioner` that a call hands on by name."""

    model: nn.Module | None
    form: Form
    precision: Literal["float32", "float64"]
    device: torch.device | str | None
    betas: tuple[float, float] | None
    eps: float | None


def source(source: object, optimizer: object) -> Optimizer | NamedState:
    """Return what the moments come from, given by place or by keyword.

    Raises:
        ProbeTypeError: neither or both, or something that keeps no moments.
    """
    if (source is None) == (optimizer is None):
        raise ProbeTypeError("one optimizer or one named state is expected", where="AdamPreconditioner", fix="AdamPreconditioner(optimizer)")
    found = optimizer if source is None else source
    if not isinstance(found, (Optimizer, NamedState)):
        fix = "ostate.load(path) gives a named state" if isinstance(found, str) else "pass a torch.optim.Optimizer or a named state"
        raise ProbeTypeError(f"a {type(found).__name__} keeps no moments", where="AdamPreconditioner", fix=fix)
    return found


def refuse_other_kinds(logger: object, checkpoint_step: float | None, guards: object) -> None:
    """Name the argument that stands in another's place: programs differ in the order of these three.

    Raises:
        ProbeTypeError: one of them is of another kind.
    """
    rows = (
        ("logger", logger, (logging.Logger, logging.LoggerAdapter), "a logging.Logger"),
        ("checkpoint_step", checkpoint_step, (int, float), "a number"),
        ("guards", guards, (Guards,), "a Guards"),
    )
    for name, value, kinds, wanted in rows:
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            what = f"{name} must be {wanted}, not a {type(value).__name__}"
            raise ProbeTypeError(what, where="AdamPreconditioner", fix="AdamPreconditioner(optimizer, logger=…, checkpoint_step=…, guards=…)")
    if checkpoint_step is not None and not (0 <= checkpoint_step < math.inf):
        raise ProbeError(
            f"checkpoint_step must be a finite number from 0, not {checkpoint_step}", where="AdamPreconditioner", fix="checkpoint_step=500"
        )


def device_of(device: torch.device | str | None) -> torch.device | None:
    """Return where a named state is to be put; None: nobody said.

    Raises:
        ProbeError: no device of this torch.
    """
    if device is None:
        return None
    try:
        return torch.empty(0, device=torch.device(device)).device  # with its number: `cuda` is the current one's, as gradients say it
    except (TypeError, RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
        text = (str(error).splitlines() or [""])[0][:200]
        raise ProbeError(f"cannot put numbers on the device {device!r}: {text}", where="AdamPreconditioner", fix='device="cpu"') from error


def gradient_of_unknown(first: Tensor | str, second: Tensor | str) -> Tensor | str:
    """Return which of two tensors is the gradient, where neither is a parameter that is known.

    Raises:
        ProbeError: nothing tells.
    """
    if not isinstance(first, Tensor) or (_is_parameter(first) and not _is_parameter(second)):
        return second
    if _is_parameter(second) and not _is_parameter(first):
        return first
    raise ProbeError("neither tensor is a known parameter, so it is not clear which one is the gradient", fix="apply(parameter, gradient)")


def _is_parameter(value: object) -> bool:
    return isinstance(value, Tensor) and (isinstance(value, nn.Parameter) or (value.is_leaf and value.requires_grad))
