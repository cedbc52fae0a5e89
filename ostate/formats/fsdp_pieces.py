"""One file a process, each with its own share: raw `optimizer.state_dict()` under FSDP2 (DTensor) or FSDP1 (1-D pieces).

`optimizer_rank0.pt`, `optimizer_0_rank0.bin` (Accelerate with use_dcp=False), `optim_world_size_8_rank_0.pt` (verl): names differ, `rank` and a
number are in all of them. FSDP2: each tensor says its whole shape and how it is split (torch/distributed/tensor). FSDP1 with
use_orig_params=True: 1-D runs of each parameter, nothing where a process has no share; one after another in rank order they are the parameter.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ..errors import ReadError
from ..model import Part, RawState, SourceFile, TensorRef
from .assemble import Key, assemble
from .flat import Piece, cut
from .hyper import plain_hyper
from .pickles import RECORD, TORCH_GLOBALS, Inert
from .torch_file import candidates
from .torchsave import load
from .zero_files import OPTIM

RANK_FILE = re.compile(r"^(?P<head>.*?)rank[_-]?(?P<rank>\d+)(?P<tail>\D.*)?\.(?P<kind>pt|bin|pth|ckpt)$")
_WORLD = re.compile(r"world[_-]?size[_-]?(\d+)")
_ALLOWED = {
    **TORCH_GLOBALS,
    **dict.fromkeys((
        "torch.distributed._mesh_layout._FlatLayout", "torch.distributed.tensor._dtensor_spec.ShardOrderEntry",
        "torch.distributed.tensor._dtensor_spec.ShardOrder",
    ), RECORD),
}  # fmt: skip
_AGAIN = "copy the whole folder again, the files of every process"
_FULL = "save with get_optimizer_state_dict(model, optimizer) and torch.distributed.checkpoint, which record names and shapes"


@dataclass(frozen=True)
class Share:
    """What one process saved."""

    path: str
    state: Mapping[Any, Mapping[str, Any]]
    groups: Sequence[Mapping[str, Any]]
    file: SourceFile


def families(names: Iterable[str]) -> dict[tuple[str, str, str], dict[int, str]]:
    """Sort file names that differ only in the rank: (before it, after it, extension) -> rank -> name."""
    found: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in names:
        match = RANK_FILE.match(name)
        if match and not OPTIM.match(name):
            found.setdefault((match["head"], match["tail"] or "", match["kind"]), {})[int(match["rank"])] = name
    return found


def detect(folder: str) -> bool:
    """True for a folder where several processes each left a share of an optimizer."""
    return bool(_optimizers(folder))


def _optimizers(folder: str) -> dict[tuple[str, str, str], dict[int, str]]:
    """Return the families whose files hold an optimizer's state."""
    found = {}
    for family, names in families(os.listdir(folder)).items():
        first = os.path.join(folder, names[min(names)])
        if ("model" in family[0] and "optim" not in family[0]) or not os.path.isfile(first) or not _is_torch(first):
            continue
        states = list(candidates(load(first, allowed=_ALLOWED).value))
        if states and (len(names) > 1 or min(names) > 0 or _sharded(states[0].optimizer)):
            found[family] = names
    return found


