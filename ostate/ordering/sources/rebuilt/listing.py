"""The parameters of one class under its adapters, from what is kept on disk or built anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from ostate.core.extras import needed
from ostate.core.foreign import JsonObject
from ostate.core.naming import Adapter
from ostate.core.quiet import quiet

from . import cache
from .listed import Answer, Request

PLAIN_START: JsonObject = {"init_lora_weights": True, "init_weights": True, "prompt_tuning_init": "RANDOM"}
"""Starts that need no numbers: names and shapes do not depend on the start, and the meta device has no numbers to decompose."""
LEFT_OUT = frozenset(["loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "arrow_config", "tokenizer_name_or_path"])
"""Settings that only choose a start, or need files that are not here."""
UNNEEDED = frozenset([
    "quantization_config", "auto_map", "_name_or_path", "torch_dtype", "dtype", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
])  # fmt: skip
"""Settings of a model that change no name and no shape, but may name code or files elsewhere."""


def listing(made: str, adapters: Sequence[Adapter], config: JsonObject, saved: str) -> Answer:
    """Return the parameters of the class `made` under these adapters, from the disk where they are kept, or why there are none."""
    request = Request(made, plain_model(config), tuple((one.name, _plain_adapter(one)) for one in adapters), saved)
    known = cache.kept(request)
    if known is not None:
        return known
    answer = _build(request)
    cache.keep(request, answer)
    return answer


def _build(request: Request) -> Answer:
    with needed("a model rebuilt from its configuration", extra="base"), quiet():
        from .build import build  # here, and not first under the clock of `limits`, which would leave half an import behind
    return build(request)


def plain_model(config: JsonObject) -> JsonObject:
    """Return the configuration without what names no parameter, inner ones too; a pretrained backbone would be looked for on the network."""
    plain = {key: plain_model(value) if isinstance(value, dict) else value for key, value in config.items() if key not in UNNEEDED}
    return {**plain, "use_pretrained_backbone": False} if plain.get("use_pretrained_backbone") else plain


def _plain_adapter(adapter: Adapter) -> JsonObject:
    """Return the adapter's configuration as training had it, without what needs numbers or files."""
    allotted = {"rank_pattern"} if adapter.config.get("peft_type") == "ADALORA" else set()  # what AdaLoRA kept at its end; training had all of init_r
    stored = cast("JsonObject", adapter.config)  # as its file holds it; `typed_config` has looked at the entries that are read
    config = {key: value for key, value in stored.items() if key not in LEFT_OUT | allotted}
    config.update({key: value for key, value in PLAIN_START.items() if key in config})
    if "inference_mode" in config:
        config["inference_mode"] = False
    return config
