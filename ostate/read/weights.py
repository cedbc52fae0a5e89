"""Which trained weights go with a state: as given, beside it, or inside the checkpoint itself."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ostate.core.files import is_folder
from ostate.core.named_file import named_alone
from ostate.core.names import COMPONENTS
from ostate.core.naming import Adapter
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError

from . import adapter_files, read
from .adapters import adapter_from_weights, for_state, read_adapter
from .further_weights import torch_lora_files
from .layouts import dcp, rank_weights

_AVERAGE = re.compile(r"(?:^|[-_.])ema(?:[-_.]|$)", re.IGNORECASE)
"""A word in a file's or folder's name: averaged weights, which are no step's own."""


class Candidates(NamedTuple):
    """The weights that may go with a state, the likeliest first."""

    adapters: tuple[Adapter, ...] = ()
    seen: tuple[str, ...] = ()
    """Weight files that lie near and were not taken, to list where no adapter was found."""
    on_trial: bool = False
    """True for weights that lie beside the checkpoint and not in it: only the numbers can say that they belong to this state."""
    asked: bool = False
    """True when a person named the first one: another may refute it, not replace it."""


def candidates(raw: RawState, *, adapter: str | None = None, model: str | None = None, name: str | None = None) -> Candidates:
    """Return the weights that may go with `raw`.

    Args:
        raw: the state.
        adapter: `--adapter`: a folder or file.
        model: `--model`: a folder of full weights.
        name: `--adapter-name`.

    Raises:
        ReadError: what was given is no adapter, or one that was found is damaged.
    """
    if adapter is not None:
        return _given(raw, adapter, name)
    if model is not None:
        return Candidates((read_adapter(model),), asked=True)
    if raw.facts.get("live_weights"):  # of the same save, by live names, in the model's order: nothing about them is guessed
        return Candidates((adapter_from_weights(rank_weights.trained(raw.weights), path=raw.source, name=name),))
    found = _in_places(raw, adapter_files.of_the_checkpoint(raw), name)
    if not found.adapters and raw.weights:
        own = adapter_from_weights(raw.weights, path=raw.source, name=name)
        known = sum(entry.has_state and entry.shape is not None for entry in raw.entries)
        if not known or lacking(raw, own) < known:
            return Candidates((own,))
        # DeepSpeed's stage 3 saves buffers alone under the model's names: no weight of any position
    if not found.adapters:
        found = _in_places(raw, [torch_lora_files(raw)], name)
    if not found.adapters:
        found = _in_places(raw, adapter_files.models_of_the_checkpoint(raw), name)
        number = adapter_files.number_of(raw.read or raw.source)
        found = found._replace(adapters=tuple(sorted(found.adapters, key=lambda adapter: adapter_files.number_of(adapter.file) != number)))
    if found.adapters:
        return found
    beside = [other for path in adapter_files.to_the_side(raw) if (other := _readable(path)) is not None and lacking(raw, other) == 0]
    if beside:
        return Candidates(tuple(_fitting(raw, beside)), seen=tuple(other.file for other in beside), on_trial=True)
    near = (path for folder in adapter_files.folders_of(raw) for path in adapter_files.weight_files(folder))
    return Candidates(seen=tuple(path for path in near if not named_alone(path)))


def _readable(path: str) -> Adapter | None:
    """Return the adapter at a path that nobody named, or None for one that is damaged: it may be anybody's."""
    try:
        return read_adapter(path)
    except ReadError:
        return None


