"""A parameter has two names: the live one of `named_parameters()`, and its key in the adapter file. From each to the other.

PEFT drops the adapter's name and `modules_to_save.` when it saves; DoRA's vector loses its `.weight`; PEFT up to 0.17 removed the adapter's
name wherever it stood. A match is a key that is in the file, so a wrong guess here is a miss, not a wrong name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ostate.core.naming import Adapter
from ostate.core.state import Names

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP1 and activation checkpointing put into a name, wherever they wrap."""
PEFT_PREFIX = "base_model.model."
MOST_LEAD = 3
"""Modules of a program's own that may stand around the model whose adapter was saved."""
SLOT_ORDER = (
    "base_layer", "lora_A", "lora_B", "lora_E", "lora_ranknum", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_diag",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "oft_R", "oft_r", "oft_embedding_R", "boft_R", "boft_s", "ia3_l",
    "vera_lambda_b", "vera_lambda_d", "pvera_lambda_b", "pvera_lambda_d",
    "vblora_logits_A", "vblora_logits_B", "vblora_vector_bank", "fourierft_spectrum", "waveft_spectrum",
    "hra_u", "miss_block", "bone_block", "ln_tuning_layers",
    "trainable_tokens_delta", "trainable_tokens_original", "poly_lora_A", "poly_lora_B", "poly_router", "c3a_kernel",
    "randlora_lambda", "randlora_gamma", "shira_weight", "road_theta", "road_alpha",
    "hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B",
)  # fmt: skip
"""Names of the containers in which PEFT keeps one entry an adapter (`adapter_layer_names` of its layers), in the order of registration."""
SLOTS = frozenset(SLOT_ORDER) - {"base_layer"}
AUTO_SAVED = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""task_type -> modules that PEFT trains and saves unasked."""


def strip_wrappers(name: str) -> str:
    """Return the name without what DDP, FSDP, torch.compile and activation checkpointing put into it."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def adapter_key(name: str, adapter: Adapter) -> str | None:
    """Return the key of a live name in the adapter file, or None when the file does not hold it."""
    return _find(strip_wrappers(name), adapter.name, adapter)


def _find(name: str, adapter_name: str, adapter: Adapter) -> str | None:
    prompt = f"prompt_encoder.{adapter_name}."
    if name.startswith(prompt):
        inner = name.removeprefix(prompt)
        if inner == "embedding.weight":
            return "prompt_embeddings" if _saves_its_embedding(adapter) else None
        return inner if inner in adapter.tensors else None
    return next((form for form in _forms(name, adapter_name) if form in adapter.tensors), None)


def _saves_its_embedding(adapter: Adapter) -> bool:
    """True when the one tensor in a prompt method's file is the trained one, not computed from it by a network that is not saved."""
    kind = adapter.config.get("peft_type")
    direct = kind in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING") or (kind == "PREFIX_TUNING" and not adapter.config.get("prefix_projection"))
    return direct and "prompt_embeddings" in adapter.tensors


def match_all(names: Names, adapter: Adapter) -> tuple[tuple[str | None, ...], str]:
    """Return the key of each name, and the adapter's name as the names themselves tell it.

    Names that were recorded carry the adapter's name; where `adapter.name` is only assumed, they are believed. Where no name is in the
    file, the modules around the saved one, which all names then begin with, are left out to look again.
    """
    bare = [strip_wrappers(name) if name is not None else None for name in names]
    keys, told = _matched(bare, adapter)
    for lead in range(1, MOST_LEAD + 1):
        if any(keys):
            break
        shorter = _without_lead(bare, lead)
        keys, told = _matched(shorter, adapter) if shorter else (keys, told)
    return keys, told


def _matched(bare: Names, adapter: Adapter) -> tuple[tuple[str | None, ...], str]:
    told = adapter.name if adapter.name_known else _told_name([name for name in bare if name], adapter)
    return tuple(_find(name, told, adapter) if name is not None else None for name in bare), told


def _without_lead(bare: Names, lead: int) -> Names:
    """Return the names without the first components that all of them share (a LightningModule around the model); nothing where they do not."""
    parts = [name.split(".", lead) if name is not None else None for name in bare]
    leads = {tuple(part[:-1]) for part in parts if part is not None}
    if len(leads) != 1 or any(part is not None and len(part) <= lead for part in parts):
        return ()
    return [part[-1] if part is not None else None for part in parts]


def live_name(key: str, adapter: Adapter) -> str:
    """Return the name that the parameter behind `key` has in the live model, as PEFT of today would name it."""
    if adapter.kind in ("model", "torchtune"):
        return strip_wrappers(key)
    if adapter.kind == "diffusers":
        return _live_diffusers(key, adapter.name)
    if key == "prompt_embeddings":
        return f"prompt_encoder.{adapter.name}.embedding.weight"
    name = _live_peft(key, adapter)
    return name.removeprefix(PEFT_PREFIX) if by_transformers(adapter) else name


def told_name(key: str, adapter: Adapter) -> str | None:
    """Return `live_name`, or None where nothing tells it: PEFT saved a whole weight that neither `modules_to_save` nor `bias` explains.

    Such a tensor bears its plain name, or lies in a `modules_to_save` that the configuration no longer lists.
    """
    whole = key.endswith((".weight", ".bias")) and not any(part in SLOTS for part in key.split("."))
    plain = adapter.kind == "peft" and whole and _live_peft(key, adapter) == key
    explained = key.endswith(".bias") and adapter.config.get("bias", "none") != "none"
    return None if plain and not explained else live_name(key, adapter)


