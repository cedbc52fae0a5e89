"""The key order of an adapter that torch.save wrote: the state dict's own, which is the order of definition.

PEFT appends what `modules_to_save` trains after everything else, and with bias="lora_only" puts a bias after its lora_A; both are put back where
the model has them, or, where that cannot be told, no claim is made. safetensors sorts its keys and tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ostate.model import Adapter, Claim, Question

from .convention import PLACES
from .from_keys import claims_of_keys, trained_keys
from .keys import SLOTS, strip_wrappers
from .refute import Refused, refused

_FIRST = frozenset(word for row in PLACES[:2] for word in row)
_LAST = frozenset(PLACES[-1]) | {"pre_classifier", "pooler"}


def adapter_order(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the order of the file's own keys, cut by every trainer's rule; nothing for a file that sorts its keys."""
    adapter = question.adapter
    if adapter is None or not adapter.ordered:
        return [], []
    keys = definition_order(trained_keys(adapter), adapter)
    if isinstance(keys, str):
        return [], [refused("adapter-order", "key order of the adapter file", keys)]
    return claims_of_keys("adapter-order", "key order of the adapter file", keys, question)


def definition_order(keys: Sequence[str], adapter: Adapter) -> list[str] | str:
    """Return the keys in the model's order of definition, or why the file's order does not tell it."""
    if adapter.kind in ("model", "torchtune"):
        return list(keys)  # a whole state dict: nothing was appended
    tuned = [key for key in keys if not SLOTS.isdisjoint(key.split(".")) or key.endswith("bias") or adapter.kind == "diffusers"]
    rest = [key for key in keys if key not in set(tuned)]
    first = [key for key in rest if _module(key) in _FIRST]
    last = [key for key in rest if _module(key) in _LAST or any(part in _LAST for part in key.split(".")[2:4])]
    unknown = [key for key in rest if key not in first and key not in last]
    if unknown:
        return f"PEFT appends {unknown[0]!r} to the file, wherever the model has it"
    return [*first, *_biases_first(tuned), *last]


def _module(key: str) -> str:
    parts = strip_wrappers(key).split(".")
    return parts[-2] if len(parts) > 1 else parts[0]


def _biases_first(keys: Sequence[str]) -> list[str]:
    """Put a layer's own bias in front of its tuner weights, as `named_parameters()` has it."""
    out: list[str] = []
    for key in keys:
        parts = key.split(".")
        if parts[-1] == "bias" and SLOTS.isdisjoint(parts):
            module = ".".join(part for part in parts[:-1] if part != "base_layer") + "."
            at = len(out)
            while at > 0 and out[at - 1].startswith(module):
                at -= 1
            out.insert(at, key)
        else:
            out.append(key)
    return out
