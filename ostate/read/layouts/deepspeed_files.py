"""Which files a DeepSpeed checkpoint folder holds, opened and checked against one another.

Names (deepspeed/runtime/engine.py): `[bf16_|fp16_]zero_pp_rank_{dp}_mp_rank_{tp}_optim_states.pt` from each process,
`mp_rank_{tp}_model_states.pt` (stages 1, 2) or one of `zero_pp_rank_{dp}_mp_rank_{tp}_model_states.pt` (stage 3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from ostate.core.files import is_file, is_remote, names_in, parent
from ostate.core.state import SourceFile
from ostate.core.tensors import Slot, TensorRef
from ostate.errors import ReadError

from ..container.torchsave import Stored, load
from ..pickle.unknown_classes import refuse_within
from ..rank_files import refuse_another_rank
from ..skipped import Skipped

OPTIM = re.compile(r"^(?P<prefix>(?:bf16_|fp16_)?)zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<mp>\d+)(?P<pp>(?:_\d+)?)_optim_states\.pt$")
_MODEL = re.compile(r"^(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<mp>\d+)(?:_\d+)?_model_states\.pt$")
EXPERT = re.compile(r"^(expp_rank_\d+_mp_rank_\d+_optim_states|layer_-?\d+_expert_\d+_mp_rank_\d+_model_states)\.pt$")
AGAIN = "copy the whole folder again, with the files of every process"
"""What to do about a file that is missing or of another run."""
Shapes = Sequence[Mapping[str, tuple[int, ...]]]
MOST_SIZE = 1 << 63
"""Of an axis: torch keeps sizes in 64 bits."""


@dataclass(frozen=True)
class Opened:
    """The optimizer files of every process in rank order, and one model file."""

    folder: str
    optim: tuple[str, ...]
    ranks: tuple[Mapping[str, object], ...]
    """What each optimizer file holds under `optimizer_state_dict`."""
    config: Mapping[str, object]
    """`ds_config`, where stored."""
    model_path: str
    model: Mapping[str, object]
    files: tuple[SourceFile, ...]
    unknown_classes: tuple[str, ...] = ()
    """Classes of a person's own in the model file (`client_state`), left alone."""
    skipped: tuple[Skipped, ...] = ()
    """Files called like these that cannot be read and are not needed."""


def holds_a_share(folder: str, names: Sequence[str]) -> bool:
    """True where one of these files, called as DeepSpeed calls a process's optimizer, is one; False where none is called so.

    Raises:
        ReadError: files are called so, and none of them is one.
    """
    failed: ReadError | None = None
    for name in names:
        if OPTIM.match(name) or EXPERT.match(name):
            try:
                load(os.path.join(folder, name), unknown_classes=True) if EXPERT.match(name) else _share(os.path.join(folder, name))
            except ReadError as error:
                failed = failed or error
            else:
                return True
    if failed is not None:
        raise failed
    return False


class _RankOptimizer(NamedTuple):
    """One process's optimizer file."""

    stored: Stored
    whole: Mapping[str, object]
    """All that the file holds."""
    state: Mapping[str, object]


def _share(path: str) -> _RankOptimizer:
    stored = load(path, unknown_classes=True)
    whole = stored.value if isinstance(stored.value, Mapping) else {}
    state = whole.get("optimizer_state_dict")
    if not isinstance(state, Mapping):
        raise ReadError("no optimizer_state_dict in a file of that name", where=path, fix=AGAIN)
    return _RankOptimizer(stored, whole, state)


