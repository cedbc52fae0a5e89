"""Between a parameter's two names: the live one of `named_parameters()`, and its key in the adapter file.

PEFT drops the adapter's name and `modules_to_save.` when it saves; DoRA's vector loses its `.weight`; PEFT up to 0.17 removed the adapter's
name wherever it stood. A match is a key that is in the file, so a wrong guess here is a miss, not a wrong name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ostate.core.foreign import release
from ostate.core.names import (
    CONTAINERS,
    PEFT_PREFIX,
    SAVED,
    by_spelling,
    common_leads,
    component,
    of_whole_module,
    spelled,
    strip_wrappers,
    without_adapter,
    without_inner,
    without_lead,
)
from ostate.core.naming import Adapter
from ostate.core.state import Names

MOST_LEAD = 3
"""Modules of a program's own that may stand around the model whose adapter was saved."""
AUTO_SAVED = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""task_type -> modules that PEFT trains and saves unasked."""


def adapter_key(name: str, adapter: Adapter) -> str | None:
    """Return the key of a live name in the adapter file, or None when the file does not hold it."""
    return _find(strip_wrappers(name), adapter.name, adapter)


def _find(name: str, adapter_name: str, adapter: Adapter) -> str | None:
    prompt = f"prompt_encoder.{adapter_name}."
    if name.startswith(prompt):
        inner = name.removeprefix(prompt)
        if inner == "embedding.weight":
            return "prompt_embeddings" if saves_its_embedding(adapter) else None
        return inner if inner in adapter.tensors else None
    return next((form for form in _forms(name, adapter_name) if form in adapter.tensors), None)


def saves_its_embedding(adapter: Adapter) -> bool:
    """True when the one tensor in a prompt method's file is the trained one, not computed from it by a network that is not saved."""
    kind = adapter.config.get("peft_type")
    direct = kind in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING") or (kind == "PREFIX_TUNING" and not adapter.config.get("prefix_projection"))
    return direct and "prompt_embeddings" in adapter.tensors


def match_all(names: Names, adapter: Adapter) -> tuple[tuple[str | None, ...], str]:
    """Return the key of each name, and the adapter's name as the names themselves tell it.

    Names that were recorded carry the adapter's name; where `adapter.name` is only assumed, they are used. Where no name is in the
    file, the modules around the saved one, which all names then begin with, are left out to look again; last, the modules are put in front
    that all of the adapter's keys begin with: somebody listed the parameters of an inner model.
    """
    bare = [without_inner(name) if name is not None else None for name in names]
    keys, adapter_name = _matched(bare, adapter)
    for lead in range(1, MOST_LEAD + 1):
        if any(keys):
            break
        shorter = without_lead(bare, lead)
        keys, adapter_name = _matched(shorter, adapter) if shorter else (keys, adapter_name)
    for front in () if any(keys) else common_leads(adapter.tensors):
        within, front_name = _matched([f"{front}{name}" if name is not None else None for name in bare], adapter)
        if all(key is not None for name, key in zip(bare, within) if name is not None):
            keys, adapter_name = within, front_name
            break
    return tuple(_respelled(bare, keys, adapter_name, adapter)), adapter_name


def _matched(bare: Names, adapter: Adapter) -> tuple[tuple[str | None, ...], str]:
    adapter_name = adapter.name if adapter.name_known else _recorded_adapter_name([name for name in bare if name], adapter)
    return tuple(_find(name, adapter_name, adapter) if name is not None else None for name in bare), adapter_name


def _respelled(bare: Names, keys: Names, adapter_name: str, adapter: Adapter) -> Names:
    """Find keys that spell LoRA's factors otherwise, or lie in a component that the live model is: where one key alone can be meant."""
    if all(key is not None or name is None for name, key in zip(bare, keys)):
        return keys
    if adapter.kind != "diffusers" and not any(component([key]) for key in adapter.tensors):
        return keys
    inside = component(adapter.tensors)
    spellings: dict[str, str | None] = {}
    for key in adapter.tensors:
        for form in dict.fromkeys((spelled(key), spelled(key).removeprefix(inside))):
            spellings[form] = None if form in spellings else key
    found = [
        key if key is not None or name is None else next((found for form in _spellings(name, adapter_name) if (found := spellings.get(form))), None)
        for name, key in zip(bare, keys)
    ]
    if any(found):
        return found
    own, theirs = by_spelling(adapter.tensors), {name: form for form, name in by_spelling([name for name in bare if name is not None]).items()}
    return [own.get(theirs.get(name, "")) if name is not None else None for name in bare]


def _spellings(name: str, adapter_name: str) -> Iterator[str]:
    return (spelled(form) for form in without_adapter(name, adapter_name))


def live_name(key: str, adapter: Adapter) -> str:
    """Return the name that the parameter behind `key` has in the live model, as PEFT of today would name it.

    The key's own form is kept: `base_model.model.`, a component such as `unet.`. Only `adapter.cut` is taken off and `adapter.lead` put in
    front, which names that the checkpoint records have shown.
    """
    return f"{adapter.lead}{_inner_name(key, adapter)}"


def _inner_name(key: str, adapter: Adapter) -> str:
    if adapter.kind in ("model", "torchtune"):
        return without_inner(key).removeprefix(adapter.cut) if adapter.cut else strip_wrappers(key)
    if adapter.kind == "diffusers":
        return _live_diffusers(key, adapter.name).removeprefix(adapter.cut)
    if key == "prompt_embeddings":
        return f"prompt_encoder.{adapter.name}.embedding.weight"
    return _live_peft(key, adapter).removeprefix(adapter.cut)


