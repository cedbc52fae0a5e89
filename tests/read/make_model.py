"""A tiny model with PEFT's names, its training steps, and the truth of an optimizer: what the `make_*` programs share.

Odd sizes, so that nothing divides by the number of processes: rank 3 over 2 processes gives shards of 2 and 1 rows, rank 1 leaves
the second process without any.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests import truth
from tests.truth import digest, row_of

PREFIX = "base_model.model.model."
STEPS = 3


class LoraLinear(nn.Module):
    """A frozen linear map and its low-rank change, under the names PEFT gives them."""

    def __init__(self, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(width_in, width_out, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(width_in, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, width_out, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Attention(nn.Module):
    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.q_proj = LoraLinear(width, width, rank)
        self.v_proj = LoraLinear(width, width - 2, rank)
        self.o_proj = nn.Linear(width - 2, width, bias=False).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(torch.tanh(self.v_proj(torch.tanh(self.q_proj(x)))))


class Block(nn.Module):
    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.self_attn(x)


class Inner(nn.Module):
    def __init__(self, width: int, ranks: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, rank) for rank in ranks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Wrap(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class Tiny(nn.Module):
    """Named like a PEFT model: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight`."""

    def __init__(self, width: int = 10, ranks: tuple[int, ...] = (3, 3, 1), seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base_model = Wrap(Wrap(Inner(width, ranks)))
        for name, parameter in self.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_model(x)

    @property
    def layers(self) -> nn.ModuleList:
        return self.base_model.model.model.layers


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def two_groups(model: nn.Module, named: bool = False) -> list[dict[str, Any]]:
    """Two groups that differ in every hyperparameter: all lora_A, then all lora_B."""
    first = [(n, p) for n, p in trainable(model) if "lora_A" in n]
    second = [(n, p) for n, p in trainable(model) if "lora_A" not in n]
    return [
        {"params": [pair if named else pair[1] for pair in first], "lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01},
        {"params": [pair if named else pair[1] for pair in second], "lr": 2e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, **more: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(two_groups(model), **more)


def batch(width: int, step: int) -> torch.Tensor:
    """The same batch on every process: the mean of equal gradients is exact."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(7, width, generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, width: int = 10, steps: int = STEPS) -> None:
    for step in range(steps):
        model(batch(width, step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def record(tensors: dict[str, torch.Tensor], shape: Any, step: Any, group: dict[str, Any], master: torch.Tensor | None = None) -> dict[str, Any]:
    """One parameter's row of truth, but for its name."""
    more = {} if master is None else {"master": digest(master)}
    return {key: value for key, value in row_of("", shape, group, tensors, step=step, **more).items() if key != "name"}


def write_truth(folder: Path, rows: dict[str, Any], *, order: list[str] | None = None) -> None:
    """Write the rows by name; `order`: the names of all positions, where some have no state."""
    truth.write(folder / "truth.json", [{"name": name, **row} for name, row in rows.items()])
    if order is not None:
        (folder / "order.json").write_text(json.dumps(order))


def plain_truth(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The truth of an optimizer in one process."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    rows = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = dict(optimizer.state[parameter])
            step = state.pop("step")
            rows[names[parameter]] = record(state, parameter.shape, step, group, parameter)
    return rows