def open_all(folder: str) -> Opened:
    """Open the files of every process. One that cannot be read is skipped where the others say that the run had no such process.

    Raises:
        ReadError: a rank or the model file is missing, more ranks than the run had, tensor or expert parallelism.
        UnsafePickle: a file asks for a class outside the allow-list.
    """
    names = names_in(folder)
    _refuse_experts(folder, names)
    shares: dict[str, _RankOptimizer] = {}
    failed: dict[str, ReadError] = {}
    for name in names:
        if OPTIM.match(name):
            try:
                shares[name] = _share(os.path.join(folder, name))
            except ReadError as error:
                failed[name] = error
    model_path, stored, model, skipped = _model(folder, names)
    skipped += [Skipped(os.path.join(folder, name), error) for name, error in failed.items()]
    needed = [name for name in failed if not _is_spare(name, shares, model)]
    if needed:
        raise failed[needed[0]]
    _refuse_parallel(folder, list(shares))
    by_rank = _by_rank(folder, list(shares))
    paths = [by_rank[rank] for rank in sorted(by_rank)]
    opened = [shares[os.path.basename(path)] for path in paths]
    for path, one in zip(paths, opened):
        refuse_within(one.state, one.stored.unknown_classes, path)
    _check_world(folder, by_rank, [one.state for one in opened])
    for path, one in zip(paths, opened):
        refuse_another_rank(one.stored.saved_as, path, OPTIM)
    config = opened[0].whole.get("ds_config") or model.get("ds_config")
    return Opened(
        folder=folder,
        optim=tuple(paths),
        ranks=tuple(one.state for one in opened),
        config=config if isinstance(config, Mapping) else {},
        model_path=model_path,
        model=model,
        files=(*(one.stored.source for one in opened), stored.source),
        unknown_classes=stored.unknown_classes,
        skipped=tuple(skipped),
    )


def _is_spare(name: str, shares: Mapping[str, _RankOptimizer], model: Mapping[str, object]) -> bool:
    """True for a file that cannot be read and that the run never needed, by what every file says that can be read."""
    match = OPTIM.match(name)
    others = [found for other in shares if (found := OPTIM.match(other))]
    if match is None or not others:
        return False
    if match["pp"] != others[0]["pp"]:
        return False
    if match["mp"] != others[0]["mp"]:
        return model.get("mp_world_size") == 1
    worlds = {_world(share.state) for share in shares.values()}
    (world,) = worlds if len(worlds) == 1 else (None,)
    return world is not None and int(match["rank"]) >= world


def _model(folder: str, names: Sequence[str]) -> tuple[str, Stored, Mapping[str, object], list[Skipped]]:
    """Return the first model file that can be read, by rank, what it holds, and what had to be passed over for it.

    Raises:
        ReadError: there is none.
    """
    skipped: list[Skipped] = []
    for path in _model_paths(folder, names):
        try:
            stored = load(path, unknown_classes=True)
            if isinstance(stored.value, Mapping):
                return path, stored, stored.value, skipped
            raise ReadError("no model states in a file of that name", where=path, fix=AGAIN)
        except ReadError as error:
            skipped.append(Skipped(path, error))
    raise skipped[0].error


def _refuse_experts(folder: str, names: Sequence[str]) -> None:
    if expert := next((name for name in names if EXPERT.match(name)), None):
        raise ReadError(
            "a mixture of experts trained with expert parallelism: its optimizer lies in a file for each expert rank",
            where=os.path.join(folder, expert),
            fix="convert it with `python -m deepspeed.checkpoint.ds_to_universal`, and pass the path of the result",
        )


def _refuse_parallel(folder: str, names: Sequence[str]) -> None:
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


def _check_world(folder: str, by_rank: Mapping[int, str], ranks: Sequence[Mapping[str, object]]) -> None:
    paths = [by_rank[rank] for rank in sorted(by_rank)]
    counts = [_world(state) for state in ranks]
    stated = [count for count in counts if count is not None]
    world = max(set(stated), key=stated.count) if stated else max(by_rank) + 1
    for rank in range(world):
        if rank not in by_rank:
            name = os.path.basename(paths[0])
            missing = re.sub(r"pp_rank_\d+", f"pp_rank_{rank}", name)
            raise ReadError(f"the file of rank {rank} of {world} is missing", where=os.path.join(folder, missing), fix=AGAIN)
    for path, count in zip(paths, counts):
        if count is not None and count != world:
            raise ReadError(f"this file is of a run with {count} processes, the others {world}", where=path, fix=AGAIN)
    if extra := [rank for rank in by_rank if rank >= world]:
        raise ReadError(
            f"there is a file of rank {extra[0]}, but the run had {world} processes",
            where=by_rank[extra[0]],
            fix="remove the files of the other run",
        )


