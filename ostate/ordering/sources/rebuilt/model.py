"""The model's own definition order: PEFT builds the adapter anew on the meta device, from configurations alone.

Slow to import (peft, transformers, torch: seconds), so what it finds is kept on disk; see `cache.py`. No weights, no network, no remote code.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from ostate.core.extras import needed
from ostate.core.naming import Adapter, Claim, Question
from ostate.core.quiet import quiet
from ostate.errors import MissingPackage

from ...grouping.parameters import Parameter, ParameterList
from ...grouping.place import claims_of
from ...grouping.refute import Refused, refused
from ...keys import adapter_key
from ..tuner_keys import split_key
from . import base_config as base
from . import cache, older_names
from .diffusion import component_of_rows, tuned_layouts
from .limits import TooMuch, absurd, bounded
from .releases import train_all, variants

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM", "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification", "QUESTION_ANS": "AutoModelForQuestionAnswering", "FEATURE_EXTRACTION": "AutoModel",
}  # fmt: skip
"""PEFT's task_type -> the class that the task's model is made with."""
PLAIN_START = {"init_lora_weights": True, "init_weights": True, "prompt_tuning_init": "RANDOM"}
"""Starts that need no numbers: names and shapes do not depend on the start, and the meta device has no numbers to decompose."""
LEFT_OUT = frozenset(
    ["loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "arrow_config", "kasa_config", "tokenizer_name_or_path"]
)
"""Settings that only choose a start, or need files that are not here."""
TRIES: tuple[tuple[str, bool], ...] = (("meta", False), ("cpu", False), ("meta", True))
"""Where PEFT makes its weights, and whether it is asked to spare memory: some methods compute their start, some untie weights when spared."""
_LEAD_OF_MODEL = re.compile(r"(?:model|pytorch_model)_\d+\.")
"""What `read/adapters.py` puts in front of the names of a second model whose file accelerate numbers."""
MOST_ADAPTERS = 4
"""Adapters in one checkpoint whose order of making is worth trying."""
MOST_CLASSES = 3
"""Architectures that a configuration may name; real ones name one."""
EXTRA = ("lm_head.weight", "rotary_emb.inv_freq", "vera_A", "vera_B", "_topk_indices", "_topk_weights", "shira_indices")
"""How the keys end of what PEFT saves and nobody trains."""
FAILURES = (
    ValueError, TypeError, AttributeError, RuntimeError, LookupError, ImportError, OSError, AssertionError, ArithmeticError, MemoryError, re.error,
)  # fmt: skip
"""What model code raises on a configuration it does not understand; besides these, what the hub's library raises on a value of a wrong kind."""
UNNEEDED = frozenset([
    "quantization_config", "auto_map", "_name_or_path", "torch_dtype", "dtype", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
])  # fmt: skip
"""Settings of a model that change no name and no shape, but may name code or files elsewhere."""


