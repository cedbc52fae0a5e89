"""Weights that were trained beside an adapter and saved in a file of their own: LLaVA's projector, a value head, a reward head."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from ostate.core.files import absolute, is_file, is_folder, is_remote, names_in, parent
from ostate.core.naming import Adapter
from ostate.core.safetensors import read_head
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError

from .adapter_files import MOST_FOLDERS, TORCH_FILES, folders_of, is_tuner_key, may_hold_weights, subfolders
from .adapters import weights_in
from .container import torchsave

OF_THE_RUN = ("non_lora_trainables.bin", "non_lora_state_dict.bin", "mm_projector.bin", "value_head.safetensors", "value_head.bin")
"""What LLaVA's train.py, its descendants and LLaMA-Factory write; the first two at the end of a run only, into the folder above its checkpoints."""
MOST_FILES = 32
"""Files of a checkpoint that are looked into."""


class Further(NamedTuple):
    """Named tensors of one file."""

    file: str
    tensors: Mapping[str, TensorRef]
    ordered: bool
    """True when their order is the state dict's (torch.save)."""


def further_weights(raw: RawState, adapter: Adapter) -> Iterator[Further]:
    """Yield the weights of the checkpoint that are not the adapter's: its own files first, those of the run, then the model that holds
    the adapter within it, and what lies within the state's file.

    A file that is damaged or holds no named tensors is passed over: nobody asked for it.
    """
    for path in _files(raw, adapter):
        found = _weights_of(path)
        if found is not None:
            yield found
    if adapter.kind == "model":
        yield Further(adapter.file, adapter.tensors, ordered=adapter.ordered)
    if raw.weights:
        yield Further(raw.source, raw.weights, ordered=True)


def torch_lora_files(raw: RawState) -> list[str]:
    """Return the files of torch.save in the checkpoint's folders, else one folder down, whose tensors are mostly a tuner's: loralib's `lora.pt`.

    The state's own files are left out: what they hold is known.
    """
    own = {absolute(file.path) for file in raw.files}
    for folder in folders_of(raw):
        for places in ([folder], [] if is_remote(folder) else subfolders(folder)[:MOST_FOLDERS]):
            paths = [os.path.join(place, name) for place in places for name in names_in(place) if _is_torch_file(name)]
            found = [path for path in paths if absolute(path) not in own and is_file(path)][:MOST_FILES]
            found = [path for path in found if (held := _weights_of(path)) is not None and _is_tuner(held.tensors)]
            if found:
                return found
    return []


def _is_torch_file(name: str) -> bool:
    return name.endswith(TORCH_FILES) and may_hold_weights(name)


def _is_tuner(keys: Collection[str]) -> bool:
    return 2 * sum(map(is_tuner_key, keys)) > len(keys)


def _files(raw: RawState, adapter: Adapter) -> list[str]:
    folders = [*folders_of(raw), os.path.dirname(adapter.file)]
    folders = [place for place in dict.fromkeys(map(absolute, folders)) if is_folder(place) and not is_remote(place)]
    own = {absolute(adapter.file), *(absolute(file.path) for file in raw.files)}
    names = ((place, name) for place in folders for name in names_in(place))
    found = [
        os.path.join(place, name)
        for place, name in names
        if name.endswith((".safetensors", *TORCH_FILES)) and may_hold_weights(name) and os.path.join(place, name) not in own
    ]
    above = [os.path.join(parent(place), name) for place in folders[:1] for name in OF_THE_RUN]
    found = sorted(found, key=lambda path: os.path.basename(path) not in OF_THE_RUN)
    return [path for path in dict.fromkeys((*found[:MOST_FILES], *above)) if is_file(path)]


def _weights_of(path: str) -> Further | None:
    try:
        if path.endswith(".safetensors"):
            return Further(path, read_head(path).tensors, ordered=False)
        return Further(path, dict(weights_in(torchsave.load(path).value, path)), ordered=True)
    except ReadError:
        return None
