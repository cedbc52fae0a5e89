"""The model's own definition order: PEFT builds the adapter anew on the meta device, from configurations alone.

Slow to import (peft, transformers, torch: seconds), so what it finds is kept on disk; see `cache.py`. No weights, no network, no remote code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

from ostate.core.foreign import JsonObject
from ostate.core.naming import Adapter, Claim, Question
from ostate.core.tensors import TensorRef
from ostate.errors import MissingPackage

from ...grouping.parameters import ParameterList
from ...grouping.place import claims_of
from ...grouping.refute import Refused, refused
from ..tuner_keys import split_key
from . import base_config as base
from . import older_names
from .diffusion import component_of_rows, tuned_layouts
from .explained import explained
from .limits import absurd
from .listed import Answer, ListedModel, NotBuilt
from .listing import listing, plain_model
from .releases import train_all, variants

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM", "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification", "QUESTION_ANS": "AutoModelForQuestionAnswering", "FEATURE_EXTRACTION": "AutoModel",
}  # fmt: skip
"""PEFT's task_type -> the class that the task's model is made with."""
_LEAD_OF_MODEL = re.compile(r"(?:model|pytorch_model)_\d+\.")
"""What `read/adapters.py` puts in front of the names of a second model whose file accelerate numbers."""
MOST_ADAPTERS = 4
"""Adapters in one checkpoint whose order of making is worth trying."""
MOST_CLASSES = 3
"""Architectures that a configuration may name; real ones name one."""


def skeleton(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the orders that the rebuilt model gives under every rule of grouping that fits, and why others do not."""
    layouts = layouts_of(question)
    if isinstance(layouts, str):
        return [], [refused("skeleton", "rebuilt model", layouts)]
    return _from_layouts(layouts, question)


def layouts_of(question: Question) -> list[ParameterList] | str:
    """Return what the rebuilt model may have been, the likeliest first, or why it cannot be rebuilt.

    A whole model's own configuration is asked too, where the base model's (a bare model, without the head) does not explain it.

    Raises:
        OrderingError: `--base` was given and holds no readable configuration.
        MissingPackage: `--base` was given, and what rebuilds a model is not installed.
    """
    found = _layouts_by(question)
    if isinstance(found, str) and question.base is not None and question.adapter is not None and question.adapter.kind == "model":
        own = _layouts_by(replace(question, base=None))
        return own if isinstance(own, list) else found
    return found


def _layouts_by(question: Question) -> list[ParameterList] | str:
    """Return the same of one configuration: the one that `--base` gives, else the one that lies beside the weights or that they name."""
    adapter = question.adapter
    if adapter is None:
        return "no adapter was found"
    if adapter.kind == "torchtune":
        return "a torchtune adapter does not name a transformers model"
    components = base.components_of(question)
    if adapter.kind == "diffusers" and not components:
        return "the adapter does not name its diffusion model: pass --base DIR (the pipeline's folder, or one with unet/ or transformer/)"
    config: JsonObject = {}
    place = "the pipeline"
    if not components:
        found = base.find_config(question)
        if isinstance(found, str):
            return f"{found}: pass --base DIR"
        config, place = found
    try:
        return diffusion_layouts(adapter, components) if components else _transformers_layouts(adapter, config)
    except MissingPackage as missing:
        if question.base is not None:
            raise missing.at(f"--base {question.base}") from None
        return f"{place} tells the model, but {missing.what}: {missing.fix}"


def _transformers_layouts(adapter: Adapter, config: JsonObject) -> list[ParameterList] | str:
    """Return what a model of transformers may have been under this adapter, alone and with those beside it, or why it cannot be rebuilt."""
    layout = layout_for([adapter], config)
    if isinstance(layout, str) and adapter.kind == "model" and (numbered := _numbered_models(adapter, config)) is not None:
        layout = numbered
    layouts = [] if isinstance(layout, str) else list(variants(layout, adapter))
    for together in orders_of(adapter):
        several = layout_for(together, config)
        if isinstance(several, ParameterList):
            layouts += [several, train_all(several)]
    return layouts or str(layout)


