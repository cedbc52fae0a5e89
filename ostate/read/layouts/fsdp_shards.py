"""Tensors of which each process saved its own share, with what the share says of the whole: DTensor (FSDP2) and ShardedTensor (FSDP1).

Sources: torch/distributed/tensor/_dtensor_spec.py, torch/distributed/_shard/sharded_tensor/api.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

from ostate.core.tensors import Part, TensorRef
from ostate.errors import ReadError

from ..container.dcp_index import overlap
from ..pickle.globals import RECORD, TORCH_GLOBALS
from ..pickle.records import Inert, Named, Refusal

_SHARD = "torch.distributed._shard."
_AGAIN = "copy the whole folder again, with the files of every process"
_FULL = "save with get_optimizer_state_dict(model, optimizer) and torch.distributed.checkpoint, which record names and shapes"


def _inner_class(owner: object, name: object) -> Named:
    """What old pickle protocols write for a class within a class: `getattr(ShardedTensor, "ProcessGroupState")`."""
    if type(owner) is not Named or not owner.name.startswith(_SHARD) or type(name) is not str:
        raise Refusal("an attribute of something that is not a class of a sharded tensor")
    full = f"{owner.name}.{name}"
    return Named(full, lambda *args, **kwargs: Inert(full, args, kwargs))


ALLOWED: dict[str, object] = {
    **TORCH_GLOBALS,
    **dict.fromkeys((
        "torch.distributed._mesh_layout._FlatLayout", "torch.distributed.tensor._dtensor_spec.ShardOrderEntry",
        f"{_SHARD}sharded_tensor.api.ShardedTensor", f"{_SHARD}sharded_tensor.shard.Shard", f"{_SHARD}metadata.ShardMetadata",
        f"{_SHARD}sharded_tensor.metadata.ShardedTensorMetadata", f"{_SHARD}sharded_tensor.metadata.MEM_FORMAT_ENCODING",
        f"{_SHARD}sharding_spec.chunk_sharding_spec.ChunkShardingSpec", f"{_SHARD}sharding_spec.api.EnumerableShardingSpec",
        f"{_SHARD}sharding_spec.api.DevicePlacementSpec", "torch.distributed.remote_device._remote_device",
    ), RECORD),
    **dict.fromkeys(("builtins.getattr", "__builtin__.getattr"), _inner_class),
}  # fmt: skip
"""What a process's own file may name besides a state dict's globals; nothing of it is imported or called."""


class MissingRank(Exception):
    """A share says that there are more processes than files: which one, and of how many."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__(rank, world)
        self.rank = rank
        self.world = world


def is_sharded(value: object) -> TypeGuard[Inert]:
    """True for a tensor of which a process holds a share."""
    return type(value) is Inert and value.name.rpartition(".")[2] in {"DTensor", "ShardedTensor"}


def local(value: object) -> object:
    """Return what this process holds of a DTensor; anything else as it is."""
    return _fields(value).get("_local_tensor") if is_sharded(value) and value.name.endswith(".DTensor") else value


def whole(values: Sequence[tuple[str, Inert]], what: str) -> TensorRef:
    """Put the shares of one tensor together.

    Args:
        values: (path, share) of each process, in rank order.
        what: which tensor, for messages.

    Raises:
        MissingRank: the shares count more processes than there are.
        ReadError: the shares do not make up the whole, or are split in more than one dimension.
    """
    path, first = values[0]
    shape = first.kwargs.get("shape")
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise ReadError(f"{what}: the shape of the whole is not recorded", where=path, fix=_FULL)
    for other, value in values:
        if value.kwargs.get("shape") != shape or value.name != first.name:
            raise ReadError(f"{what}: shape or kind differs from the file of rank 0", where=other, fix=_AGAIN)
    shares = list(_dtensor_shares(values, shape, what) if first.name.endswith(".DTensor") else _shards(values, what))
    kinds = {(ref.dtype, ref.swapped) for _, ref in shares}
    parts: list[Part] = []
    for starts, ref in shares:
        if len(ref.shape) != len(shape) or len(starts) != len(shape):
            raise ReadError(f"{what}: a process's part of shape {ref.shape}, of a tensor of shape {shape}", where=path, fix=_AGAIN)
        parts += [part._replace(starts=starts) for part in ref.parts if ref.numel]
    if len(kinds) != 1 or sum(math.prod(part.sizes) for part in parts) != math.prod(shape) or _outside(parts, shape, path):
        raise ReadError(
            f"{what}: the parts of all processes do not make up the shape {shape}", where=path, fix="a file is from another run: " + _AGAIN
        )
    dtype, swapped = kinds.pop()
    return TensorRef(dtype, shape, tuple(parts), swapped)


