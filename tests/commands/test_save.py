"""`ostate.save` and what comes back out of it: a resume goes on as the optimizer itself would have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ostate

Maker = Callable[..., torch.optim.Optimizer]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(11, 24), nn.Linear(24, 24), nn.Tanh(), nn.LayerNorm(24), nn.Linear(24, 11, bias=False))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    rows = list(model.parameters())
    return [{"params": rows[3:], "lr": 1e-2, "weight_decay": 0.1}, {"params": rows[:3], "lr": 3e-3}]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, generator: torch.Generator) -> None:
    for _ in range(steps):
        ids = torch.randint(0, 11, (4, 6), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: torch.optim.AdamW(rows, fused=True),
        lambda rows: torch.optim.AdamW(rows, foreach=True, amsgrad=True),
        lambda rows: torch.optim.SGD(rows, momentum=0.9, fused=True),
    ],
    ids=["fused", "foreach", "SGD fused"],
)
def test_a_resume_from_a_saved_state_equals_training_on_bit_for_bit(make: Maker, tmp_path: Path):
    model = network()
    optimizer = make(groups(model))
    generator = torch.Generator().manual_seed(2)
    train(model, optimizer, 5, generator)
    named = ostate.save(optimizer, model, tmp_path / "named.safetensors")
    ostate.export(named, "torch", tmp_path / "optimizer.pt")
    weights, drawn = copy.deepcopy(model.state_dict()), generator.get_state()
    train(model, optimizer, 3, generator)

    again = network()
    again.load_state_dict(weights)
    resumed = make(groups(again))
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    generator.set_state(drawn)
    train(again, resumed, 3, generator)
    assert all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), again.state_dict().values()))
    for one, other in zip(optimizer.param_groups, resumed.param_groups):
        assert {key: value for key, value in one.items() if key != "params"}.keys() <= other.keys()
        assert other.get("fused") == one.get("fused")


def test_betas_that_are_tensors_are_saved_as_their_numbers(tmp_path: Path):
    model = network()
    optimizer = torch.optim.Adam(groups(model), betas=(torch.tensor(0.5), torch.tensor(0.75)), lr=torch.tensor(1e-3), foreach=False)
    train(model, optimizer, 1, torch.Generator().manual_seed(2))
    state = ostate.load(ostate.save(optimizer, model, tmp_path / "named.safetensors"))
    assert [group.hyper["betas"] for group in state.groups] == [(0.5, 0.75), (0.5, 0.75)]
