"""A model built on the meta device from configurations alone, and its parameters listed. Imports torch, transformers, peft: seconds.

No weights, no network, no remote code.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import peft
import torch
import transformers
from peft.utils.save_and_load import get_peft_model_state_dict
from transformers import CONFIG_MAPPING

from ostate.core.extras import needed
from ostate.core.foreign import JsonObject
from ostate.core.quiet import quiet

from . import base_config as base
from . import cache
from .limits import TooMuch, bounded
from .listed import Answer, ListedModel, ListedParameter, NotBuilt, Request

TRIES: tuple[tuple[str, bool], ...] = (("meta", False), ("cpu", False), ("meta", True))
"""Where PEFT makes its weights, and whether it is asked to spare memory: some methods compute their start, some untie weights when spared."""
FAILURES = (
    ValueError, TypeError, AttributeError, RuntimeError, LookupError, ImportError, OSError, AssertionError, ArithmeticError, MemoryError, re.error,
)  # fmt: skip
"""What model code raises on a configuration it does not understand; besides these, what the hub's library raises on a value of a wrong kind."""


def build(request: Request) -> Answer:
    """Build the model on the meta device and list its parameters; or say why the installed libraries cannot."""
    failed = ""
    if base.CLASS in request.model:
        with needed("a diffusion model rebuilt from its configuration", extra="diffusion"), quiet():
            import diffusers  # noqa: F401
    for device, low_memory in TRIES:
        try:
            with _offline(), quiet(), bounded():
                return _parameters(_model(request, device, low_memory=low_memory), request)
        except TooMuch as error:
            return NotBuilt(str(error), hopeless=True)
        except _failures() as error:
            text = str(error).strip().splitlines()
            failed = failed or f"{type(error).__name__}: {text[0][:200] if text else ''}".rstrip(": ")
    return NotBuilt(failed)


def _failures() -> tuple[type[BaseException], ...]:
    strict = getattr(sys.modules.get("huggingface_hub.errors"), "StrictDataclassError", None)
    return FAILURES if strict is None else (*FAILURES, strict)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _diffusion_model(request: Request) -> torch.nn.Module:
    """Return a component of diffusers on the meta device."""
    import diffusers

    made = getattr(diffusers, request.made, None)
    if not (isinstance(made, type) and issubclass(made, diffusers.ModelMixin)):
        raise TypeError(f"the installed diffusers has no model {request.made}")
    make = cast("Callable[[JsonObject], torch.nn.Module]", made.from_config)
    with torch.device("meta"):
        return make(dict(request.model))


def _model(request: Request, device: str, *, low_memory: bool) -> torch.nn.Module:
    """Return the model on the meta device, under its adapters where it has any (plain fine-tuning has none)."""
    if base.CLASS in request.model:
        return _diffusion_model(request)
    model_type = request.model.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(f"the installed transformers does not know the model type {model_type!r}")
    config = CONFIG_MAPPING[model_type].from_dict(dict(request.model))
    made = getattr(transformers, request.made)
    if not request.made.startswith("AutoModel") and not (isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)):
        raise TypeError(f"{request.made} is not a model")
    with torch.device("meta"):
        plain = made.from_config(config, trust_remote_code=False) if request.made.startswith("AutoModel") else made(config)
    plain.tie_weights()
    plain.config.use_cache = False  # X-LoRA asks for it
    model: torch.nn.Module = plain
    for name, stored in request.adapters:
        method = stored.get("peft_type")
        if not isinstance(method, str) or not method:
            return model
        kind = cast("Mapping[str, Callable[..., peft.PeftConfig]]", peft.PEFT_TYPE_TO_CONFIG_MAPPING)[method]
        known = inspect.signature(kind).parameters
        tuner = kind(**{key: value for key, value in stored.items() if key in known})
        if hasattr(tuner, "mask_fn"):
            tuner.mask_fn = None  # SHiRA's choice of elements, which needs numbers and changes no name and no shape
        with torch.device(device):
            if isinstance(model, peft.PeftModel):
                model.add_adapter(name, tuner, low_cpu_mem_usage=low_memory)
            else:
                model = peft.get_peft_model(model, tuner, adapter_name=name, low_cpu_mem_usage=low_memory)
    return model


def _parameters(model: torch.nn.Module, request: Request) -> ListedModel:
    """List name, key, shape, who trains it, norm classes and LoRA-on-embedding of every parameter, in the model's order."""
    keys: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    trained: dict[str, set[int]] = {}
    if isinstance(model, peft.PeftModel):
        if not model.peft_config[request.saved].is_prompt_learning:  # what a prompt method saves is computed, and the meta device has no numbers
            saved = get_peft_model_state_dict(model, state_dict=state, adapter_name=request.saved, save_embedding_layers=False)
            for key, tensor in saved.items():
                keys.setdefault(id(tensor), key)
        for name, _ in request.adapters:
            if len(request.adapters) > 1:
                model.set_adapter(name)
            trained[name] = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    else:
        trained[request.saved] = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    modules = dict(model.named_modules())
    rows = []
    for name, parameter in model.named_parameters():
        path = name.split(".")
        holders = [modules[".".join(path[:length])] for length in range(len(path)) if ".".join(path[:length]) in modules]
        classes = {kind.__name__ for holder in holders for kind in type(holder).__mro__ if "norm" in kind.__name__.lower()}
        trainers = tuple(adapter for adapter, own in trained.items() if id(parameter) in own)
        key, embedding = keys.get(id(parameter)), _is_lora_embedding(modules, path)
        rows.append(ListedParameter(name, key, tuple(parameter.shape), trainers, tuple(sorted(classes)), embedding))
    listed = {row.name for row in rows}
    return ListedModel(tuple(rows), tuple(sorted(set(state) - listed)), _free_sizes(model), tuple(sorted(cache.versions().items())))


def _free_sizes(model: torch.nn.Module) -> tuple[int, ...]:
    """Return the sizes that a run may change without a word in the base model's configuration: vocabulary and labels."""
    config = getattr(model, "config", None)
    found = [getattr(part, word, None) for part in (config, getattr(config, "text_config", None)) for word in ("vocab_size", "num_labels")]
    return tuple(sorted({size for size in found if isinstance(size, int)}))


def _is_lora_embedding(modules: Mapping[str, torch.nn.Module], path: Sequence[str]) -> bool:
    """True when the module two components above the parameter is PEFT's LoRA layer for embeddings, as PEFT's LoRA+ asks."""
    holder = modules.get(".".join(path[:-2]))
    return type(holder).__module__ == "peft.tuners.lora.layer" and type(holder).__name__ == "Embedding"
