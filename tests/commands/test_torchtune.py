"""torchtune on one device: `recipe_state/recipe_state.pt`, and in `epoch_N/` its own names beside PEFT's (checkpointing/_checkpointer.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ostate.commands.repair import repair
from ostate.errors import SeveralOptimizers
from ostate.read import read
from ostate.read.adapters import read_adapter

LAYERS, WIDE = 4, 32
PEFTS = {"attn": "self_attn", "output_proj": "o_proj", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj", "lora_a": "lora_A", "lora_b": "lora_B"}


class Linear(nn.Module):
    """torchtune's LoRALinear: names and order of definition."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, wide) / wide**0.5, requires_grad=False)
        self.lora_a, self.lora_b = nn.Linear(wide, 4, bias=False), nn.Linear(4, out, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x):
        return x @ self.weight.T + 2 * self.lora_b(self.lora_a(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
            self.attn.add_module(name, Linear(WIDE, WIDE))
        self.mlp.w1, self.mlp.w2, self.mlp.w3 = Linear(WIDE, 64), Linear(64, WIDE), Linear(WIDE, 64)

    def forward(self, x):
        y = nn.functional.rms_norm(x, (WIDE,))
        y = nn.functional.scaled_dot_product_attention(self.attn.q_proj(y), self.attn.k_proj(y), self.attn.v_proj(y), is_causal=True)
        x = x + self.attn.output_proj(y)
        y = nn.functional.rms_norm(x, (WIDE,))
        return x + self.mlp.w2(nn.functional.silu(self.mlp.w1(y)) * self.mlp.w3(y))


def save(run: Path, epoch: int, optimizer: dict, model: nn.Module) -> None:
    """What `FullModelHFCheckpointer.save_checkpoint` writes of an adapter after an epoch."""
    folder = run / f"epoch_{epoch}"
    folder.mkdir(parents=True)
    (run / "recipe_state").mkdir(exist_ok=True)
    own = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
    torch.save(own, folder / "adapter_model.pt")
    pefts = {f"base_model.model.model.{'.'.join(PEFTS.get(part, part) for part in name.split('.'))}": value for name, value in own.items()}
    save_file(pefts, folder / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj"], "peft_type": "LORA", "base_model_name_or_path": "nobody/nothing"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"optimizer": optimizer, "seed": 1, "epochs_run": epoch + 1, "total_epochs": 5}, run / "recipe_state" / "recipe_state.pt")


@pytest.fixture(scope="module", params=["one optimizer", "one a parameter"])
def run(request, tmp_path_factory):
    """(folder, live names): two epochs; with `optimizer_in_bwd` each parameter has an optimizer of its own."""
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    each = request.param == "one a parameter"
    folder = tmp_path_factory.mktemp("torchtune")
    parts = {name: [param] for name, param in named} if each else {"": [param for _, param in named]}
    optimizers = {name: torch.optim.AdamW(params, lr=2e-3) for name, params in parts.items()}
    for step in range(12):
        x = torch.randn(4, 8, WIDE, generator=torch.Generator().manual_seed(step))
        y = x
        for layer in model.layers:
            y = layer(y)
        (y - x.roll(1, dims=1)).pow(2).mean().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        if step in (5, 11):
            states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
            save(folder, step // 6, states if each else states[""], model)
    return folder, [name for name, _ in named]


@pytest.mark.parametrize("adapter", [None, "epoch_1", "epoch_1/adapter_model.pt"])
def test_names_are_torchtunes_own_and_proven_by_the_epochs_adapter(run, adapter):
    folder, names = run
    done = repair(str(folder), adapter=None if adapter is None else str(folder / adapter))
    assert (list(done.ordering.names), done.ordering.verdict) == (names, "verified")


def test_optimizers_of_one_parameter_each_are_one_state_under_their_names(run):
    folder, names = run
    raw = read(str(folder / "recipe_state"))
    assert len(raw.entries) == len(names)
    assert len(raw.groups) == 1
    assert raw.recorded in (None, "name-keyed")
    assert [entry.name for entry in raw.entries] == (names if raw.recorded else [None] * len(names))


def test_torchtunes_own_file_is_torchtunes_whatever_configuration_lies_beside_it(run):
    folder, _ = run
    assert read_adapter(str(folder / "epoch_1")).file.endswith("adapter_model.pt")
    assert read_adapter(str(folder / "epoch_1" / "adapter_model.pt")).kind == "torchtune"
    assert read_adapter(str(folder / "epoch_1" / "adapter_model.safetensors")).kind == "peft"


def test_two_optimizers_of_one_parameter_each_are_still_two_where_no_parameter_is_called_so(tmp_path):
    one = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([one])
    one.sum().backward()
    optimizer.step()
    torch.save({"actor": optimizer.state_dict(), "critic": optimizer.state_dict()}, tmp_path / "optimizer.pt")
    with pytest.raises(SeveralOptimizers):
        read(str(tmp_path / "optimizer.pt"))
