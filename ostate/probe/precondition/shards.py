"""One device, DDP and FSDP2 through one path: every tensor is seen as its local shard and its place in the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ostate.core.files import is_remote
from ostate.core.tensors import ITEMSIZE, Part, Slot, TensorRef, decode_numbers
from ostate.errors import ProbeError

try:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
except ImportError:  # a build of torch without distributed: nothing can be sharded there
    DTensor = None  # type: ignore[assignment,misc]


class ShardPlace(NamedTuple):
    """Where a rank's shard lies in the whole tensor."""

    shape: tuple[int, ...]
    """Of the local shard; may hold no element."""
    offset: tuple[int, ...]
    whole: tuple[int, ...]
    shards: int
    """How many different shards the whole is cut into; 1 for a plain tensor."""


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """True for a DTensor, whatever its placements."""
    return DTensor is not None and isinstance(tensor, DTensor)


def place_of(tensor: Tensor) -> ShardPlace:
    """Return where this rank's part of the tensor lies."""
    whole = tuple(tensor.shape)
    if not is_sharded(tensor):
        return ShardPlace(whole, (0,) * len(whole), whole, 1)
    shape, offset = compute_local_shape_and_global_offset(whole, tensor.device_mesh, tensor.placements)
    if math.prod(shape) == 0:
        offset = (0,) * len(whole)
    cuts = [tensor.device_mesh.size(axis) for axis, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    return ShardPlace(tuple(shape), tuple(offset), whole, math.prod(cuts))


def local(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return this rank's shard (the tensor itself when it is not a DTensor), laid out as `like` is.

    Raises:
        ProbeError: a whole tensor where `like` is sharded, or the other way round.
    """
    if like is not None and is_sharded(tensor) != is_sharded(like):
        raise ProbeError(
            "one of parameter and gradient is sharded, the other is not",
            fix="pass gradients as the sharded model makes them (`parameter.grad`)",
        )
    if not is_sharded(tensor):
        return tensor
    if like is not None and is_sharded(like) and tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    own: Tensor = tensor.to_local()
    return own


def like_parameter(values: Tensor, parameter: Tensor) -> Tensor:
    """Return local values as a tensor of the parameter's own sort: a DTensor where the parameter is one."""
    if not is_sharded(parameter):
        return values
    return DTensor.from_local(values, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def read_local(slot: Slot, place: ShardPlace, where: str) -> tuple[np.ndarray, int]:
    """Read a rank's part of a slot, and no byte of another's where the slot is stored plain.

    Args:
        slot: the whole tensor.
        place: this rank's part of the parameter.
        where: parameter and slot, for a message.

    Returns:
        The values (float32, or float64 where stored so), of `place.shape`, in memory of their own; and the bytes taken from storage.

    Raises:
        ProbeError: a slot of another shape than the parameter, the same number of elements or not; one that holds no real numbers.
    """
    if tuple(slot.shape) != place.whole:
        fix = "the state belongs to another model or rank: check which adapter was loaded"
        raise ProbeError(f"the moment has shape {tuple(slot.shape)}, the parameter {place.whole}", where=where, fix=fix)
    if math.prod(place.shape) == 0:
        return np.zeros(place.shape, np.float32), 0
    if isinstance(slot, TensorRef) and slot.run is not None and place.shape != place.whole:
        path, start = slot.run
        size = ITEMSIZE[slot.dtype]
        if place.shape[1:] == place.whole[1:]:
            start += place.offset[0] * math.prod(place.whole[1:]) * size
            part = TensorRef(dtype=slot.dtype, shape=place.shape, parts=(_run(path, start, place.shape),))
            return np.array(part.read()), part.nbytes
        if not is_remote(path):
            return _strided(path, start, slot.dtype, place), math.prod(place.shape) * size
    values = slot.read().reshape(place.whole)
    if values.dtype.kind != "f":
        raise ProbeError(f"the moment holds {values.dtype} in place of real numbers", where=where, fix="decode it first: codes look like numbers")
    window = tuple(slice(at, at + length) for at, length in zip(place.offset, place.shape))
    stored = slot.nbytes if isinstance(slot, TensorRef) else values.nbytes
    return np.array(values[window]), stored


def _run(path: str, start: int, shape: tuple[int, ...]) -> Part:
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Part(path, start, shape, strides, (0,) * len(shape))


def _strided(path: str, start: int, dtype: str, place: ShardPlace) -> np.ndarray:
    # Columns of a tensor are many short runs: a map touches only their pages, where a read each would cost a system call a row.
    width = ITEMSIZE[dtype]
    whole = np.memmap(path, mode="r", offset=start, dtype=np.dtype((np.void, width)), shape=place.whole)
    window = tuple(slice(at, at + length) for at, length in zip(place.offset, place.shape))
    return np.array(decode_numbers(whole[window].tobytes(), dtype)).reshape(place.shape)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that share one model's shards; none for a single process or DDP."""

    groups: tuple[dist.ProcessGroup | None, ...] = ()
    size: int = 1

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Ranks:
        """Return the ranks over which these tensors are spread."""
        meshes = {tensor.device_mesh for tensor in tensors if is_sharded(tensor)}
        if not meshes:
            return cls()
        largest = max(meshes, key=lambda mesh: mesh.size())
        if len(meshes) > 1 or largest.size() == dist.get_world_size():
            return cls((dist.group.WORLD,), dist.get_world_size())
        return cls(tuple(largest.get_group(axis) for axis in range(largest.ndim)), largest.size())

    def copies(self, place: ShardPlace) -> float:
        """How many ranks hold the same shard: what a sum over all ranks must be divided by."""
        return self.size / place.shards

    def total(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place; the same bits on every rank."""
        for group in self.groups:
            dist.all_reduce(values, group=group)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Return every rank's values, stacked in rank order: (ranks, *shape)."""
        stacked = values[None]
        for group in self.groups:
            parts = [torch.empty_like(stacked) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, stacked.contiguous(), group=group)
            stacked = torch.cat(parts)
        return stacked
