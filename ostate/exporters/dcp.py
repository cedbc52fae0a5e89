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
from typing import Any

from ostate.core.extras import needed
from ostate.core.naming import NamedState
from ostate.errors import ExportError
from ostate.read.quantized import BNB_SLOTS, BNB_WRAPPED

from .base import Exporter, ExportOptions
from .own import adamw_numbered, own_numbered, packings_of
from .pickling import Call, Global
from .tensors import with_tensors
from .torch_file import losses
from .torch_file import refuse as refuse_for_torch


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write the nested dict by name under `export_options.root`; Trainer and accelerate call it `optimizer`."""
    _save({export_options.root: _by_name(_numbered(state, export_options))}, place, export_options)


def write_flat(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write one level of dotted keys, as torchtitan and NeMo Automodel ask for (StateDictOptions, flatten_optimizer_state_dict)."""
    nested = _by_name(_numbered(state, export_options))
    flat: dict[str, Any] = dict(_leaves(nested["state"], "state"))
    for group in nested["param_groups"]:
        settings = {key: value for key, value in group.items() if key != "params"}
        flat |= {f"param_groups.{name}.{key}": value for name in group["params"] for key, value in settings.items()}
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


def _numbered(state: NamedState, export_options: ExportOptions) -> dict[str, Any]:
    made = adamw_numbered(state) if export_options.taken_as == "adamw_torch" else own_numbered(state)
    return with_tensors(_live(made))  # type: ignore[no-any-return]


def _by_name(numbered: Mapping[str, Any]) -> dict[str, Any]:
    """Return a numbered state dict with the names of its groups in place of positions."""
    names = {position: name for group in numbered["param_groups"] for position, name in zip(group["params"], group["param_names"])}
    groups = [{key: value for key, value in group.items() if key != "param_names"} for group in numbered["param_groups"]]
    return {
        "state": {names[position]: entry for position, entry in numbered["state"].items()},
        "param_groups": [{**group, "params": [names[position] for position in group["params"]]} for group in groups],
    }


def _leaves(value: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, f"{above}.{key}")
        else:
            yield f"{above}.{key}", inner


def _save(made: dict[str, Any], place: Path, export_options: ExportOptions) -> None:
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
            save({**made, **with_tensors(dict(export_options.rest))}, checkpoint_id=str(place), no_dist=True)
        except CheckpointException as error:  # which torch derives from BaseException
            failure = next((failure for failure, _ in error.failures.values()), error)
            if isinstance(failure, (OSError, KeyboardInterrupt)):
                raise failure from error
            what = f"torch cannot write the checkpoint: {str(failure)[:200]}"
            raise ExportError(what, where="dcp", fix="free some space, or write elsewhere") from error


def _live(value: Any) -> Any:
    """Return a state dict with the libraries' own tensors in place of what would unpickle as them, bitsandbytes' slots wrapped as it wraps them."""
    if isinstance(value, Call):
        cls, held = value.args[1].name.split(" "), with_tensors(value.args[3])
        more = [held["_shape"]] if "_shape" in held else []
        return getattr(import_module(cls[0]), cls[1])(held["codes"], held["scale"], held["qmap"], held["signed"], *more)
    if isinstance(value, Global):
        module, name = value.name.split(" ")
        return getattr(import_module(module), name)
    if isinstance(value, (list, tuple)):
        return type(value)(_live(item) for item in value)
    if not isinstance(value, dict):
        return value
    made = {key: _live(item) for key, item in value.items()}
    if wrapped := {key: item for key, item in made.items() if key in BNB_SLOTS}:
        return {**{key: item for key, item in made.items() if key not in BNB_SLOTS}, BNB_WRAPPED: wrapped}
    return made


EXPORTER = Exporter(
    text="torch.distributed.checkpoint: FSDP2, Trainer, accelerate", file=None, write=write, losses=losses, refuse=refuse, own_slots=True, keyed=True
)
FLAT = replace(EXPORTER, text="torch.distributed.checkpoint, flattened: torchtitan, NeMo Automodel", write=write_flat)
POSITIONS = replace(
    EXPORTER, text="torch.distributed.checkpoint by position: NeMo Automodel on a quantised model", write=write_positions, positional=True
)
