"""DeepSpeed without ZeRO: torch's own state dict lies in the model file, that of each stage in a file of its own where a pipeline trained.

`mp_rank_{rank}_model_states.pt` counts tensor-parallel ranks and pipeline stages alike; `mp_world_size` in it says how many there are. A pipeline
writes its weights layer by layer, `layer_{number}-model_states.pt`, with `-model_{rank}` in it where tensor parallelism cuts the layers too
(deepspeed/runtime/engine.py, `_get_ckpt_name`; runtime/pipe/module.py, `ckpt_layer_path`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ostate.core.state import RawState
from ostate.core.tensors import Slot, TensorRef
from ostate.errors import ReadError

from ..assemble import assemble
from ..container.torchsave import Stored, load
from ..parts import OptimizerPart, joined
from ..pickle.unknown_classes import noted, refuse_within
from ..pickled_optimizer import params_of
from ..state_dict import Key, entries_of
from .deepspeed_files import AGAIN, common_facts, module_weights

_MODEL = re.compile(r"^mp_rank_(?P<rank>\d{1,9})_model_states\.pt$")
_LAYER = re.compile(r"^layer_\d+(?P<slice>-model_\d+)?-model_states\.pt$")

MOST_RANKS = 1 << 16
"""A count of ranks that no run has: the number in the file is not that."""


class _Whole(NamedTuple):
    """The model file of one rank, which holds the optimizer too."""

    stored: Stored
    model: Mapping[str, object]
    optimizer: Mapping[str, object]


def detect(folder: str, names: Sequence[str]) -> bool:
    """True for a folder whose model files hold an optimizer; of a pipeline one stage may train nothing."""
    return any(_rank_file(os.path.join(folder, name)).optimizer for name in _by_rank(names).values())


def read(folder: str, names: Sequence[str]) -> RawState:
    """Return the optimizer of a run without ZeRO; the stages of a pipeline as one, in their order.

    Raises:
        ReadError: none is there, a stage is missing or of another step, tensors are cut over ranks, or parameters were merged into one.
    """
    stages = [one for one in _stages(folder, names) if one.optimizer]
    if not stages:
        raise ReadError("no DeepSpeed optimizer files here", where=folder, fix="pass the folder with the *_optim_states.pt files")
    inner = [_inner(one) for one in stages]
    first = stages[0]
    whole = OptimizerPart(entries_of(inner[0]), inner[0]["param_groups"])
    if len(inner) > 1:
        whole = joined([OptimizerPart(entries_of(one), one["param_groups"]) for one in inner])
    return assemble(
        whole.state,
        whole.groups,
        source=folder,
        layout="zero",
        files=[one.stored.source for one in stages],
        weights=module_weights(first.model),
        master=_unfused_master_weights(first.optimizer, whole.groups) if len(stages) == 1 else {},
        facts=common_facts(folder, first.model) | {"zero_stage": 0},
        findings=noted(tuple(dict.fromkeys(name for one in stages for name in one.stored.unknown_classes))),
    )


def _by_rank(names: Sequence[str]) -> dict[int, str]:
    """Return rank -> file name, in order of the ranks."""
    return dict(sorted((int(match["rank"]), name) for name in names if (match := _MODEL.match(name))))


def _rank_file(path: str) -> _Whole:
    """Return what one rank wrote; its optimizer is empty with ZeRO, and where a stage trains nothing."""
    stored = load(path, unknown_classes=True)
    model = stored.value if isinstance(stored.value, Mapping) else {}
    optimizer = model.get("optimizer")
    return _Whole(stored, model, optimizer if isinstance(optimizer, Mapping) else {})


def _stages(folder: str, names: Sequence[str]) -> list[_Whole]:
    """Return the ranks whose optimizers are one state, in order: the only one, or each stage of a pipeline.

    Raises:
        ReadError: a stage is missing or of another step; or the ranks hold slices of tensors.
    """
    by_rank = {rank: os.path.join(folder, name) for rank, name in _by_rank(names).items()}
    if not by_rank:
        return []
    first = _rank_file(next(iter(by_rank.values())))
    said = first.model.get("mp_world_size")
    world = said if type(said) is int and 0 < said <= MOST_RANKS else max(by_rank) + 1
    if world == 1:
        return [first]
    layers = [match for name in names if (match := _LAYER.match(name))]
    if not layers or any(match["slice"] for match in layers):
        raise ReadError(
            f"{world} tensor-parallel ranks without ZeRO: each holds a slice of every parameter, and no file says which",
            where=folder,
            fix="train with zero_optimization.stage 1, whose checkpoints `python -m deepspeed.checkpoint.ds_to_universal` joins",
        )
    missing = next((rank for rank in range(world) if rank not in by_rank), None)
    if missing is not None:
        where = os.path.join(folder, f"mp_rank_{missing:02d}_model_states.pt")
        raise ReadError(f"part of a state: stage {missing} of {world} of the pipeline is missing", where=where, fix=AGAIN)
    stages = [first, *(_rank_file(by_rank[rank]) for rank in range(1, world))]
    other = next((one for one in stages if one.model.get("global_steps") != first.model.get("global_steps")), None)
    if other is not None:
        here, there = (ascii(one.model.get("global_steps"))[:20] for one in (other, first))
        raise ReadError(f"this stage is of step {here}, the first of {there}", where=other.stored.source.path, fix=AGAIN)
    return stages


def _inner(one: _Whole) -> Mapping[str, object]:
    """Return torch's own state dict in a model file.

    Raises:
        ReadError: parameters were merged into one.
    """
    inner = one.optimizer.get("optimizer_state_dict", one.optimizer) if "fp32_groups_flat" not in one.optimizer else one.optimizer
    if not isinstance(inner, Mapping) or "state" not in inner or "param_groups" not in inner:
        raise ReadError(
            "the optimizer of a run without ZeRO, fused for 16 bits: its parameters are merged into one",
            where=one.stored.source.path,
            fix="train with zero_optimization.stage 1, or with bf16 in torch",
        )
    refuse_within(inner["state"], one.stored.unknown_classes, one.stored.source.path)
    return inner


def _unfused_master_weights(optimizer: Mapping[str, object], groups: object) -> dict[Key, Slot]:
    """Float32 weights by position, which a run in 16 bits without ZeRO keeps by group (deepspeed/runtime/fp16/unfused_optimizer.py)."""
    stored = optimizer.get("fp32_groups")
    if not isinstance(stored, (list, tuple)) or not isinstance(groups, (list, tuple)) or len(stored) != len(groups):
        return {}
    found: dict[Key, Slot] = {}
    for group, weights in zip(groups, stored):
        keys = params_of(group) if isinstance(group, Mapping) else ()
        if not isinstance(weights, list) or len(keys) != len(weights):
            return {}
        for key, master in zip(keys, weights):
            if isinstance(master, TensorRef) and (type(key) is int or type(key) is str):
                found[key] = master
    return found
