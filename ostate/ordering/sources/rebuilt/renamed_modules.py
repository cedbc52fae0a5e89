"""Module names of an older transformers under those of the installed one, by its own maps for old checkpoints. Imports torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import transformers
from transformers import CONFIG_MAPPING

from ostate.core.foreign import JsonObject
from ostate.core.names import PEFT_PREFIX, tuner_at
from ostate.core.quiet import quiet

from .limits import bounded

try:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
except ImportError:
    HAS_MAP = False
else:
    HAS_MAP = True
"""False for a release before 5: it names modules as the adapter does, or keeps its map elsewhere."""


class Renamed(NamedTuple):
    """What an older release's keys are called by the installed one."""

    names: dict[str, str]
    """Key -> name, of tensors that are the same in both."""
    joined: dict[str, list[str]]
    """Name -> keys, of tensors that the installed release makes of several: experts, in its fused mixtures."""


def renamed_modules(made: str, config: JsonObject, keys: list[str]) -> Renamed | None:
    """Return the keys under the installed release's names; None where it keeps no map, or joins or splits what a tuner trains."""
    if not HAS_MAP:
        return None
    kind = getattr(transformers, made)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    with quiet(), bounded(), torch.device("meta"):
        settings = CONFIG_MAPPING[model_type].from_dict(dict(config))
        model = kind.from_config(settings, trust_remote_code=False) if made.startswith("AutoModel") else kind(settings)
    maps = get_model_conversion_mapping(model)
    names = [one for one in maps if isinstance(one, WeightRenaming)]
    others = [one for one in maps if isinstance(one, WeightConverter)]
    weights = model.state_dict()
    found: dict[str, str] = {}
    together: dict[str, list[str]] = {}
    for key in keys:
        lead = PEFT_PREFIX if key.startswith(PEFT_PREFIX) else ""
        parts = key.removeprefix(lead).split(".")
        at = tuner_at(parts)
        if at is None and lead:
            return None
        asked = ".".join(parts if at is None else [*parts[:at], "weight"])
        new, joined = rename_source_key(asked, names, others, model.base_model_prefix, weights)
        if joined is not None:
            if at is not None or lead:
                return None
            together.setdefault(new, []).append(key)
            continue
        found[key] = lead + ".".join([*new.split(".")[:-1], *parts[at:]]) if at is not None else new
    return Renamed(found, together)
