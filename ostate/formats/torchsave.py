"""Files of `torch.save`, without torch and without a tensor's bytes: plain data with `TensorRef` leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import OstateError, ReadError
from ..files import read_at, size_of
from ..model import ITEMSIZE, Part, SourceFile, TensorRef
from .pickles import MOST_BYTES, STORAGES, TORCH_GLOBALS, Inert, Named, unpickle, unpickle_at
from .zips import ZipIndex

_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
"""LONG1 of torch's magic number, then STOP (torch/serialization.py, MAGIC_NUMBER)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What one `torch.save` file holds: plain Python objects with `TensorRef` leaves."""

    value: Any
    source: SourceFile


class Storage(NamedTuple):
    """A run of bytes that tensors are views of."""

    file: str
    offset: int
    size: int
    dtype: str
    crc32: int | None
    swapped: bool


def load(path: str, *, start: int = 0, length: int | None = None, allowed: Mapping[str, Any] | None = None) -> Stored:
    """Return the contents of a file that torch.save wrote, zip or legacy, whole or at `start` of a larger file.

    Raises:
        UnsafePickle: the file asks for a class outside the allow-list.
        ReadError: no such file, not torch's, truncated, damaged.
    """
    size = size_of(path) - start if length is None else length
    head = read_at(path, start, min(size, 512))
    table = TORCH_GLOBALS if allowed is None else allowed
    if head[:4] == b"PK\3\4":
        return _load_zip(path, start, size, table)
    if head[2:15] == _MAGIC:
        return _load_legacy(path, start, size, table)
    raise ReadError(_what_else(head), where=path, fix="give a file that torch.save wrote")


def _what_else(head: bytes) -> str:
    if not head.strip(b"\0"):
        return "the file is empty" if not head else "the file starts with nothing but zeros"
    if head[257:262] == b"ustar":
        return "a torch.save file of 2017 or older (tar), which is not read"
    if head[:1] in b"{[" or head[8:9] == b"{":
        return "no torch.save file: this is JSON or safetensors"
    if head[:1] == b"\x80":
        return "a plain pickle, not a torch.save file"
    return "no torch.save file"


