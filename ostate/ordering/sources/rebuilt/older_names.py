"""Keys under names that an older transformers gave, read by the installed one's own map of renamed modules.

transformers 4.52 moved the parts of vision-language models (`language_model.model.` became `model.language_model.`), 5 renamed those of ViT
and others. It keeps the maps to load old checkpoints; the keys go through them to the rebuilt model. An adapter keeps their form as names. A whole
model that 5 saved has old keys too: `save_pretrained` turns the maps around (core_model_loading.py, `revert_weight_conversion`), and the live names
are the rebuilt model's. Mixtures of experts are fused in 5 and saved expert by expert: no key of the file is the live tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ostate.core.foreign import JsonObject, release
from ostate.core.names import PEFT_PREFIX
from ostate.core.naming import Adapter

from ...grouping.parameters import Parameter, ParameterList
from ...keys import live_name
from .explained import explained
from .listed import ListedModel

TURNED_AROUND = (5, 0)
"""The release from which on whole models are saved under old keys."""


def saved_apart(adapter: Adapter) -> bool:
    """True for a whole model whose keys may be of an older release than its names."""
    version = release(adapter.facts.get("transformers_version")) if adapter.kind == "model" else None
    return version is not None and version >= TURNED_AROUND


def layout_of(made: str, answer: ListedModel, adapter: Adapter, config: JsonObject) -> ParameterList | None:
    """Return the layout of the rebuilt model for keys of an older form; None where no map of transformers' explains them.

    Args:
        made: the class that was rebuilt.
        answer: its parameters.
        adapter: whose keys the rebuilt model does not have.
        config: the base model's configuration.
    """
    whole = adapter.kind == "model"
    if not whole and (adapter.kind != "peft" or not all(key.startswith(PEFT_PREFIX) for key in adapter.tensors)):
        return None
    from .renamed_modules import renamed_modules  # imports torch

    found = renamed_modules(made, config, list(adapter.tensors))
    if found is None or (found.joined and not _are_whole(found.joined, answer, adapter)):
        return None
    renamed = found.names
    if (not found.joined and all(old == new for old, new in renamed.items())) or len(set(renamed.values())) != len(renamed):
        return None
    layout = explained(made, answer, replace(adapter, tensors={new: adapter.tensors[old] for old, new in renamed.items()}))
    if not isinstance(layout, ParameterList):
        return None
    back = {new: old for old, new in renamed.items()}
    if saved_apart(adapter):
        rows = tuple(row if row.key is None else replace(row, key=back[row.key]) for row in layout.parameters)
        return replace(layout, rule=f"{layout.rule}, saved under keys of an older release", parameters=rows, keys_apart=True)
    rows = tuple(_as_written(row, back, adapter) for row in layout.parameters)
    return replace(layout, rule=f"{layout.rule}, modules as an older release called them", parameters=rows)


def _are_whole(joined: Mapping[str, Sequence[str]], answer: ListedModel, adapter: Adapter) -> bool:
    """Return whether 5 itself divided its fused experts into these keys when it saved: they have all of their elements."""
    sizes = {name: math.prod(shape) for name, _, shape, *_ in answer.parameters}
    return saved_apart(adapter) and all(sizes.get(name) == sum(adapter.tensors[key].numel for key in keys) for name, keys in joined.items())


def _as_written(row: Parameter, back: Mapping[str, str], adapter: Adapter) -> Parameter:
    if row.key is None:
        return row
    return replace(row, key=back[row.key], name=live_name(back[row.key], adapter))
