"""The key order of an adapter that torch.save wrote: the state dict's own, which is the order of definition.

PEFT appends what `modules_to_save` trains after everything else, and with bias="lora_only" puts a bias after its lora_A; both are put back where
the model has them, or, where that cannot be determined, no claim is made. safetensors sorts its keys and tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ostate.core.names import is_tuned, strip_wrappers
from ostate.core.naming import Adapter, Claim, Question

from ..grouping.refute import Refused, refused
from ..keys import live_name
from .from_keys import claims_of_keys, trained_keys
from .module_orders import PLACES
from .rebuilt.older_names import saved_apart

_FIRST = frozenset(word for row in PLACES[:2] for word in row)
_LAST = frozenset(PLACES[-1]) | {"pre_classifier", "pooler"}


def adapter_order(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the order of the file's own keys, cut by every trainer's rule; nothing for a file that sorts its keys, unless one alone was trained."""
    adapter = question.adapter
    if adapter is not None and adapter.kind == "model" and not adapter.ordered:
        return _only_of_their_shapes(question, adapter)
    trained = trained_keys(adapter) if adapter is not None else []
    if adapter is not None and len(trained) == 1:
        return claims_of_keys("adapter-order", "the only trained tensor of the file", trained, question)
    if adapter is None or not adapter.ordered:
        return [], []
    keys = definition_order(trained, adapter)
    if isinstance(keys, str):
        return [], [refused("adapter-order", "key order of the adapter file", keys)]
    return claims_of_keys("adapter-order", "key order of the adapter file", keys, question)


def _only_of_their_shapes(question: Question, adapter: Adapter) -> tuple[list[Claim], list[Refused]]:
    """Name the positions of a model trained in part by shape alone, where no two of them and no two tensors of the file have the shape of one.

    Textual inversion is such a case: one embedding in a whole text encoder.
    """
    entries, tensors = question.raw.entries, adapter.tensors
    held: dict[tuple[int, ...], list[str]] = {}
    for key, ref in tensors.items():
        held.setdefault(ref.shape, []).append(key)
    shapes = [entry.shape or () for entry in entries if not entry.flat]
    alone = [held.get(shape, []) for shape in shapes]
    one_each = len(set(shapes)) == len(entries) and all(len(keys) == 1 for keys in alone)
    if len(entries) >= len(tensors) or not one_each or not any(len(shape) > 1 for shape in shapes) or saved_apart(adapter):
        return [], []
    keys = tuple(found[0] for found in alone)
    names = tuple(live_name(key, adapter) for key in keys)
    return [Claim(source="adapter-order", rule="the only tensors of their shapes in the weights file", names=names, keys=keys)], []


def definition_order(keys: Sequence[str], adapter: Adapter) -> list[str] | str:
    """Return the keys in the model's order of definition, or why the file's order does not tell it."""
    if adapter.kind in ("model", "torchtune"):
        return list(keys)  # a whole state dict: nothing was appended
    tuned = [key for key in keys if is_tuned(key) or adapter.kind == "diffusers"]
    of_tuner = set(tuned)
    rest = [key for key in keys if key not in of_tuner]
    first = [key for key in rest if _module(key) in _FIRST]
    last = [key for key in rest if _module(key) in _LAST or not _LAST.isdisjoint(key.split(".")[2:4])]
    placed = {*first, *last}
    biases = [key for key in keys if _is_bias(key) and key not in placed]
    placed.update(of_tuner, biases)
    unknown = [key for key in rest if key not in placed]
    if unknown:
        return f"PEFT appends {unknown[0]!r} to the file, wherever the model has it"
    if biases and list(keys)[: len(tuned)] != tuned:
        return [*first, *_biases_first([key for key in keys if key in of_tuner or key in biases]), *last]  # PEFT <= 0.18 kept them among the rest
    alone = [bias for bias in biases if not any(key.startswith(_layer(bias)) for key in tuned)]
    if alone:
        return f"PEFT appends {alone[0]!r} to the file, wherever the model has it"
    return [*first, *_biases_first([*tuned, *biases]), *last]


def _is_bias(key: str) -> bool:
    return key.endswith(".bias") and not is_tuned(key)


def _module(key: str) -> str:
    parts = strip_wrappers(key).split(".")
    return parts[-2] if len(parts) > 1 else parts[0]


def _layer(bias: str) -> str:
    """Return the start of every key of the layer that has this bias."""
    return ".".join(part for part in bias.split(".")[:-1] if part != "base_layer") + "."


def _biases_first(keys: Sequence[str]) -> list[str]:
    """Put a layer's own bias in front of its tuner weights, as `named_parameters()` has it."""
    out: list[str] = []
    if not any(map(_is_bias, keys)):
        return list(keys)
    for key in keys:
        at = next((at for at, other in enumerate(out) if other.startswith(_layer(key))), len(out)) if _is_bias(key) else len(out)
        out.insert(at, key)
    return out
