"""From an order of adapter keys to claims: which of them were trained, how they are called, how trainers cut them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ostate.core.names import SAVED, is_tuned
from ostate.core.naming import Adapter, Claim, Question

from ..grouping.parameters import Parameter, ParameterList
from ..grouping.place import claims_of, claims_over_state
from ..grouping.refute import Refused, refused
from ..keys import known_live_name, live_name, saves_its_embedding
from .tuner_keys import PROCESSOR_SLOTS

_FROZEN = (
    ".base_layer.weight", "vera_A", "vera_B", "lora_ranknum", ".alpha", ".on_input", ".delora_w_norm", "randlora_A", "randlora_B", ".shira_indices",
    ".supertuning_indices", ".tinylora_A", ".tinylora_B", ".tinylora_P", ".lora_velora_embed", ".gaussian_var_prior", ".expert_weights",
)  # fmt: skip
"""Ends of keys of what PEFT and others save beside the trained tensors: fixed projections, norms of a base weight, indices, buffers."""
_BUFFER = re.compile(r"\.glora_[A-E]\.zeros$|^base_model\.frod_(?:V|s_indices|s_size)\.")
"""The paths that GLoRA does not train; FRoD's shared basis."""
_NORM = re.compile(r"norm|(?:^|\.)ln_", re.IGNORECASE)


def trained_keys(adapter: Adapter) -> list[str]:
    """Return the keys of the file, in its order, that belong to trained parameters.

    Left out: frozen tensors that PEFT saves beside them (an embedding's own weight below a LoRA, shared projections, computed prompts, a head that is
    one tensor with the embedding).
    """
    if adapter.kind != "model":
        direct = saves_its_embedding(adapter)
        return [key for key in adapter.tensors if (not _frozen(key) or (direct and key == "prompt_embeddings")) and not _is_tied_copy(key, adapter)]
    return [key for key in adapter.tensors if _is_tuner(key)] or list(adapter.tensors)


def _frozen(key: str) -> bool:
    return key.endswith(_FROZEN) or key == "prompt_embeddings" or _BUFFER.search(key) is not None


def _is_tied_copy(key: str, adapter: Adapter) -> bool:
    """True for the head of a model whose embedding alone is listed in `modules_to_save`: `ensure_weight_tying` keeps them one tensor."""
    if not adapter.config.get("ensure_weight_tying") or not key.endswith("lm_head.weight") or is_tuned(key):
        return False
    return not any(module.rpartition(".")[2] == "lm_head" for module in adapter.config.get("modules_to_save") or ())


def _is_tuner(key: str) -> bool:
    return is_tuned(key) or SAVED in key.split(".") or key.endswith((".lora_a.weight", ".lora_b.weight", *PROCESSOR_SLOTS))


def claims_of_keys(source: str, rule: str, keys: Sequence[str], question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the claims that this order of keys makes under every rule of grouping."""
    claims: dict[tuple[tuple[str | None, ...], tuple[str | None, ...]], Claim] = {}
    lost: list[Refused] = []
    for layout in layouts_of_keys(source, rule, keys, question.adapter):
        found, reasons = claims_of(layout, question)
        if not found:
            found, more = claims_over_state(layout, question)
            reasons += more
        for claim in found:
            claims.setdefault((claim.names, claim.keys), claim)
        lost = reasons
    standing = [claim for claim in claims.values() if has_live_names(claim, question.adapter)]
    if len(standing) < len(claims):
        lost = [*lost, refused(source, rule, "neither the keys nor adapter_config.json tell in which module of the live model a tensor lies")]
    return standing, lost


def has_live_names(claim: Claim, adapter: Adapter | None) -> bool:
    """True when the configuration tells the live name of every key that the claim gives to a position."""
    return adapter is None or all(key is None or known_live_name(key, adapter) is not None for key in claim.keys)


def layouts_of_keys(source: str, rule: str, keys: Sequence[str], adapter: Adapter | None) -> list[ParameterList]:
    """Return the layouts that this order of keys may stand for.

    The class of a norm is not in its key: where a norm is trained, both answers are tried.
    """
    if adapter is None:
        return []
    norms = [frozenset({"LayerNorm"}), frozenset[str]()] if any(_NORM.search(key) for key in keys) else [frozenset[str]()]
    return [ParameterList(source=source, rule=rule, parameters=tuple(_parameter(key, adapter, classes) for key in keys)) for classes in norms]


def _parameter(key: str, adapter: Adapter, classes: frozenset[str]) -> Parameter:
    held = classes if _NORM.search(key) else frozenset[str]()
    return Parameter(name=live_name(key, adapter), key=key, shape=adapter.tensors[key].shape, classes=held, tuner_embedding=".lora_embedding_" in key)