def _live_peft(key: str, adapter: Adapter) -> str:
    parts = key.split(".")
    for at in range(len(parts) - 1, -1, -1):
        if parts[at] in SLOTS:
            if at + 1 < len(parts) and parts[at + 1] in _beside(adapter):
                return key if parts[at] != "lora_magnitude_vector" or parts[-1] == "weight" else f"{key}.weight"
            tail = parts[at + 1 :] or (["weight"] if parts[at] == "lora_magnitude_vector" and not dora_is_a_parameter(adapter) else [])
            return ".".join([*parts[: at + 1], adapter.name, *tail])
    if len(parts) > 2 and parts[-2] in _beside(adapter):
        return ".".join([*parts[:-2], "modules_to_save", *parts[-2:]])
    saved = _saved_module(parts, adapter)
    return ".".join([*parts[:saved], "modules_to_save", adapter.name, *parts[saved:]]) if saved else key


def by_transformers(adapter: Adapter) -> bool:
    """True when `model.add_adapter` of transformers made the adapter: the live model then has no `base_model.model.`.

    Its `save_pretrained` leaves `inference_mode` false and writes no model card; PEFT's own sets it true and writes one.
    """
    home = os.path.dirname(adapter.file)
    return adapter.config.get("inference_mode") is False and not os.path.isfile(os.path.join(home, "README.md"))


def _beside(adapter: Adapter) -> set[str]:
    """Return the names of the adapters that may be joined with this one."""
    return {os.path.basename(folder) for folder in adapter.siblings} | {"default"} if adapter.siblings else set()


def is_key_form(name: str, adapter: Adapter) -> bool:
    """True when the name is an adapter key that no live parameter can bear (the adapter's name is missing)."""
    return adapter.kind == "peft" and name in adapter.tensors and live_name(name, adapter) != name


def _forms(name: str, adapter_name: str) -> Iterator[str]:
    """Yield every key that some release would write for the name, the surest first."""
    for stem in _unprefixed(name):
        for form in _without_adapter(stem, adapter_name):
            yield form
            if ".base_layer." in form:
                yield form.replace(".base_layer.", ".")


def _unprefixed(name: str) -> Iterator[str]:
    yield name
    if name.startswith(PEFT_PREFIX):
        yield name.removeprefix(PEFT_PREFIX)
    else:
        yield PEFT_PREFIX + name


def _without_adapter(name: str, adapter_name: str) -> Iterator[str]:
    yield name
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if part == "modules_to_save" and parts[at + 1] == adapter_name:
            yield ".".join(parts[:at] + parts[at + 2 :])
    if parts[-1] == adapter_name:
        yield ".".join(parts[:-1])
    elif len(parts) > 1 and parts[-2] == adapter_name:
        yield ".".join([*parts[:-2], parts[-1]])
        if len(parts) > 2 and parts[-3] == "lora_magnitude_vector":
            yield ".".join(parts[:-2])
    # an adapter joined from beside this one keeps its name in its keys
    yield name.replace(".modules_to_save.", ".")
    if len(parts) > 2 and parts[-3] == "lora_magnitude_vector":
        yield ".".join(parts[:-1])
    # PEFT 0.3 to 0.17: key.replace(f".{adapter_name}", ""), which also eats the head of a module's name
    yield name.replace(f".{adapter_name}", "").replace("modules_to_save.", "")
    if "vblora_vector_bank" in parts:
        yield "base_model.vblora_vector_bank"


def _told_name(names: Sequence[str], adapter: Adapter) -> str:
    """Return the component that, left out next to a slot's word, turns most names into keys of the file."""
    seen: Counter[str] = Counter()
    for name in names:
        if name in adapter.tensors:
            continue
        parts = name.split(".")
        for at in range(1, len(parts)):
            if (parts[at - 1] in SLOTS or parts[at - 1] == "modules_to_save") and any(form in adapter.tensors for form in _forms(name, parts[at])):
                seen[parts[at]] += 1
                break
    if not seen or adapter.name in seen:
        return adapter.name
    return seen.most_common(1)[0][0]


def _saved_module(parts: Sequence[str], adapter: Adapter) -> int | None:
    """Return how many components of the key make up the module that `modules_to_save` wraps, or None."""
    asked = adapter.config.get("modules_to_save")
    targets = [str(target) for target in asked] if isinstance(asked, (list, tuple)) else []
    targets += AUTO_SAVED.get(str(adapter.config.get("task_type")), ())
    for length in range(3, len(parts)):
        path = ".".join(parts[:length])
        if any(path.endswith(target) for target in targets):  # PEFT asks endswith, so "norm" also takes input_layernorm
            return length
    return None


def dora_is_a_parameter(adapter: Adapter) -> bool:
    """PEFT 0.9 to 0.11 kept DoRA's vector in a ParameterDict: no `.weight`."""
    version = re.match(r"0\.(\d+)", str(adapter.facts.get("peft_version", "")))
    return version is not None and 9 <= int(version[1]) <= 11


def _live_diffusers(key: str, adapter_name: str) -> str:
    name = re.sub(r"^(unet|transformer|text_encoder|text_encoder_2|prior)\.", "", key)
    name = re.sub(r"\.lora(?:_linear_layer)?\.down\.", ".lora_A.", name)
    name = re.sub(r"\.lora(?:_linear_layer)?\.up\.", ".lora_B.", name)
    return re.sub(r"\.(lora_[AB])\.(weight|bias)$", rf".\1.{adapter_name}.\2", name)