def skeleton(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the orders that the rebuilt model gives under every rule of grouping that fits, and why others do not."""
    layouts = layouts_of(question)
    if isinstance(layouts, str):
        return [], [refused("skeleton", "rebuilt model", layouts)]
    return _from_layouts(layouts, question)


def layouts_of(question: Question) -> list[ParameterList] | str:
    """Return what the rebuilt model may have been, the likeliest first, or why it cannot be rebuilt.

    Raises:
        OrderingError: `--base` was given and holds no readable configuration.
        MissingPackage: `--base` was given, and what rebuilds a model is not installed.
    """
    adapter = question.adapter
    if adapter is None:
        return "no adapter was found"
    if adapter.kind == "torchtune":
        return "a torchtune adapter does not name a transformers model"
    components = base.components_of(question)
    if adapter.kind == "diffusers" and not components:
        return "the adapter does not name its diffusion model: pass --base DIR (the pipeline's folder, or one with unet/ or transformer/)"
    found = base.find_config(question) if not components else (components, "the pipeline")
    if isinstance(found, str):
        return f"{found}: pass --base DIR"
    try:
        return diffusion_layouts(adapter, components) if components else _transformers_layouts(adapter, found[0])
    except MissingPackage as missing:
        if question.base is not None:
            raise missing.at(f"--base {question.base}") from None
        return f"{found[1]} tells the model, but {missing.what}: {missing.fix}"


def _transformers_layouts(adapter: Adapter, config: Mapping[str, Any]) -> list[ParameterList] | str:
    """Return what a model of transformers may have been under this adapter, alone and with those beside it, or why it cannot be rebuilt."""
    layout = layout_for([adapter], config)
    layouts = [] if isinstance(layout, str) else list(variants(layout, adapter))
    for together in orders_of(adapter):
        several = layout_for(together, config)
        if isinstance(several, ParameterList):
            layouts += [several, train_all(several)]
    return layouts or str(layout)


def diffusion_layouts(adapter: Adapter, configs: Mapping[str, Mapping[str, Any]]) -> list[ParameterList] | str:
    """Return the orders in which the components of a diffusion pipeline define these weights, or why there is none.

    Args:
        adapter: the trained weights; live names of one component where they are no tuner's.
        configs: folder of a component -> its config.json.
    """
    listings: dict[str, tuple[str, dict[str, Any]]] = {}
    reason = ""
    for name, config in configs.items():
        made = class_of(config)
        absurdity = absurd(config)
        answer: dict[str, Any] = {"failed": absurdity} if absurdity else _listing(made, [], config, adapter.name)
        if "failed" in answer:
            reason = reason or f"{name}: {made or 'no class'} cannot be rebuilt from its config.json: {answer['failed']}"
        else:
            listings[name] = made, answer
    if not listings:
        return reason
    if adapter.kind == "model" and not any(split_key(key) for key in adapter.tensors):
        whole = _whole_models(adapter, listings)
        return f"{whole}; {reason}" if isinstance(whole, str) and reason else whole
    components = [component_of_rows(name, made, answer["parameters"]) for name, (made, answer) in listings.items()]
    layouts = tuned_layouts(adapter, components, next(iter(listings.values()))[1]["versions"])
    return f"{layouts}; {reason}" if isinstance(layouts, str) and reason else layouts


def _whole_models(adapter: Adapter, listings: Mapping[str, tuple[str, dict[str, Any]]]) -> list[ParameterList] | str:
    """Return the parameters of the models that lie in the adapter, as a program lists them: the denoiser first, or its text encoders.

    Names of several models may begin with a word for each (`unet.`, `model_2.`), of which two components of one class take the first that is left.
    """
    first, *others = listings
    alone = _checked(listings[first][0], listings[first][1], adapter)
    if isinstance(alone, ParameterList):
        return [alone]
    parts: list[ParameterList] = []
    leads = list(dict.fromkeys(_LEAD_OF_MODEL.match(key)[0] for key in adapter.tensors if _LEAD_OF_MODEL.match(key)))  # type: ignore[index]
    left = dict(adapter.tensors)
    for name in (first, *others):
        made, answer = listings[name]
        for lead in ("", f"{name}.", *leads):
            names = {lead + row[0] for row in answer["parameters"]} | {lead + other for other in answer["others"]}
            own = {key.removeprefix(lead): ref for key, ref in left.items() if key in names}
            found = _checked(made, answer, replace(adapter, tensors=own)) if len(own) >= len(answer["parameters"]) else alone
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


def class_of(config: Mapping[str, Any]) -> str:
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


def layout_for(adapters: Sequence[Adapter], config: Mapping[str, Any]) -> ParameterList | str:
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
        answer = _listing(name, adapters, config, adapter.name)
        if "failed" in answer:
            reasons[name] = f"{name} cannot be rebuilt from these configurations: {answer['failed']}"
            if answer.get("hopeless"):
                return reasons[name]
            continue
        layout = _checked(name, answer, adapter)
        if isinstance(layout, ParameterList):
            return layout
        older = older_names.layout_of(name, answer, adapter, _plain_model(config), _checked)
        if older is not None:
            return older
        reasons[name] = layout
    return _reason_of(reasons, config) or "the configuration names no architecture"


def _listing(made: str, adapters: Sequence[Adapter], config: Mapping[str, Any], saved: str) -> dict[str, Any]:
    """Return the parameters of the class `made` under these adapters, from the disk where they are kept, or `{"failed": reason}`."""
    request = {"class": made, "model": _plain_model(config), "adapters": [[one.name, _plain_adapter(one)] for one in adapters], "saved": saved}
    return cache.remember(request, lambda: _build(request))


def _reason_of(reasons: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """Return why the class failed that the configuration itself names, else the first that was tried."""
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return next((reasons[name] for name in named if isinstance(name, str) and name in reasons), next(iter(reasons.values()), ""))


def model_classes(adapter: Adapter, config: Mapping[str, Any]) -> list[str]:
    """Return the classes that may have been trained, the likeliest first: `auto_mapping`, the task's, `architectures`, the bare model."""
    mapping = adapter.config.get("auto_mapping")
    named = [mapping.get("base_model_class")] if isinstance(mapping, Mapping) else []
    named.append(AUTO_CLASSES.get(str(adapter.config.get("task_type"))))
    architectures = config.get("architectures")
    named += architectures[:MOST_CLASSES] if isinstance(architectures, list) else []
    named += ["AutoModelForCausalLM", "AutoModel"]
    return list(dict.fromkeys(name for name in named if isinstance(name, str)))


def _plain_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration without what names no parameter, inner ones too; a pretrained backbone would be looked for on the network."""
    plain = {key: _plain_model(value) if isinstance(value, Mapping) else value for key, value in config.items() if key not in UNNEEDED}
    return {**plain, "use_pretrained_backbone": False} if plain.get("use_pretrained_backbone") else plain


def _plain_adapter(adapter: Adapter) -> dict[str, Any]:
    """Return the adapter's configuration as training had it, without what needs numbers or files."""
    allotted = {"rank_pattern"} if adapter.config.get("peft_type") == "ADALORA" else set()  # what AdaLoRA kept at its end; training had all of init_r
    config = {key: value for key, value in adapter.config.items() if key not in LEFT_OUT | allotted}
    config.update({key: value for key, value in PLAIN_START.items() if key in config})
    if "inference_mode" in config:
        config["inference_mode"] = False
    return config


def _build(request: Mapping[str, Any]) -> dict[str, Any]:
    """Build the model on the meta device and list its parameters; `{"failed": reason}` when the installed libraries cannot."""
    with needed("a model rebuilt from its configuration", extra="base"), quiet():
        import peft  # noqa: F401  (here, and not first under the clock, which would leave half an import behind)
        import transformers  # noqa: F401

    failed = ""
    if base.CLASS in request["model"]:
        with needed("a diffusion model rebuilt from its configuration", extra="diffusion"), quiet():
            import diffusers  # noqa: F401
    for device, low_memory in TRIES:
        try:
            with _offline(), quiet(), bounded():
                return _parameters(_model(request, device, low_memory=low_memory), request)
        except TooMuch as error:
            return {"failed": str(error), "hopeless": True}
        except _failures() as error:
            text = str(error).strip().splitlines()
            failed = failed or f"{type(error).__name__}: {text[0][:200] if text else ''}".rstrip(": ")
    return {"failed": failed}


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


def _diffusion_model(request: Mapping[str, Any]) -> Any:
    """Return a component of diffusers on the meta device."""
    import diffusers
    import torch

    made = getattr(diffusers, request["class"], None)
    if not (isinstance(made, type) and issubclass(made, diffusers.ModelMixin)):
        raise TypeError(f"the installed diffusers has no model {request['class']}")
    make: Any = made
    with torch.device("meta"):
        return make.from_config(dict(request["model"]))


def _model(request: Mapping[str, Any], device: str, *, low_memory: bool) -> Any:
    """Return the model on the meta device, under its adapters where it has any (plain fine-tuning has none)."""
    import torch
    import transformers
    from transformers import CONFIG_MAPPING

    if base.CLASS in request["model"]:
        return _diffusion_model(request)
    model_type = request["model"].get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"the installed transformers does not know the model type {model_type!r}")
    config = CONFIG_MAPPING[model_type].from_dict(dict(request["model"]))
    made = getattr(transformers, request["class"])
    if not request["class"].startswith("AutoModel") and not (isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)):
        raise TypeError(f"{request['class']} is not a model")
    with torch.device("meta"):
        model = made.from_config(config, trust_remote_code=False) if request["class"].startswith("AutoModel") else made(config)
    model.tie_weights()
    model.config.use_cache = False  # X-LoRA asks for it
    for name, stored in request["adapters"]:
        if not stored.get("peft_type"):
            return model
        import peft

        kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[stored["peft_type"]]
        known = inspect.signature(kind.__init__).parameters
        tuner = kind(**{key: value for key, value in stored.items() if key in known})
        with torch.device(device):
            if hasattr(model, "peft_config"):
                model.add_adapter(name, tuner, low_cpu_mem_usage=low_memory)
            else:
                model = peft.get_peft_model(model, tuner, adapter_name=name, low_cpu_mem_usage=low_memory)
    return model


