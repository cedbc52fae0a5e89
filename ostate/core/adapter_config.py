"""`adapter_config.json` with the types that its readers rely on: what is of another kind is refused where the file is read, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict, cast

from ostate.errors import ReadError

from . import limits
from .foreign import too_deep
from .hyper import shown


class AdapterConfig(TypedDict, total=False):
    """The entries of PEFT's configuration that are read here (peft/config.py, tuners/*/config.py); others are kept as they are."""

    peft_type: str | None
    task_type: str | None
    r: int | None
    bias: str | bool | None
    init_lora_weights: bool | str | None
    target_modules: list[str] | str | None
    target_parameters: list[str] | None
    modules_to_save: list[str] | str | None
    ensure_weight_tying: bool | None
    rank_pattern: dict[str, object] | None
    auto_mapping: dict[str, object] | None
    base_model_name_or_path: str | None
    revision: str | None
    inference_mode: bool | None
    prefix_projection: bool | None
    peft_version: str | None


NO_CONFIG = AdapterConfig()


def _text(value: object) -> bool:
    return isinstance(value, str)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _texts(value: object) -> bool:
    return isinstance(value, list) and len(value) <= limits.LIST_ITEMS and all(isinstance(one, str) for one in value)


def _few_texts(value: object) -> bool:
    return _texts(value) and len(cast("list[str]", value)) <= limits.TARGETS


def _table(value: object) -> bool:
    return isinstance(value, dict) and len(value) <= limits.LIST_ITEMS


def _rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


_KINDS: dict[str, tuple[tuple[Callable[[object], bool], ...], str]] = {
    "peft_type": ((_text,), "a text"),
    "task_type": ((_text,), "a text"),
    "r": ((_rank,), "a whole number"),
    "bias": ((_text, _flag), "a text or true or false"),
    "init_lora_weights": ((_flag, _text), "true, false or a text"),
    "target_modules": ((_texts, _text), "a list of texts, or a text"),
    "target_parameters": ((_few_texts,), f"a list of texts, at most {limits.TARGETS}"),
    "modules_to_save": ((_few_texts, _text), f"a list of texts, at most {limits.TARGETS}"),
    "ensure_weight_tying": ((_flag,), "true or false"),
    "rank_pattern": ((_table,), "an object"),
    "auto_mapping": ((_table,), "an object"),
    "base_model_name_or_path": ((_text,), "a text"),
    "revision": ((_text,), "a text"),
    "inference_mode": ((_flag,), "true or false"),
    "prefix_projection": ((_flag,), "true or false"),
    "peft_version": ((_text,), "a text"),
}
"""Entry -> what it may be besides null, and how to say that."""


def typed_config(stored: object, where: str) -> AdapterConfig:
    """Return an adapter's configuration, once each entry that is read is of its kind.

    Args:
        stored: what the JSON file holds.
        where: the file, for messages.

    Raises:
        ReadError: no object; lists within lists without end; an entry of another kind, or longer than any real one.
    """
    fix = "copy the file again from the run; if it was changed by hand, put back what PEFT wrote"
    if not isinstance(stored, dict):
        raise ReadError("an adapter configuration is a JSON object", where=where, fix=fix)
    if too_deep(stored):
        raise ReadError("lists within lists without end in an adapter configuration", where=where, fix=fix)
    for key, (kinds, words) in _KINDS.items():
        value = stored.get(key)
        if value is not None and not any(kind(value) for kind in kinds):
            raise ReadError(f"{key} of the adapter configuration is {_shown(value)}, where {words} is expected", where=where, fix=fix)
    return cast("AdapterConfig", stored)


def _shown(value: object) -> str:
    if isinstance(value, (list, Mapping)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return shown(value)
