"""Quantiles of positive numbers by counting bit patterns: no sort, no copy, the same answer over any number of ranks.

Positive IEEE floats sort as the integers of their bits. A histogram over the upper 16 of float32's 32 bits gives any quantile to 1 part in 128;
a second one, over the lower 16 bits of the bucket in which the median lies, gives the median to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .shards import Ranks

_HALF = 1 << 16
_INFINITY = 0x7F80
_PART = {"cpu": 1 << 18}
"""Elements at a time: temporaries that stay in a core's cache, where there is one to stay in."""


def quantiles(pieces: Sequence[tuple[Tensor, float]], at: Sequence[float], ranks: Ranks) -> tuple[float, list[float]] | None:
    """Return the lower median and the quantiles of all positive finite elements; collective over ranks.

    Args:
        pieces: (flat float tensor, how many ranks hold these same elements).
        at: quantiles, each in (0, 1).
        ranks: who else holds pieces.

    Returns:
        (the median, exact in float32; the others, each at the lower edge of its bucket), or None when no element is positive.
    """
    counts = _count(pieces, lambda bits: (bits >> 16).clamp_(min=0), _HALF, ranks)
    upper = [0.0, *counts[1:_INFINITY]]  # bucket 0 holds what is negative, zero or below 1e-40
    total = sum(upper)
    if total < 0.5:
        return None
    bucket, before = _reach(upper, _target(0.5, total))

    def lower_half(bits: Tensor) -> Tensor:
        return torch.where((bits >> 16) == bucket, (bits & (_HALF - 1)) + 1, 0)

    lower = _count(pieces, lower_half, _HALF + 1, ranks)[1:]
    low, _ = _reach(lower, _target(0.5, total) - before)
    return _float(bucket * _HALF + low), [_float(_reach(upper, _target(q, total))[0] * _HALF) for q in at]


def _count(pieces: Sequence[tuple[Tensor, float]], index: Callable[[Tensor], Tensor], size: int, ranks: Ranks) -> list[float]:
    device = pieces[0][0].device
    counts = torch.zeros(size, dtype=torch.float64, device=device)
    for tensor, copies in pieces:
        here = torch.zeros(size, dtype=torch.int64, device=tensor.device)
        for part in torch.split(tensor, _PART.get(tensor.device.type, 1 << 24)):
            here += torch.bincount(index(part.to(torch.float32).view(torch.int32)), minlength=size)
        counts += here.to(device=device, dtype=torch.float64) / copies
    found: list[float] = ranks.total(counts).tolist()
    return found


def _target(q: float, total: float) -> int:
    return max(math.ceil(q * total - 1e-6), 1)


def _reach(counts: Sequence[float], target: float) -> tuple[int, float]:
    """Return the first bucket at which the running sum reaches `target`, and the sum before it."""
    before = 0.0
    last = 0
    for bucket, count in enumerate(counts):
        if count > 0:
            last = bucket
            if before + count >= target - 1e-6:
                return bucket, before
            before += count
    return last, before - counts[last]


def _float(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
