"""Quantiles of positive numbers by counting bit patterns: no sort, no copy of what is large, the same answer over any number of ranks.

Positive IEEE floats sort as the integers of their bits. A histogram of the upper bits of float32's 32 tells in which bucket a quantile lies; one of
the next bits, over the elements of that bucket alone, tells where in it. 16 bits give any quantile to 1 part in 128, all 32 a median to the last
bit. A CPU counts 16 bits at a time; an accelerator 12, 10 and 10, so that each histogram fits its shared memory, where counting does not wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .shards import Ranks

_DIGITS = {"cpu": (16, 16)}
_DIGITS_ON_DEVICE = (12, 10, 10)
_INFINITY = 0x7F800000
_PART = {"cpu": 1 << 18}
"""Elements at a time: temporaries that stay in a core's cache, where there is one to stay in."""
_ON_DEVICE = 1 << 26
_SMALL = {"cpu": 1 << 14}
_SMALL_ON_DEVICE = 1 << 22
"""Elements of a piece that is copied together with others like it: each piece costs several calls."""

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
    batches = {kind: list(_batches(some)) for kind, some in pieces.items()}
    every = [piece for some in batches.values() for piece in some]
    digits = _DIGITS.get(every[0][0].device.type, _DIGITS_ON_DEVICE)
    shift = 32 - digits[0]
    coarse = {kind: _histogram(some, lambda bits: (bits >> shift).clamp_(min=0), 1 << (digits[0] - 1), ranks) for kind, some in batches.items()}
    for counts in coarse.values():
        counts[0] = 0.0  # what is negative, zero, or below 1e-38
        counts[_INFINITY >> shift :] = 0.0
    total = torch.stack(list(coarse.values())).sum(0)
    count = float(total.sum())
    if count < 0.5:
        return Medians(None, (), {})
    by_kind = {kind: _median(batches[kind], counts, digits, ranks) for kind, counts in coarse.items() if float(counts.sum()) >= 0.5}
    median = next(iter(by_kind.values())) if len(pieces) == 1 else _median(every, total, digits, ranks)
    return Medians(median, _quantiles(every, total, [_target(q, count) for q in at], digits[0], ranks), by_kind)


def _median(batches: Sequence[Piece], coarse: Tensor, digits: Sequence[int], ranks: Ranks) -> float:
    target: float = _target(0.5, float(coarse.sum()))
    prefix, before = _reach(coarse, target)
    shift = 32 - digits[0]
    for width in digits[1:]:
        target -= before

        def finer(bits: Tensor, above: int = shift, shift: int = shift - width, mask: int = (1 << width) - 1, prefix: int = prefix) -> Tensor:
            return (bits[(bits >> above) == prefix] >> shift) & mask

        shift -= width
        found, before = _reach(_histogram(batches, finer, 1 << width, ranks), target)
        prefix = (prefix << width) + found
    return _float(prefix)


def _quantiles(batches: Sequence[Piece], coarse: Tensor, targets: Sequence[int], digits: int, ranks: Ranks) -> tuple[float, ...]:
    """Return the lower edges of the buckets of 16 bits in which the targets lie; one more pass for all of them where `coarse` has fewer."""
    reached = [_reach(coarse, target) for target in targets]
    if digits == 16:
        return tuple(_float(bucket << 16) for bucket, _ in reached)
    wanted = sorted({bucket for bucket, _ in reached})
    slots = torch.full((len(coarse),), -1, dtype=torch.int32)
    slots[wanted] = torch.arange(len(wanted), dtype=torch.int32)
    more = 16 - digits

    def finer(bits: Tensor) -> Tensor:
        slot = slots.to(bits.device)[(bits >> (32 - digits)).clamp_(min=0)]
        inside = slot >= 0
        return (slot[inside] << more) + ((bits[inside] >> 16) & ((1 << more) - 1))

    fine = _histogram(batches, finer, len(wanted) << more, ranks).reshape(len(wanted), -1)
    found = [(bucket, _reach(fine[wanted.index(bucket)], target - before)[0]) for target, (bucket, before) in zip(targets, reached)]
    return tuple(_float(((bucket << more) + part) << 16) for bucket, part in found)


def _histogram(batches: Sequence[Piece], index: Callable[[Tensor], Tensor], size: int, ranks: Ranks) -> Tensor:
    """Return how many elements fall into each bucket, over all ranks: (size,), float64 on the CPU."""
    device = batches[0][0].device
    counts = torch.zeros(size, dtype=torch.float64, device=device)
    for tensor, copies in batches:
        here = torch.zeros(size, dtype=torch.int64, device=tensor.device)
        for part in torch.split(tensor, _PART.get(tensor.device.type, _ON_DEVICE)):
            here += torch.bincount(index(part.to(torch.float32).view(torch.int32)), minlength=size)
        counts += here.to(device=device, dtype=torch.float64) / copies
    return ranks.total(counts).cpu()


def _batches(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Yield the same numbers, small pieces that lie in as many ranks together."""
    together: dict[tuple[torch.device, float], list[Tensor]] = {}
    for tensor, copies in pieces:
        if tensor.numel() > _SMALL.get(tensor.device.type, _SMALL_ON_DEVICE):
            yield tensor, copies
        else:
            together.setdefault((tensor.device, copies), []).append(tensor)
    for (_, copies), some in together.items():
        yield torch.cat(some), copies


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
