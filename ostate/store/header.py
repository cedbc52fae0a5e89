"""The head of a safetensors file: u64 length, JSON, spaces; then the tensors' bytes without holes.

Ours ends on a page, so that the tensors start on one and a late finding still fits, and carries a SHA-256 of itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ostate.core.files import read_at, size_of
from ostate.core.tensors import ITEMSIZE, Part, TensorRef
from ostate.errors import StoreError

PAGE = 4096
MOST = 100_000_000
"""Bytes of JSON that the safetensors library accepts."""
SPARSEST = 8
"""Bytes of a sound header for each list or table in it, or in the manifest within it."""
MOST_AXES = 64
"""As in torch."""
PREFIX = b'{"__metadata__":{"format":"pt","header_sha256":"'
BLANK = "0" * 64
NOT_OURS = "give a file that `ostate repair` wrote"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One row of the head: bytes [start, end) of the data."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def end(self) -> int:
        """First byte after the tensor."""
        return self.start + math.prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class Head:
    """What `read` found."""

    path: str
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str]
    raw: bytes
    data_start: int
    """Offset of the first tensor byte in the file."""
    data_bytes: int

    @property
    def sealed(self) -> bool:
        """True when the head is exactly as it was written."""
        if not self.raw.startswith(PREFIX):
            return False
        at = len(PREFIX)
        blank = self.raw[:at] + BLANK.encode() + self.raw[at + 64 :]
        return hashlib.sha256(blank).hexdigest().encode() == self.raw[at : at + 64]


def pack(tensors: Sequence[Tensor], manifest: str, room: int = 0) -> bytes:
    """Return length and JSON, sealed, padded to a whole number of pages and to at least `room` bytes.

    Raises:
        StoreError: a name is not text that UTF-8 can hold.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt", "header_sha256": BLANK, "ostate": manifest}}
    for tensor in tensors:
        table[tensor.key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [tensor.start, tensor.end]}
    try:
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise StoreError("a name holds half a surrogate pair, which no text file can", where=repr(error.object[:80])) from error
    size = max(-(-(8 + len(text)) // PAGE) * PAGE, room)
    blank = text + b" " * (size - 8 - len(text))
    at = len(PREFIX)
    return (size - 8).to_bytes(8, "little") + blank[:at] + hashlib.sha256(blank).hexdigest().encode() + blank[at + 64 :]


def read(path: str) -> Head:
    """Read and check the head of any safetensors file.

    Raises:
        ReadError: no such file.
        StoreError: not a sound safetensors file.
    """
    size = size_of(path)
    length = int.from_bytes(read_at(path, 0, 8), "little") if size >= 8 else 0
    if not 2 <= length <= MOST or 8 + length > size:
        raise StoreError("not a safetensors file, or cut short: its header does not fit", where=path, fix=NOT_OURS)
    raw = read_at(path, 8, length)
    if raw.count(b"[") + raw.count(b"{") > 1000 + length // SPARSEST:
        raise StoreError("the safetensors header is no list of tensors", where=path, fix=NOT_OURS)
    try:
        table = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"the safetensors header is not JSON: {error}", where=path, fix=NOT_OURS) from error
    if not isinstance(table, dict):
        raise StoreError("the safetensors header is not a table", where=path, fix=NOT_OURS)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise StoreError("the safetensors metadata is not a table of strings", where=path, fix=NOT_OURS)
    tensors, end = _tensors(path, table, 8 + length)
    if 8 + length + end != size:
        raise StoreError(f"{size} bytes long where the header describes {8 + length + end}", where=path, fix="the copy is incomplete: copy it again")
    return Head(path, tensors, metadata, raw, 8 + length, end)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; two readers of a key that stands twice could see two different files.

    Raises:
        ValueError: a key stands twice.
    """
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table


def _tensors(path: str, table: Mapping[str, Any], data_start: int) -> tuple[dict[str, TensorRef], int]:
    found: dict[str, TensorRef] = {}
    runs = []
    for key, row in table.items():
        try:
            dtype, shape, (start, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
            sound = (
                len(shape) <= MOST_AXES
                and all(type(n) is int and n >= 0 for n in (*shape, start, end))
                and end - start == math.prod(shape) * ITEMSIZE[dtype]
            )
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise StoreError("the header's row of a tensor is not sound", where=f"{path}: {key!r}", fix=NOT_OURS)
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        found[key] = TensorRef(dtype, shape, (Part(path, data_start + start, shape, strides, (0,) * len(shape)),))
        runs.append((start, end))
    end = 0
    for start, stop in sorted(runs):
        if start != end:
            raise StoreError("tensors overlap, or a hole lies between them", where=f"{path}: byte {start} of the data", fix=NOT_OURS)
        end = stop
    return found, end
