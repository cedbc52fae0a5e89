"""Keys of adapters that an older transformers wrote, read by the installed one's own map of renamed modules.

transformers 4.52 moved the parts of vision-language models (`language_model.model.` became `model.language_model.`), 5 renamed those of ViT
and others. It keeps the maps to load old checkpoints; the adapter's keys go through them to the rebuilt model, and keep their own form as names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ostate.core.names import PEFT_PREFIX, tuner_at
from ostate.core.naming import Adapter
from ostate.core.quiet import quiet

from ...grouping.parameters import Parameter, ParameterList
from ...keys import live_name
from .explained import explained
from .limits import bounded


def layout_of(made: str, answer: Mapping[str, Any], adapter: Adapter, config: Mapping[str, Any]) -> ParameterList | None:
    """Return the layout of the rebuilt model under the adapter's older names; None where no map of transformers' explains its keys.

    Args:
        made: the class that was rebuilt.
        answer: its parameters.
        adapter: whose keys the rebuilt model does not have.
        config: the base model's configuration.
    """
    if adapter.kind != "peft" or not all(key.startswith(PEFT_PREFIX) for key in adapter.tensors):
        return None
    renamed = _renamed(made, config, list(adapter.tensors))
    if renamed is None or all(old == new for old, new in renamed.items()) or len(set(renamed.values())) != len(renamed):
        return None
    layout = explained(made, answer, replace(adapter, tensors={renamed[key]: ref for key, ref in adapter.tensors.items()}))
    if not isinstance(layout, ParameterList):
        return None
    back = {new: old for old, new in renamed.items()}
    rows = tuple(_as_written(row, back, adapter) for row in layout.parameters)
    return replace(layout, rule=f"{layout.rule}, modules as an older release called them", parameters=rows)


def _as_written(row: Parameter, back: Mapping[str, str], adapter: Adapter) -> Parameter:
    if row.key is None:
        return row
    return replace(row, key=back[row.key], name=live_name(back[row.key], adapter))


def _renamed(made: str, config: Mapping[str, Any], keys: list[str]) -> dict[str, str] | None:
    """Return each key under the installed release's names; None where it keeps no map, or where weights were joined or split as well."""
    import torch
    import transformers
    from transformers import CONFIG_MAPPING

    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:
        return None  # a release before 5: it names modules as the adapter does, or keeps its map elsewhere
    kind = getattr(transformers, made)
    with quiet(), bounded(), torch.device("meta"):
        settings = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        model = kind.from_config(settings, trust_remote_code=False) if made.startswith("AutoModel") else kind(settings)
    maps = get_model_conversion_mapping(model)
    names = [one for one in maps if isinstance(one, WeightRenaming)]
    others = [one for one in maps if isinstance(one, WeightConverter)]
    weights = model.state_dict()
    found: dict[str, str] = {}
    for key in keys:
        parts = key.removeprefix(PEFT_PREFIX).split(".")
        at = tuner_at(parts)
        if at is None:
            return None
        new, joined = rename_source_key(".".join([*parts[:at], "weight"]), names, others, model.base_model_prefix, weights)
        if joined is not None:
            return None
        found[key] = PEFT_PREFIX + ".".join([*new.split(".")[:-1], *parts[at:]])
    return found
