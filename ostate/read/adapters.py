"""The trained weights beside an optimizer state: where they lie, and what their configuration says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ostate.core import limits
from ostate.core.adapter_config import NO_CONFIG, AdapterConfig, typed_config
from ostate.core.files import absolute, is_file, is_folder, is_remote, parent, read_at, size_of
from ostate.core.foreign import parse_json
from ostate.core.names import CONTAINERS, PEFT_PREFIX, component, leading_modules, with_adapter, without_inner
from ostate.core.naming import Adapter
from ostate.core.safetensors import read_head
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError
from ostate.optimizers.slots import PARAM_SHAPED

from .adapter_files import LORA_FILES, file_in
from .adapter_name import name_of, siblings_of, text_of
from .assemble import Deferred
from .averages import without_averages
from .checkpoint_folder import card_versions
from .container import torchsave
from .fused import divided
from .made_keys import with_made_keys
from .model_parts import files_of_models, with_other_models

NESTED = ("state_dict", "model_state_dict", "model", "module", "adapter")
"""Where a bundled checkpoint keeps its weights (Lightning, user code, DeepSpeed)."""

_DIFFUSERS = re.compile(r"\.(?:lora\.down|lora_linear_layer|lora_down|lora_layer\.down|\w+_lora\.down)\.")
"""Words for a factor in keys of diffusers, sd-scripts and OneTrainer."""
_LYCORIS = re.compile(
    r"\.(?:hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|oft_blocks|dora_scale|lora_mid\.weight)$|^(?:lora|lycoris)_[^.]+\.(?:on_input|diff|[wb]_norm|a1\.weight)$"
)
"""How keys of LyCORIS end (lycoris/modules/*.py) that are no LoRA's of two factors."""
_EXPERT = re.compile(r"^(?P<stem>.+)_(?:high|low)_noise\.safetensors$", re.DOTALL)
"""One of two transformers, for the first and the last steps of denoising."""
AUTOMODEL_CONFIG = "automodel_peft_config.json"
"""NeMo Automodel puts it beside an adapter: its live names have neither PEFT's prefix nor an adapter's name, and its keys the prefix alone
(nemo_automodel/components/checkpoint/addons.py, stateful_wrappers.py)."""
_PEFT_FACTOR = re.compile(r"\.(lora_[AB]\.(weight|bias)|lora(_linear_layer)?\.(down|up)\.\w+)$")


def read_adapter(path: str, *, name: str | None = None) -> Adapter:
    """Return the weights at `path`: their keys, shapes and places, and their configuration. Reads no tensor.

    Args:
        path: a folder that PEFT, torchtune, diffusers or `save_pretrained` wrote, or one weights file.
        name: the adapter's name, where the caller knows it; picks the subfolder that PEFT makes for it.

    Raises:
        ReadError: a name that no adapter can have; nothing there that can be an adapter, several and no name, or a damaged file.
    """
    if name is not None and (not name or "." in name):
        raise ReadError(
            f"no adapter is called {name!r}: torch does not allow this module name",
            where="--adapter-name",
            fix="pass the name that named_parameters() shows",
        )
    given = is_folder(path)
    file = file_in(path, name) if given else path
    home = os.path.dirname(file) or "."
    _refuse_absurd(file)
    stored, ordered = _tensors(file)
    tensors = without_averages(unwrapped(stored))
    if not tensors:
        raise ReadError("the file holds no tensors", where=file, fix="pass the folder or file of the trained weights")
    if len(tensors) > limits.TENSORS or max(map(len, tensors)) > limits.NAME:
        what = f"{len(tensors)} tensors; at most {limits.TENSORS}, with names of {limits.NAME} letters, are expected"
        raise ReadError(what, where=file, fix="pass the folder or file of the trained weights")
    config = _config_beside(file)
    automodel = is_file(os.path.join(home, AUTOMODEL_CONFIG)) and all(key.startswith(PEFT_PREFIX) for key in tensors)
    kind = "model" if automodel else kind_of(tensors, config)
    found = name_of(home, name, config)
    assumed = found.assumed if _bears_a_name(kind, tensors) else ()
    return Adapter(
        path=path,
        file=file,
        kind=kind,
        tensors=tensors,
        ordered=ordered,
        config=config,
        cut=PEFT_PREFIX if automodel else leading_modules(tensors) if kind in ("model", "torchtune") else "",
        name=found.name,
        name_known=found.known,
        siblings=tuple(siblings_of(home, found.below)),
        assumed=assumed,
        contested=assumed if found.contested else (),
        facts=_facts(home, file, config) | (_model_facts(file) if kind == "model" else {}),
    )


def unwrapped(tensors: Mapping[str, TensorRef]) -> Mapping[str, TensorRef]:
    """Return the tensors under keys without what wrappers put into them (`_orig_mod.` of a compiled model), unless two would then have one key."""
    bare = {without_inner(key): ref for key, ref in tensors.items()}
    return bare if len(bare) == len(tensors) else tensors


def _refuse_absurd(file: str) -> None:
    """Refuse by its size alone a file that no save wrote: it would be read to the end for its digest.

    Raises:
        ReadError: larger than any weights, or sparse: most of its bytes were never written.
    """
    size = size_of(file)
    if size > limits.ADAPTER_BYTES:
        raise ReadError(f"{size} bytes are more than any file of weights has", where=file, fix="copy the file again, or give another one")
    if size > 1 << 30 and not is_remote(file):
        written = getattr(os.stat(file), "st_blocks", size // 512) * 512
        if 0 < written * limits.SPARSE < size:  # 0: a file system that does not count
            what = f"a sparse file: {size} bytes long, of which {written} were ever written"
            raise ReadError(what, where=file, fix="the copy was interrupted: copy the file again")


def joined(adapter: Adapter) -> Adapter:
    """Return the adapter with those beside it, for a state that trained them together. The others' keys are their live names.

    Raises:
        ReadError: one of them is damaged.
    """
    tensors = dict(adapter.tensors)
    for folder in adapter.siblings:
        other = read_adapter(folder)
        above = absolute(folder) == parent(parent(adapter.file))
        name = "default" if above else os.path.basename(absolute(folder))
        for key, ref in other.tensors.items():
            tensors[with_adapter(key, name)] = ref
    return replace(adapter, tensors=tensors)


def for_state(adapter: Adapter, raw: RawState) -> Adapter:
    """Return the adapter with what was trained beside it, where the state has more parameters than it holds; what its trainer joined is divided."""
    trained = sum(entry.has_state for entry in raw.entries)
    if trained > len(adapter.tensors):
        adapter = joined(adapter) if adapter.siblings else _with_further_models(with_other_expert(with_numbered(adapter)), raw)
    return divided(adapter, raw)


def _with_further_models(whole: Adapter, raw: RawState) -> Adapter:
    files = files_of_models(whole, raw)
    return with_other_models(whole, raw, {word: whole.tensors if file == whole.file else _tensors(file)[0] for word, file in files.items()})


def with_other_expert(adapter: Adapter) -> Adapter:
    """Return a LoRA of one of Wan 2.2's two transformers with the other's, or itself where that does not lie beside it.

    ai-toolkit trains both with one optimizer and saves NAME_high_noise.safetensors and NAME_low_noise.safetensors under the same keys.
    `transformer_1.` and `transformer_2.` are put back as they stand in its unsplit file (extensions_built_in/diffusion_models/wan22/
    wan22_14b_model.py, `save_lora`).

    Raises:
        ReadError: the other file is damaged.
    """
    found = _EXPERT.match(adapter.file)
    files = [f"{found['stem']}_{word}_noise.safetensors" for word in ("high", "low")] if found is not None else []
    if adapter.kind == "model" or not files or not all(map(is_file, files)):
        return adapter
    tensors: dict[str, TensorRef] = {}
    for number, file in enumerate(files, 1):
        own = unwrapped(_tensors(file)[0])
        lead = component(own)
        tensors.update({f"{lead}transformer_{number}.{key.removeprefix(lead)}": ref for key, ref in own.items()})
    text = (
        f"{' and '.join(os.path.basename(file) for file in files)} were trained together: transformer_1. and transformer_2. are put into their keys"
    )
    return with_made_keys(adapter, tensors, text)


def with_numbered(adapter: Adapter) -> Adapter:
    """Return a whole model with the other models of the same program, or itself where there are none.

    Accelerate's `save_state` writes `model.safetensors`, `model_1.safetensors`, … (or `pytorch_model_1.bin`) in the order in which the models were
    prepared (accelerate/checkpointing.py). Names that two of them share get the file's own in front.

    Raises:
        ReadError: one of them is damaged.
    """
    stem, kind = os.path.splitext(adapter.file)
    if adapter.kind != "model" or os.path.basename(stem) not in ("model", "pytorch_model"):
        return adapter
    tensors, said = dict(adapter.tensors), list[str]()
    number = 1
    while is_file(path := f"{stem}_{number}{kind}"):
        own = unwrapped(_tensors(path)[0])
        lead = f"{os.path.basename(stem)}_{number}." if tensors.keys() & own.keys() else ""
        if lead:
            name = os.path.basename(path)
            said.append(
                f"names of {name} begin with {lead!r} here: the models of one optimizer share names, and are taken in the order of their files"
            )
        tensors.update({f"{lead}{key}": ref for key, ref in own.items()})
        number += 1
    return with_made_keys(adapter, tensors, *said)


def adapter_from_weights(weights: Mapping[str, TensorRef], *, path: str, name: str | None = None, ordered: bool = True) -> Adapter:
    """Return the adapter that a checkpoint holds within itself (Lightning's `state_dict`, DCP's `model.`): keys are live names.

    What wrappers put into the names is taken out, as it is from the names of a state.
    """
    weights = without_averages(weights)
    tuned = [name for name in weights if CONTAINERS.intersection(name.split("."))]  # the frozen ones may lie under a key of their own
    lead = leading_modules(tuned or weights)
    bare = {without_inner(name).removeprefix(lead): name for name in weights}
    if len(bare) == len(weights) and bare.keys() != weights.keys():
        weights = Deferred(bare, weights.__getitem__)
    return Adapter(
        path=path,
        file=path,
        kind=kind_of(weights, NO_CONFIG),
        tensors=weights,
        ordered=ordered,
        name=name or "default",
        name_known=name is not None,
    )


def _bears_a_name(kind: str, keys: Mapping[str, object]) -> bool:
    """True when the live names hold the adapter's name, which the keys lack: peft's, and diffusers' where peft makes the layers."""
    return kind == "peft" or (kind == "diffusers" and any(_PEFT_FACTOR.search(key) for key in keys))


def kind_of(keys: Mapping[str, object], config: AdapterConfig) -> str:
    """Return whose way of naming the keys follow: `peft`, `torchtune`, `diffusers` or `model` (live names)."""
    if any(key.endswith((".lora_a.weight", ".lora_b.weight")) for key in keys):  # torchtune writes PEFT's configuration beside its own names too
        return "torchtune"
    if config.get("peft_type"):
        return "peft"
    if any(_DIFFUSERS.search(key) for key in keys):
        return "diffusers"
    if any(key.endswith((".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")) for key in keys):
        return "peft" if all(key.startswith("base_model.") for key in keys) else "diffusers"
    if any(_LYCORIS.search(key) for key in keys) and not any(key.startswith("base_model.") for key in keys):
        return "diffusers"
    return "model"


def _tensors(file: str) -> tuple[dict[str, TensorRef], bool]:
    """Return the tensors in the file's order, and whether that order is the state dict's own."""
    if file.endswith(".index.json"):
        return _sharded(file)
    if file.endswith(".safetensors"):
        head = read_head(file)
        if "ostate" in head.metadata:
            raise ReadError("this is a named optimizer state, not an adapter", where=file, fix="pass the adapter that was saved with it")
        return head.tensors, False
    return dict(weights_in(torchsave.load(file).value, file)), True


def _sharded(index: str) -> tuple[dict[str, TensorRef], bool]:
    listed = _json(index)
    shards = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(shards, dict) or not all(_is_shard_name(shard) for shard in shards.values()):
        raise ReadError("not a shard index: weight_map must map names to files of this folder", where=index, fix="pass the weights file itself")
    found: dict[str, TensorRef] = {}
    for shard in dict.fromkeys(shards.values()):
        found.update(_tensors(os.path.join(os.path.dirname(index), shard))[0])
    missing = [key for key in shards if key not in found]
    if missing:
        raise ReadError(f"{len(missing)} tensors of the index are in no shard, first {missing[0]!r}", where=index, fix="copy all shards again")
    return found, False


def _is_shard_name(shard: object) -> bool:
    """True for the name of a file in the same folder that is no index itself."""
    return isinstance(shard, str) and os.path.basename(shard) == shard and not shard.endswith(".index.json")


def weights_in(value: object, file: str, depth: int = 0) -> Iterator[tuple[str, TensorRef]]:
    """Yield the named tensors of a `torch.save` file: a state dict, or the one that a bundle holds under a usual key.

    Raises:
        ReadError: no mapping of names to tensors in it.
    """
    if isinstance(value, Mapping):
        direct = [(key, ref) for key, ref in value.items() if isinstance(key, str) and isinstance(ref, TensorRef)]
        if direct:
            yield from direct
            return
        for place in NESTED:
            if isinstance(value.get(place), Mapping) and depth < limits.DEPTH:  # a pickle may hold itself
                yield from weights_in(value[place], file, depth + 1)
                return
        inner = [key for key, held in value.items() if key not in PARAM_SHAPED and _holds_tensors(held)]
        if len(inner) == 1 and depth < limits.DEPTH:
            yield from weights_in(value[inner[0]], file, depth + 1)
            return
        if inner:
            listed = ", ".join(ascii(key)[:40] for key in inner[:8])
            raise ReadError(f"several models lie in this file: {listed}", where=file, fix="save the one that was trained in a file of its own")
    raise ReadError("this file holds no named weights", where=file, fix="pass the adapter's own file, not the optimizer's")


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(key, str) and isinstance(ref, TensorRef) for key, ref in value.items())


def _json(path: str) -> object:
    fix, size = "copy the file again from the run", size_of(path)
    if size > limits.JSON_BYTES:
        raise ReadError(f"{size} bytes are too many for a configuration or an index of shards", where=path, fix=fix)
    try:
        return parse_json(read_at(path, 0, size))
    except ValueError as error:
        raise ReadError(f"not JSON that can be read: {str(error)[:200]}", where=path, fix=fix) from error


def _config_beside(file: str) -> AdapterConfig:
    path = os.path.join(os.path.dirname(file), "adapter_config.json")
    return typed_config(_json(path), path) if is_file(path) else NO_CONFIG


def _model_facts(file: str) -> dict[str, object]:
    """Return `head_dim` and `transformers_version` of a whole model, as the config.json beside it tells them; nothing of an unreadable one."""
    path = os.path.join(os.path.dirname(file), "config.json")
    try:
        config = _json(path) if is_file(path) else None
    except ReadError:
        return {}
    if not isinstance(config, dict):
        return {}
    size, hidden, heads = (_size(config.get(key)) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if size is None and hidden is not None and heads is not None and hidden % heads == 0:
        size = hidden // heads
    version = config.get("transformers_version")
    facts: dict[str, object] = {"transformers_version": version} if isinstance(version, str) else {}
    return facts if size is None else {**facts, "head_dim": size}


def _size(value: object) -> int | None:
    """Return a width that a model can have, or None."""
    return value if type(value) is int and 0 < value < 1 << 31 else None


def _facts(home: str, file: str, config: AdapterConfig) -> dict[str, object]:
    """Return the library versions that the configuration or the model cards tell, and `saved_by`.

    `peft`: PeftModel.save_pretrained alone turns `inference_mode` on, fills `auto_mapping` and writes PEFT's card. `hand`: neither PEFT nor
    transformers, whose safetensors files all say `{"format": "pt"}` (transformers/modeling_utils.py), wrote this file. `diffusers`: it has the name
    that pipelines give it.
    """
    facts: dict[str, object] = {}
    by_peft = config.get("inference_mode") is True or isinstance(config.get("auto_mapping"), Mapping)
    for folder in (home, os.path.dirname(home)):
        card = os.path.join(folder, "README.md")
        if is_file(card):
            text = text_of(card)
            by_peft = by_peft or "library_name: peft" in text
            facts = {**card_versions(text), **facts}
    if by_peft:
        facts["saved_by"] = "peft"
    elif os.path.basename(file) in LORA_FILES:
        facts["saved_by"] = "diffusers"
    elif config and file.endswith(".safetensors") and "format" not in read_head(file).metadata:
        facts["saved_by"] = "hand"
    if version := config.get("peft_version"):
        facts["peft_version"] = version
    return facts