def _world(state: Mapping[str, object]) -> int | None:
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
    return _model_paths(folder, names)[0]


def _model_paths(folder: str, names: Sequence[str]) -> list[str]:
    found = sorted((int(match["rank"] or 0), name) for name in names if (match := _MODEL.match(name)))
    if not found:
        raise ReadError(
            "no *_model_states.pt beside the optimizer: it alone says which parameter lies where (param_shapes)",
            where=os.path.join(folder, "mp_rank_00_model_states.pt"),
            fix="copy it from the same checkpoint",
        )
    return [os.path.join(folder, name) for _, name in found]


def check_no_rank_twice(opened: Opened, parts: Sequence[Slot]) -> None:
    """Refuse ranks that hold the same part of the moments: one's file was copied over the other's. The zip's checksums tell who may.

    ZeRO-3 gives all ranks as many numbers, and every parameter a part of each: what was lost would be missed by nothing else.

    Args:
        opened: the files.
        parts: one slot of one group, flat, rank by rank.

    Raises:
        ReadError: two are the same, and not zeros alone.
    """
    first: dict[tuple[int, str, int], tuple[int, Slot]] = {}
    for rank, slot in enumerate(parts):
        if not isinstance(slot, TensorRef) or slot.crc32 is None:
            continue
        other, known = first.setdefault((slot.crc32, slot.dtype, slot.numel), (rank, slot))
        if other != rank and any(bool((a == b).all() and a.any()) for a, b in zip(known.chunks(), slot.chunks())):
            what = f"the moments of rank {rank} are those of rank {other}: one file was copied over the other"
            raise ReadError(what, where=opened.optim[rank], fix=AGAIN)


def param_shapes(model: object, where: str) -> Shapes:
    """Return the shapes by name, group by group, in the order in which the buffers were filled.

    Raises:
        ReadError: the model file has none: written without ZeRO, or by a release before 0.3.
    """
    stored = model.get("param_shapes") if isinstance(model, Mapping) else None
    groups = [stored] if isinstance(stored, Mapping) else stored
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        raise ReadError("the model file has no param_shapes, so nothing says which parameter lies where", where=where, fix="use a later checkpoint")
    wrong = next((name for group in groups for name, shape in group.items() if not is_shape(shape)), None)
    if wrong is not None:
        raise ReadError(f"param_shapes does not tell the shape of {ascii(wrong)[:80]}", where=where, fix=AGAIN)
    return [{str(name): tuple(shape) for name, shape in group.items()} for group in groups]


def is_shape(value: object) -> TypeGuard[Sequence[int]]:
    """True for a list of sizes that a tensor may have."""
    return isinstance(value, (list, tuple)) and all(type(size) is int and 0 <= size < MOST_SIZE for size in value)


def module_weights(model: Mapping[str, object]) -> dict[str, TensorRef]:
    """Named weights of the model file; stage 3 leaves empty tensors there."""
    module = model.get("module")
    if not isinstance(module, Mapping):
        return {}
    return {str(name): ref for name, ref in module.items() if isinstance(ref, TensorRef) and ref.numel and ref.parts}


def common_facts(folder: str, model: Mapping[str, object]) -> dict[str, object]:
    """Return what the model file and the run's folder tell: `folder`, `global_step`, `deepspeed_version`."""
    around = parent(folder)
    facts: dict[str, object] = {}
    if any(is_file(os.path.join(around, name)) for name in ("latest", "trainer_state.json")):
        facts["folder"] = around if is_remote(folder) or os.path.isabs(folder) else os.path.relpath(around)
    if isinstance(model.get("global_steps"), int):
        facts["global_step"] = model["global_steps"]
    if isinstance(model.get("ds_version"), str):
        facts["deepspeed_version"] = model["ds_version"]
    return facts
