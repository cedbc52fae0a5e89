"""The sum of x * P * g over flat buffers, in float64: three numbers an element in, one number out."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .layout import chunks


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def triple_dot(x: Tensor, scale: Tensor, g: Tensor) -> Tensor:
    """Return the sum of x * scale * g, flat tensors of one length on one device, as one float64 number."""
    if x.is_cuda and x.numel() and _has_triton() and all(tensor.is_contiguous() for tensor in (x, scale, g)):
        from . import kernels  # triton not everywhere

        return kernels.triple_dot(x, scale, g)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in chunks(x.numel(), x.device):
        total += torch.dot(x[part].to(torch.float64) * scale[part], g[part].to(torch.float64))
    return total
