"""Keys of adapters that an older transformers wrote, read by the installed one's own map of renamed modules.

transformers 4.52 moved the parts of vision-language models (`language_model.model.` became `model.language_model.`), 5 renamed those of ViT
and others. It keeps the maps to load old checkpoints; the adapter's keys go through them to the rebuilt model, and keep their own form as names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ostate.core.names import PEFT_PREFIX
from ostate.core.naming import Adapter

from ...grouping.parameters import Parameter, ParameterList
from ...keys import live_name
from .explained import explained


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
    from .renamed_modules import renamed_modules  # imports torch

    renamed = renamed_modules(made, config, list(adapter.tensors))
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
