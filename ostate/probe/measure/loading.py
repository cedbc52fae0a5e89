"""A causal language model with its adapter from local folders, on a device that is there: or a refusal in words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ostate.core.extras import needed
from ostate.core.hf_cache import local_model
from ostate.errors import OstateError, ProbeError, refusal_for

with needed("a probe of a model", extra="base"):
    from safetensors import SafetensorError

_MOST_TEXT = 600
"""Letters of what another library says; a mismatch of shapes lists every tensor."""
_CANNOT_LOAD = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, MemoryError, SafetensorError)
"""What transformers and PEFT raise for folders that are no model, or no adapter of this model; the list grows with each release."""


def load_model(model: str, adapter: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> nn.Module:
    """Load a causal language model with its adapter, trainable, from local folders; no remote code, no network.

    Raises:
        ProbeError: a folder that is not there, or that transformers or PEFT cannot load; a device that is not there.
    """
    _check_device(device)
    with needed("a probe of a model", extra="base"):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, __version__

    model = local_model(model)
    asked = "dtype" if tuple(map(int, __version__.split(".")[:2])) >= (4, 56) else "torch_dtype"
    for folder in (model, adapter):
        if not os.path.isdir(folder):
            fix = "check the path; a model may also be org/name, if the local Hugging Face cache holds it"
            raise ProbeError("no such folder", where=folder, fix=fix)
    if os.path.exists(os.path.join(model, "adapter_config.json")) and not os.path.exists(os.path.join(model, "config.json")):
        raise ProbeError("this is an adapter, not a model", where=model, fix="pass the base model's folder to --model, and this folder to --adapter")
    if not os.path.exists(os.path.join(adapter, "adapter_config.json")):
        raise ProbeError("no adapter in this folder: it has no adapter_config.json", where=adapter, fix="pass the adapter's folder to --adapter")
    try:
        base = AutoModelForCausalLM.from_pretrained(model, **{asked: dtype}, local_files_only=True, trust_remote_code=False)
        found: nn.Module = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    except _failures() as error:
        fix = "pass the base model that the adapter was trained on, as a folder with its config.json and weights"
        raise _cannot_load("the model or its adapter", error, f"{model}, {adapter}", fix) from error
    return _moved(found, device)


def tokenizer_of(model: str) -> Callable[[str], Sequence[int]] | None:
    """Return what turns text into the model's ids, without special tokens; None where its folder has no tokenizer.

    Raises:
        ProbeError: the tokenizer cannot be loaded.
    """
    if not any(os.path.exists(os.path.join(model, name)) for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    with needed("a probe of a model", extra="base"):
        from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except _failures() as error:
        raise _cannot_load("the tokenizer", error, model, "copy the model's tokenizer files again, or give data with input_ids") from error

    def ids(text: str) -> Sequence[int]:
        encoded: Sequence[int] = found(text, add_special_tokens=False)["input_ids"]
        return encoded

    return ids


def _failures() -> tuple[type[Exception], ...]:
    """Return what stands for a folder that cannot be loaded; configurations of a wrong type have an error of their own in newer releases."""
    strict = getattr(sys.modules.get("huggingface_hub.errors"), "StrictDataclassError", None)
    return _CANNOT_LOAD if strict is None else (*_CANNOT_LOAD, strict)


def _cannot_load(what: str, error: Exception, where: str, fix: str) -> OstateError:
    """Return the refusal for what transformers or PEFT could not load."""
    text = (str(error).strip() or type(error).__name__)[:_MOST_TEXT]
    return refusal_for(error) or ProbeError(f"{what} cannot be loaded: {text}", where=where, fix=fix)


def _check_device(device: str | torch.device) -> None:
    """Refuse a device that torch does not know or this machine has not.

    Raises:
        ProbeError: there is none of that name.
    """
    fix = "pass --device cpu, or install a build of torch for this device"
    try:
        kind = torch.device(device).type
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:  # AssertionError: torch was built without it
        text = (str(error).splitlines() or [""])[0][:200]
        raise ProbeError(f"the device {str(device)!r} cannot be used: {text}", where="--device", fix=fix) from error
    if kind == "meta":
        raise ProbeError("the device 'meta' holds no numbers", where="--device", fix=fix)


def _moved(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Return the model on the device.

    Raises:
        OutOfMemory: it does not fit.
    """
    try:
        return model.to(device)
    except RuntimeError as error:
        refusal = refusal_for(error)
        if refusal is None:
            raise
        raise refusal.at(f"the model on {device}") from error
