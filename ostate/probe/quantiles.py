"""Exact quantiles of positive numbers by counting bit patterns: no sort, no copy, the same answer over any number of ranks.

Positive IEEE floats sort as the integers of their bits, so two histograms of 2**16 counts find any element by its rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .shards import Ranks

_HALF = 1 << 16
_INFINITY = 0x7F800000
_PART = 1 << 22


def quantiles(pieces: Sequence[tuple[Tensor, float]], at: Sequence[float], ranks: Ranks) -> list[float] | None:
    """Return the lower quantiles of all positive elements.

    Args:
        pieces: (flat float tensor, how many ranks hold these same elements).
        at: quantiles, each in (0, 1]; 0.5 is the lower median.
        ranks: who else holds pieces.

    Returns:
        One number (as float32) for each, or None when no element is positive.
    """
    high = _count(pieces, None, ranks)
    total = sum(high)
    if total < 0.5:
        return None
    targets = [max(math.ceil(q * total - 1e-6), 1) for q in at]
    places = [_reach(high, target) for target in targets]
    low = {bucket: _count(pieces, bucket, ranks) for bucket in sorted({bucket for bucket, _ in places})}
    bits = [bucket * _HALF + _reach(low[bucket], target - before)[0] for target, (bucket, before) in zip(targets, places)]
    return [float(x) for x in torch.tensor(bits, dtype=torch.int32).view(torch.float32)]


def _count(pieces: Sequence[tuple[Tensor, float]], bucket: int | None, ranks: Ranks) -> list[float]:
    device = pieces[0][0].device if pieces else torch.device("cpu")
    counts = torch.zeros(_HALF, dtype=torch.float64, device=device)
    for tensor, copies in pieces:
        for part in torch.split(tensor, _PART):
            bits = part.to(torch.float32).view(torch.int32)
            bits = bits[(bits > 0) & (bits < _INFINITY)]
            bits = bits >> 16 if bucket is None else bits[(bits >> 16) == bucket] & (_HALF - 1)
            counts += torch.bincount(bits, minlength=_HALF).to(device=device, dtype=torch.float64) / copies
    found: list[float] = ranks.total(counts).tolist()
    return found


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
