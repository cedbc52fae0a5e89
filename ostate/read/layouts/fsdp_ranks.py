"""One file a process, each with its own share: DTensor (FSDP2), ShardedTensor or 1-D pieces (FSDP1).

`optimizer_rank0.pt`, `optimizer_0_rank0.bin` (Accelerate with use_dcp=False), `optim_world_size_8_rank_0.pt` (verl): names differ, `rank` and a
number are in all of them. DTensor and ShardedTensor say their whole shape (sharded.py).
Raw FSDP1 with use_orig_params=True: 1-D runs of each parameter, nothing where a process has no share; in rank order they are the parameter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from ostate.core.files import is_file, names_in, read_at, size_of
from ostate.core.state import RawState, SourceFile
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError, UnsafePickle

from ..assemble import assemble
from ..container.torchsave import load
from ..flat_buffers import Piece, cut
from ..hyper import plain_hyper
from ..parts import are_groups
from ..pickle.records import Inert
from ..pickled_optimizer import params_of
from ..rank_files import RANK_FILE, refuse_another_rank
from ..state_dict import Key, entries_of
from ..which_optimizer import choose
from . import rank_weights
from .fsdp_shards import ALLOWED, MissingRank, is_sharded, local, whole
from .torch_file import candidates

_WORLD = re.compile(r"world[_-]?size[_-]?(\d+)")
_AGAIN = "copy the whole folder again, with the files of every process"


@dataclass(frozen=True)
class Share:
    """What one process saved."""

    path: str
    state: Mapping[Key, Mapping[str, object]]
    groups: Sequence[Mapping[str, object]]
    file: SourceFile


def families(names: Iterable[str]) -> dict[tuple[str, str, str], dict[int, str]]:
    """Sort file names that differ only in the rank: (before it, after it, extension) -> rank -> name."""
    found: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in names:
        match = RANK_FILE.match(name)
        if match and not name.endswith(("_model_states.pt", "_optim_states.pt")):
            found.setdefault((match["head"], match["tail"] or "", match["kind"]), {})[int(match["rank"])] = name
    return found


def detect(folder: str) -> bool:
    """True for a folder where several processes each left a share of an optimizer."""
    return bool(_optimizers(folder))


def _optimizers(folder: str) -> dict[tuple[str, str, str], dict[int, str]]:
    """Return the families whose files hold an optimizer's state."""
    found = {}
    known = families(names_in(folder))
    named = {family for family in known if "optim" in (family[0] + family[1]).lower()}
    for family, names in known.items():
        first = os.path.join(folder, names[min(names)])
        if (named and family not in named) or not is_file(first) or not _is_torch(first):
            continue
        try:
            states = list(candidates(load(first, allowed=ALLOWED).value))
        except UnsafePickle:
            if family in named:
                raise
            continue  # a random generator's state, arguments: no file of an optimizer
        several = len(names) > 1 or min(names) > 0 or bool(rank_weights.model_family(family, known))
        if states and (several or _sharded(states[0].optimizer)):
            found[family] = names
    return found


def _is_torch(path: str) -> bool:
    return size_of(path) >= 4 and read_at(path, 0, 4) == b"PK\3\4"


def _sharded(optimizer: Mapping[str, object]) -> bool:
    return any(is_sharded(value) for entry in entries_of(optimizer).values() if isinstance(entry, Mapping) for value in entry.values())


def read(folder: str, *, optimizer: int | str | None = None) -> RawState:
    """Return the state of all processes together.

    Args:
        folder: where the files lie.
        optimizer: which family of files, where there are several.

    Raises:
        ReadError: a process's file is missing, of another step or run; FlatParameters; a ZeroRedundancyOptimizer's parts; tensor parallelism.
        UnsafePickle: a file asks for a class outside the allow-list.
    """
    found = _optimizers(folder)
    listed = sorted(found)
    family = listed[choose([found[one][min(found[one])] for one in listed], optimizer, folder)]
    by_rank = found[family]
    _check_ranks(folder, by_rank, family)
    shares = [_share(os.path.join(folder, by_rank[rank])) for rank in sorted(by_rank)]
    _check_agree(shares)
    model = rank_weights.model_family(family, families(names_in(folder)))
    try:
        weights = rank_weights.weights_of(folder, model) if set(model) == set(by_rank) else {}
        state = _joined(shares, rank_weights.trained(weights))
    except MissingRank as error:
        raise _missing(shares[0].path, error.rank, error.world) from error
    return assemble(
        state,
        shares[0].groups,
        source=folder,
        layout="fsdp-ranks",
        files=[share.file for share in shares],
        recorded="name-keyed",
        flat=not any(is_sharded(value) for share in shares for entry in share.state.values() for value in entry.values()) and _one_d(shares),
        weights=weights,
        facts={"world_size": len(shares), **({"live_weights": True} if weights else {})},
    )