def _load_zip(path: str, start: int, length: int, allowed: Mapping[str, Any]) -> Stored:
    index = ZipIndex(path, start, length)
    pickles = [name for name in index.members if name == "data.pkl" or name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ReadError(f"{len(pickles)} members data.pkl in the archive, one wanted", where=path, fix="give a file that torch.save wrote")
    prefix = pickles[0][: -len("data.pkl")]
    if prefix + "constants.pkl" in index:
        raise ReadError("a TorchScript program, not a state", where=path, fix="give the optimizer file")
    data = index.read(pickles[0], MOST_BYTES)
    order = index.read(prefix + "byteorder", 16) if prefix + "byteorder" in index else b"little"
    if order not in {b"little", b"big"}:
        raise ReadError(f"byte order {order!r}", where=path, fix="copy the file again")
    members, swapped, storages = index.members, order == b"big", dict[str, Storage]()

    def persistent(asked: Any) -> Storage:
        kind, key, count = _asked_storage(asked)
        known = storages.get(key)
        if known is None:
            member = members.get(f"{prefix}data/{key}")
            if member is None:
                raise ReadError(f"the storage {key} is missing from the archive", where=path, fix="copy the file again")
            if not 0 <= count * ITEMSIZE[kind] <= member.size:
                raise ReadError(f"the storage {key} has {member.size} bytes, {count} x {kind} are asked for", where=path, fix="copy the file again")
            known = storages[key] = Storage(path, member.offset, member.size, kind, member.crc32, swapped)
        elif known.dtype != kind:
            return known._replace(dtype=kind)
        return known

    value = unpickle(data, where=f"{path}: data.pkl", persistent=persistent, allowed={**allowed, **_REBUILD})
    digest = hashlib.sha256(data)
    digest.update(index.directory)
    return Stored(value=value, source=SourceFile(path=path, size=length, index_sha256=digest.hexdigest()))


def _asked_storage(asked: Any) -> tuple[str, str, int]:
    """Return (dtype, key, number of elements) of a persistent id `('storage', class, key, location, numel[, view])`."""
    if type(asked) is not tuple or len(asked) not in {5, 6} or asked[0] != "storage":
        raise TypeError("a persistent id that is no storage")
    kind, key, count = asked[1], asked[2], asked[4]
    if type(kind) is not Named or type(key) is not str or type(count) is not int:
        raise TypeError("a storage whose id is damaged")
    return STORAGES[kind.name.rpartition(".")[2]], key, count


def _load_legacy(path: str, start: int, length: int, allowed: Mapping[str, Any]) -> Stored:
    """Read the format before torch 1.6: five pickles, then each storage as its number of elements and its bytes."""
    span = 1 << 20
    while True:
        data = read_at(path, start, min(span, length))
        try:
            at, header = 0, []
            for _ in range(3):
                part, at = unpickle_at(data, at, where=path, allowed={})
                header.append(part)
            asked: dict[str, str] = {}

            def note(wanted: Any) -> Storage:
                kind, key, _ = _asked_storage(wanted)
                asked[key] = kind
                return Storage(path, 0, 1 << 62, kind, None, False)

            table = {**allowed, **_REBUILD}
            first = at
            _, at = unpickle_at(data, first, where=path, persistent=note, allowed=table)
            keys, at = unpickle_at(data, at, where=path, allowed={})
            break
        except OstateError as error:
            if error.what != "the pickle ends early" or span >= min(length, MOST_BYTES):
                raise
            span *= 4
    places, index_end = _legacy_storages(path, start, at, length, keys, asked), at
    swapped = type(header[2]) is dict and header[2].get("little_endian") is False

    def persistent(wanted: Any) -> Storage:
        kind, key, _ = _asked_storage(wanted)
        offset, size = places[key]
        view = wanted[5] if len(wanted) == 6 else None
        if view is not None:
            _, skip, count = view
            width = ITEMSIZE[kind]
            if type(skip) is not int or type(count) is not int or skip < 0 or count < 0 or (skip + count) * width > size:
                raise ReadError(f"a view reaches past the storage {key}", where=path, fix="copy the file again")
            offset, size = offset + skip * width, count * width
        return Storage(path, offset, size, kind, None, swapped)

    value, _ = unpickle_at(data, first, where=path, persistent=persistent, allowed=table)
    digest = hashlib.sha256(data[:index_end]).hexdigest()
    return Stored(value=value, source=SourceFile(path=path, size=length, index_sha256=digest))


def _legacy_storages(path: str, start: int, at: int, length: int, keys: Any, asked: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Return key -> (first byte in the file, bytes): storages follow one another in the order of `keys`."""
    if type(keys) is not list or len(keys) != len(set(keys) | set(asked)):
        raise ReadError("the storages listed are not those used", where=path, fix="copy the file again")
    places = {}
    for key in keys:
        count = int.from_bytes(read_at(path, start + at, 8), "little", signed=True)
        size = count * ITEMSIZE[asked[key]]
        if count < 0 or at + 8 + size > length:
            raise ReadError(f"the storage {key} reaches past the end of the file", where=path, fix="the copy is incomplete: copy it again")
        places[key] = (start + at + 8, size)
        at += 8 + size
    return places


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str) -> TensorRef:
    """Return the view, checked to lie within its storage."""
    if type(storage) is not Storage or len(shape) != len(stride) or type(offset) is not int:
        raise TypeError("a tensor that is no view of a storage")
    width = ITEMSIZE[dtype]
    count, last = 1, 0
    for extent, step in zip(shape, stride):
        if type(extent) is not int or type(step) is not int or extent < 0 or step < 0:
            raise ReadError(f"a tensor of shape {shape!r}, strides {stride!r}", where=storage.file, fix="copy the file again")
        count *= extent
        last += (extent - 1) * step
    if offset < 0 or count and (offset + last + 1) * width > storage.size:
        raise ReadError(f"a tensor of shape {shape!r} reaches past its storage", where=storage.file, fix="copy the file again")
    part = Part(storage.file, storage.offset + offset * width, shape, stride, (0,) * len(shape))
    whole = storage.crc32 if count * width == storage.size and not offset and part.contiguous else None
    return TensorRef(dtype, shape, (part,), storage.swapped, whole)


def _rebuild_v1(storage: Any, offset: Any, shape: Any, stride: Any) -> TensorRef:
    return _tensor(storage, offset, tuple(shape), tuple(stride), storage.dtype)


def _rebuild_v2(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = None, _hooks: Any = None, bits: Any = None) -> TensorRef:
    _no_bits(bits)
    return _tensor(storage, offset, tuple(shape), tuple(stride), storage.dtype)


def _rebuild_v3(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, bits: Any = None) -> TensorRef:
    _no_bits(bits)
    if dtype not in ITEMSIZE:
        raise ReadError(f"a tensor of type {dtype}, which no optimizer keeps", fix="save the optimizer's state_dict() alone")
    return _tensor(storage, offset, tuple(shape), tuple(stride), dtype)


def _no_bits(bits: Any) -> None:
    if bits:
        raise ReadError("a tensor with a pending conjugate or negative sign", fix="save a tensor.resolve_neg() copy")


def _meta(dtype: Any, shape: Any, _stride: Any = None, _grad: Any = None) -> Inert:
    return Inert("torch.meta", kwargs={"dtype": dtype, "shape": tuple(shape)})


_REBUILD: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _rebuild_v1,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda tensor, *_: tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda array, *_: array,
}
"""How torch writes a tensor (torch/_utils.py): storage, offset, shape and strides in elements."""
