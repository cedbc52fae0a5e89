"""How a key of an adapter file divides: the module that was tuned, and which of the tuner's tensors this is."""

from __future__ import annotations

import re
from typing import NamedTuple

from ostate.core.names import ADAPTER_CONTAINERS, SAVED

LYCORIS = (
    "lora_down", "lora_mid", "lora_up", "down", "up", "lora_a", "lora_b", "hada_t1", "hada_w1_a", "hada_w1_b", "hada_t2", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_t2", "lokr_w2_a", "lokr_w2_b",
    "a2", "a1", "b2", "b1", "oft_blocks", "rescale", "diff", "diff_b", "dora_scale", "scalar",
)  # fmt: skip
"""What others than PEFT make for one module, in the order of registration (sd-scripts networks/lora.py:63-67; LyCORIS lycoris/modules/*.py;
OneTrainer modules/module/LoRAModule.py:562, :757; diffusers' LoRALinearLayer)."""
RANKS = {word: rank for rank, word in enumerate(("base_layer", *dict.fromkeys((*LYCORIS, *ADAPTER_CONTAINERS))))}
PEFT_RANKS = {word: rank for rank, word in enumerate(("base_layer", *ADAPTER_CONTAINERS))}
"""PEFT's own order: it registers LoHa's and LoKr's Tucker cores last."""
_WORDS = frozenset(RANKS) - {"down", "up", "a1", "a2", "b1", "b2", "rescale", "diff", "scalar"} | {"lora", "lora_layer", "lora_linear_layer", SAVED}
_LAST = re.compile(r"^(?P<module>.+)\.(?P<slot>(?:diff|diff_b|rescale|scalar)|[ab][12]\.weight)$")
_PROCESSOR = re.compile(r"^(?P<before>.+?)(?:\.processor)?\.(?P<layer>(?:to|add)_\w+?)_lora\.(?P<slot>(?:down|up)\.\w+)$")
"""diffusers' LoRA processors of attention, up to 0.25: `attn1.processor.to_q_lora.down.weight` tunes `attn1.to_q`."""


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
    found = _LAST.match(key)
    return TunerKey(found["module"], found["slot"]) if found is not None else None


def slot_rank(read: TunerKey, *, peft: bool) -> int | None:
    """Return where among a module's own tensors this one is registered; None for a word that is not known."""
    ranks = PEFT_RANKS if peft else RANKS
    words = read.slot.split(".")
    if words[0] in ("lora", "lora_layer", "lora_linear_layer"):
        words = words[1:]
    return ranks.get(words[0]) if words else None
