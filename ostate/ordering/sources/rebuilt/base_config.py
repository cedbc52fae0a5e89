"""Where the base model's config.json is: given, named by the adapter, in the local cache, or beside the checkpoint. Never the network.

A diffusion pipeline has one for each component, in folders of fixed names (`unet/`, `text_encoder/`) below its model_index.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ostate.core.adapter_config import NO_CONFIG, AdapterConfig, typed_config
from ostate.core.files import is_remote, read_at, size_of
from ostate.core.foreign import JsonObject, parse_json, too_deep
from ostate.core.hf_cache import snapshot
from ostate.core.names import COMPONENTS
from ostate.core.naming import Adapter, Question
from ostate.errors import OrderingError, ReadError

MOST_BYTES = 4 << 20
"""Of a configuration: one that names 21,000 labels has 1.5 MB, and JSON of nothing but brackets takes twenty times its length of memory."""
CLASS = "_class_name"
"""The entry by which a configuration of diffusers names its class (diffusers configuration_utils.py)."""


def find_config(question: Question) -> tuple[JsonObject, str] | str:
    """Return the base model's configuration and its path, or, as text, why there is none.

    Raises:
        OrderingError: `--base` was given and holds no readable configuration.
    """
    if question.base is not None:
        path = _config_of(question.base)
        config = _read(path)
        if config is None:
            fix = "pass the base model's folder, with its config.json, or org/name of a model in the local Hugging Face cache"
            if _is_adapter(question.base):
                raise OrderingError("this is an adapter, not a base model", where=question.base, fix=fix)
            raise OrderingError("no model configuration found", where=path, fix=fix)
        return config, path
    if question.adapter is None:
        return "no adapter was found, so the base model is not known"
    tried = []
    for path in _places(question.adapter, question):
        config = _read(path)
        if config is not None and ("model_type" in config or CLASS in config):
            return config, path
        tried.append(path)
    named = question.adapter.config.get("base_model_name_or_path")
    return (
        f"the base model {named!r} is neither a local folder nor in the local Hugging Face cache"
        if named
        else "the adapter does not name its base model"
    )


def components_of(question: Question) -> dict[str, JsonObject]:
    """Return the configurations of a diffusion model by the name of each component's folder, the denoiser's first; nothing where it is none.

    `--base` may be the pipeline, or the folder or configuration of one component, whose pipeline then lies above it.

    Raises:
        OrderingError: `--base` was given and holds no readable configuration.
    """
    if question.base is not None and os.path.isdir(question.base):
        below = _components_below(question.base)
        if below:
            return below
    found = find_config(question)
    if isinstance(found, str) or CLASS not in found[0]:
        return {}
    config, path = found
    home = os.path.dirname(os.path.abspath(path))
    above = os.path.dirname(home)
    beside = _components_below(above)
    return {os.path.basename(home): config, **{name: other for name, other in beside.items() if name != os.path.basename(home)}}


def _components_below(folder: str) -> dict[str, JsonObject]:
    found = {name: config for name in COMPONENTS if (config := _read(os.path.join(folder, name, "config.json"))) is not None}
    return found if any(CLASS in config for config in found.values()) else {}


def _is_adapter(base: str) -> bool:
    return os.path.exists(os.path.join(base, "adapter_config.json"))


def _config_of(base: str) -> str:
    return os.path.join(base, "config.json") if os.path.isdir(base) else base


def read_config(folder: str) -> AdapterConfig:
    """Return the adapter_config.json of a folder; nothing where there is none to read."""
    path = os.path.join(folder, "adapter_config.json")
    try:
        return typed_config(_read(path) or {}, path)
    except ReadError:
        return NO_CONFIG


def _places(adapter: Adapter, question: Question) -> Iterator[str]:
    home = os.path.abspath(os.path.dirname(adapter.file) or ".")
    named = adapter.config.get("base_model_name_or_path")
    if named:
        yield os.path.join(named, "config.json")
        above = home
        for _ in range(4):  # a named adapter's subfolder, the checkpoint, the run, and what lies beside the run
            yield os.path.join(above, named, "config.json")
            above = os.path.dirname(above)
        revision = adapter.config.get("revision")
        yield os.path.join(snapshot(named, revision or "main"), "config.json")
    yield os.path.join(home, "config.json")
    source = question.raw.source
    if not is_remote(source):
        yield os.path.join(source if os.path.isdir(source) else os.path.dirname(source), "config.json")


def _read(path: str) -> JsonObject | None:
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > MOST_BYTES:
            return None
        config = parse_json(read_at(path, 0, size_of(path)))
    except (OSError, ReadError, ValueError):
        return None
    return config if isinstance(config, dict) and not too_deep(config) else None
