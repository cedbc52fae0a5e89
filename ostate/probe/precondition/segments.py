"""Numbers of each parameter's part of a flat buffer: one kernel for all of them on an accelerator, a loop on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FEW = 16
"""Parts for which a loop of small kernels costs no more than one pass over everything."""
EXACT = 1 << 24
"""Elements up to which float32 counts every one."""


def extremes(flat: Tensor, sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the smallest and largest number of each part; both NaN where a part holds one, inf and -inf where it is empty.

    Args:
        flat: (sum of sizes,).
        sizes: elements of each part, in order.
    """
    if flat.device.type == "cpu":
        parts = [
            torch.stack(torch.aminmax(part)) if part.numel() else torch.tensor([torch.inf, -torch.inf]) for part in torch.split(flat, list(sizes))
        ]
        low, high = torch.stack([part.to(torch.float64) for part in parts], dim=1).tolist()
        return low, high
    lengths = torch.tensor(sizes, device=flat.device)
    low, high = torch.stack([torch.segment_reduce(flat, which, lengths=lengths) for which in ("min", "max")]).tolist()
    return low, high


def counts(flat: Tensor, sizes: Sequence[int], parts: Sequence[int], test: Callable[[Tensor], Tensor]) -> list[float]:
    """Return how many elements of each part pass the test; 0 for parts that are not asked for.

    Args:
        flat: (sum of sizes,).
        sizes: elements of each part, in order.
        parts: which are asked for.
        test: numbers -> bool, element by element.
    """
    found = [0.0] * len(sizes)
    if not parts:
        return found
    if flat.device.type == "cpu" or len(parts) <= FEW or max(sizes) >= EXACT:
        slices = torch.split(flat, list(sizes))
        sums = torch.stack([test(slices[at]).sum() for at in parts]).tolist()
        for at, count in zip(parts, sums):
            found[at] = float(count)
        return found
    lengths = torch.tensor(sizes, device=flat.device)
    every = torch.segment_reduce(test(flat).to(torch.float32), "sum", lengths=lengths).tolist()
    for at in parts:
        found[at] = every[at]
    return found
