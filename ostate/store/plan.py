"""Where every tensor of a named file will lie, and in how many files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ostate.core import limits
from ostate.core.names import twins
from ostate.core.naming import NamedState
from ostate.core.tensors import ITEMSIZE, Slot, TensorRef
from ostate.errors import StoreError

from .header import Tensor

SHARD_BYTES = 50_000_000_000
"""Tensor bytes a file, as transformers cuts models."""
HEADER_BYTES = 90_000_000
"""JSON a file; the safetensors library refuses 100 MB."""
_ROW = 700
"""Bytes of JSON a tensor takes besides three times its name, at most: its row, its part of the manifest, escapes."""
_FLOATS = {"F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"}
_KEPT = {"F16", "BF16"}


@dataclass(frozen=True, slots=True)
class Job:
    """One slot to be copied: bytes [start, start + nbytes) of the data."""

    name: str
    slot: str
    source: Slot
    tensor: Tensor

    @property
    def raw(self) -> TensorRef | None:
        """The source, when its bytes can be copied as they are."""
        source = self.source
        if isinstance(source, TensorRef) and source.dtype == self.tensor.dtype and source.run is not None:
            return source
        return None


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file: its parameters, its steps (which lie first, in one run), its slots."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    steps: bytes
    steps_at: int
    jobs: tuple[Job, ...]
    nbytes: int
    """Of the data."""


def stored_dtype(slot: Slot, *, keep: bool) -> str:
    """Return the dtype a slot is written in: float32, but float64 and whole numbers stay, 16-bit floats with `keep`."""
    if slot.dtype in _FLOATS:
        return slot.dtype if keep and slot.dtype in _KEPT else "F32"
    return slot.dtype


def plan(state: NamedState, names: Sequence[str], *, keep: bool) -> FilePlan:
    """Lay out one file: tensors by item size, then the steps, then source order."""
    rows: list[tuple[int, str, str, tuple[int, ...], str, Slot | None]] = []
    for name in names:
        parameter = state.parameters[name]
        if parameter.step is not None:
            rows.append((ITEMSIZE["F32"], f"state.{name}.step", "F32", (), name, None))
        for slot, source in parameter.slots.items():
            dtype = stored_dtype(source, keep=keep)
            rows.append((ITEMSIZE[dtype], f"state.{name}.{slot}", dtype, tuple(source.shape), slot, source))
    rows.sort(key=lambda row: (-row[0], row[5] is not None))
    tensors: list[Tensor] = []
    jobs: list[Job] = []
    steps: list[bytes] = []
    at = steps_at = 0
    owner = {f"state.{name}.{slot}": name for name in names for slot in state.parameters[name].slots}
    for _, key, dtype, shape, label, slot_source in rows:
        tensor = Tensor(key, dtype, shape, at)
        tensors.append(tensor)
        if slot_source is None:
            steps_at = at if not steps else steps_at
            steps.append(struct.pack("<f", state.parameters[label].step))
        else:
            jobs.append(Job(owner[key], label, slot_source, tensor))
        at = tensor.end
    return FilePlan(tuple(names), tuple(tensors), b"".join(steps), steps_at, tuple(sorted(jobs, key=_place)), at)


def _place(job: Job) -> tuple[str, int]:
    """Source file and offset: reading then goes forward through each file."""
    source = job.source
    if isinstance(source, TensorRef) and source.parts:
        return source.parts[0].file, source.parts[0].offset
    return "", 0


def cut(state: NamedState, *, keep: bool, shard_bytes: int) -> list[tuple[str, ...]]:
    """Return the parameters' names, file by file, in order; a parameter never lies in two files."""
    shards: list[list[str]] = [[]]
    data = head = 0
    for name, parameter in state.parameters.items():
        size = sum(_nbytes(slot, keep) for slot in parameter.slots.values())
        rows = sum(_ROW + 4 * len(name.encode(errors="replace")) for _ in range(len(parameter.slots) + 2)) + 2 * len(str(dict(parameter.scalars)))
        if shards[-1] and (data + size > shard_bytes or head + rows > HEADER_BYTES):
            shards.append([])
            data = head = 0
        shards[-1].append(name)
        data, head = data + size, head + rows
    return [tuple(shard) for shard in shards]


def _nbytes(slot: Slot, keep: bool) -> int:
    count = 1
    for length in slot.shape:
        count *= length
    return count * ITEMSIZE[stored_dtype(slot, keep=keep)]


def shard_path(out: Path, index: int, of: int) -> Path:
    """Return the path of one shard, as Hugging Face numbers them."""
    return out if of == 1 else out.with_name(f"{out.name.removesuffix('.safetensors')}-{index:05d}-of-{of:05d}.safetensors")


def index_path(out: Path) -> Path:
    """Return the path of the index of `out`'s shards."""
    return out.with_name(out.name + ".index.json")


def check_names(state: NamedState) -> None:
    """Refuse a state that the format cannot hold.

    Raises:
        StoreError: a parameter in no group or two, two tensors of one key or a key that no reader takes, an impossible step.
    """
    keys = [f"state.{name}.{slot}" for name, parameter in state.parameters.items() for slot in ("step", *parameter.slots)]
    longest = max(keys, key=len, default="")
    if len(longest) > limits.NAME:
        what = f"a name of {len(longest)} letters, with `state.` and the slot: {limits.NAME} are read back"
        raise StoreError(what, where=f"{longest[:80]}…", fix="rename that parameter, or pass a shorter --adapter-name")
    if len(set(keys)) != len(keys):
        twice = twins(keys)[0]
        raise StoreError("two tensors would have one key", where=twice, fix="report this layout")
    members = [set(group.names or ()) for group in state.groups]
    grouped = [name for group in state.groups for name in group.names or ()]
    for name, parameter in state.parameters.items():
        if not name or not 0 <= parameter.group < len(members) or name not in members[parameter.group]:
            raise StoreError("the parameter is not in the group that it names", where=name, fix="report this layout")
        if parameter.step is not None and not 0 <= parameter.step < 3.4e38:
            raise StoreError(f"a step of {parameter.step} is not a count of updates", where=name, fix="pass --step N")
    if len(set(grouped)) != len(grouped):
        twice = twins(grouped)[0]
        raise StoreError("a name is in the groups twice", where=twice, fix="report this layout")
