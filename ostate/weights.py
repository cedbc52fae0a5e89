"""Which trained weights go with a state: as given, beside it, or inside the checkpoint itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from .errors import ReadError
from .files import absolute, is_file, is_folder, names_in, parent
from .formats.adapter_name import ADAPTER_FILES
from .formats.adapters import INDEX_FILES, MODEL_FILES, adapter_from_weights, read_adapter
from .model import Adapter, RawState, TensorRef

_INNER = ("optimizer", "global_step", "recipe_state", "state", "pytorch_model_fsdp", "zero", "optim")
"""How the folders inside a checkpoint begin, that hold its state and not its adapter."""


def find_adapter(raw: RawState, *, name: str | None = None) -> Adapter | None:
    """Return the weights that lie with `raw`: an adapter in its folder or above it within the checkpoint, else its own named weights.

    Raises:
        ReadError: several adapters, and nothing says which.
    """
    for folder in _folders(raw):
        found = _adapters_in(folder)
        if name is not None:
            found = [path for path in found if os.path.basename(path) == name] or found
        if len(found) > 1:
            raise ReadError(
                f"several adapters lie with this state: {', '.join(os.path.basename(path) for path in found)}",
                where=folder,
                fix="say which one: --adapter DIR, or --adapter-name N",
            )
        if found:
            return read_adapter(found[0], name=name)
    if raw.weights:
        return adapter_from_weights(raw.weights, path=raw.source, name=name)
    for folder in _folders(raw):
        if any(is_file(os.path.join(folder, file)) for file in (*INDEX_FILES, *MODEL_FILES)):
            return read_adapter(folder, name=name)
    return None


def own_weights(raw: RawState, adapter: Adapter, live_name: Callable[[str], str]) -> Adapter | None:
    """Return `adapter` with the numbers that the checkpoint itself holds under the same names, or None when it does not hold all of them.

    They are of the same save as the state; an adapter that lies elsewhere may be of another step, or never have been trained.
    """
    tensors = {}
    for key, ref in adapter.tensors.items():
        own = next((raw.weights[name] for name in (live_name(key), key) if name in raw.weights), None)
        if own is None or own.shape != ref.shape:
            return None
        tensors[key] = own
    return replace(adapter, tensors=tensors) if tensors else None


def base_weights(base: str) -> Mapping[str, TensorRef] | None:
    """Return the base model's own tensors by name, when the folder holds them; None for a bare configuration."""
    if not os.path.isdir(base) or not any(os.path.isfile(os.path.join(base, file)) for file in (*INDEX_FILES, *MODEL_FILES)):
        return None
    return read_adapter(base).tensors


def _folders(raw: RawState) -> list[str]:
    """The state's folder and those above it that still belong to the checkpoint, innermost first."""
    start = str(raw.facts.get("folder") or raw.source)
    folder = absolute(start if is_folder(start) else parent(start))
    if not is_folder(folder):
        return []  # of the web: nothing can be listed there
    out = [folder]
    while os.path.basename(folder).startswith(_INNER) and parent(folder) != folder:
        folder = parent(folder)
        out.append(folder)
    return out


def _adapters_in(folder: str) -> list[str]:
    """Folders with an adapter file: this one, and those directly below it."""
    below = sorted(os.path.join(folder, entry) for entry in names_in(folder))
    return [path for path in (folder, *below) if is_folder(path) and any(is_file(os.path.join(path, file)) for file in ADAPTER_FILES)]
