"""Real optimizers, stepped here, saved by torch.save, and read back by ostate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ostate.core.tensors import Slot
from ostate.optimizers import recognise
from ostate.read import quantized as encodings
from ostate.read.container import torchsave

SHAPES = ((70, 64), (64, 70), (5, 3), (7,))
"""4480 elements make 17.5 blocks of 256; the last two stay float32 in every packed optimizer."""


@dataclass(frozen=True)
class Live:
    """An optimizer after some steps, and its last step."""

    optimizer: torch.optim.Optimizer
    params: list[torch.nn.Parameter]
    before: list[torch.Tensor]
    """The weights before the last step."""
    grads: list[torch.Tensor]
    """The gradients of the last step."""

    def moved(self, index: int) -> torch.Tensor:
        """What the last step added to a weight, float64."""
        return self.params[index].detach().double() - self.before[index].double()


@dataclass(frozen=True)
class Found:
    """What ostate reads from the saved file."""

    slots: list[dict[str, Slot]]
    scalars: list[dict[str, Any]]
    hyper: dict[str, Any]
    optimizer: str


def run(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], *, steps: int = 3, shapes: Sequence[tuple[int, ...]] = SHAPES) -> Live:
    generator = torch.Generator().manual_seed(7)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = make(params)
    if hasattr(optimizer, "train"):
        optimizer.train()
    before: list[torch.Tensor] = []
    grads: list[torch.Tensor] = []
    for _ in range(steps):
        before = [param.detach().clone() for param in params]
        grads = [torch.randn(param.shape, generator=generator) * 1e-3 for param in params]
        for param, grad in zip(params, grads):
            param.grad = grad.to(param.dtype, copy=True)
        optimizer.step()
    return Live(optimizer, params, before, grads)


def read(state_dict: dict[str, Any], folder: Path) -> Found:
    path = folder / "optimizer.pt"
    torch.save(state_dict, path)
    stored = torchsave.load(str(path)).value
    hyper = {key: value for group in stored["param_groups"] for key, value in group.items() if key != "params"}
    decoded = [encodings.slots_of(entry, hyper) for entry in stored["state"].values() if isinstance(entry, dict)]  # SPAM counts beside them
    slots = {name for entry, _ in decoded for name in entry}
    scalars = {name for _, entry in decoded for name in entry}
    return Found([entry for entry, _ in decoded], [entry for _, entry in decoded], hyper, recognise(slots, hyper, scalars))
