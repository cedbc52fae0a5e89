"""OneTrainer's fused modules: one LoRA over several layers of diffusers' model, made before all others.

Where the output format fuses q, k and v, each complete group of layers becomes one module of its own name (`attn.qkv`), group by group of the
model's `fusion_groups`, and within a group in the order of the text of its path: block 10 before block 2. The layers that are left follow as the
model defines them (modules/module/LoRAModule.py, `__create_modules`; FusedModule.py, `discover_fused_groups`; modules/model/*Model.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ostate.core.names import component_of

from .tuner_keys import slot_rank, split_key

_FUSED = re.compile(
    r"^transformer\.(?P<path>(?P<refiner>context_embedder\.token_refiner\.refiner_blocks|(?:single_)?transformer_blocks|layers)\.\d{1,6})"
    r"\.(?P<word>attn\.qkv|attn1\.qkv|attention\.qkv|attn\.added_qkv|attn2\.qkv|attn2\.kv|qkv_mlp)\.",
    re.ASCII,
)
_GROUPS = ("attn.qkv", "attn1.qkv", "attention.qkv", "attn.added_qkv", "attn2.qkv", "attn2.kv", "qkv_mlp")
"""Names of fused modules, in the order of every model's `fusion_groups`; a token refiner's stand before its model's."""
SAID = ", fused modules first"


def parted(keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the keys of fused modules in OneTrainer's order, and the other keys."""
    places: dict[str, tuple[bool, int, str, int]] = {}
    for key in keys:
        found = _FUSED.match(key)
        read = split_key(key)
        if found is not None and read is not None:
            rank = slot_rank(read, peft=False)
            places[key] = (not found["refiner"].startswith("context"), _GROUPS.index(found["word"]), found["path"], -1 if rank is None else rank)
    return sorted(places, key=lambda key: places[key]), [key for key in keys if key not in places]


def with_fused(order: Sequence[str], fused: Sequence[str]) -> list[str]:
    """Return an order of the other keys with the fused ones before the first of the transformer's own."""
    at = next((at for at, key in enumerate(order) if component_of(key) == "transformer"), len(order))
    return [*order[:at], *fused, *order[at:]]