def _outside(parts: Sequence[Part], shape: tuple[int, ...], where: str) -> bool:
    reach = any(start < 0 or start + size > extent for part in parts for start, size, extent in zip(part.starts, part.sizes, shape))
    return reach or overlap(parts, shape, where)


def _fields(value: object) -> Mapping[str, object]:
    state = value.state[-1] if type(value) is Inert and isinstance(value.state, tuple) and value.state else getattr(value, "state", None)
    return state if isinstance(state, Mapping) else {}


def _dtensor_shares(values: Sequence[tuple[str, Inert]], shape: tuple[int, ...], what: str) -> Iterator[tuple[tuple[int, ...], TensorRef]]:
    """Yield (start, share): rank order is the order along the split dimension."""
    path = values[0][0]
    split, world = _placements(values[0][1], path)
    if world > len(values):
        raise MissingRank(len(values), world)
    if split and split[0] >= len(shape):
        raise ReadError(f"{what}: split along dimension {split[0]}, of the shape {shape}", where=path, fix=_AGAIN)
    if len(split) > 1:
        raise ReadError(f"{what}: split over several mesh dimensions (tensor parallelism with FSDP)", where=path, fix=_FULL)
    at = 0
    for other, value in values:
        ref = local(value)
        if not isinstance(ref, TensorRef) or len(ref.shape) != len(shape):
            raise ReadError(f"{what}: no part of it in this file", where=other, fix=_AGAIN)
        if not split:
            yield (0,) * len(shape), ref
            return
        if at == shape[split[0]]:
            return  # hybrid sharding: the other processes hold copies
        if ref.numel:
            yield tuple(at if axis == split[0] else 0 for axis in range(len(shape))), ref
            at += ref.shape[split[0]]


def _placements(value: Inert, where: str) -> tuple[list[int], int]:
    """Return the dimensions of the tensor that are split, and the number of processes."""
    spec = _fields(value).get("_spec")
    fields = _fields(spec)
    placements = fields.get("placements")
    if type(spec) is not Inert or not isinstance(placements, (list, tuple)):
        raise ReadError("a DTensor of a kind that is not known", where=where, fix=_FULL)
    split: list[int] = []
    for placement in placements:
        kind = placement.name.rpartition(".")[2] if type(placement) is Inert else ""
        if kind not in {"Shard", "Replicate"}:
            raise ReadError(f"a tensor split as {kind or 'nothing known'} (tensor parallelism)", where=where, fix=_FULL)
        if kind == "Shard":
            dim = _fields(placement).get("dim", placement.args[0] if placement.args else None)
            if type(dim) is not int or dim < 0:
                raise ReadError("a sharded tensor that does not say along which dimension it was split", where=where, fix=_FULL)
            split.append(dim)
    mesh = _fields(fields.get("mesh"))
    ranks, held = mesh.get("_flatten_rank_map"), mesh.get("mesh", mesh.get("_rank_map"))
    return split, len(ranks) if isinstance(ranks, tuple) else held.numel if isinstance(held, TensorRef) else 0


def _shards(values: Sequence[tuple[str, Inert]], what: str) -> Iterator[tuple[tuple[int, ...], TensorRef]]:
    """Yield (start, share) of a ShardedTensor: (local shards, metadata, group, spec, rrefs)."""
    for path, value in values:
        state = value.state
        if not isinstance(state, tuple) or len(state) < 3 or not isinstance(state[0], list):
            raise ReadError(f"{what}: a sharded tensor of a kind that is not known", where=path, fix=_FULL)
        world = _fields(state[2]).get("global_world_size")
        if isinstance(world, int) and world > len(values):
            raise MissingRank(len(values), world)
        for shard in state[0]:
            ref, starts = _fields(shard).get("tensor"), _fields(_fields(shard).get("metadata")).get("shard_offsets")
            if not isinstance(ref, TensorRef) or not isinstance(starts, list) or not all(type(start) is int for start in starts):
                raise ReadError(f"{what}: a process's part without its place (shard_offsets)", where=path, fix=_FULL)
            if ref.numel:
                yield tuple(starts), ref
