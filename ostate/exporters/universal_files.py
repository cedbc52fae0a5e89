"""The files of a DeepSpeed universal checkpoint, as torch writes them. Imports torch; `deepspeed` imports this module to write alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import torch

from ostate.core.naming import NamedState
from ostate.core.tensors import Slot

from .tensors import tensor

READ_AT = "0.19.8"
"""The release whose layout this is; DeepSpeed asks every checkpoint for one."""


def write_files(state: NamedState, place: Path, chosen: tuple[tuple[str, ...], ...], weights: Mapping[str, Slot]) -> None:
    """Write each parameter's files below `place/zero`, which is there, and those of the engine beside it.

    Args:
        state: with both moments and a step of every parameter.
        place: the new checkpoint's folder.
        chosen: the names by group.
        weights: of every name.
    """
    for name in (name for group in chosen for name in group):
        _write_one(state, place / "zero", name, weights[name])
    groups: list[dict[str, object]] = [{**group.hyper, "params": [index]} for index, group in enumerate(state.groups)]
    made = {"zero_stage": 1, "ds_version": READ_AT, "param_groups": groups, "optimizer_state_dict": _for_stage_3(state, groups)}
    _save(made, place / "zero" / "optimizer_state.pt")
    states = _model_states(state, chosen, weights)
    _save(states, place / "mp_rank_00_model_states.pt")
    _save({**states, "module": OrderedDict()}, place / "zero_pp_rank_0_mp_rank_00_model_states.pt")


def _save(value: object, path: Path) -> None:
    """Write one of torch's files. Through memory: where the disk is full, torch's own writer does not say so.

    Raises:
        OSError: the disk.
    """
    buffer = BytesIO()
    torch.save(value, buffer)
    with path.open("xb") as file:
        file.write(buffer.getbuffer())


def _for_stage_3(state: NamedState, groups: list[dict[str, object]]) -> dict[str, object]:
    """Return what ZeRO-3 reads in place of each parameter's step and each group's settings: those of the first group, for all.

    Read at deepspeed 0.19.8, runtime/zero/stage3.py `load_hp_checkpoint_state_from_checkpoint_dir_stage3`.
    """
    step = torch.tensor(_last_step(state))
    return {"state": {index: {"step": step} for index in range(len(groups))}, "param_groups": groups}


def _last_step(state: NamedState) -> float:
    return max((parameter.step for parameter in state.parameters.values() if parameter.step is not None), default=0.0)


def _model_states(state: NamedState, chosen: tuple[tuple[str, ...], ...], weights: Mapping[str, Slot]) -> dict[str, object]:
    """Return what the engine reads first: weights, shapes by group, and its counters."""
    empty: dict[str, object] = dict.fromkeys(
        ("optimizer", "lr_scheduler", "data_sampler", "random_ltd", "frozen_param_shapes", "frozen_param_fragments")
    )
    return {
        **empty,
        "module": OrderedDict((name, tensor(weights[name])) for group in chosen for name in group),
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


def _write_one(state: NamedState, zero: Path, name: str, weights: Slot) -> None:
    parameter = state.parameters[name]
    folder = zero / name
    folder.mkdir()
    for file, values in {"fp32": tensor(weights).float(), **{slot: tensor(parameter.slots[slot]) for slot in ("exp_avg", "exp_avg_sq")}}.items():
        _save({"cat_dim": 0, "param": values}, folder / f"{file}.pt")
    _save(torch.tensor(parameter.step), folder / "step.pt")