def _given(raw: RawState, path: str, name: str | None) -> Candidates:
    """Return what lies at the path that a person gave; of several adapters in the folder, those that fit best by shapes."""
    places = adapter_files.peft_folders(path) if is_folder(path) else []
    if len(places) > 1 and path not in places and (name is None or name not in map(os.path.basename, places)):
        return Candidates(tuple(_fitting(raw, [read_adapter(place) for place in places])), seen=tuple(places))
    files = adapter_files.lora_files(path) if is_folder(path) and not places else []
    if len(files) > 1:
        return Candidates(tuple(_fitting(raw, [read_adapter(file, name=name) for file in files])), seen=tuple(files))
    if is_folder(path) and not (places or files or adapter_files.holds_model(path)) and (own := _of_checkpoint(path, name)) is not None:
        return Candidates((own,), asked=True)
    first = read_adapter(path, name=name)
    _refuse_full_model(raw, first)
    others = [read_adapter(place) for place in first.siblings]
    return Candidates((for_state(first, raw), *_no_worse(raw, first, others)), asked=True)


def _of_checkpoint(path: str, name: str | None) -> Adapter | None:
    """Return the weights that a checkpoint without an adapter's file holds itself (DCP's, Lightning's, verl's); None where it holds none."""
    weights = dcp.weights_of(path)
    try:
        held = None if weights else read(path)
    except ReadError:  # no state, or several: then the folder is asked for an adapter's file, and says what it lacks
        return None
    if held is not None:
        weights = rank_weights.trained(held.weights) if held.facts.get("live_weights") else held.weights
    return adapter_from_weights(weights, path=path, name=name) if weights else None


def _refuse_full_model(raw: RawState, weights: Adapter) -> None:
    """Refuse a base model in an adapter's place: it has no LoRA factor, and most positions with state find no tensor of their shape in it."""
    if weights.kind != "model" or any("lora_" in key for key in weights.tensors):
        return
    with_state = sum(entry.has_state and entry.shape is not None for entry in raw.entries)
    if lacking(raw, weights) * 2 > with_state:
        fix = "pass the folder of the adapter that was saved with this state; the base model is no adapter"
        raise ReadError("this is a full model, not the adapter of this state", where=weights.file, fix=fix)


def _in_places(raw: RawState, places: Iterable[list[str]], name: str | None) -> Candidates:
    """Return the adapters of the first place that holds any, those that fit the state best by shapes; the one that was asked for first."""
    paths = next((paths for paths in places if paths), [])
    if not paths:
        return Candidates()
    found = _sound(paths, name)
    asked = next((adapter for adapter in found if name is not None and name in (os.path.basename(adapter.path), adapter.name)), None)
    if asked is not None and len(found) > 1:
        others = _no_worse(raw, asked, [adapter for adapter in found if adapter is not asked])
        return Candidates((for_state(read_adapter(asked.path, name=name), raw), *others), seen=tuple(paths), asked=True)
    if name is not None:
        found = [read_adapter(adapter.path, name=name) for adapter in found]
    return Candidates(tuple(_fitting(raw, found)), seen=tuple(paths))


def _sound(paths: Sequence[str], name: str | None) -> list[Adapter]:
    """Return the adapters at these paths that can be read; a damaged one stands aside, unless it is the one that was asked for or all are.

    Raises:
        ReadError: what is wrong with the first of them.
    """
    found, errors = [], []
    for path in paths:
        try:
            found.append(read_adapter(path))
        except ReadError as error:
            errors.append(error)
            if name is not None and name in (os.path.basename(path), os.path.basename(os.path.dirname(path))):
                raise
    if not found:
        raise errors[0]
    return found


def _no_worse(raw: RawState, first: Adapter, others: Sequence[Adapter]) -> list[Adapter]:
    most = lacking(raw, first)
    return [for_state(other, raw) for other in others if lacking(raw, other) <= most]


