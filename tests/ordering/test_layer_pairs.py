"""Layer-wise learning rates: each layer has a group for what decays and one for what does not, as timm's code and BERT's users make them."""

from __future__ import annotations

import re
from pathlib import Path

import peft
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from ostate.commands.repair import repair
from ostate.errors import OstateError

NO_DECAY = ("bias", "LayerNorm.weight")


def trained(model) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, one) for name, one in model.named_parameters() if one.requires_grad]


def pair(named, rate: float, decay_first: bool = True) -> list[dict]:
    yes = {"params": [one for name, one in named if not any(word in name for word in NO_DECAY)], "weight_decay": 0.01, "lr": rate}
    no = {"params": [one for name, one in named if any(word in name for word in NO_DECAY)], "weight_decay": 0.0, "lr": rate}
    return [yes, no] if decay_first else [no, yes]


def from_the_head_down(model) -> list[dict]:
    """As programs for BERT and ELECTRA do it: the head without decay, then a pair for each layer, the last one first."""
    bert = model.base_model.model.bert if hasattr(model, "peft_config") else model.bert
    head = [one for name, one in trained(model) if "classifier" in name or "pooler" in name]
    groups = [{"params": head, "weight_decay": 0.0, "lr": 1e-3}]
    for depth, layer in enumerate(reversed([bert.embeddings, *bert.encoder.layer])):
        groups += pair(trained(layer), 1e-3 * 0.9 ** (depth + 1))
    return groups


def as_first_seen(model) -> list[dict]:
    """As timm's `param_groups_layer_decay` does it: a group for each (layer, decay or not) when its first parameter comes by."""
    groups: dict[tuple[int, bool], dict] = {}
    for name, one in trained(model):
        found = re.search(r"layer\.(\d+)\.", name)
        layer = int(found[1]) + 1 if found else 0 if "embeddings" in name else 4
        flat = one.ndim <= 1 or name.endswith(".bias")
        group = {"params": [], "lr": 1e-3 * 0.8 ** (4 - layer), "weight_decay": 0.0 if flat else 0.01}
        groups.setdefault((layer, flat), group)["params"].append(one)
    return list(groups.values())


def run(folder: Path, groups_of, *, lora: bool) -> tuple[torch.optim.Optimizer, dict[torch.nn.Parameter, str]]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 16}
    model = BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=3, num_labels=3))
    model.save_pretrained(folder / "base")
    model.name_or_path = str(folder / "base")
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(r=6, target_modules=["query", "key", "value"], task_type="SEQ_CLS"))
    optimizer = torch.optim.AdamW(groups_of(model))
    draw = torch.Generator().manual_seed(0)
    for _ in range(8):
        ids = torch.randint(0, 60, (8, 10), generator=draw)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids[:, 0] % 3).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "run")
    torch.save(optimizer.state_dict(), folder / "run" / "optimizer.pt")
    return optimizer, {one: name for name, one in model.named_parameters()}


@pytest.mark.parametrize("lora", [False, True], ids=["whole model", "LoRA"])
@pytest.mark.parametrize("groups_of", [from_the_head_down, as_first_seen])
def test_a_pair_of_groups_for_each_layer_is_known(tmp_path: Path, groups_of, lora: bool):
    optimizer, names = run(tmp_path, groups_of, lora=lora)
    done = repair(str(tmp_path / "run"), **({} if lora else {"model": str(tmp_path / "run"), "base": str(tmp_path / "base")}))
    assert done.ordering.source == "skeleton"
    assert done.ordering.proven
    live = {names[one]: optimizer.state[one]["exp_avg_sq"] for group in optimizer.param_groups for one in group["params"]}
    assert live.keys() == done.named.parameters.keys()
    assert all(torch.equal(torch.tensor(done.named.tensor(name, "exp_avg_sq")), value) for name, value in live.items())


def test_a_pair_whose_rates_differ_is_no_layers(tmp_path: Path):
    run(tmp_path, lambda model: [{**group, "lr": 1e-3 / (at + 1)} for at, group in enumerate(as_first_seen(model))], lora=False)
    with pytest.raises(OstateError, match="cannot determine the parameter order"):
        repair(str(tmp_path / "run"), model=str(tmp_path / "run"), base=str(tmp_path / "base"), evidence=False)
