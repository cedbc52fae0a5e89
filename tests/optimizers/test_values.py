"""`inspect --values`: one pass over the numbers, counted right."""

from __future__ import annotations

import math

import pytest
import torch
from bitsandbytes import optim as bnb

from ostate.commands.inspect import inspect

from .live import SHAPES, run


def test_zeros_tiny_negative_and_bad_numbers_are_counted(tmp_path):
    params = [torch.nn.Parameter(torch.zeros(600, 700)), torch.nn.Parameter(torch.zeros(5))]
    optimizer = torch.optim.AdamW(params, eps=1e-8)
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer.step()
    v = optimizer.state[params[0]]["exp_avg_sq"]
    v[0, :7], v[1, :5], v[2, :3], v[3, :2], v[4, 0] = 0.0, 1e-17, -1e-9, math.nan, math.inf
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    seen = inspect(str(tmp_path / "optimizer.pt"), values=True)
    row = seen.values["exp_avg_sq"]
    assert (row["elements"], row["zero"], row["tiny"], row["negative"], row["nan"], row["inf"]) == (420005, 7, 5, 3, 2, 1)
    assert row["smallest"] == pytest.approx(-1e-9)
    assert row["largest"] == pytest.approx(1e-9, rel=1e-3)


def test_packed_slots_are_counted_as_the_numbers_they_mean(tmp_path):
    live = run(bnb.AdamW8bit, shapes=SHAPES[:1])
    torch.save(live.optimizer.state_dict(), tmp_path / "optimizer.pt")
    seen = inspect(str(tmp_path / "optimizer.pt"), values=True)
    assert seen.values["exp_avg_sq"]["elements"] == 4480
    assert seen.values["exp_avg_sq"]["largest"] < 1e-6