def _parameters(model: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """List name, key, shape, who trains it, norm classes and LoRA-on-embedding of every parameter, in the model's order."""
    keys: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    trained: dict[str, set[int]] = {}
    if hasattr(model, "peft_config"):
        if not model.peft_config[request["saved"]].is_prompt_learning:  # what a prompt method saves is computed, and the meta device has no numbers
            from peft.utils.save_and_load import get_peft_model_state_dict

            saved = get_peft_model_state_dict(model, state_dict=state, adapter_name=request["saved"], save_embedding_layers=False)
            for key, tensor in saved.items():
                keys.setdefault(id(tensor), key)
        for name, _ in request["adapters"]:
            if len(request["adapters"]) > 1:
                model.set_adapter(name)
            trained[name] = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    else:
        trained[request["saved"]] = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    modules = dict(model.named_modules())
    rows = []
    for name, parameter in model.named_parameters():
        path = name.split(".")
        holders = [modules[".".join(path[:length])] for length in range(len(path)) if ".".join(path[:length]) in modules]
        classes = {kind.__name__ for holder in holders for kind in type(holder).__mro__ if "norm" in kind.__name__.lower()}
        trainers = [adapter for adapter, own in trained.items() if id(parameter) in own]
        rows.append([name, keys.get(id(parameter)), list(parameter.shape), trainers, sorted(classes), _is_lora_embedding(modules, path)])
    listed = {row[0] for row in rows}
    return {
        "parameters": rows,
        "others": sorted(set(state) - listed),
        "free": _free_sizes(model),
        "versions": cache.versions(),
    }


def _free_sizes(model: Any) -> list[int]:
    """Return the sizes that a run may change without a word in the base model's configuration: vocabulary and labels."""
    config = getattr(model, "config", None)
    found = [getattr(part, word, None) for part in (config, getattr(config, "text_config", None)) for word in ("vocab_size", "num_labels")]
    return sorted({size for size in found if isinstance(size, int)})


def _is_lora_embedding(modules: Mapping[str, Any], path: Sequence[str]) -> bool:
    """True when the module two components above the parameter is PEFT's LoRA layer for embeddings, as PEFT's LoRA+ asks."""
    holder = modules.get(".".join(path[:-2]))
    return type(holder).__module__ == "peft.tuners.lora.layer" and type(holder).__name__ == "Embedding"


def _checked(made: str, answer: Mapping[str, Any], adapter: Adapter) -> ParameterList | str:
    """Return the layout if it explains every key of the adapter file, with its shape; else say which it does not."""
    rows, free, pruned = [], set(answer["free"]), set[str]()
    for name, key, shape, trainers, classes, embedding in answer["parameters"]:
        own = _key(name, key, adapter)
        if own is not None and adapter.config.get("peft_type") == "ADALORA" and list(adapter.tensors[own].shape) != shape:
            pruned.add(own)
            own = None  # the file holds only the ranks that AdaLoRA kept
        if own is not None and not _same_but(shape, adapter.tensors[own].shape, free):
            return f"{made} gives {own} the shape {shape}, the adapter has {list(adapter.tensors[own].shape)}"
        rows.append(
            Parameter(
                name=name,
                key=own,
                shape=adapter.tensors[own].shape if own is not None else tuple(shape),
                trainable=adapter.name in trainers,
                trainers=tuple(trainers),
                classes=frozenset(classes),
                tuner_embedding=embedding,
            )
        )
    held = {row.key for row in rows if row.key is not None} | pruned
    if not held and not all(_may_be_extra(key) for key in adapter.tensors):
        return f"{made} of the installed transformers has none of the {len(adapter.tensors)} keys: it names its modules differently"
    known = held | {adapter_key(name, adapter) for name in answer["others"]}
    wrong = [key for key in adapter.tensors if key not in known and not _may_be_extra(key)]
    if wrong:
        return f"{made} of the installed transformers lacks {len(wrong)} of the adapter's keys, first {wrong[0]!r}"
    return ParameterList(source="skeleton", rule=made, parameters=tuple(rows), versions=tuple(sorted(answer["versions"].items())))


def _key(name: str, key: str | None, adapter: Adapter) -> str | None:
    """Return the parameter's key in this file: as the installed PEFT would write it, else as another release did."""
    return key if key in adapter.tensors else adapter_key(name, adapter)


def _may_be_extra(key: str) -> bool:
    """True for tensors that PEFT saves though nothing trains them under that name: computed prompts, tied copies, choices, projections."""
    return key == "prompt_embeddings" or key.endswith(EXTRA)


def _same_but(one: Sequence[int], other: Sequence[int], free: set[int]) -> bool:
    """True when two shapes agree but for one axis that is the vocabulary or the number of labels, which a run may change."""
    if len(one) != len(other):
        return False
    differ = [index for index, (left, right) in enumerate(zip(one, other)) if left != right]
    return not differ or (len(differ) == 1 and one[differ[0]] in free)
