"""Quantiles of positive numbers by counting bit patterns: no sort, no copy, the same answer over any number of ranks.

Positive IEEE floats sort as the integers of their bits. A histogram over the upper 16 of float32's 32 bits gives any quantile to 1 part in 128;
a second one, over the lower 16 bits of the bucket in which the median lies, gives the median to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .shards import Ranks

_HALF = 1 << 16
_INFINITY = 0x7F80
_PART = {"cpu": 1 << 18}
"""Elements at a time: temporaries that stay in a core's cache, where there is one to stay in."""

Piece = tuple[Tensor, float]
"""A flat float tensor, and how many ranks hold these same elements."""


class Medians(NamedTuple):
    """Of all positive finite elements; each median the lower one, exact in float32."""

    median: float | None
    """None: no element is positive."""
    quantiles: tuple[float, ...]
    """Over all elements, each at the lower edge of its bucket; empty where there is no median."""
    by_kind: dict[str, float]
    """Kinds that have a positive element."""


def medians(pieces: Mapping[str, Sequence[Piece]], at: Sequence[float], ranks: Ranks) -> Medians:
    """Return the medians of every kind and of all, and quantiles of all; collective over ranks.

    Args:
        pieces: by kind; every rank has the same kinds in the same order.
        at: quantiles, each in (0, 1).
        ranks: who else holds pieces.
    """
    upper = {kind: _count(some, lambda bits: (bits >> 16).clamp_(min=0), _HALF, ranks) for kind, some in pieces.items()}
    for counts in upper.values():
        counts[0] = 0.0  # what is negative, zero or below 1e-40
        counts[_INFINITY:] = 0.0
    every = torch.stack(list(upper.values())).sum(0)
    if float(every.sum()) < 0.5:
        return Medians(None, (), {})
    all_pieces = [piece for some in pieces.values() for piece in some]
    by_kind = {kind: _median(pieces[kind], counts, ranks) for kind, counts in upper.items() if float(counts.sum()) >= 0.5}
    median = next(iter(by_kind.values())) if len(pieces) == 1 else _median(all_pieces, every, ranks)
    total = float(every.sum())
    return Medians(median, tuple(_float(_reach(every, _target(q, total))[0] * _HALF) for q in at), by_kind)


def _median(pieces: Sequence[Piece], upper: Tensor, ranks: Ranks) -> float:
    target = _target(0.5, float(upper.sum()))
    bucket, before = _reach(upper, target)

    def lower_half(bits: Tensor) -> Tensor:
        return torch.where((bits >> 16) == bucket, (bits & (_HALF - 1)) + 1, 0)

    low, _ = _reach(_count(pieces, lower_half, _HALF + 1, ranks)[1:], target - before)
    return _float(bucket * _HALF + low)


def _count(pieces: Sequence[Piece], index: Callable[[Tensor], Tensor], size: int, ranks: Ranks) -> Tensor:
    """Return how many elements fall into each bucket, over all ranks: (size,), float64 on the CPU."""
    device = pieces[0][0].device
    counts = torch.zeros(size, dtype=torch.float64, device=device)
    for tensor, copies in _batches(pieces):
        here = torch.zeros(size, dtype=torch.int64, device=tensor.device)
        for part in torch.split(tensor, _PART.get(tensor.device.type, 1 << 24)):
            here += torch.bincount(index(part.to(torch.float32).view(torch.int32)), minlength=size)
        counts += here.to(device=device, dtype=torch.float64) / copies
    return ranks.total(counts).cpu()


def _batches(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Yield the same numbers, small neighbours together: on an accelerator each piece costs several launches."""
    waiting: list[Tensor] = []
    kind: tuple[torch.device, float] | None = None
    size = 0
    for tensor, copies in pieces:
        if waiting and kind is not None and ((tensor.device, copies) != kind or size + tensor.numel() > _PART.get(tensor.device.type, 1 << 24)):
            yield _one(waiting), kind[1]
            waiting, size = [], 0
        waiting.append(tensor)
        size += tensor.numel()
        kind = (tensor.device, copies)
    if waiting and kind is not None:
        yield _one(waiting), kind[1]


def _one(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _target(q: float, total: float) -> int:
    return max(math.ceil(q * total - 1e-6), 1)


def _reach(counts: Tensor, target: float) -> tuple[int, float]:
    """Return the first bucket at which the running sum reaches `target`, or the last that holds anything; and the sum before it."""
    running = counts.cumsum(0)
    at = int(torch.searchsorted(running, target - 1e-6))
    if at == len(counts):
        at = int(counts.nonzero()[-1])
    return at, float(running[at] - counts[at])


def _float(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
