"""Find the trained weights: in a folder, below it or beside it; recognised by the file's name, else by its keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ostate.core.files import absolute, is_file, is_folder, is_remote, names_in, parent
from ostate.core.safetensors import read_head
from ostate.core.state import RawState
from ostate.errors import ReadError

ADAPTER_FILES = ("adapter_model.pt", "adapter_model.safetensors", "adapter_model.bin")
"""What torchtune and PEFT call the file: torchtune's own names, beside which it writes PEFT's; then the one that PEFT itself would load first."""
LORA_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
"""What diffusers' pipelines write."""
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MODEL_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")
"""Whole models, shards first."""
_NUMBERED = (("model", "safetensors"), ("pytorch_model", "bin"))
"""What accelerate calls the second model and those behind it, each before its number and after."""
DIFFUSERS_FILES = (
    "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
)  # fmt: skip
"""Whole components of diffusers, in a folder of the component's name (`unet/`)."""

TORCH_FILES = (".bin", ".pt", ".pth")
"""How the files of torch.save end that may hold weights."""
_NO_WEIGHTS = (
    "optimizer", "optim", "scheduler", "rng_state", "random_states", "training_args", "scaler", "model_world_size", "zero_pp_rank", "bf16_zero",
    "mp_rank",
)  # fmt: skip
"""How files of those kinds begin that hold no weights, or those of one process."""
_INNER = ("optimizer", "global_step", "recipe_state", "state", "pytorch_model_fsdp", "zero", "optim")
"""How the folders inside a checkpoint begin, that hold its state and not its adapter."""
_STATE_FOLDER = re.compile(r"^(.+?)[-_.]state$")
"""kohya's sd-scripts save the state of NAME.safetensors into NAME-state/ beside it (library/train_util.py)."""
_TUNER_KEY = re.compile(
    r"lora|lokr_|hada_|oft_[rR]|oft_blocks|boft_|ia3_l|vera_lambda|glora|dora_scale|_custom_diffusion\.|(?:^|\.)(?:on_input|diff_b|diff)$"
)
"""A word of a tuner in a key: peft's, diffusers' (LoRA and custom diffusion), kohya's and LyCORIS'."""
MOST_FILES = 64
"""Weight files of one folder whose header is read to see whether they are an adapter."""
MOST_FOLDERS = 64


def file_in(folder: str, name: str | None) -> str:
    """Return the weights file of a folder; a shard index where the model is split.

    Args:
        folder: where to look: the adapter in the folder itself, then those directly below it, then whole models, then files of any name.
        name: the adapter's name, which picks the subfolder that PEFT makes for it.

    Raises:
        ReadError: none, or several and no name.
    """
    found = peft_folders(folder)
    if name is not None:
        for place in found:
            if os.path.basename(absolute(place)) == name and place != folder:
                return str(_first(place, ADAPTER_FILES))
    if len(found) == 1 or folder in found:
        return str(_first(found[0], ADAPTER_FILES))
    if found:
        several = ", ".join(os.path.basename(place) for place in found)
        raise ReadError(f"several adapters: {several}", where=folder, fix="choose one with --adapter-name, or pass its folder")
    whole = _first(folder, (*LORA_FILES, *INDEX_FILES, *MODEL_FILES, *DIFFUSERS_FILES))
    if whole:
        return whole
    inner = [path for below in subfolders(folder)[:MOST_FOLDERS] if not below.endswith("_ema") and (path := _first(below, DIFFUSERS_FILES))]
    if len(inner) == 1:
        return inner[0]
    loose = [
        os.path.relpath(path, folder)
        for path in weight_files(folder) or [path for below in subfolders(folder)[:MOST_FOLDERS] for path in lora_files(below)]
    ]
    if len(loose) == 1:
        return os.path.join(folder, loose[0])
    if inner and not loose:
        several = ", ".join(os.path.basename(os.path.dirname(path)) for path in inner)
        raise ReadError(f"several whole models: {several}", where=folder, fix="pass the folder of one of them, such as " + os.path.dirname(inner[0]))
    if not loose and is_file(os.path.join(folder, "config.json")):
        fix = "pass the adapter's folder to --adapter, and this one to --base"
        raise ReadError("this is a base model's folder, not an adapter", where=folder, fix=fix)
    raise ReadError(
        "no adapter in this folder" if not loose else f"several weight files and no index: {', '.join(loose[:4])}",
        where=folder,
        fix="pass the folder that holds adapter_model.safetensors, or the file itself",
    )


def peft_folders(folder: str) -> list[str]:
    """Return the folders that hold an adapter file of PEFT's or torchtune's: this one first, then those directly below it."""
    return [place for place in (folder, *subfolders(folder)) if holds_adapter(place)]


def holds_adapter(folder: str) -> bool:
    """True when an adapter file of PEFT's or torchtune's lies in the folder itself."""
    return _first(folder, ADAPTER_FILES) is not None


def holds_model(folder: str) -> bool:
    """True when a whole model, or a whole component of diffusers, lies in the folder itself."""
    return _first(folder, (*INDEX_FILES, *MODEL_FILES, *DIFFUSERS_FILES)) is not None


