"""torch.distributed.checkpoint folders, written by torch itself: what sharded runs load, on any mesh.

Three spellings of one optimizer, as `get_optimizer_state_dict` gives it: nested (`state.<name>.<slot>`, a list of groups), flattened
(`param_groups.<name>.<setting>` for each parameter), or by position as `optimizer.state_dict()`, where a program saves that.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from ostate.core.extras import needed
from ostate.core.naming import NamedState
from ostate.errors import ExportError
from ostate.read.quantized import BNB_SLOTS, BNB_WRAPPED

from .base import Exporter, ExportOptions, groups_of
from .own import adamw_numbered, own_numbered, packings_of
from .pickling import Global, WrapperTensor
from .tensors import ByName, Entry, Numbered, with_tensors
from .torch_file import losses
from .torch_file import refuse as refuse_for_torch


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write the nested dict by name under `export_options.root`; Trainer and accelerate call it `optimizer`."""
    _save({export_options.root: _by_name(state, _numbered(state, export_options))}, place, export_options)


def write_flat(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write one level of dotted keys, as torchtitan and NeMo Automodel ask for (StateDictOptions, flatten_optimizer_state_dict)."""
    nested = _by_name(state, _numbered(state, export_options))
    flat = dict(_leaves(nested["state"], "state"))
    for names, group in zip(groups_of(state), nested["param_groups"]):
        settings = {key: value for key, value in group.items() if key != "params"}
        flat |= {f"param_groups.{name}.{key}": value for name in names for key, value in settings.items()}
    _save({export_options.root: flat}, place, export_options)


def write_positions(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write `optimizer.state_dict()` itself: NeMo Automodel saves that of LoRA on a quantised model (OptimizerState, stateful_wrappers.py)."""
    made = _numbered(state, export_options)
    groups = [{key: value for key, value in group.items() if key != "param_names"} for group in made["param_groups"]]
    _save({export_options.root: {**made, "param_groups": groups}}, place, export_options)


def refuse(state: NamedState, export_options: ExportOptions) -> None:
    """Refuse packed tensors of a library that is not there to make them.

    Raises:
        ExportError: torchao is not installed; or torch's AdamW cannot go on from the state.
    """
    refuse_for_torch(state, export_options)
    packed = packings_of(state) if export_options.taken_as == "own" else set()
    if any(kind.startswith("torchao") for kind in packed) and importlib.util.find_spec("torchao") is None:
        raise ExportError("these moments are torchao's tensors in a distributed checkpoint, and torchao is not installed", fix="install torchao")


def _numbered(state: NamedState, export_options: ExportOptions) -> Numbered:
    made = adamw_numbered(state) if export_options.taken_as == "adamw_torch" else own_numbered(state)
    return {
        "state": {position: with_tensors(_of_libraries(entry)) for position, entry in made["state"].items()},
        "param_groups": [with_tensors(_of_libraries(group)) for group in made["param_groups"]],
    }


def _by_name(state: NamedState, numbered: Numbered) -> ByName:
    """Return the state's numbered dict with the names of its groups in place of positions."""
    grouped = groups_of(state)
    names = [name for group in grouped for name in group]
    groups = [{key: value for key, value in group.items() if key != "param_names"} for group in numbered["param_groups"]]
    return {
        "state": {names[position]: entry for position, entry in numbered["state"].items()},
        "param_groups": [{**group, "params": list(own)} for group, own in zip(groups, grouped)],
    }


def _leaves(value: Mapping[str, object], above: str) -> Iterator[tuple[str, object]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, f"{above}.{key}")
        else:
            yield f"{above}.{key}", inner


def _save(made: Mapping[str, object], place: Path, export_options: ExportOptions) -> None:
    """Write the folder.

    Raises:
        OSError: the disk.
        ExportError: torch cannot write it for another reason.
    """
    with needed("a distributed checkpoint"):
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is one process only, which is so
        try:
            save({**made, **with_tensors(export_options.rest)}, checkpoint_id=str(place), no_dist=True)
        except CheckpointException as error:  # which torch derives from BaseException
            failure = next((failure for failure, _ in error.failures.values()), error)
            if isinstance(failure, (OSError, KeyboardInterrupt)):
                raise failure from error
            what = f"torch cannot write the checkpoint: {str(failure)[:200]}"
            raise ExportError(what, where="dcp", fix="free some space, or write elsewhere") from error


def _of_libraries(values: Mapping[str, object]) -> Entry:
    """Return an entry with the libraries' own tensors in place of what would unpickle as them, bitsandbytes' slots wrapped as it wraps them."""
    made = {key: _of_library(item) for key, item in values.items()}
    if wrapped := {key: item for key, item in made.items() if key in BNB_SLOTS}:
        return {**{key: item for key, item in made.items() if key not in BNB_SLOTS}, BNB_WRAPPED: wrapped}
    return made


def _of_library(value: object) -> object:
    if isinstance(value, WrapperTensor):
        (module, name), held = value.cls.name.split(" "), with_tensors(value.attributes)
        more = [held["_shape"]] if "_shape" in held else []
        return getattr(import_module(module), name)(held["codes"], held["scale"], held["qmap"], held["signed"], *more)
    if isinstance(value, Global):
        module, name = value.name.split(" ")
        return getattr(import_module(module), name)
    if isinstance(value, (list, tuple)):
        return type(value)(_of_library(item) for item in value)
    return _of_libraries(value) if isinstance(value, dict) else value


EXPORTER = Exporter(
    text="torch.distributed.checkpoint: FSDP2, Trainer, accelerate", file=None, write=write, losses=losses, refuse=refuse, own_slots=True, keyed=True
)
FLAT = replace(EXPORTER, text="torch.distributed.checkpoint, flattened: torchtitan, NeMo Automodel", write=write_flat)
POSITIONS = replace(
    EXPORTER, text="torch.distributed.checkpoint by position: NeMo Automodel on a quantised model", write=write_positions, positional=True
)