def _check_ranks(folder: str, names: Mapping[int, str], family: tuple[str, str, str]) -> None:
    stated = _WORLD.search(family[0] + family[1])
    world = int(stated.group(1)) if stated else max(names) + 1
    for rank in range(world):
        if rank not in names:
            raise _missing(os.path.join(folder, names[min(names)]), rank, world)
    if extra := [rank for rank in names if rank >= world]:
        raise ReadError(
            f"there is a file of rank {extra[0]}, but the run had {world} processes",
            where=os.path.join(folder, names[extra[0]]),
            fix="remove the files of the other run",
        )


def _missing(path: str, rank: int, world: int) -> ReadError:
    folder, name = os.path.split(path)
    match = RANK_FILE.match(name)
    other = name if match is None else name[: match.start("rank")] + str(rank).zfill(len(match["rank"])) + name[match.end("rank") :]
    return ReadError(f"the file of rank {rank} of {world} is missing", where=os.path.join(folder, other), fix=_AGAIN)


def _share(path: str) -> Share:
    stored = load(path, allowed=ALLOWED)
    refuse_another_rank(stored.saved_as, path, RANK_FILE)
    found = list(candidates(stored.value))
    if len(found) != 1:
        raise ReadError(f"{len(found)} optimizer states in this file, one expected", where=path, fix="save one optimizer a file")
    groups = found[0].optimizer.get("param_groups")
    state = entries_of(found[0].optimizer)
    if isinstance(groups, Mapping) or groups is None:
        named = [(name, hyper) for name, hyper in groups.items() if isinstance(hyper, Mapping)] if isinstance(groups, Mapping) else []
        groups = [{"params": list(state)}] if groups is None else [{**hyper, "params": [name]} for name, hyper in named]
    if not are_groups(groups):
        raise ReadError("`param_groups` is not a list of groups", where=path, fix=_AGAIN)
    entries: dict[Key, Mapping[str, object]] = {
        key: entry
        for key, entry in state.items()
        if (type(key) is int or type(key) is str) and isinstance(entry, Mapping) and all(type(slot) is str for slot in entry)
    }
    if len(entries) != len(state):
        raise ReadError("an entry of the state is not a mapping of slots under a number or a name", where=path, fix=_AGAIN)
    return Share(path, entries, groups, stored.source)


def _check_agree(shares: Sequence[Share]) -> None:
    """All processes must have been at the same step of the same run."""
    first = shares[0]
    for share in shares[1:]:
        sizes, wanted = [len(params_of(group)) for group in share.groups], [len(params_of(group)) for group in first.groups]
        if sizes != wanted:
            raise ReadError(
                f"groups of {sizes} parameters in this file, {wanted} in that of rank 0",
                where=share.path,
                fix="if each process holds other parameters (ZeroRedundancyOptimizer), save again after consolidate_state_dict(to=0); else " + _AGAIN,
            )
        for one, other in zip(share.groups, first.groups):
            if list(params_of(one)) != list(params_of(other)) or _plain(one) != _plain(other):
                raise ReadError("hyperparameters differ from the file of rank 0", where=share.path, fix=_AGAIN)
    steps = {share.path: _steps(share) for share in shares}
    stated = [step for found in steps.values() for step in found]
    common = max(set(stated), key=stated.count) if stated else None
    for path, found in steps.items():
        if common is not None and found and common not in found:
            raise ReadError(f"this file is of step {min(found):g}, the others of {common:g}", where=path, fix=_AGAIN)


def _plain(group: Mapping[str, object]) -> dict[str, object]:
    return plain_hyper({key: value for key, value in group.items() if key not in {"params", "param_names"}})


def _steps(share: Share) -> set[float]:
    found = set()
    for entry in share.state.values():
        step = local(entry.get("step"))
        if isinstance(step, TensorRef) and step.numel == 1:
            found.add(step.item())
        elif isinstance(step, (int, float)):
            found.add(float(step))
    return found


def _joined(shares: Sequence[Share], weights: Mapping[str, TensorRef]) -> dict[Key, dict[str, object]]:
    listed = dict.fromkeys(key for group in shares[0].groups for key in params_of(group))
    keys = [key for key in listed if type(key) is int or type(key) is str]
    known = set(keys)
    strays = [key for share in shares for key in share.state if key not in known]
    if strays:
        raise ReadError(f"an entry {strays[0]!r} that no group lists", where=shares[0].path, fix="save the whole state_dict()")
    if any(is_sharded(value) for share in shares for entry in share.state.values() for value in entry.values()):
        return {key: entry for key in keys if (entry := _from_shares(shares, key))}
    if not _one_d(shares):
        return _replicas(shares)
    sizes = _flat_sizes(shares, weights)
    return {key: entry for key in keys if (entry := _from_runs(shares, key, sizes))}


