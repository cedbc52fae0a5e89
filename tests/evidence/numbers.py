"""States and adapters in memory: real cases with their truth, and small networks trained here by torch's own optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from ostate import read as formats
from ostate.core.naming import Adapter
from ostate.core.state import Entry, Group, RawState
from ostate.ordering.keys import adapter_key
from ostate.read import adapters
from tests import real
from tests.records import ArraySlot, replace


@dataclass(frozen=True)
class Known:
    """A state, its adapter, and the true key of every position (None: not in the adapter file)."""

    raw: RawState
    adapter: Adapter
    keys: tuple[str | None, ...]

    @property
    def with_state(self) -> list[int]:
        return [entry.position for entry in self.raw.entries if entry.has_state]

    def factors(self) -> list[int]:
        """Positions with state whose key is a LoRA factor."""
        words = ("lora_A", "lora_B", "lora_embedding")
        return [p for p in self.with_state if any(w in (self.keys[p] or "") for w in words) and not (self.keys[p] or "").endswith("bias")]

    def shuffled(self, seed: int) -> Known:
        """The same numbers under other positions, across groups; every position keeps its group's hyperparameters."""
        old = np.random.default_rng(seed).permutation(len(self.keys))
        entries = tuple(replace(self.raw.entries[o], position=new) for new, o in enumerate(old))
        groups = tuple(replace(g, positions=tuple(e.position for e in entries if e.group == g.index)) for g in self.raw.groups)
        return Known(replace(self.raw, entries=entries, groups=groups), self.adapter, tuple(self.keys[o] for o in old))

    def swapped(self, one: int, two: int) -> list[str | None]:
        """The true claim with two positions exchanged."""
        keys = list(self.keys)
        keys[one], keys[two] = keys[two], keys[one]
        return keys

    def swaps(self) -> list[tuple[int, int]]:
        """All pairs of LoRA factors of one shape."""
        there = self.factors()
        shape = {p: self.raw.entries[p].shape for p in there}
        return [(a, b) for i, a in enumerate(there) for b in there[i + 1 :] if shape[a] == shape[b]]


@cache
def case(name: str) -> Known:
    """Read a real case with its truth."""
    found = real.case(name)
    raw, adapter = formats.read(str(found.state)), adapters.read_adapter(str(found.adapter))
    by_index = {row["index"]: row["name"] for row in found.truth if "index" in row}
    names = [row["name"] for row in found.truth] if len(found.truth) == len(raw.entries) else [by_index.get(e.position) for e in raw.entries]
    return Known(raw, adapter, tuple(adapter_key(name, adapter) if name else None for name in names))


class Layer(nn.Module):
    """A frozen linear map plus a trained B A, B zero at first unless told otherwise."""

    def __init__(self, width: int, rank: int, generator: torch.Generator, start: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(width, width, generator=generator) / width**0.5)
        self.lora_A = nn.Parameter((torch.rand(rank, width, generator=generator) - 0.5) / width**0.5)
        self.lora_B = nn.Parameter(start * torch.randn(width, rank, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(x @ (self.weight + self.lora_B @ self.lora_A).T)


@dataclass(frozen=True)
class Toy:
    """How a toy network is trained."""

    layers: int = 6
    width: int = 24
    rank: int = 4
    steps: int = 20
    start: float = 0.0
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    seed: int = 0


def trained(
    toy: Toy, groups: Sequence[Mapping[str, Any]] = ({}, {}), config: Mapping[str, Any] | None = None, *, earlier: int = 0
) -> tuple[Known, Adapter]:
    """Train a residual network by hand; returns it, and its adapter as it was after `earlier` steps. Groups: all A's, all B's."""
    generator = torch.Generator().manual_seed(toy.seed)
    net = nn.Sequential(*(Layer(toy.width, toy.rank, generator, toy.start) for _ in range(toy.layers)))
    target = nn.Sequential(*(Layer(toy.width, toy.rank, generator, 0.3) for _ in range(toy.layers)))
    sides = ("lora_A", "lora_B")
    options = [{"params": [getattr(layer, side) for layer in net], **group} for side, group in zip(sides, groups)]
    optimizer = toy.optimizer(options, lr=3e-3)  # type: ignore[call-arg]
    before = _adapter(net, config)
    for step in range(toy.steps):
        if step == earlier:
            before = _adapter(net, config)
        x = torch.randn(16, toy.width, generator=generator)
        optimizer.zero_grad()
        ((net(x) - target(x).detach()) ** 2).mean().backward()
        optimizer.step()
    names = [f"{i}.{side}.weight" for side in sides for i in range(toy.layers)]
    return Known(_state(optimizer), _adapter(net, config), tuple(names)), before


def _adapter(net: nn.Sequential, config: Mapping[str, Any] | None) -> Adapter:
    tensors = {
        f"{i}.{side}.weight": ArraySlot(getattr(layer, side).detach().numpy().copy()) for i, layer in enumerate(net) for side in ("lora_A", "lora_B")
    }
    return Adapter(path="toy", file="toy", kind="peft", tensors=tensors, config={"peft_type": "LORA", **(config or {})})  # type: ignore[arg-type]


def _state(optimizer: torch.optim.Optimizer) -> RawState:
    stored = optimizer.state_dict()
    entries = []
    for index, group in enumerate(stored["param_groups"]):
        for position in group["params"]:
            state = stored["state"].get(position, {})
            slots = {name: ArraySlot(value.numpy().copy()) for name, value in state.items() if torch.is_tensor(value) and value.ndim}
            shape = next((slot.shape for slot in slots.values()), None)
            step = float(state["step"]) if "step" in state else None
            entries.append(Entry(position=position, key=position, group=index, slots=slots, step=step, shape=shape))
    groups = tuple(
        Group(index=index, positions=tuple(group["params"]), hyper={k: v for k, v in group.items() if k != "params"})
        for index, group in enumerate(stored["param_groups"])
    )
    name = {torch.optim.Adam: "adam", torch.optim.AdamW: "adamw", torch.optim.SGD: "sgd"}[type(optimizer)]
    return RawState(source="toy", layout="torch", files=(), groups=groups, entries=tuple(entries), optimizer=name)
