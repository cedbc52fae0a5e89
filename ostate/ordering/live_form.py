"""The prefix of an adapter's keys in the live model: `base_model.model.`, a component's name, or none.

PeftModel's live names begin with `base_model.model.`; those of a model that took its adapter from transformers' `add_adapter` do not, and both write
the same keys and nearly the same configuration. Likewise `unet.` is in diffusers' files, and in live names only where one module holds several
components. The form is what the checkpoint records: weights under live names, a file that only PeftModel writes. Where nothing tells, the keys' own
form is kept, and said to be assumed. Names that somebody recorded or gave are taken as they are and never come here.
"""

from __future__ import annotations

from dataclasses import replace

from ostate.core.names import CONTAINERS, PEFT_PREFIX, VALUE_HEAD, any_adapter, component, plain_names
from ostate.core.naming import Adapter
from ostate.core.state import RawState

from .keys import live_name

_IN_A_MODULE = (
    "Lightning's own names have the attribute in front under which its module holds the model (`model.`), which the adapter's file does not tell"
)
_BESIDE_HEAD = "names are the file's, in which TRL saves the value head beside the model: in its live model the others begin with pretrained_model."
_OF_COMPONENTS = "names begin with the component that they lie in ({}), as the pipeline's keys do and no component's own names"


def with_live_form(adapter: Adapter, raw: RawState) -> Adapter:
    """Return the adapter with what is to be taken off its keys, or with the assumption that nothing is.

    The assumption is contested where transformers may have written the file. A file that neither library wrote comes from a program that gathered
    PeftModel's own state dict: transformers' models give keys without the prefix to whoever saves them by hand. A pipeline's `save_lora_weights` is
    handed the component's own names, and puts the component's in front of them (diffusers loaders/lora_base.py, `pack_weights`), and so does
    diffusion-pipe with ComfyUI's `diffusion_model.` (models/base.py, `save_adapter`); OneTrainer's modules bear it themselves
    (modules/module/LoRAModule.py, `prefix`).
    """
    if adapter.file != raw.source:
        adapter = replace(adapter, lead=_recorded_lead(adapter, raw))
        if raw.layout == "lightning" and not adapter.lead:
            adapter = replace(adapter, assumed=(*adapter.assumed, _IN_A_MODULE), contested=(*adapter.contested, _IN_A_MODULE))
    if adapter.kind == "model" and all(key in adapter.tensors for key in VALUE_HEAD):
        adapter = replace(adapter, assumed=(*adapter.assumed, _BESIDE_HEAD))
    lead = _lead(adapter)
    parts = [] if lead else sorted({part for key in adapter.tensors if (part := component([key]))})
    if parts and adapter.facts.get("saved_by") == "diffusers":
        return replace(adapter, assumed=(*adapter.assumed, _OF_COMPONENTS.format(", ".join(parts))))
    if not lead or adapter.cut:
        return adapter
    kept = _is_recorded(adapter, lead, raw)
    saved_by = adapter.facts.get("saved_by")
    if kept is None and (saved_by == "peft" if lead == PEFT_PREFIX else raw.facts.get("program") == "OneTrainer"):
        return adapter
    comfy = lead == "diffusion_model." and bool(adapter.config)
    pipeline = saved_by == "diffusers" and lead != PEFT_PREFIX  # which no pipeline puts there
    if kept is None and (pipeline or comfy):
        program = "ComfyUI's: a program that saves PEFT's card" if comfy else "the pipeline's, whose save_lora_weights"
        text = f"the prefix {lead} is {program} puts it before the component's own names"
        return replace(adapter, cut=lead, assumed=(*adapter.assumed, text))
    if kept is None:
        text = f"the prefix {lead} comes from the adapter's keys; the live model may lack it"
        contested = adapter.contested if saved_by == "hand" else (*adapter.contested, text)
        return replace(adapter, assumed=(*adapter.assumed, text), contested=contested)
    return replace(adapter, cut="" if kept else lead)


def with_peft_form(adapter: Adapter) -> Adapter:
    """Return the adapter as PeftModel would hold it: `base_model.model.` before the component's own names, which no key has where a pipeline or
    ComfyUI is to load the file. Keys of several components stay as they are: each would have a PeftModel of its own, and two may share names.
    """
    names = [live_name(key, adapter) for key in adapter.tensors]
    if adapter.kind not in ("peft", "diffusers") or any(name.startswith(PEFT_PREFIX) or CONTAINERS.isdisjoint(name.split(".")) for name in names):
        return adapter
    parts = sorted({component([name]) for name in names})
    if len(parts) > 1:
        return replace(adapter, assumed=(*adapter.assumed, _OF_COMPONENTS.format(", ".join(filter(None, parts)))))
    if all(name.startswith(f"{parts[0]}{PEFT_PREFIX}") for name in names):  # a pipeline was handed PeftModel's own names
        return replace(adapter, cut=parts[0])
    text = f"the prefix {PEFT_PREFIX} is PeftModel's, in place of {parts[0] or 'none'} in the adapter's keys"
    return replace(adapter, cut=parts[0], lead=PEFT_PREFIX, assumed=(*adapter.assumed, text))


def _lead(adapter: Adapter) -> str:
    """Return what all keys begin with and live names may lack; nothing where some key has no such beginning."""
    if adapter.kind == "peft" and all(key.startswith(PEFT_PREFIX) for key in adapter.tensors):
        return PEFT_PREFIX
    return component(adapter.tensors) if adapter.kind in ("diffusers", "peft") else ""


def _recorded_lead(adapter: Adapter, raw: RawState) -> str:
    """Return what the checkpoint's own weights have in front of every one of the adapter's names; nothing where one lacks it."""
    if adapter.kind != "peft" or not raw.weights:
        return ""
    own = [any_adapter(name) for name in plain_names(list(raw.weights))]
    names = [any_adapter(live_name(key, adapter)) for key in adapter.tensors]
    first = [other.removesuffix(names[0]) for other in own if other.endswith(f".{names[0]}")] if names else []
    return first[0] if len(first) == 1 and {f"{first[0]}{name}" for name in names} <= set(own) else ""


def _is_recorded(adapter: Adapter, lead: str, raw: RawState) -> bool | None:
    """Return whether the checkpoint's own weights bear the adapter's names with the lead; None where they bear them in neither form."""
    if not raw.weights:
        return None
    own = {any_adapter(name) for name in plain_names(list(raw.weights))}
    for key in adapter.tensors:
        name = any_adapter(live_name(key, adapter))
        for form in (name, name.removeprefix(lead)):
            if form in own or any(other.endswith(f".{form}") for other in own):
                return form == name
    return None
