"""What a file without an optimizer state is instead, for the message. Read only once a file is refused."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ostate.core.kinds import kind_of_head
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError

from .adapter_files import is_tuner_key
from .peek import Peek
from .pickle.records import Inert

STATE_FIX = "pass the optimizer file or its checkpoint folder"
_JSON = {
    "adapter_config.json": "an adapter's configuration", "config.json": "a model's configuration", "trainer_state.json": "the trainer's log",
    "generation_config.json": "a model's settings for generating", "tokenizer_config.json": "a tokenizer's configuration",
    "tokenizer.json": "a tokenizer", "optimizer_param_names.json": "a list of parameter names", "ostate_names.json": "a list of parameter names",
}  # fmt: skip
_PLAIN_KEYS: tuple[tuple[frozenset[str], str], ...] = (
    # keys that tell -> what it is
    (frozenset({"base_lrs", "last_epoch"}), "a learning-rate scheduler's state"),
    (frozenset({"last_epoch", "_step_count"}), "a learning-rate scheduler's state"),
    (frozenset({"scale", "growth_factor"}), "a gradient scaler's state"),
    (frozenset({"python", "numpy"}), "the random number generators' state"),
    (frozenset({"python", "cpu"}), "the random number generators' state"),
    (frozenset({"random_state", "numpy_random_seed"}), "the random number generators' state"),
)


def kind_of(seen: Peek) -> tuple[str, str]:
    """Return what a file without an optimizer state is, and what to do; only what is beyond doubt, else that there is no state in it."""
    found = kind_of_head(seen.head)
    if found is not None and found[0] == "JSON text":
        name = os.path.basename(seen.path)
        what = "the index of a model in several files" if name.endswith(".index.json") else _JSON.get(name, found[0])
        return f"this is {what}, no optimizer state", STATE_FIX
    if found is not None and found[0] == "a safetensors file":
        return _of_safetensors(seen), STATE_FIX
    if seen.is_torch:
        what = _of_contents(seen.value)
        return f"this is {what}, no optimizer state" if what else "no optimizer state in this file", STATE_FIX
    if seen.head[:1] == b"\x80":
        return "this is a plain pickle, no file of torch.save", STATE_FIX
    if found is None:
        return "no optimizer state in this file", STATE_FIX
    return f"this file is {found[0]}", found[1] or STATE_FIX


def _of_safetensors(seen: Peek) -> str:
    try:
        keys = list(seen.header[0])
    except ReadError as error:
        return f"this is a safetensors file, and damaged: {error.what}"
    return f"this is {_of_weights(keys)}, no optimizer state"


def _of_weights(keys: Iterable[str]) -> str:
    keys = list(keys)
    if 2 * sum(map(is_tuner_key, keys)) > len(keys):
        return f"an adapter of LoRA or another tuner ({len(keys)} tensors)"
    return f"a model's weights ({len(keys)} tensors)"


def _of_contents(value: object) -> str:
    """Return what plain data of a torch.save file is; nothing where that is not known."""
    if type(value) is TensorRef:
        return "one tensor"
    if type(value) is Inert:
        name = str(value.name)
        return "a trainer's arguments" if name.endswith("TrainingArguments") else f"a pickled object ({name[:80]})"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} things" if value else "an empty list"
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    if not value:
        return "an empty mapping"
    keys = {key for key in value if type(key) is str}
    for marks, what in _PLAIN_KEYS:
        if marks <= keys:
            return what
    refs = {key: ref for key in keys if type(ref := value[key]) is TensorRef}
    if refs and all(ref.dtype == "U8" and len(ref.shape) == 1 for ref in refs.values()) and not any("." in key for key in refs):
        return "the random number generators' state"  # bytes, one row for each device: `cpu`, `cuda`, `torch` …
    tensors = list(refs)
    if 2 * len(tensors) > len(value):
        return _of_weights(tensors)
    nested = next((one for key in ("state_dict", "model_state_dict", "model", "module") if isinstance(one := value.get(key), Mapping)), None)
    inside = [key for key, one in nested.items() if type(key) is str and type(one) is TensorRef] if nested else []
    return _of_weights(inside) if nested and 2 * len(inside) > len(nested) else ""
