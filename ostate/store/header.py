"""The head of a safetensors file: u64 length, JSON, spaces; then the tensors' bytes without holes.

Ours ends on a page, so that the tensors start on one and a late finding still fits, and carries a SHA-256 of itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ostate.core.files import is_file, read_at, size_of
from ostate.core.named_file import MANIFEST
from ostate.core.safetensors import Head, read_head
from ostate.core.tensors import ITEMSIZE
from ostate.errors import StoreError

PAGE = 4096
PREFIX = b'{"__metadata__":{"format":"pt","header_sha256":"'
BLANK = "0" * 64
NOT_OURS = "pass a file that `ostate repair` wrote"
RAW = "a raw checkpoint: its parameters have no names yet"
REPAIR_FIRST = "run `ostate repair {path} -o lora.ostate.safetensors` first, and pass the file it writes"


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


def is_sealed(head: Head) -> bool:
    """True when the head is exactly as it was written."""
    if not head.raw.startswith(PREFIX):
        return False
    at = len(PREFIX)
    blank = head.raw[:at] + BLANK.encode() + head.raw[at + 64 :]
    return hashlib.sha256(blank).hexdigest().encode() == head.raw[at : at + 64]


def begins_as_ours(path: str) -> bool:
    """True when the file begins as those that are written here do, whole or cut short; False where there is none."""
    if not is_file(path):
        return False
    return read_at(path, 0, min(size_of(path), 8 + len(PREFIX)))[8:] == PREFIX


def pack(tensors: Sequence[Tensor], manifest: str, least: int = 0) -> bytes:
    """Return length and JSON, sealed, padded to a whole number of pages and to at least `least` bytes.

    Raises:
        StoreError: a name is not text that UTF-8 can hold.
    """
    table: dict[str, object] = {"__metadata__": {"format": "pt", "header_sha256": BLANK, MANIFEST: manifest}}
    for tensor in tensors:
        table[tensor.key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [tensor.start, tensor.end]}
    try:
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            "a name holds half a surrogate pair, which UTF-8 cannot hold", where=repr(error.object[:80]), fix="rename that parameter"
        ) from error
    size = max(-(-(8 + len(text)) // PAGE) * PAGE, least)
    blank = text + b" " * (size - 8 - len(text))
    at = len(PREFIX)
    return (size - 8).to_bytes(8, "little") + blank[:at] + hashlib.sha256(blank).hexdigest().encode() + blank[at + 64 :]


def read(path: str) -> Head:
    """Read and check the head of any safetensors file.

    Raises:
        ReadError: no such file.
        StoreError: not a sound safetensors file.
    """
    return read_head(path, error=StoreError, fix=NOT_OURS)
