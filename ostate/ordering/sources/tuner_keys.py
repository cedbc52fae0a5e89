"""How a key of an adapter file divides: the module that was tuned, and which of the tuner's tensors this is."""

from __future__ import annotations

import re
from typing import NamedTuple

from ostate.core.names import ADAPTER_CONTAINERS, SAVED

LYCORIS = (
    "weight", "diff", "bias", "diff_b", "w_norm", "b_norm", "oft_blocks", "rescale",
    "hada_t1", "hada_w1_a", "hada_w1_b", "hada_t2", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_t2", "lokr_w2_a", "lokr_w2_b",
    "dora_scale", "scalar", "up_list", "down_list",
    "lora_down", "lora_mid", "lora_up", "down", "up", "lora_a", "lora_b", "a2", "a1", "b2", "b1",
)  # fmt: skip
"""What others than PEFT make for one module, in the order of `named_parameters()`: a module's own parameters before those of the layers in it, so
that `dora_scale` and `scalar` stand before `lora_down` (sd-scripts networks/lora.py:63-67, networks/oft.py; LyCORIS lycoris/modules/*.py; OneTrainer
modules/module/LoRAModule.py; diffusers' LoRALinearLayer). LyCORIS calls a whole weight `weight` and saves its change as `diff`."""
RANKS = {word: rank for rank, word in enumerate(("base_layer", *dict.fromkeys((*LYCORIS, *ADAPTER_CONTAINERS))))}
WITHIN_PEFT = ("weight", "vector_b", "vector_a", "Xd", "Xu", "S_low", "U_low", "V_low", "std_prior", "expert_weights_prior")
"""Tensors within one of PEFT's containers, as its module registers them: PSOFT's, GLoRA's, OSF's, MonteCLoRA's (peft/tuners/*/layer.py)."""
PEFT_RANKS = {word: rank for rank, word in enumerate(("base_layer", *ADAPTER_CONTAINERS, *WITHIN_PEFT))}
"""PEFT's own order: it registers LoHa's and LoKr's Tucker cores last."""
_COMMON = {"down", "up", "a1", "a2", "b1", "b2", "rescale", "diff", "diff_b", "scalar", "weight", "bias", "w_norm", "b_norm"}
"""Words that modules and tensors of other programs bear too."""
_WORDS = frozenset(RANKS) - _COMMON | {"lora", "lora_layer", "lora_linear_layer", SAVED}
_LAST = re.compile(r"^(?P<module>.+)\.(?P<slot>(?:diff|diff_b|rescale|scalar|[wb]_norm)|[ab][12]\.weight)$")
_FLAT = re.compile(r"^(?P<module>(?:lora|lycoris)_[^.]+)\.(?P<slot>weight|bias)$")
"""LyCORIS' IA3 and whole weights: `lora_unet_down_blocks_0_….weight` is a tensor of its own, not of a model's module."""
_PROCESSOR = re.compile(r"^(?P<before>.+?)(?:\.processor)?\.(?P<layer>(?:to|add)_\w+?)_lora\.(?P<slot>(?:down|up)\.\w+)$")
"""diffusers' LoRA processors of attention, up to 0.25: `attn1.processor.to_q_lora.down.weight` tunes `attn1.to_q`."""

PROCESSOR_SLOTS = (
    "to_k_custom_diffusion.weight", "to_v_custom_diffusion.weight", "to_q_custom_diffusion.weight",
    "to_out_custom_diffusion.0.weight", "to_out_custom_diffusion.0.bias",
)  # fmt: skip
"""What diffusers' CustomDiffusionAttnProcessor trains in an attention's place, as it registers them (models/attention_processor.py)."""
_CUSTOM = re.compile(rf"^(?P<attention>.+)\.processor\.(?P<slot>{'|'.join(map(re.escape, PROCESSOR_SLOTS))})$")


class TunerKey(NamedTuple):
    """The two halves of a key."""

    module: str
    """The module's path as the key spells it, behind whatever words its trainer puts in front."""
    slot: str
    """What follows: `lora_down.weight`, `lokr_w1`."""


def split_key(key: str) -> TunerKey | None:
    """Return the halves of a key; None where no tuner's word is in it."""
    parts = key.split(".")
    at = next((at for at, part in enumerate(parts) if at and part in _WORDS), None)
    if at is not None:
        return TunerKey(".".join(parts[:at]), ".".join(parts[at:]))
    found = _PROCESSOR.match(key)
    if found is not None:
        layer = "to_out.0" if found["layer"] == "to_out" else found["layer"]
        return TunerKey(f"{found['before']}.{layer}", found["slot"])
    found = _CUSTOM.match(key)
    if found is not None:  # the attention itself holds nothing: its first layer stands for it
        return TunerKey(f"{found['attention']}.to_q", found["slot"])
    found = _LAST.match(key) or _FLAT.match(key)
    return TunerKey(found["module"], found["slot"]) if found is not None else None


def slot_rank(read: TunerKey, *, peft: bool) -> int | None:
    """Return where among a module's own tensors this one is registered; None for a word that is not known."""
    if read.slot in PROCESSOR_SLOTS:
        return PROCESSOR_SLOTS.index(read.slot)
    ranks = PEFT_RANKS if peft else RANKS
    words = read.slot.split(".")
    if words[0] in ("lora", "lora_layer", "lora_linear_layer"):
        words = words[1:]
    return ranks.get(words[0]) if words else None
