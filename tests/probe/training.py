"""A tiny real LoRA run, and its state by name, taken from the live optimizer (the truth)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Group
from tests.records import ArraySlot, replace


def slot(values) -> ArraySlot:
    return ArraySlot(np.array(values.tolist() if hasattr(values, "tolist") else values, dtype=np.float32))


def tiny_lora(seed: int = 0, *, layers: int = 2, r: int = 4, adapter: str = "default", dropout: float = 0.0):
    """A Llama of two layers with a LoRA on every linear layer. B is not zero, so that every gradient speaks."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    lora = LoraConfig(r=r, lora_alpha=8, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM(config), lora, adapter_name=adapter)


def batch(seed: int, rows: int = 4, length: int = 12):
    ids = torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 1::2] = (ids[:, ::2] * 3 + 1) % 64
    return {"input_ids": ids, "labels": ids}


def train(model, optimizer, steps: int, seed: int = 100):
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(**batch(seed + step)).loss.backward()
        optimizer.step()
    optimizer.zero_grad()


def trainables(model) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def named_state(model, optimizer, **changes: Any) -> NamedState:
    """The optimizer's own numbers under the model's own names."""
    names = {p: name for name, p in model.named_parameters()}
    groups, parameters = [], {}
    position = 0
    for index, group in enumerate(optimizer.param_groups):
        keys = ("lr", "betas", "eps", "weight_decay", "amsgrad")
        members = []
        for p in group["params"]:
            name = names[p]
            members.append(name)
            entry = optimizer.state.get(p) or {}
            slots = {key: slot(value.float()) for key, value in entry.items() if key != "step"}
            if slots:
                parameters[name] = NamedParameter(
                    name=name, shape=tuple(p.shape), group=index, slots=slots, step=float(entry["step"]), position=position
                )
            position += 1
        groups.append(Group(index=index, positions=(), names=tuple(members), hyper={key: group[key] for key in keys if key in group}))
    state = NamedState(optimizer="adamw", optimizer_class="torch.optim.AdamW", groups=tuple(groups), parameters=parameters)
    return replace(state, **changes)


def edited(state: NamedState, name: str, **changes: Any) -> NamedState:
    """The state with one parameter changed; `slots` are merged, a slot of None is taken out."""
    entry = state.parameters[name]
    if "slots" in changes:
        merged = {**entry.slots, **changes.pop("slots")}
        changes["slots"] = {key: value for key, value in merged.items() if value is not None}
    return replace(state, parameters={**state.parameters, name: replace(entry, **changes)})
