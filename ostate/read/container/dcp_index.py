"""The container of torch.distributed.checkpoint: `.metadata` says where each chunk of each tensor lies in the `.distcp` files.

Every chunk and every Python object is a complete torch.save file of its own, at (file, offset, length). Sources:
torch/distributed/checkpoint/metadata.py, filesystem.py, default_planner.py.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeGuard

from ostate.core.files import is_file, read_at, size_of
from ostate.core.state import SourceFile
from ostate.core.tensors import ITEMSIZE, Part, TensorRef
from ostate.errors import ReadError

from ..pickle.globals import RECORD, TORCH_GLOBALS, Inert, unpickle
from ..pickle.unknown_classes import PermissiveTable
from .torchsave import load

METADATA = ".metadata"
MOST_METADATA = 1 << 28
"""Bytes of an index: 92,000 parameters in a hundred chunks each have half of that."""
MOST_COUNT = 1 << 63
"""Of bytes, and of elements along an axis: torch keeps both in 64 bits."""
_ALLOWED = {
    **TORCH_GLOBALS,
    **dict.fromkeys((
        "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
        "torch.distributed.checkpoint.planner._Checkpointable",
    ), RECORD),
}  # fmt: skip
"""Older releases name the memory format in another module."""


_Places = dict[tuple[str, "tuple[int, ...] | None"], tuple[str, int, int]]
"""(key, first element of a chunk or None for an object) -> (file, offset, length)."""


@dataclass(frozen=True, slots=True)
class Blob:
    """One chunk or object: a torch.save file within a file. `starts` is None for an object."""

    file: str
    offset: int
    length: int
    starts: tuple[int, ...] | None
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DcpItem:
    """One key of the checkpoint: a tensor in chunks, or a Python object (`dtype` is None)."""

    key: str
    path: tuple[object, ...] | None
    """The keys that lead to it in the nested dict that was saved, where the planner recorded them."""
    dtype: str | None
    shape: tuple[int, ...]
    blobs: tuple[Blob, ...]


@dataclass(frozen=True)
class Index:
    """What `.metadata` says."""

    folder: str
    items: Mapping[str, DcpItem]
    files: tuple[SourceFile, ...]


def read_index(folder: str) -> Index:
    """Read `.metadata`, and check that every file it names is there and long enough.

    Raises:
        ReadError: a file is missing or cut short, or the index contradicts itself.
        UnsafePickle: the index asks for a class outside the allow-list.
    """
    path = os.path.join(folder, METADATA)
    raw = raw_index(path)
    stored = unpickle(raw, where=path, allowed=PermissiveTable(_ALLOWED, unknown_classes=True))
    fields = _fields(stored, "Metadata", path)
    described, places, paths = fields.get("state_dict_metadata"), fields.get("storage_data"), fields.get("planner_data")
    if type(described) is not dict or type(places) is not dict:
        raise ReadError("the index does not say where its tensors lie", where=path, fix="the save did not finish: use another checkpoint")
    blobs = _places(folder, places, path)
    paths = paths if type(paths) is dict else {}
    items = {key: _item(key, paths.get(key), about, blobs, path) for key, about in described.items() if type(key) is str}
    digest = hashlib.sha256(raw).hexdigest()
    return Index(folder, items, _check_files(items, path, len(raw), digest))


def raw_index(path: str) -> bytes:
    """Return the bytes of an index.

    Raises:
        ReadError: more than any real one has.
    """
    size = size_of(path)
    if size > MOST_METADATA:
        raise ReadError(f"{size} bytes are too many for the index of a checkpoint", where=path, fix="copy it again, without holes")
    return read_at(path, 0, size)


def _fields(record: object, name: str, where: str) -> dict[str, object]:
    full, state = (record.name, record.state) if isinstance(record, Inert) else ("", None)
    last = full.rpartition(".")[2]
    derived = name == "Metadata" and last.endswith(name) and not full.startswith("torch.")  # Megatron's MCoreMetadata
    if (last != name and not derived) or type(state) is not dict:
        raise ReadError(f"{name} is missing", where=where, fix="the index is damaged: copy it again")
    return dict(state)


def _places(folder: str, places: Mapping[object, object], where: str) -> _Places:
    found: _Places = {}
    for index, info in places.items():
        key, place = _fields(index, "MetadataIndex", where), _fields(info, "_StorageInfo", where)
        if transforms := place.get("transform_descriptors"):
            named = ", ".join(map(str, transforms)) if isinstance(transforms, (list, tuple)) else ascii(transforms)[:60]
            raise ReadError(
                f"its tensors are compressed ({named})",
                where=where,
                fix="load it with torch.distributed.checkpoint and save it again without `_extensions`",
            )
        name, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
        if type(name) is not str or not (_is_count(offset) and _is_count(length)):
            raise ReadError("a storage entry without file, offset and length", where=where, fix="the index is damaged: copy it again")
        if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
            raise ReadError(f"the index points outside its folder: {name!r}", where=where, fix="do not use this checkpoint")
        starts = key.get("offset")
        found[str(key.get("fqn")), None if starts is None else _sizes(starts, str(key.get("fqn")), where)] = (
            os.path.join(folder, name),
            offset,
            length,
        )
    return found


def _item(key: str, led_by: object, about: object, blobs: _Places, where: str) -> DcpItem:
    path = tuple(led_by) if isinstance(led_by, (tuple, list)) and led_by and all(type(part) in {str, int} for part in led_by) else None
    kind = about.name.rpartition(".")[2] if isinstance(about, Inert) else ""
    if kind == "BytesStorageMetadata":
        place = blobs.get((key, None))
        return DcpItem(key, path, None, (), () if place is None else (Blob(*place, None, ()),))
    fields = _fields(about, "TensorStorageMetadata", where)
    properties = fields.get("properties")
    state = properties.state if isinstance(properties, Inert) else None
    dtype = state[0] if type(state) is tuple and state else state.get("dtype") if type(state) is dict else None
    listed = fields.get("chunks") or ()
    if type(dtype) is not str or not isinstance(listed, (list, tuple)):
        raise ReadError(f"the dtype or the chunks of {key} are missing", where=where, fix="the index is damaged: copy it again")
    shape = _sizes(fields.get("size"), key, where)
    chunks = []
    for chunk in listed:
        parts = _fields(chunk, "ChunkStorageMetadata", where)
        starts, sizes = _sizes(parts.get("offsets"), key, where), _sizes(parts.get("sizes"), key, where)
        if math.prod(sizes) == 0:
            continue
        place = blobs.get((key, starts))
        if place is None:
            raise ReadError(f"the index lists a chunk of {key} at {starts} but not its place", where=where, fix="copy the checkpoint again")
        chunks.append(Blob(*place, starts, sizes))
    _check_cover(key, shape, chunks, where)
    return DcpItem(key, path, dtype, shape, tuple(chunks))


def _sizes(value: object, key: str, where: str) -> tuple[int, ...]:
    if type(value) is not tuple or not all(map(_is_count, value)):
        raise ReadError(f"the shape of {key} is missing", where=where, fix="the index is damaged: copy it again")
    return value


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MOST_COUNT


def _check_cover(key: str, shape: tuple[int, ...], chunks: Sequence[Blob], where: str) -> None:
    """Chunks must tile the tensor: within it, none over another, no hole."""
    total = 0
    for chunk in chunks:
        starts = chunk.starts or ()
        if len(starts) != len(shape) or len(chunk.sizes) != len(shape) or any(a + n > size for a, n, size in zip(starts, chunk.sizes, shape)):
            raise ReadError(f"a chunk of {key} lies outside its shape {shape}", where=where, fix="the index is damaged: copy it again")
        total += math.prod(chunk.sizes)
    if total != math.prod(shape) or overlap(chunks, shape, where):
        raise ReadError(
            f"the chunks of {key} hold {total} elements, its shape {shape} needs {math.prod(shape)}",
            where=where,
            fix="the save did not finish on every process: use another checkpoint",
        )


MOST_COMPARED = 3_000_000
"""Pairs of chunks of one tensor: a mesh of a thousand by a thousand ranks needs fewer."""


def overlap(chunks: Sequence[Blob | Part], shape: tuple[int, ...], where: str) -> bool:
    """True when two chunks share an element: a sweep along the axis with the most different starts."""
    if len(chunks) < 2:
        return False
    axis = max(range(len(shape)), key=lambda axis: len({(chunk.starts or ())[axis] for chunk in chunks}), default=0)
    spans = sorted(((chunk.starts or (), chunk.sizes) for chunk in chunks), key=lambda span: span[0][axis : axis + 1])
    near: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    compared = 0
    for starts, sizes in spans:
        near = [(b, m) for b, m in near if b[axis] + m[axis] > starts[axis]]
        compared += len(near) + 1
        if compared > MOST_COMPARED:
            raise ReadError(f"{len(chunks)} chunks of one tensor cannot be distinguished", where=where, fix="the index is damaged: copy it again")
        if any(all(a < b + m and b < a + n for a, n, b, m in zip(starts, sizes, *other)) for other in near):
            return True
        near.append((starts, sizes))
    return False


def _check_files(items: Mapping[str, DcpItem], where: str, size: int, digest: str) -> tuple[SourceFile, ...]:
    needed: dict[str, int] = {}
    for item in items.values():
        for blob in item.blobs:
            needed[blob.file] = max(needed.get(blob.file, 0), blob.offset + blob.length)
    files = [SourceFile(where, size, digest)]
    for file, end in sorted(needed.items()):
        if not is_file(file):
            raise ReadError("a file of the checkpoint is missing", where=file, fix="copy the whole folder, the files of every process")
        there = size_of(file)
        if there < end:
            raise ReadError(f"the file ends early: {end} bytes expected, {there} present", where=file, fix="copy it again")
        files.append(SourceFile(file, there, digest))
    return tuple(files)


def tensor(item: DcpItem) -> TensorRef:
    """Return the whole tensor: its chunks at their places, nothing read but the small index of each chunk.

    Raises:
        ReadError: a chunk is not the tensor that the index announces.
    """
    return _whole(item, _pieces(item))


def tensor_or_packed(item: DcpItem) -> TensorRef | Inert:
    """Return the whole tensor, or of one whose chunks are packed tensors of a library (torchao's) one record of all of them.

    Raises:
        ReadError: a chunk is not the tensor that the index announces, or packed chunks do not follow one another.
    """
    pieces = _pieces(item)
    return _packed(item, pieces) if any(_is_packed(piece) for piece in pieces) else _whole(item, pieces)


def _pieces(item: DcpItem) -> list[object]:
    return [load(blob.file, start=blob.offset, length=blob.length).value for blob in item.blobs]


def _is_packed(stored: object) -> TypeGuard[Inert]:
    return isinstance(stored, Inert) and stored.name.startswith("torchao.") and isinstance(stored.state, Mapping)


def _inner(record: Inert) -> Mapping[str, object]:
    """Return the tensors that a packed tensor is made of, by their names."""
    return record.state if isinstance(record.state, Mapping) else {}


def _whole(item: DcpItem, pieces: Sequence[object]) -> TensorRef:
    parts: list[Part] = []
    dtype, swapped, crc = item.dtype, False, None
    if dtype is not None and dtype not in ITEMSIZE:
        raise ReadError(f"{item.key} is of a dtype that no optimizer uses", where=item.key, fix="save the optimizer's state_dict() alone")
    for blob, stored in zip(item.blobs, pieces):
        if not isinstance(stored, TensorRef) or stored.shape != blob.sizes or (dtype is not None and stored.dtype != dtype):
            raise ReadError(
                f"{item.key} at {blob.starts}: a {item.dtype} chunk of shape {blob.sizes} expected, {_described(stored)} found",
                where=blob.file,
                fix="this file is from another save: copy the whole folder again",
            )
        dtype, swapped, crc = stored.dtype, stored.swapped, stored.crc32
        parts += [part._replace(starts=blob.starts or ()) for part in stored.parts]
    return TensorRef(dtype or "F32", item.shape, tuple(parts), swapped, crc if len(parts) == 1 else None)


def _packed(item: DcpItem, pieces: Sequence[object]) -> Inert:
    """Return one record of chunks that are rows one after another, each with its own codes and scales."""
    rows = sorted(((blob, piece) for blob, piece in zip(item.blobs, pieces) if _is_packed(piece)), key=lambda row: row[0].starts or ())
    first = rows[0][1]
    by_rows = all(piece.name == first.name and blob.sizes[1:] == item.shape[1:] for blob, piece in rows)
    if len(rows) != len(item.blobs) or not by_rows:
        raise ReadError(
            f"{item.key}: packed moments that are cut other than by rows, or packed on some processes alone",
            where=item.blobs[0].file,
            fix="save them from one process: get_optimizer_state_dict with full_state_dict=True, and torch.save",
        )
    merged = dict(_inner(first))
    sizes: dict[str, list[int]] = {}
    for key in ("codes", "scale"):
        values = [_inner(piece).get(key) for _, piece in rows]
        flat = [one for one in values if isinstance(one, TensorRef)]
        if len(flat) != len(rows) or not all(one.dtype == flat[0].dtype and one.numel for one in flat):
            raise ReadError(f"{item.key}: a chunk without its {key}", where=rows[0][0].file, fix="copy the whole folder again")
        sizes[key] = [one.numel for one in flat]
        starts = accumulate(sizes[key], initial=0)
        parts = [part._replace(starts=(at,)) for at, one in zip(starts, flat) for part in one.with_shape((one.numel,)).parts]
        merged[key] = flat[0]._replace(shape=(sum(sizes[key]),), parts=tuple(parts), crc32=None)
    if len({codes / scales for codes, scales in zip(sizes["codes"], sizes["scale"])}) > 1:
        raise ReadError(f"{item.key}: chunks of different block sizes", where=rows[0][0].file, fix="copy the whole folder again")
    return Inert(first.name, first.args, {**first.kwargs, "shape": item.shape}, merged)


def _described(stored: object) -> str:
    return f"a {stored.dtype} tensor of shape {stored.shape}" if isinstance(stored, TensorRef) else f"a {type(stored).__name__}"


class Objects:
    """The Python objects of a checkpoint, each pickle read once: hyperparameters repeat for every parameter."""

    def __init__(self) -> None:
        self._by_pickle: dict[bytes, object] = {}

    def value(self, item: DcpItem) -> object:
        """Return an object as plain data; None where the files hold none.

        Raises:
            ReadError: its blob is damaged.
            UnsafePickle: it asks for a class outside the allow-list.
        """
        if not item.blobs:
            return None
        blob = item.blobs[0]
        raw = read_at(blob.file, blob.offset, blob.length)
        if raw not in self._by_pickle:
            self._by_pickle[raw] = load(blob.file, start=blob.offset, length=blob.length).value
        return self._by_pickle[raw]
