"""A DeepSpeed universal checkpoint: a folder a parameter with fp32, exp_avg, exp_avg_sq and step, and the trained weights.

Read at deepspeed 0.19.8, checkpoint/universal_checkpoint.py, runtime/base_optimizer.py and runtime/engine.py. Frozen weights are not in
it, as in a run saved with `exclude_frozen_parameters`: load it with `load_module_strict=False`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from ostate.core import system
from ostate.core.extras import needed
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.core.tensors import Slot
from ostate.errors import ExportError

from .base import Exporter, ExportOptions, groups_of, lost_packing, lost_scalars, lost_slots
from .tensors import tensor

KEPT = ("exp_avg", "exp_avg_sq")
READ_AT = "0.19.8"
"""The release whose layout this is; DeepSpeed asks every checkpoint for one."""


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write `zero/<name>/{fp32,exp_avg,exp_avg_sq,step}.pt` and `zero/optimizer_state.pt`.

    Raises:
        ExportError: names that differ in capitals alone, where these do not count.
    """
    with needed("a DeepSpeed checkpoint"):
        import torch  # noqa: F401

    chosen = groups_of(state)
    (place / "zero").mkdir(parents=True)
    if system.folds_case(place) and len({name.casefold() for group in chosen for name in group}) < sum(map(len, chosen)):
        raise ExportError("two names differ in capitals alone, and would be one file here", fix="write where capitals count, or --rename one")
    for name in (name for group in chosen for name in group):
        _write_one(state, place / "zero", name, export_options)
    groups: list[dict[str, Any]] = [{**group.hyper, "params": [index]} for index, group in enumerate(state.groups)]
    made = {"zero_stage": 1, "ds_version": READ_AT, "param_groups": groups, "optimizer_state_dict": _for_stage_3(state, groups)}
    _save(made, place / "zero" / "optimizer_state.pt")
    states = _model_states(state, chosen, export_options)
    _save(states, place / "mp_rank_00_model_states.pt")
    _save({**states, "module": OrderedDict()}, place / "zero_pp_rank_0_mp_rank_00_model_states.pt")


def _save(value: Any, path: Path) -> None:
    """Write one of torch's files. Through memory: where the disk is full, torch's own writer does not say so.

    Raises:
        OSError: the disk.
    """
    import torch

    buffer = BytesIO()
    torch.save(value, buffer)
    with path.open("xb") as file:
        file.write(buffer.getbuffer())


def _for_stage_3(state: NamedState, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what ZeRO-3 reads in place of each parameter's step and each group's settings: those of the first group, for all.

    Read at deepspeed 0.19.8, runtime/zero/stage3.py `load_hp_checkpoint_state_from_checkpoint_dir_stage3`.
    """
    import torch

    step = torch.tensor(_last_step(state))
    return {"state": {index: {"step": step} for index in range(len(groups))}, "param_groups": groups}


def _last_step(state: NamedState) -> float:
    return max((parameter.step for parameter in state.parameters.values() if parameter.step is not None), default=0.0)


def _model_states(state: NamedState, chosen: tuple[tuple[str, ...], ...], export_options: ExportOptions) -> dict[str, Any]:
    """Return what the engine reads first: weights, shapes by group, and its counters."""
    import torch

    empty: dict[str, Any] = dict.fromkeys(
        ("optimizer", "lr_scheduler", "data_sampler", "random_ltd", "frozen_param_shapes", "frozen_param_fragments")
    )
    return {
        **empty,
        "module": OrderedDict((name, tensor(_weights(export_options)[name])) for group in chosen for name in group),
        "buffer_names": [],
        "param_shapes": [OrderedDict((name, torch.Size(state.parameters[name].shape)) for name in group) for group in chosen],
        "shared_params": {},
        "skipped_steps": 0,
        "global_steps": int(_last_step(state)),
        "global_samples": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {},
        "ds_version": READ_AT,
    }


def _write_one(state: NamedState, zero: Path, name: str, export_options: ExportOptions) -> None:
    import torch

    parameter = state.parameters[name]
    folder = zero / name
    folder.mkdir()
    for file, values in {"fp32": tensor(_weights(export_options)[name]).float(), **{slot: tensor(parameter.slots[slot]) for slot in KEPT}}.items():
        _save({"cat_dim": 0, "param": values}, folder / f"{file}.pt")
    _save(torch.tensor(parameter.step), folder / "step.pt")


def _weights(export_options: ExportOptions) -> Mapping[str, Slot]:
    return export_options.weights or {}


def refuse(state: NamedState, export_options: ExportOptions) -> None:
    """Refuse what DeepSpeed would not load.

    Raises:
        ExportError: a weight, a moment or a step is missing, or a name cannot be a folder's.
    """
    if idle := state.without_state:
        raise ExportError(
            f"DeepSpeed needs moments for every parameter, and {len(idle)} have none",
            where=", ".join(idle[:3]),
            fix="fill them with zeros: --for ADAPTER",
        )
    weights = _weights(export_options)
    if lacking := [name for group in groups_of(state) for name in group if name not in weights]:
        what = "DeepSpeed stores the weights with the moments, and "
        raise ExportError(
            what + ("there are none" if export_options.weights is None else f"--adapter has none of {len(lacking)} parameters"),
            where=", ".join(lacking[:3]),
            fix="pass --adapter DIR" if export_options.weights is None else "pass the weights that were saved with this state",
        )
    for name, parameter in state.parameters.items():
        if "/" in name or name.startswith("."):
            raise ExportError("this name cannot be used as a folder name", where=name, fix="rename it with --rename OLD=NEW")
        if not set(KEPT) <= set(parameter.slots) or parameter.step is None:
            raise ExportError("DeepSpeed needs exp_avg, exp_avg_sq and a step of every parameter", where=name, fix="use --to torch")


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:  # noqa: ARG001
    """The layout knows Adam's two moments."""
    yield from lost_slots(state, frozenset(KEPT), "a universal checkpoint")
    yield from lost_scalars(state, "a universal checkpoint")
    yield from lost_packing(state)
    used = [group for group in state.groups if group.names]
    differ = [key for key in ("lr", "betas", "eps", "weight_decay") if len({repr(group.hyper.get(key)) for group in used}) > 1]
    steps = {parameter.step for parameter in state.parameters.values()}
    if differ or len(steps) > 1:
        text = f"ZeRO-3 takes one group's settings and one step for all; here {' and '.join([*differ, *(['step'] * (len(steps) > 1))])} differ"
        yield Finding(rule="export-stage-3", severity="warning", text=text, fix="load it under ZeRO 1 or 2, or set the groups after loading")


EXPORTER = Exporter(text="DeepSpeed universal checkpoint", file=None, write=write, losses=losses, refuse=refuse)
