"""Short real runs: PEFT's own LoRA on small real models, trained by torch's AdamW and saved as people save it, truth kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ostate import read as formats
from ostate.read import adapters
from tests import trained
from tests.evidence.numbers import Known

Batch = Callable[[torch.Generator], torch.Tensor]
"""The loss of one batch."""


class Convolutions(nn.Module):
    """Six residual 3 x 3 convolutions of one shape, and two 1 x 1 that change the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(12, 20, 1), nn.Conv2d(20, 12, 1)
        self.body = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body:
            x = x + torch.tanh(layer(x))
        return x + self.wide(torch.relu(self.narrow(x)))


def convolutions() -> tuple[nn.Module, Any]:
    """Return the network, and what gives the loss of a model made of it: the distance to another such network."""
    torch.manual_seed(3)
    teacher, net = Convolutions(), Convolutions()

    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(6, 12, 8, 8, generator=generator)
        return ((model(x) - teacher(x).detach()) ** 2).mean()

    return net, loss


def language_model(make: Callable[[], Any], seed: int = 3) -> tuple[nn.Module, Any]:
    """Return a language model, and its loss on sequences with something to learn."""
    torch.manual_seed(seed)
    rows = torch.stack([row["input_ids"] for row in trained.sequences(256, 3)])

    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        ids = rows[torch.randint(len(rows), (8,), generator=generator)]
        return model(input_ids=ids, labels=ids).loss

    return make(), loss


def gpt2() -> Any:
    """Return a random GPT-2, whose projections are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=trained.VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=64))


def train(
    folder: Path,
    made: tuple[nn.Module, Any],
    lora: dict[str, Any],
    *,
    steps: int,
    earlier: int = 0,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
) -> Path:
    """Train and save into `folder`: optimizer.pt, adapter and names.json; the adapter after `earlier` steps into `earlier`, the base into `base`."""
    from peft import LoraConfig, get_peft_model

    net, loss = made
    if hasattr(net, "save_pretrained"):
        net.save_pretrained(folder / "base")
    torch.manual_seed(5)
    model = get_peft_model(net, LoraConfig(**{"r": 4, "lora_alpha": 8, **lora}))
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    stepper = optimizer(list(named.values()), lr=3e-3)
    generator = torch.Generator().manual_seed(11)
    model.train()
    for step in range(steps):
        if earlier and step == earlier:
            model.save_pretrained(folder / "earlier")
        stepper.zero_grad()
        loss(model, generator).backward()
        stepper.step()
    model.save_pretrained(folder)
    torch.save(stepper.state_dict(), folder / "optimizer.pt")
    (folder / "names.json").write_text(json.dumps(list(named)))
    return folder


def known(folder: Path) -> Known:
    """Read a run with its truth."""
    from ostate.ordering.keys import adapter_key

    raw, adapter = formats.read(str(folder / "optimizer.pt")), adapters.read_adapter(str(folder))
    return Known(raw, adapter, tuple(adapter_key(name, adapter) for name in names(folder)))


def names(folder: Path) -> list[str]:
    """Return the live names of a run, in the optimizer's order."""
    return list(json.loads((folder / "names.json").read_text()))
