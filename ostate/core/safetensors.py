"""The header of a safetensors file, read by one reader for adapters, weights and named files: u64 length, JSON, then the tensors without holes.

It refuses what the safetensors library refuses (safetensors/src/tensor.rs, `Metadata::validate`): holes, overlaps, bytes after the last tensor.
Two readers that disagreed on a file could see two different states in it.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NamedTuple

from ostate.errors import OstateError, ReadError

from . import limits
from .files import read_at, size_of
from .kinds import kind_of_head
from .tensors import ITEMSIZE, Part, TensorRef

if TYPE_CHECKING:
    from typing import TypedDict, TypeGuard

    class _Row(TypedDict):
        """What the header says of one tensor, once it is looked at."""

        dtype: str
        shape: list[int]
        data_offsets: list[int]


LARGEST_HEADER = 100_000_000
"""Bytes of JSON; the safetensors library refuses more."""
MOST_AXES = 64
"""As in torch."""
SPARSEST = 8
"""Bytes of a sound header for each list or table in it: its rows take sixteen, and names may hold a few brackets."""


class Head(NamedTuple):
    """What the header says, and where the tensors' bytes start."""

    path: str
    tensors: dict[str, TensorRef]
    """By key, in the header's order."""
    metadata: dict[str, str]
    """`__metadata__`."""
    raw: bytes
    """The JSON, with the spaces behind it."""
    data_start: int
    """Offset of the first tensor byte in the file."""
    data_bytes: int
    """Bytes of all tensors."""


def read_head(path: str, *, error: type[OstateError] = ReadError, fix: str = "copy the file again, or choose another one") -> Head:
    """Read and check the header, without reading a tensor.

    Args:
        path: the file.
        error: what to raise for a header that is not sound.
        fix: what to do about it.

    Raises:
        ReadError: no such file.
        OstateError: `error`: not a safetensors file, or its header contradicts itself or the file's size.
    """
    size = size_of(path)
    length = int.from_bytes(read_at(path, 0, 8), "little") if size >= 8 else 0
    if size < 8 or length > size - 8 or not 2 <= length <= LARGEST_HEADER:
        kind = kind_of_head(read_at(path, 0, min(size, 512)))
        if kind is not None and kind[0] != "a safetensors file":
            raise error(f"not a safetensors file: it is {kind[0]}", where=path, fix=kind[1] or fix)
        raise error(f"not a safetensors file, or cut short: {size} bytes, header of {length}", where=path, fix=fix)
    raw = read_at(path, 8, length)
    if raw.count(b"[") + raw.count(b"{") > 1000 + length // SPARSEST:
        raise error("the safetensors header is not a list of tensors", where=path, fix=fix)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as damage:
        raise error(f"the safetensors header is not JSON: {damage}", where=path, fix=fix) from damage
    if not isinstance(header, dict):
        raise error("the safetensors header is not a JSON object", where=path, fix=fix)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise error("__metadata__ must map strings to strings", where=path, fix=fix)
    if len(header) > limits.TENSORS or max(map(len, header), default=0) > limits.NAME:
        most = f"at most {limits.TENSORS} tensors, with names of {limits.NAME} letters, are expected"
        raise error(f"{len(header)} tensors in the safetensors header; {most}", where=path, fix=fix)
    tensors: dict[str, TensorRef] = {}
    for key, row in header.items():
        what = _unsound(row)
        if what:
            raise error(what, where=f"{path}: {key!r}", fix=fix)
        tensors[key] = _tensor(path, row, 8 + length)
    end = _end(path, tensors, 8 + length, error, fix)
    if 8 + length + end != size:
        raise error(f"{size} bytes long where the header describes {8 + length + end}", where=path, fix="the copy is incomplete: copy it again")
    return Head(path, tensors, metadata, raw, 8 + length, end)


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object as a dict; two readers of a key that stands twice could see two different files.

    Raises:
        ValueError: a key stands twice.
    """
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _unsound(row: object) -> str:
    """Return what is wrong with a tensor's row of the header; nothing where it is sound."""
    if not isinstance(row, dict) or not {"dtype", "shape", "data_offsets"} <= set(row):
        return "a tensor needs dtype, shape and data_offsets"
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        return f"dtype {str(dtype)[:40]!r} is not known"
    if not _natural(shape) or not _natural(offsets) or len(offsets) != 2 or len(shape) > MOST_AXES:
        return "shape and data_offsets must be lists of whole numbers"
    if offsets[1] - offsets[0] != math.prod(shape) * ITEMSIZE[dtype]:
        return f"bytes {offsets[0]} to {offsets[1]} do not hold a {dtype} tensor of shape {shape}"
    return ""


def _natural(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _tensor(path: str, row: _Row, data_start: int) -> TensorRef:
    shape = tuple(row["shape"])
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return TensorRef(row["dtype"], shape, (Part(path, data_start + row["data_offsets"][0], shape, strides, (0,) * len(shape)),))


def _end(path: str, tensors: dict[str, TensorRef], data_start: int, error: type[OstateError], fix: str) -> int:
    """Return the bytes of all tensors, which follow one another without a hole."""
    reached, before = 0, "the header"
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].parts[0].offset, item[1].nbytes)):
        start = tensor.parts[0].offset - data_start
        if start < reached:
            raise error(f"the bytes of {key!r} lie within those of {before!r}", where=path, fix=fix)
        if start > reached:
            raise error(f"{start - reached} bytes between {before!r} and {key!r} belong to no tensor", where=path, fix=fix)
        reached, before = reached + tensor.nbytes, key
    return reached
