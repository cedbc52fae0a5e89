"""<x, P g>: three numbers an element in, one number out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ostate.errors import ProbeError

from .layout import chunks

if TYPE_CHECKING:
    from .preconditioner import AdamPreconditioner


def weighted_dot(preconditioner: AdamPreconditioner, xs: Sequence[Tensor], gs: Sequence[Tensor]) -> float:
    """Return the sum of x * P * g over all buffers and ranks, in float64.

    Args:
        preconditioner: gives P, or for the forms that advance the moments, the update itself.
        xs: flat, one a buffer.
        gs: likewise.

    Raises:
        ProbeError: batched gradients, for which one number says nothing.
    """
    if any(flat.ndim != 1 for flat in (*xs, *gs)):
        raise ProbeError("dot takes one gradient on each side, not a batch", fix="apply_all(batch) @ x")
    ranks, layout = preconditioner.ranks, preconditioner.layout
    if preconditioner.form == "frozen" and not ranks.groups:
        return sum(float(_triple(x, scale, g)) for x, scale, g in zip(xs, preconditioner.scale, gs))
    total = torch.zeros((), dtype=torch.float64, device=layout.buffers[0].device)
    for member, item in zip(layout.members, preconditioner._items):
        run = slice(member.start, member.stop)
        x, g = xs[member.buffer][run], gs[member.buffer][run]
        if preconditioner.form == "frozen":
            part = _triple(x, preconditioner.scale[member.buffer][run], g)
        else:
            part = torch.dot(x.to(torch.float64), preconditioner.updated(member, g))
        total += part.to(total.device) / ranks.copies(item.place)
    return float(ranks.total(total))


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triple(x: Tensor, scale: Tensor, g: Tensor) -> Tensor:
    if x.is_cuda and x.numel() and _has_triton() and all(tensor.is_contiguous() for tensor in (x, scale, g)):
        from .kernels import triple_dot

        return triple_dot(x, scale, g)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in chunks(x.numel(), x.device):
        total += torch.dot(x[part].to(torch.float64) * scale[part], g[part].to(torch.float64))
    return total
