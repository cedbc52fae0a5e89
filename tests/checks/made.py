"""Real optimizer states, spoiled in one way each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ostate import read as formats
from ostate.core.state import RawState

SHAPES = [(4, 32), (32, 4), (4, 32), (32, 4), (8,), (300,)]


def state_dict(steps: int = 6, make: Any = torch.optim.AdamW, frozen: int = 0, **options: Any) -> dict[str, Any]:
    """Return the state dict of an optimizer that trained `SHAPES`; `frozen` more parameters stand before them and get no gradient."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    idle = [torch.nn.Parameter(torch.randn(3)) for _ in range(frozen)]
    optimizer = make([*idle, *parameters], lr=1e-3, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p * torch.randn_like(p)).sum() for p in parameters).backward()
        optimizer.step()
    return optimizer.state_dict()


def read(folder: Path, stored: dict[str, Any]) -> RawState:
    """Save as a person would and read it back."""
    torch.save(stored, folder / "optimizer.pt")
    return formats.read(str(folder / "optimizer.pt"))