def known_live_name(key: str, adapter: Adapter) -> str | None:
    """Return `live_name`, or None where nothing tells it.

    A whole weight that neither `modules_to_save` nor `bias` explains bears its plain name, or lies in a `modules_to_save` that the configuration
    no longer lists. What all modules share is saved under no module's name (`base_model.unilora_theta_d`) and bears that of the first one.
    """
    parts = key.split(".")
    if adapter.kind == "peft" and len(parts) > 1 and parts[1] in CONTAINERS:
        return None
    whole = key.endswith((".weight", ".bias")) and not any(part in CONTAINERS for part in parts)
    plain = adapter.kind == "peft" and whole and _live_peft(key, adapter) == key
    explained = key.endswith(".bias") and adapter.config.get("bias", "none") != "none"
    return None if plain and not explained else live_name(key, adapter)


def _live_peft(key: str, adapter: Adapter) -> str:
    parts = key.split(".")
    for at in range(len(parts) - 1, -1, -1):
        if parts[at] in CONTAINERS:
            if at + 1 < len(parts) and parts[at + 1] in _beside(adapter):
                return key if parts[at] != "lora_magnitude_vector" or parts[-1] == "weight" else f"{key}.weight"
            tail = parts[at + 1 :] or (["weight"] if parts[at] == "lora_magnitude_vector" and not dora_is_a_parameter(adapter) else [])
            return ".".join([*parts[: at + 1], adapter.name, *tail])
    if len(parts) > 2 and parts[-2] in _beside(adapter):
        return ".".join([*parts[:-2], SAVED, *parts[-2:]])
    saved = _saved_module(parts, adapter)
    return ".".join([*parts[:saved], SAVED, adapter.name, *parts[saved:]]) if saved else key


def _beside(adapter: Adapter) -> set[str]:
    """Return the names of the adapters that may be joined with this one."""
    return {os.path.basename(folder) for folder in adapter.siblings} | {"default"} if adapter.siblings else set()


def live_names(names: Names, keys: Names, adapter: Adapter) -> list[str | None]:
    """Return recorded names as live ones: somebody may have listed the adapter's keys, which no live parameter bears (the adapter's name is missing).

    One name that is a live form of its key tells that all are live: a module may be called `lora_A`, and its bias is no key then.
    """
    held = [(name, key) for name, key in zip(names, keys) if name is not None and key is not None]
    if adapter.kind != "peft" or any(name not in adapter.tensors and f"{PEFT_PREFIX}{name}" not in adapter.tensors for name, _ in held):
        return list(names)
    return [live_name(name, adapter) if name is not None and name in adapter.tensors else name for name in names]


def _forms(name: str, adapter_name: str) -> Iterator[str]:
    """Yield every key that some release would write for the name, the surest first."""
    for stem in _unprefixed(name):
        for form in without_adapter(stem, adapter_name):
            yield form
            if ".base_layer." in form:
                yield form.replace(".base_layer.", ".")


def _unprefixed(name: str) -> Iterator[str]:
    yield name
    if name.startswith(PEFT_PREFIX):
        yield name.removeprefix(PEFT_PREFIX)
    else:
        yield PEFT_PREFIX + name


def _recorded_adapter_name(names: Sequence[str], adapter: Adapter) -> str:
    """Return the component that, left out next to a slot's word, turns most names into keys of the file."""
    seen: Counter[str] = Counter()
    for name in names:
        if name in adapter.tensors:
            continue
        parts = name.split(".")
        for at in range(1, len(parts)):
            if (parts[at - 1] in CONTAINERS or parts[at - 1] == SAVED) and any(form in adapter.tensors for form in _forms(name, parts[at])):
                seen[parts[at]] += 1
                break
    if not seen or adapter.name in seen:
        return adapter.name
    return seen.most_common(1)[0][0]


def _saved_module(parts: Sequence[str], adapter: Adapter) -> int | None:
    """Return how many components of the key make up the module that `modules_to_save` wraps, or None."""
    asked = adapter.config.get(SAVED)
    targets = list(asked) if isinstance(asked, list) else []
    targets += AUTO_SAVED.get(str(adapter.config.get("task_type")), ())
    for length in range(3, len(parts)):
        path = ".".join(parts[:length])
        if any(path.endswith(target) for target in targets):  # PEFT asks endswith, so "norm" also takes input_layernorm
            return length
    return None


def dora_is_a_parameter(adapter: Adapter) -> bool:
    """PEFT 0.9 to 0.11 kept DoRA's vector in a ParameterDict: no `.weight`."""
    version = release(adapter.facts.get("peft_version"))
    return version is not None and (0, 9) <= version <= (0, 11)


def _live_diffusers(key: str, adapter_name: str) -> str:
    name = re.sub(r"\.lora(?:_linear_layer)?\.down\.", ".lora_A.", key)
    name = re.sub(r"\.lora(?:_linear_layer)?\.up\.", ".lora_B.", name)
    name = re.sub(r"\.(lora_[AB])\.(weight|bias)$", lambda found: f".{found[1]}.{adapter_name}.{found[2]}", name)
    name = re.sub(r"\.lora_magnitude_vector(?:\.weight)?$", f".lora_magnitude_vector.{adapter_name}.weight", name)
    return of_whole_module(name)