def _numbered_models(adapter: Adapter, config: JsonObject) -> ParameterList | str | None:
    """Return the parameters of several models of one configuration, in the order of accelerate's numbers; None where the keys are of one model."""
    parts: dict[str, dict[str, TensorRef]] = {}
    for key, ref in adapter.tensors.items():
        lead = found[0] if (found := _LEAD_OF_MODEL.match(key)) else ""
        parts.setdefault(lead, {})[key.removeprefix(lead)] = ref
    if len(parts) < 2:
        return None
    joined: list[ParameterList] = []
    for lead, own in parts.items():
        layout = layout_for([replace(adapter, tensors=own)], config)
        if isinstance(layout, str):
            return f"{layout} (of {lead or 'the first model'}: --base is asked about each of {len(parts)} models, and is the configuration of one)"
        joined.append(_led(layout, lead, lead or "model"))
    rows = tuple(row for part in joined for row in part.parameters)
    return replace(joined[0], rule=f"{len(parts)} models of {joined[0].rule}", parameters=rows)


def diffusion_layouts(adapter: Adapter, configs: Mapping[str, JsonObject]) -> list[ParameterList] | str:
    """Return the orders in which the components of a diffusion pipeline define these weights, or why there is none.

    Args:
        adapter: the trained weights; live names of one component where they are no tuner's.
        configs: folder of a component -> its config.json.
    """
    listings: dict[str, tuple[str, ListedModel]] = {}
    reason = ""
    for name, config in configs.items():
        made = class_of(config)
        absurdity = absurd(config)
        answer: Answer = NotBuilt(absurdity) if absurdity else listing(made, [], config, adapter.name)
        if isinstance(answer, NotBuilt):
            reason = reason or f"{name}: {made or 'no class'} cannot be rebuilt from its config.json: {answer.reason}"
        else:
            listings[name] = made, answer
    if not listings:
        return reason
    if adapter.kind == "model" and not any(split_key(key) for key in adapter.tensors):
        whole = _whole_models(adapter, listings)
        return f"{whole}; {reason}" if isinstance(whole, str) and reason else whole
    components = [component_of_rows(name, made, answer.parameters) for name, (made, answer) in listings.items()]
    layouts = tuned_layouts(adapter, components, next(iter(listings.values()))[1].versions)
    return f"{layouts}; {reason}" if isinstance(layouts, str) and reason else layouts


def _whole_models(adapter: Adapter, listings: Mapping[str, tuple[str, ListedModel]]) -> list[ParameterList] | str:
    """Return the parameters of the models that lie in the adapter, as a program lists them: the denoiser first, or its text encoders.

    Names of several models may begin with a word for each (`unet.`, `model_2.`), of which two components of one class take the first that is left.
    """
    first, *others = listings
    alone = explained(listings[first][0], listings[first][1], adapter)
    if isinstance(alone, ParameterList):
        return [alone]
    parts: list[ParameterList] = []
    leads = list(dict.fromkeys(_LEAD_OF_MODEL.match(key)[0] for key in adapter.tensors if _LEAD_OF_MODEL.match(key)))  # type: ignore[index]
    left = dict(adapter.tensors)
    for name in (first, *others):
        made, answer = listings[name]
        for lead in ("", f"{name}.", *leads):
            names = {lead + row.name for row in answer.parameters} | {lead + other for other in answer.others}
            own = {key.removeprefix(lead): ref for key, ref in left.items() if key in names}
            found = explained(made, answer, replace(adapter, tensors=own)) if len(own) >= len(answer.parameters) else alone
            if isinstance(found, ParameterList):
                parts.append(_led(found, lead, name))
                left = {key: ref for key, ref in left.items() if key not in names}
                break
    if left:
        return f"{alone}; {len(left)} tensors are in no component of the pipeline, first {next(iter(left))!r}" if parts else str(alone)
    orders = dict.fromkeys((tuple(range(len(parts))), (*range(1, len(parts)), 0)))
    rule = ", ".join(dict.fromkeys(part.rule for part in parts))
    return [replace(parts[0], rule=rule, parameters=tuple(row for at in order for row in parts[at].parameters)) for order in orders]


def _led(rows: ParameterList, lead: str, component: str) -> ParameterList:
    named = (replace(row, name=lead + row.name, key=None if row.key is None else lead + row.key, component=component) for row in rows.parameters)
    return replace(rows, parameters=tuple(named))


