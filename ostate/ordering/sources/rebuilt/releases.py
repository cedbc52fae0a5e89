"""What other releases, and other ways to make the same adapter, would have called or trained: layouts beside the rebuilt one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ostate.core.foreign import release
from ostate.core.naming import Adapter

from ...grouping.parameters import Parameter, ParameterList
from ...keys import dora_is_a_parameter, live_name

Version = tuple[int, int]
HEAD_FIRST: Version = (5, 0)
_ROBERTA = re.compile(r"^(?:base_model\.model\.)?roberta\.")
_HEAD = re.compile(r"^(?:base_model\.model\.)?(?:classifier|lm_head|qa_outputs)\.")


def variants(layout: ParameterList, adapter: Adapter) -> Iterator[ParameterList]:
    """Yield the layout as the adapter's own files say it was, then what an unknown older release may have trained besides.

    Names change where the files tell it; what was trained changes only as a second claim, for the numbers and sizes to choose.
    """
    for own in _as_defined(_renamed(layout, adapter), adapter):
        yield from _as_trained(own, adapter)


def _as_trained(own: ParameterList, adapter: Adapter) -> Iterator[ParameterList]:
    version = peft_version(adapter)
    if version is None or version >= (0, 6):
        yield own
    if version is None or version < (0, 6):
        older = _originals_trained(own)
        if older is not None:
            yield older
        elif version is not None:
            yield own


def _as_defined(layout: ParameterList, adapter: Adapter) -> list[ParameterList]:
    """Return the layout in the order of the release that the adapter's card names; in both orders where it names none and they differ."""
    older = _head_last(layout)
    if older is None:
        return [layout]
    version = release(adapter.facts.get("transformers_version"))
    return [layout, older] if version is None else [layout if version >= HEAD_FIRST else older]


def _head_last(layout: ParameterList) -> ParameterList | None:
    """Return the layout with the head behind the model, or None where it stands there already.

    XLM-RoBERTa and CamemBERT define their heads before the model from 5 on, behind it before (modeling_xlm_roberta.py of 4.36, 4.48, 4.57, 5.23).
    """
    head = [_HEAD.search(row.name) is not None for row in layout.parameters]
    if not any(_ROBERTA.search(row.name) for row in layout.parameters) or True not in head or head == sorted(head):
        return None
    rows = (
        *(row for row, is_head in zip(layout.parameters, head) if not is_head),
        *(row for row, is_head in zip(layout.parameters, head) if is_head),
    )
    return replace(layout, rule=f"{layout.rule} of transformers before 5", parameters=rows)


def peft_version(adapter: Adapter) -> Version | None:
    """Return the release of PEFT that saved the adapter, where its configuration or model card says so."""
    return release(adapter.facts.get("peft_version"))


def _renamed(layout: ParameterList, adapter: Adapter) -> ParameterList:
    names = [parameter.name for parameter in layout.parameters]
    if _without_base_layer(layout, adapter):
        names = [name.replace(".base_layer.", ".") for name in names]
    names = [f"{adapter.lead}{name.removeprefix(adapter.cut)}" for name in names]
    if adapter.kind == "model" and not layout.keys_apart:
        names = [name if row.key is None else live_name(row.key, adapter) for name, row in zip(names, layout.parameters)]
    if dora_is_a_parameter(adapter):
        names = [re.sub(r"(\.lora_magnitude_vector\.[^.]+)\.weight$", r"\1", name) for name in names]
    if len(set(names)) != len(names):
        return layout
    return replace(layout, parameters=tuple(replace(row, name=name) for row, name in zip(layout.parameters, names)))


def _without_base_layer(layout: ParameterList, adapter: Adapter) -> bool:
    """PEFT up to 0.6 made its layers out of nn.Linear itself: `q_proj.bias`, not `q_proj.base_layer.bias`."""
    version = peft_version(adapter)
    if version is not None:
        return version < (0, 7)
    keyed = [(row.name, row.key) for row in layout.parameters if row.key is not None and ".base_layer." in row.name]
    return bool(keyed) and all(".base_layer." not in (key or "") for _, key in keyed)


def _originals_trained(layout: ParameterList) -> ParameterList | None:
    """PEFT up to 0.5 left `original_module` trainable beside its copy: it takes a position and never gets a state."""
    if not any(_is_original(row) for row in layout.parameters):
        return None
    rows = tuple(replace(row, trainable=True) if _is_original(row) else row for row in layout.parameters)
    return replace(layout, rule=f"{layout.rule}, PEFT <= 0.5", parameters=rows)


def train_all(layout: ParameterList) -> ParameterList:
    """Return the layout of a model whose adapters are trained together."""
    rows = tuple(replace(row, trainable=bool(row.trainers)) for row in layout.parameters)
    return replace(layout, rule=f"{layout.rule}, all adapters trained", parameters=rows)


def _is_original(row: Parameter) -> bool:
    return ".original_module." in row.name
