"""A triton kernel for the sum of x * scale * g: three reads, one float64 sum, nothing written. Imported only where triton is installed."""

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

_BLOCK = 1024
_ROUNDS = 8


@triton.jit  # type: ignore[untyped-decorator,misc,unused-ignore]
def _dot(x, scale, g, out, numel, block: tl.constexpr, rounds: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    program = tl.program_id(0)
    start = program.to(tl.int64) * block * rounds
    total = tl.zeros((block,), tl.float64)
    for turn in range(rounds):
        at = start + turn * block + tl.arange(0, block)
        inside = at < numel
        left = tl.load(x + at, mask=inside, other=0.0).to(tl.float64)
        weight = tl.load(scale + at, mask=inside, other=0.0).to(tl.float64)
        right = tl.load(g + at, mask=inside, other=0.0).to(tl.float64)
        total += left * weight * right
    tl.store(out + program, tl.sum(total))


def triple_dot(x: Tensor, scale: Tensor, g: Tensor) -> Tensor:
    """Return sum(x * scale * g) as a 0-d float64 tensor: contiguous flat CUDA tensors, each rounding in float64, the same bits every time."""
    numel = x.numel()
    programs = triton.cdiv(numel, _BLOCK * _ROUNDS)
    parts = torch.empty(programs, dtype=torch.float64, device=x.device)
    with torch.cuda.device(x.device):
        _dot[(programs,)](x, scale, g, parts, numel, _BLOCK, _ROUNDS)
    return parts.sum()