def class_of(config: JsonObject) -> str:
    """Return the class that a component's configuration names: diffusers' by `_class_name`, transformers' by `architectures`."""
    architectures = config.get("architectures")
    named = config.get(base.CLASS) or (architectures[0] if isinstance(architectures, list) and architectures else "")
    return named if isinstance(named, str) else ""


def orders_of(adapter: Adapter) -> list[list[Adapter]]:
    """Return the orders in which the checkpoint's adapters may have been added to the model; none for an adapter alone.

    `default` is the name that the first adapter gets unasked. The order of the others is recorded nowhere.
    """
    if not 0 < len(adapter.siblings) < MOST_ADAPTERS:
        return []
    together = [adapter, *(sibling_of(adapter, folder) for folder in adapter.siblings)]
    orders = [list(order) for order in permutations(together)]
    first = [order for order in orders if order[0].name == "default"]
    return first or orders


def sibling_of(adapter: Adapter, folder: str) -> Adapter:
    """Return the adapter in `folder` by its configuration alone, named as PEFT names it: after its subfolder, `default` above it."""
    below = os.path.dirname(os.path.abspath(folder)) in (os.path.abspath(os.path.dirname(adapter.file)), os.path.abspath(adapter.path))
    beside = os.path.dirname(os.path.abspath(folder)) == os.path.dirname(os.path.abspath(os.path.dirname(adapter.file)))
    name = os.path.basename(os.path.abspath(folder)) if below or beside else "default"
    return replace(adapter, path=folder, file=os.path.join(folder, "adapter_config.json"), tensors={}, name=name, config=base.read_config(folder))


def _from_layouts(layouts: Sequence[ParameterList], question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return every distinct claim of the layouts; the losers of the first, which is the adapter as its own files tell it."""
    claims: dict[tuple[tuple[str | None, ...], tuple[str | None, ...]], Claim] = {}
    lost: list[Refused] = []
    for layout in layouts:
        found, reasons = claims_of(layout, question)
        lost = lost or reasons
        for claim in found:
            claims.setdefault((claim.names, claim.keys), claim)
    return list(claims.values()), lost


def layout_for(adapters: Sequence[Adapter], config: JsonObject) -> ParameterList | str:
    """Return the model's parameters in definition order, checked against the adapter's keys and shapes, or why there are none.

    Args:
        adapters: in the order in which they were added; the one that has tensors is the one that is asked about, and trained.
        config: the base model's configuration.
    """
    reason = absurd(config)
    if reason:
        return f"this configuration is not built: {reason}"
    adapter = next(one for one in adapters if one.tensors)
    reasons: dict[str, str] = {}
    for name in model_classes(adapter, config):
        answer = listing(name, adapters, config, adapter.name)
        if isinstance(answer, NotBuilt):
            reasons[name] = f"{name} cannot be rebuilt from these configurations: {answer.reason}"
            if answer.hopeless:
                return reasons[name]
            continue
        layout = explained(name, answer, adapter)
        if isinstance(layout, ParameterList):
            return layout
        older = older_names.layout_of(name, answer, adapter, plain_model(config))
        if older is not None:
            return older
        reasons[name] = layout
    return _reason_of(reasons, config) or "the configuration names no architecture"


def _reason_of(reasons: Mapping[str, str], config: JsonObject) -> str:
    """Return why the class failed that the configuration itself names, else the first that was tried."""
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return next((reasons[name] for name in named if isinstance(name, str) and name in reasons), next(iter(reasons.values()), ""))


def model_classes(adapter: Adapter, config: JsonObject) -> list[str]:
    """Return the classes that may have been trained, the likeliest first: `auto_mapping`, the task's, `architectures`, the bare model."""
    mapping = adapter.config.get("auto_mapping")
    named = [mapping.get("base_model_class")] if isinstance(mapping, Mapping) else []
    named.append(AUTO_CLASSES.get(str(adapter.config.get("task_type"))))
    architectures = config.get("architectures")
    named += architectures[:MOST_CLASSES] if isinstance(architectures, list) else []
    named += ["AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModel"]
    return list(dict.fromkeys(name for name in named if isinstance(name, str)))
