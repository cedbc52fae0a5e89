"""Tiny checkpoints that the real libraries write, with the live optimizer's names as truth. The gradients are noise: only order is asked here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ostate.commands.record import names_of
from ostate.core.naming import Adapter, Claim, Question
from ostate.core.state import RawState
from ostate.ordering import claims
from ostate.read import read
from ostate.read.adapters import read_adapter

TARGETS = {"target_modules": ["q_proj", "v_proj"]}
CAUSAL = {"task_type": "CAUSAL_LM"}


def llama(**options: Any) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**{**size, **options}))


def opt(**options: Any) -> torch.nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    size = {"vocab_size": 64, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(**{**size, **options}))


@dataclass(frozen=True)
class Made:
    """A checkpoint on disk, and what was alive when it was written."""

    folder: Path
    names: list[list[str]]
    """The optimizer's own names, group by group."""
    live: dict[str, torch.Tensor]
    """The model's parameters by name."""

    @property
    def flat(self) -> list[str]:
        return [name for group in self.names for name in group]

    @property
    def raw(self) -> RawState:
        return read(str(self.folder / "optimizer.pt"))

    def adapter(self, name: str | None = None) -> Adapter:
        return read_adapter(str(self.folder), name=name)

    def ask(self, adapter: Adapter | None = None, **options: Any) -> tuple[list[Claim], list[dict[str, str]]]:
        """Ask all sources, with the base model's configuration at hand."""
        options.setdefault("base", str(self.folder / "base"))
        return claims(Question(raw=self.raw, adapter=adapter or self.adapter(), **options))


def trainables(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)


def write(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    save: Callable[[torch.nn.Module, Path], Any] | None = None,
    without: tuple[str, ...] = (),
) -> Made:
    """Take a step on noise, save adapter and state as the libraries do, and keep the truth.

    Args:
        folder: where to write.
        model: its configuration goes into `base`.
        optimizer: made for it, in whatever way.
        save: writes the weights; `save_pretrained` into the folder when left out.
        without: names that get no gradient, hence no state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and names[id(parameter)] not in without:
                parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    bare.config.save_pretrained(str(folder / "base"))
    (save or (lambda one, to: one.save_pretrained(str(to))))(model, folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    live = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return Made(folder=folder, names=names_of(optimizer, model), live=live)


def agree(claim: Claim, made: Made) -> bool:
    """True when the claim names every position with state as the live optimizer does."""
    return all(claim.names[entry.position] == made.flat[entry.position] for entry in made.raw.entries if entry.has_state)


def assert_keys_hold_the_live_values(claim: Claim, made: Made, adapter: Adapter | None = None) -> None:
    """Every key of the claim must lead to the tensor that the live parameter of that position has."""
    tensors = (adapter or made.adapter()).tensors
    for name, key in zip(made.flat, claim.keys):
        if key is not None:
            stored = torch.from_numpy(tensors[key].read().copy())
            assert torch.equal(stored, made.live[name].to(stored.dtype)), f"{key} is not {name}"


def from_skeleton(found: list[Claim]) -> list[Claim]:
    return [claim for claim in found if claim.source == "skeleton"]