def _one_d(shares: Sequence[Share]) -> bool:
    return all(
        len(value.shape) <= 1 for share in shares for entry in share.state.values() for value in entry.values() if isinstance(value, TensorRef)
    )


def _replicas(shares: Sequence[Share]) -> dict[Key, dict[str, object]]:
    """Whole tensors in every file: DDP, where all are the same; else each process holds other parameters."""
    first = shares[0]
    for share in shares[1:]:
        if not _same(share, first):
            raise ReadError(
                "parameters differ from the file of rank 0, and no file records which (ZeroRedundancyOptimizer)",
                where=share.path,
                fix="call optimizer.consolidate_state_dict(to=0) and save optimizer.state_dict() on rank 0",
            )
    return {key: dict(entry) for key, entry in first.state.items()}


def _same(share: Share, first: Share) -> bool:
    """True when both hold the same tensors: shapes, checksums where the zip's directory has them, and the first numbers."""
    one, other = _tensors(share), _tensors(first)
    if [(at, ref.shape, ref.dtype) for at, ref in one] != [(at, ref.shape, ref.dtype) for at, ref in other]:
        return False
    pairs = list(zip((ref for _, ref in one), (ref for _, ref in other)))
    if any(None not in {a.crc32, b.crc32} and a.crc32 != b.crc32 for a, b in pairs):
        return False
    return all(bool((next(iter(a.chunks(1024))) == next(iter(b.chunks(1024)))).all()) for a, b in pairs)


def _tensors(share: Share) -> list[tuple[tuple[object, str], TensorRef]]:
    return [
        ((key, slot), value)
        for key, entry in share.state.items()
        for slot, value in sorted(entry.items())
        if isinstance(value, TensorRef) and value.numel > 1
    ]


def _flat_sizes(shares: Sequence[Share], weights: Mapping[str, TensorRef]) -> dict[int, int]:
    """Return the FlatParameters' lengths by their padded ones, where FSDP1 ran with use_orig_params=False; nothing where ids count parameters.

    Ids then count FlatParameters, each of which every process holds an equal run of.

    Raises:
        ReadError: they do, and no weights beside tell where one parameter ends.
    """
    keys = set(shares[0].state)
    if all(set(share.state) == keys for share in shares) and all(
        len({_length(share.state[key]) for share in shares}) == 1 and _length(shares[0].state[key]) for key in keys
    ):
        padded = [sum(_length(share.state[key]) for share in shares) for key in keys]
        sizes = rank_weights.lengths(weights, padded, len(shares))
        if sizes or len(shares) < 2:
            return sizes
        raise ReadError(
            "every process holds an equal run of every entry: FlatParameters (FSDP1, use_orig_params=False), whose borders no file records",
            where=shares[0].path,
            fix="load it once and save with FSDP.optim_state_dict(model, optimizer), which writes parameters by name",
        )
    return {}


def _length(entry: Mapping[str, object]) -> int:
    return max((value.numel for value in entry.values() if isinstance(value, TensorRef) and value.shape), default=0)


def _from_runs(shares: Sequence[Share], key: Key, sizes: Mapping[int, int]) -> dict[str, object]:
    held = [share.state[key] for share in shares if share.state.get(key)]
    entry: dict[str, object] = {}
    for slot in dict.fromkeys(slot for one in held for slot in one):
        values = [one[slot] for one in held if slot in one]
        runs = [value for value in values if isinstance(value, TensorRef) and value.shape]
        if runs:
            padded = sum(run.numel for run in runs)
            count = sizes.get(padded, padded)
            entry[slot] = cut(_up_to(runs, count), (count,), f"{shares[0].path}: entry {key}")
        else:
            entry[slot] = values[0]
    return entry


def _up_to(runs: Sequence[TensorRef], count: int) -> list[Piece]:
    """Return the runs one after another, without what lies past `count` elements (padding)."""
    pieces, at = [], 0
    for run in runs:
        pieces.append(Piece(run, 0, max(min(run.numel, count - at), 0)))
        at += run.numel
    return pieces


def _from_shares(shares: Sequence[Share], key: Key) -> dict[str, object]:
    entry: dict[str, object] = {}
    for slot in dict.fromkeys(slot for share in shares for slot in share.state.get(key, {})):
        values = [(share, share.state.get(key, {}).get(slot)) for share in shares]
        if not any(is_sharded(value) for _, value in values):
            entry[slot] = next((value for _, value in values if value is not None), None)
            continue
        for share, value in values:
            if not is_sharded(value):
                raise ReadError(f"this file has no {slot} for entry {key}, others have it", where=share.path, fix=_AGAIN)
        entry[slot] = whole([(share.path, cast(Inert, value)) for share, value in values], f"entry {key}, {slot}")
    return entry