def lora_files(folder: str) -> list[str]:
    """Return the weight files of any name in the folder whose keys are a tuner's."""
    known = _first(folder, LORA_FILES)
    return [known] if known else [path for path in weight_files(folder)[:MOST_FILES] if has_tuner_keys(path)]


def weight_files(folder: str) -> list[str]:
    """Return the safetensors files in the folder, by name."""
    return [os.path.join(folder, name) for name in names_in(folder) if name.endswith(".safetensors")] if is_folder(folder) else []


def may_hold_weights(name: str) -> bool:
    """True for the name of a file that may hold weights beside an adapter: neither the adapter's own nor one of those that hold none."""
    return name not in ADAPTER_FILES and not name.startswith(_NO_WEIGHTS)


def has_tuner_keys(path: str) -> bool:
    """True when most keys of a safetensors file are a tuner's. A file that cannot be read is none: whoever names it gets the error."""
    try:
        head = read_head(path)
    except ReadError:
        return False
    if "ostate" in head.metadata:  # a state under the names of an adapter
        return False
    keys = [key for key in head.tensors if not key.endswith(".alpha")]
    return 2 * sum(map(is_tuner_key, keys)) > len(keys)


def is_tuner_key(key: str) -> bool:
    """True for the key of a tensor that a tuner trains: LoRA, LoKr, OFT, IA3, …"""
    return _TUNER_KEY.search(key) is not None


def subfolders(folder: str) -> list[str]:
    """Return the folders directly below this one, by name."""
    if not is_folder(folder):
        return []
    return [path for name in names_in(folder) if is_folder(path := os.path.join(folder, name))]


def folders_of(raw: RawState) -> list[str]:
    """Return the state's folder and those above it that still belong to the checkpoint, innermost first; none where nothing can be listed."""
    start = str(raw.facts.get("folder") or raw.source)
    folder = absolute(start if is_folder(start) else parent(start))
    if not is_folder(folder):
        return []
    out = [folder]
    while os.path.basename(folder).startswith(_INNER) and parent(folder) != folder:
        folder = parent(folder)
        out.append(folder)
    return out


def of_the_checkpoint(raw: RawState) -> Iterator[list[str]]:
    """Yield what may be the adapter of this state, a list for each place, the surest place first.

    In each folder of the checkpoint: PEFT's folders in it and below it, then files of any name in it, then those one folder down.
    """
    for folder in folders_of(raw):
        yield peft_folders(folder)
    for folder in folders_of(raw):
        yield lora_files(folder)
        yield [path for below in subfolders(folder)[:MOST_FOLDERS] for path in lora_files(below)]
    yield _beside_state_folder(raw)


def models_of_the_checkpoint(raw: RawState) -> Iterator[list[str]]:
    """Yield the folders with whole models, a list for each place: the checkpoint's own first, then components one folder down.

    Beside a folder's own model stands that of the state's own number: accelerate writes a second model and its optimizer as `model_1.safetensors` and
    `optimizer_1.bin`.
    """
    number = number_of(raw.read or raw.source)
    for folder in folders_of(raw):
        own = _first(folder, tuple(f"{stem}_{number}.{kind}" for stem, kind in _NUMBERED)) if number else None
        yield [folder, *([own] if own is not None else [])] if holds_model(folder) else []
    for folder in folders_of(raw):
        yield [below for below in subfolders(folder)[:MOST_FOLDERS] if _first(below, DIFFUSERS_FILES)]


def number_of(path: str) -> int:
    """Return the number that accelerate gives a model or an optimizer: 1 of `model_1.safetensors` and `optimizer_1.bin`, 0 of the first."""
    found = re.search(r"_(\d{1,3})\.\w+$", os.path.basename(path))
    return int(found[1]) if found is not None else 0


def to_the_side(raw: RawState) -> list[str]:
    """Return adapters one folder to the side of the checkpoint, and beside it: of the same run or of another one, the numbers must tell."""
    folders = folders_of(raw)
    if not folders or is_remote(folders[-1]) or parent(folders[-1]) == folders[-1]:
        return []
    above = parent(folders[-1])
    beside = [place for place in subfolders(above)[:MOST_FOLDERS] if place != folders[-1]]
    found = [above] if holds_adapter(above) else lora_files(above)
    for place in beside:
        found += [place] if holds_adapter(place) else lora_files(place)
    return found


def _beside_state_folder(raw: RawState) -> list[str]:
    """Return the weights that kohya's scripts saved beside NAME-state/: NAME.safetensors."""
    for folder in folders_of(raw):
        stem = _STATE_FOLDER.match(os.path.basename(folder))
        if stem is not None:
            exact = os.path.join(parent(folder), f"{stem[1]}.safetensors")
            if is_file(exact):
                return [exact]
            if not is_remote(folder):
                return [path for path in lora_files(parent(folder)) if os.path.basename(path).startswith(stem[1].rstrip("0123456789-"))]
    return []


def _first(folder: str, names: tuple[str, ...]) -> str | None:
    return next((full for full in (os.path.join(folder, name) for name in names) if is_file(full)), None)
