"""One real run for the whole package."""

from __future__ import annotations

import copy

import pytest
import torch

from .training import named_state, tiny_lora, train, trainables


@pytest.fixture(scope="session")
def run():
    """(model, optimizer, state) after 20 real steps with two groups of different decay and betas."""
    model = tiny_lora()
    parameters = trainables(model)
    a = [p for name, p in parameters if "lora_A" in name]
    b = [p for name, p in parameters if "lora_B" in name]
    optimizer = torch.optim.AdamW([{"params": b, "betas": (0.8, 0.99), "weight_decay": 0.1}, {"params": a, "eps": 1e-7}], lr=1e-2, foreach=False)
    train(model, optimizer, 20)
    return model, optimizer, named_state(model, optimizer)


@pytest.fixture
def model(run):
    """A copy of the trained model that a test may change."""
    return copy.deepcopy(run[0])


@pytest.fixture
def state(run):
    return run[2]
