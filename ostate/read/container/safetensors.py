"""The header of a safetensors file: eight bytes of length, JSON, then the tensors without holes."""

from __future__ import annotations

import json
import math
from typing import Any

from ostate.core.files import read_at, size_of
from ostate.core.tensors import ITEMSIZE, Part, TensorRef
from ostate.errors import ReadError

LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses more."""
MOST_AXES = 64
"""As in torch."""
_SPARSEST = 8
"""Bytes of a sound header for each list or table in it: its rows take sixteen, and names may hold a few brackets."""


def read_header(path: str) -> dict[str, TensorRef]:
    """Return every tensor of the file by key, in the header's order, without reading any.

    Raises:
        ReadError: not a safetensors file, or its header contradicts itself or the file's size.
    """
    return read_all(path)[0]


def read_all(path: str) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Return the tensors and the `__metadata__` of the file.

    Raises:
        ReadError: as `read_header`.
    """
    size = size_of(path)
    length = int.from_bytes(read_at(path, 0, 8), "little") if size >= 8 else 0
    if size < 8 or length > size - 8 or length > LARGEST_HEADER:
        raise ReadError(
            f"not a safetensors file, or cut short: {size} bytes, header of {length}", where=path, fix="copy the file again, or give another one"
        )
    raw = read_at(path, 8, length)
    if raw.count(b"[") + raw.count(b"{") > 1000 + length // _SPARSEST:
        raise ReadError("the safetensors header is no list of tensors", where=path, fix="copy the file again")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"the safetensors header cannot be read: {error}", where=path, fix="copy the file again") from error
    if not isinstance(header, dict):
        raise ReadError("the safetensors header is not a JSON object", where=path, fix="copy the file again")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ReadError("__metadata__ must map strings to strings", where=path, fix="write the file again")
    data = 8 + length
    tensors = {key: _tensor(path, key, row, data, size) for key, row in header.items()}
    _refuse_overlap(path, tensors)
    return tensors, metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _tensor(path: str, key: str, row: Any, data: int, size: int) -> TensorRef:
    where = f"{path}: {key}"
    if not isinstance(row, dict) or not {"dtype", "shape", "data_offsets"} <= set(row):
        raise ReadError("a tensor needs dtype, shape and data_offsets", where=where, fix="copy the file again")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise ReadError(f"dtype {str(dtype)[:40]!r} is not known", where=where, fix="save the weights in float32, bfloat16 or float16")
    if not _natural(shape) or not _natural(offsets) or len(offsets) != 2 or len(shape) > MOST_AXES:
        raise ReadError("shape and data_offsets must be lists of whole numbers", where=where, fix="copy the file again")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEMSIZE[dtype] or data + end > size:
        raise ReadError(f"bytes {begin} to {end} do not hold a {dtype} tensor of shape {shape}", where=where, fix="copy the file again")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    part = Part(file=path, offset=data + begin, sizes=tuple(shape), strides=strides, starts=(0,) * len(shape))
    return TensorRef(dtype=dtype, shape=tuple(shape), parts=(part,))


def _natural(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values)


def _refuse_overlap(path: str, tensors: dict[str, TensorRef]) -> None:
    reached, before = 0, ""
    for key, ref in sorted(tensors.items(), key=lambda item: (item[1].parts[0].offset, item[1].nbytes)):
        if ref.nbytes and ref.parts[0].offset < reached:
            raise ReadError(f"the bytes of {key!r} lie within those of {before!r}", where=path, fix="copy the file again")
        reached, before = max(reached, ref.parts[0].offset + ref.nbytes), key