def _is_torch(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"


def _sharded(optimizer: Mapping[str, Any]) -> bool:
    return any(_is_dtensor(value) for entry in optimizer["state"].values() if isinstance(entry, Mapping) for value in entry.values())


def _is_dtensor(value: Any) -> bool:
    return type(value) is Inert and value.name.endswith(".DTensor")


def read(folder: str, *, optimizer: int | None = None) -> RawState:
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
    if len(listed) > 1 and optimizer is None:
        names = ", ".join(f"{number}: {found[one][min(found[one])]}" for number, one in enumerate(listed))
        raise ReadError(f"{len(listed)} optimizers lie here ({names})", where=folder, fix="choose one with --optimizer K")
    if not 0 <= (optimizer or 0) < len(listed):
        raise ReadError(f"there is no optimizer {optimizer or 0}, only {len(listed)}", where=folder, fix="give the folder with the rank files")
    by_rank = found[listed[optimizer or 0]]
    _check_ranks(folder, by_rank, listed[optimizer or 0])
    shares = [_share(os.path.join(folder, by_rank[rank])) for rank in sorted(by_rank)]
    _check_agree(shares)
    state = _joined(shares)
    return assemble(
        state,
        shares[0].groups,
        source=folder,
        layout="fsdp-ranks",
        files=[share.file for share in shares],
        recorded="name-keyed",
        flat=not any(_is_dtensor(value) for share in shares for entry in share.state.values() for value in entry.values()) and _one_d(shares),
        facts={"world_size": len(shares)},
    )


def _check_ranks(folder: str, names: Mapping[int, str], family: tuple[str, str, str]) -> None:
    told = _WORLD.search(family[0] + family[1])
    world = int(told.group(1)) if told else max(names) + 1
    for rank in range(world):
        if rank not in names:
            some = RANK_FILE.match(names[min(names)])
            name = names[min(names)]
            missing = name if some is None else name[: some.start("rank")] + str(rank) + name[some.end("rank") :]
            raise ReadError(f"the file of rank {rank} of {world} is missing", where=os.path.join(folder, missing), fix=_AGAIN)
    if extra := [rank for rank in names if rank >= world]:
        raise ReadError(
            f"a file of rank {extra[0]}, but the run had {world} processes",
            where=os.path.join(folder, names[extra[0]]),
            fix="remove what another run left",
        )


def _share(path: str) -> Share:
    stored = load(path, allowed=_ALLOWED)
    found = list(candidates(stored.value))
    if len(found) != 1:
        raise ReadError(f"{len(found)} optimizer states in this file, one wanted", where=path, fix="save one optimizer a file")
    groups = found[0].optimizer.get("param_groups")
    state = found[0].optimizer["state"]
    if isinstance(groups, Mapping) or groups is None:
        groups = [{"params": list(state)}] if groups is None else [{**hyper, "params": [name]} for name, hyper in groups.items()]
    return Share(path, state, groups, stored.source)


def _check_agree(shares: Sequence[Share]) -> None:
    """All processes must have been at the same step of the same run."""
    first = shares[0]
    for share in shares[1:]:
        sizes, wanted = [len(group["params"]) for group in share.groups], [len(group["params"]) for group in first.groups]
        if sizes != wanted:
            raise ReadError(
                f"groups of {sizes} parameters in this file, {wanted} in that of rank 0",
                where=share.path,
                fix="if each process holds other parameters (ZeroRedundancyOptimizer), save again after consolidate_state_dict(to=0); else " + _AGAIN,
            )
        for one, other in zip(share.groups, first.groups):
            if list(one["params"]) != list(other["params"]) or _plain(one) != _plain(other):
                raise ReadError("other hyperparameters than in the file of rank 0", where=share.path, fix=_AGAIN)
    steps = {share.path: _steps(share) for share in shares}
    told = [step for found in steps.values() for step in found]
    common = max(set(told), key=told.count) if told else None
    for path, found in steps.items():
        if common is not None and found and common not in found:
            raise ReadError(f"this file is of step {min(found):g}, the others of {common:g}", where=path, fix=_AGAIN)


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    return plain_hyper({key: value for key, value in group.items() if key not in {"params", "param_names"}})


def _steps(share: Share) -> set[float]:
    found = set()
    for entry in share.state.values():
        step = _local(entry.get("step"))
        if isinstance(step, TensorRef) and step.numel == 1:
            found.add(step.item())
        elif isinstance(step, (int, float)):
            found.add(float(step))
    return found


def _joined(shares: Sequence[Share]) -> dict[Key, dict[str, object]]:
    keys = list(dict.fromkeys(key for group in shares[0].groups for key in group["params"]))
    strays = [key for share in shares for key in share.state if key not in set(keys)]
    if strays:
        raise ReadError(f"an entry {strays[0]!r} that no group lists", where=shares[0].path, fix="save the whole state_dict()")
    if any(_is_dtensor(value) for share in shares for entry in share.state.values() for value in entry.values()):
        return {key: entry for key in keys if (entry := _from_dtensors(shares, key))}
    if not _one_d(shares):
        return _replicas(shares)
    _refuse_flat_parameters(shares)
    return {key: entry for key in keys if (entry := _from_runs(shares, key))}


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
                "other parameters than in the file of rank 0, and which is in no file (ZeroRedundancyOptimizer)",
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


def _tensors(share: Share) -> list[tuple[tuple[Any, str], TensorRef]]:
    return [
        ((key, slot), value)
        for key, entry in share.state.items()
        for slot, value in sorted(entry.items())
        if isinstance(value, TensorRef) and value.numel > 1
    ]


def _refuse_flat_parameters(shares: Sequence[Share]) -> None:
    """FSDP1 with use_orig_params=False: ids count FlatParameters, each of which every process holds an equal share of."""
    if len(shares) < 2:
        return
    keys = set(shares[0].state)
    if all(set(share.state) == keys for share in shares) and all(
        len({_length(share.state[key]) for share in shares}) == 1 and _length(shares[0].state[key]) for key in keys
    ):
        raise ReadError(
            "every process holds an equal run of every entry: FlatParameters (FSDP1, use_orig_params=False), whose borders are in no file",
            where=shares[0].path,
            fix="load it once and save with FSDP.optim_state_dict(model, optimizer), which writes parameters by name",
        )


def _length(entry: Mapping[str, Any]) -> int:
    return max((value.numel for value in entry.values() if isinstance(value, TensorRef) and value.shape), default=0)


def _from_runs(shares: Sequence[Share], key: Key) -> dict[str, object]:
    held = [share.state[key] for share in shares if share.state.get(key)]
    entry: dict[str, object] = {}
    for slot in dict.fromkeys(slot for one in held for slot in one):
        values = [one[slot] for one in held if slot in one]
        runs = [value for value in values if isinstance(value, TensorRef) and value.shape]
        if runs:
            count = sum(run.numel for run in runs)
            entry[slot] = cut([Piece(run, 0, run.numel) for run in runs], (count,), f"{shares[0].path}: entry {key}")
        else:
            entry[slot] = values[0]
    return entry


def _from_dtensors(shares: Sequence[Share], key: Key) -> dict[str, object]:
    entry: dict[str, object] = {}
    for slot in dict.fromkeys(slot for share in shares for slot in share.state.get(key, {})):
        values = [(share, share.state.get(key, {}).get(slot)) for share in shares]
        if not any(_is_dtensor(value) for _, value in values):
            entry[slot] = next(value for _, value in values if value is not None)
            continue
        for share, value in values:
            if not _is_dtensor(value):
                raise ReadError(f"no {slot} of entry {key} in this file, others have it", where=share.path, fix=_AGAIN)
        entry[slot] = _whole([(share, cast(Inert, value)) for share, value in values], f"entry {key}, {slot}")
    return entry


def _local(value: Any) -> Any:
    """Return what this process holds of a DTensor; anything else as it is."""
    if not _is_dtensor(value):
        return value
    inner = value.state[-1] if isinstance(value.state, tuple) else value.state
    return inner.get("_local_tensor") if isinstance(inner, Mapping) else None


def _placements(value: Inert, where: str) -> tuple[tuple[int, ...], list[int | None], int]:
    """Return the whole shape, per mesh dimension the tensor dimension that it splits (None: copies), and the number of processes."""
    inner = value.state[-1] if isinstance(value.state, tuple) else value.state
    spec = inner.get("_spec") if isinstance(inner, Mapping) else None
    shape = value.kwargs.get("shape")
    if type(spec) is not Inert or type(spec.state) is not dict or type(shape) is not tuple:
        raise ReadError("a DTensor of a kind that is not known", where=where, fix=_FULL)
    split: list[int | None] = []
    for placement in spec.state.get("placements") or ():
        kind = placement.name.rpartition(".")[2] if type(placement) is Inert else ""
        if kind not in {"Shard", "Replicate"}:
            raise ReadError(f"a tensor split as {kind or 'nothing known'} (tensor parallelism)", where=where, fix=_FULL)
        given = placement.state.get("dim") if isinstance(placement.state, dict) else placement.args[0] if placement.args else None
        split.append(given if kind == "Shard" else None)
    mesh = spec.state.get("mesh")
    fields = mesh.state if type(mesh) is Inert and isinstance(mesh.state, dict) else {}
    ranks = fields.get("_flatten_rank_map")
    held = fields.get("mesh", fields.get("_rank_map"))
    world = len(ranks) if isinstance(ranks, tuple) else held.numel if isinstance(held, TensorRef) else 0
    return shape, split, world


def _whole(values: Sequence[tuple[Share, Inert]], what: str) -> TensorRef:
    """Put the shares of one tensor together: rank order is the order along the split dimension."""
    where = values[0][0].path
    shape, split, world = _placements(values[0][1], where)
    if world > len(values):
        path = values[-1][0].path
        match = RANK_FILE.match(os.path.basename(path))
        name = os.path.basename(path)
        missing = name if match is None else name[: match.start("rank")] + str(len(values)) + name[match.end("rank") :]
        raise ReadError(f"the file of rank {len(values)} of {world} is missing", where=os.path.join(os.path.dirname(path), missing), fix=_AGAIN)
    dims = [dim for dim in split if dim is not None]
    if len(dims) > 1:
        raise ReadError(f"{what}: split over several mesh dimensions (tensor parallelism with FSDP)", where=where, fix=_FULL)
    parts: list[Part] = []
    at, dtype, swapped = 0, "", False
    for share, value in values:
        local = _local(value)
        if not isinstance(local, TensorRef) or value.kwargs.get("shape") != shape:
            raise ReadError(f"{what}: another shape than in the file of rank 0", where=share.path, fix=_AGAIN)
        if dtype not in {"", local.dtype} or len(local.shape) != len(shape):
            raise ReadError(f"{what}: another dtype or rank than in the file of rank 0", where=share.path, fix=_AGAIN)
        dtype, swapped = local.dtype, local.swapped
        if not dims:
            return local
        if at == shape[dims[0]]:
            break  # hybrid sharding: the other processes hold copies
        if local.numel:
            starts = tuple(at if axis == dims[0] else 0 for axis in range(len(shape)))
            parts += [replace(part, starts=starts) for part in local.parts]
            at += local.shape[dims[0]]
    if at != shape[dims[0]] or sum(math.prod(part.sizes) for part in parts) != math.prod(shape):
        raise ReadError(
            f"{what}: the processes hold {at} of {shape[dims[0]]} rows", where=where, fix="a rank is missing, or of another run: " + _AGAIN
        )
    return TensorRef(dtype, shape, tuple(parts), swapped)
