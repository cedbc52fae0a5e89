"""Which files a DeepSpeed checkpoint folder holds, opened and checked against one another.

Names (deepspeed/runtime/engine.py): `[bf16_|fp16_]zero_pp_rank_{dp}_mp_rank_{tp}_optim_states.pt` from each process,
`mp_rank_{tp}_model_states.pt` (stages 1, 2) or one of `zero_pp_rank_{dp}_mp_rank_{tp}_model_states.pt` (stage 3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ostate.core.files import names_in
from ostate.core.state import SourceFile
from ostate.errors import ReadError

from ..container.torchsave import load
from ..pickle.unknown_classes import refuse_within

OPTIM = re.compile(r"^(?P<prefix>(?:bf16_|fp16_)?)zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<mp>\d+)(?P<pp>(?:_\d+)?)_optim_states\.pt$")
_MODEL = re.compile(r"^(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<mp>\d+)(?:_\d+)?_model_states\.pt$")
EXPERT = re.compile(r"^(expp_rank_\d+_mp_rank_\d+_optim_states|layer_-?\d+_expert_\d+_mp_rank_\d+_model_states)\.pt$")
_AGAIN = "copy the whole folder again, with the files of every process"


@dataclass(frozen=True)
class Opened:
    """The optimizer files of every process in rank order, and one model file."""

    folder: str
    optim: tuple[str, ...]
    ranks: tuple[Mapping[str, Any], ...]
    """What each optimizer file holds under `optimizer_state_dict`."""
    config: Mapping[str, Any]
    """`ds_config`, where stored."""
    model_path: str
    model: Mapping[str, Any]
    files: tuple[SourceFile, ...]
    unknown_classes: tuple[str, ...] = ()
    """Classes of a person's own in the model file (`client_state`), left alone."""


def open_all(folder: str) -> Opened:
    """Open the files of every process.

    Raises:
        ReadError: a rank or the model file is missing, more ranks than the run had, tensor or expert parallelism.
        UnsafePickle: a file asks for a class outside the allow-list.
    """
    names = names_in(folder)
    _refuse_parallel(folder, names)
    by_rank = _by_rank(folder, names)
    paths = [by_rank[rank] for rank in sorted(by_rank)]
    stored = [load(path, unknown_classes=True) for path in paths]
    ranks = []
    for path, one in zip(paths, stored):
        state = one.value.get("optimizer_state_dict") if isinstance(one.value, Mapping) else None
        refuse_within(state, one.unknown_classes, path)
        if not isinstance(state, Mapping):
            raise ReadError("no optimizer_state_dict in a file of that name", where=path, fix=_AGAIN)
        ranks.append(state)
    _check_world(folder, by_rank, ranks)
    model_path = model_file(folder, names)
    model = load(model_path, unknown_classes=True)
    if not isinstance(model.value, Mapping):
        raise ReadError("no model states in a file of that name", where=model_path, fix=_AGAIN)
    config = stored[0].value.get("ds_config") or model.value.get("ds_config")
    return Opened(
        folder=folder,
        optim=tuple(paths),
        ranks=tuple(ranks),
        config=config if isinstance(config, Mapping) else {},
        model_path=model_path,
        model=model.value,
        files=(*(one.source for one in stored), model.source),
        unknown_classes=model.unknown_classes,
    )


def _refuse_parallel(folder: str, names: Sequence[str]) -> None:
    if expert := next((name for name in names if EXPERT.match(name)), None):
        raise ReadError(
            "a mixture of experts trained with expert parallelism: its optimizer lies in a file for each expert rank",
            where=os.path.join(folder, expert),
            fix="convert it with `python -m deepspeed.checkpoint.ds_to_universal`, and pass the path of the result",
        )
    parallel = {(match["mp"], match["pp"]) for name in names if (match := OPTIM.match(name))}
    if len(parallel) > 1:
        raise ReadError(
            f"{len(parallel)} tensor- or pipeline-parallel ranks: each holds a slice of every parameter",
            where=folder,
            fix="convert it with `python -m deepspeed.checkpoint.ds_to_universal`, and pass the path of the result",
        )


def _by_rank(folder: str, names: Sequence[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in names:
        if match := OPTIM.match(name):
            rank = int(match["rank"])
            if rank in found:
                both = f"{os.path.basename(found[rank])} and {name}"
                raise ReadError(f"two files for rank {rank}: {both}", where=folder, fix="remove those of the other run")
            found[rank] = os.path.join(folder, name)
    return found


def _check_world(folder: str, by_rank: Mapping[int, str], ranks: Sequence[Mapping[str, Any]]) -> None:
    paths = [by_rank[rank] for rank in sorted(by_rank)]
    counts = [_world(state) for state in ranks]
    stated = [count for count in counts if count is not None]
    world = max(set(stated), key=stated.count) if stated else max(by_rank) + 1
    for rank in range(world):
        if rank not in by_rank:
            name = os.path.basename(paths[0])
            missing = re.sub(r"pp_rank_\d+", f"pp_rank_{rank}", name)
            raise ReadError(f"the file of rank {rank} of {world} is missing", where=os.path.join(folder, missing), fix=_AGAIN)
    for path, count in zip(paths, counts):
        if count is not None and count != world:
            raise ReadError(f"this file is of a run with {count} processes, the others {world}", where=path, fix=_AGAIN)
    if extra := [rank for rank in by_rank if rank >= world]:
        raise ReadError(
            f"there is a file of rank {extra[0]}, but the run had {world} processes",
            where=by_rank[extra[0]],
            fix="remove the files of the other run",
        )


def _world(state: Mapping[str, Any]) -> int | None:
    count = state.get("partition_count")
    if isinstance(count, (list, tuple)):
        count = max((value for value in count if isinstance(value, int)), default=None)
    return count if isinstance(count, int) else None


def model_files(folder: str, names: Sequence[str]) -> list[str]:
    """Return the model file of each tensor- and pipeline-parallel rank; of several data-parallel ones the lowest.

    Raises:
        ReadError: there is none.
    """
    first = model_file(folder, names)
    others = [name for name in sorted(names) if (match := _MODEL.match(name)) and int(match["rank"] or 0) == 0]
    return [first, *(os.path.join(folder, name) for name in others if os.path.join(folder, name) != first)]


def model_file(folder: str, names: Sequence[str]) -> str:
    """Return a file that holds `param_shapes`: that of the lowest rank.

    Raises:
        ReadError: there is none.
    """
    found = sorted((int(match["rank"] or 0), name) for name in names if (match := _MODEL.match(name)))
    if not found:
        raise ReadError(
            "no *_model_states.pt beside the optimizer: it alone says which parameter lies where (param_shapes)",
            where=os.path.join(folder, "mp_rank_00_model_states.pt"),
            fix="copy it from the same checkpoint",
        )
    return os.path.join(folder, found[0][1])