def _fitting(raw: RawState, adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters that leave the fewest positions without a tensor of their shape: as they come, the newest first where all have one name.

    Where each of them leaves some, all that lie within the state by their shapes: one optimizer may have trained several (a policy's and a critic's).
    """
    joined = [for_state(adapter, raw) for adapter in adapters]
    lack = [lacking(raw, adapter) for adapter in joined]
    best = [adapter for adapter, lacks in zip(joined, lack) if lacks == min(lack) or (min(lack) and _lies_within(raw, adapter))]
    together = [adapter for adapter in best if any(adapter is other for other in joined) and adapter not in adapters]
    best = [adapter for adapter in best if adapter not in together[1:]]  # joined, each of them holds all
    return sorted(best, key=lambda adapter: _age(raw, adapter)) if len({adapter.name for adapter in best}) == 1 else best


def lacking(raw: RawState, adapter: Adapter) -> int:
    """Return how many positions with state find no tensor of their shape (their number of elements, where only that is known) in the adapter."""
    known = [entry for entry in raw.entries if entry.has_state and entry.shape is not None]
    flat = any(entry.flat for entry in known)
    there = Counter(_sized(entry.shape or (), flat) for entry in known)
    held = Counter(_sized(ref.shape, flat) for ref in adapter.tensors.values())
    return sum((there - held).values())


def _lies_within(raw: RawState, adapter: Adapter) -> bool:
    """Return whether every tensor of the adapter finds a position with state of its shape."""
    there = Counter(entry.shape or () for entry in raw.entries if entry.has_state)
    return not Counter(ref.shape for ref in adapter.tensors.values()) - there


def _sized(shape: tuple[int, ...], flat: bool) -> tuple[int, ...]:
    return (math.prod(shape),) if flat else shape


def _age(raw: RawState, adapter: Adapter) -> tuple[bool, bool, bool, int]:
    """Sort key: an average of the run (`ema/`, `job_ema.safetensors`) last; saved at the state's own step first, then without a number (the last
    save of a run), then by number, the highest first.
    """
    steps = {int(entry.step) for entry in raw.entries if entry.step is not None} | {raw.facts.get("global_step")}
    where = adapter.file if os.path.basename(adapter.file) not in adapter_files.ADAPTER_FILES else os.path.dirname(adapter.file)
    stem = os.path.basename(where).removesuffix(".safetensors")
    numbers = [int(number) for number in re.findall(r"(?<=[-_a-zA-Z])\d{1,18}$", stem, re.ASCII)]
    average = any(_AVERAGE.search(word) for word in (stem, os.path.basename(os.path.dirname(adapter.file))))
    return average, not (numbers and numbers[-1] in steps), bool(numbers), -numbers[-1] if numbers else 0


def own_weights(raw: RawState, adapter: Adapter, live_names: Mapping[str, str]) -> Adapter | None:
    """Return `adapter` with the numbers that the checkpoint itself holds under the same names, or None when it does not hold all of them.

    They are of the same save as the state; an adapter that lies elsewhere may be of another step, or never have been trained.

    Args:
        raw: the state, whose `weights` are the checkpoint's own.
        adapter: the weights that were found or given.
        live_names: key of the adapter -> the parameter's live name.
    """
    tensors = {}
    for key, ref in adapter.tensors.items():
        own = next((raw.weights[name] for name in (live_names[key], key) if name in raw.weights), None)
        if own is None or own.shape != ref.shape:
            return None
        tensors[key] = own
    return replace(adapter, tensors=tensors) if tensors else None


def base_weights(base: str) -> Mapping[str, TensorRef] | None:
    """Return the base model's own tensors by name, when the folder holds them; None for a bare configuration.

    Of a pipeline the tensors of every component that has weights, with its folder in front, and without where no other component has the name.
    """
    if not os.path.isdir(base):
        return None
    if adapter_files.holds_model(base):
        return read_adapter(base).tensors
    parts = {word: read_adapter(folder).tensors for word in COMPONENTS if adapter_files.holds_model(folder := os.path.join(base, word))}
    count = Counter(key for own in parts.values() for key in own)
    found = {f"{word}.{key}": ref for word, own in parts.items() for key, ref in own.items()}
    found.update({key: ref for own in parts.values() for key, ref in own.items() if count[key] == 1})
    return found or None
