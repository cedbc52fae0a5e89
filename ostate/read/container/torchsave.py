"""Files of `torch.save`, without torch and without a tensor's bytes: plain data with `TensorRef` leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from zlib import crc32

from ostate.core.files import read_at, size_of
from ostate.core.kinds import kind_of_head
from ostate.core.state import SourceFile
from ostate.core.tensors import ITEMSIZE
from ostate.errors import ReadError

from ..pickle.globals import TORCH_GLOBALS, unpickle
from ..pickle.torch_tensors import MOST_PICKLE_BYTES, REBUILD, REBUILD_V2, Storage, asked_storage, fast_path_of
from ..pickle.unknown_classes import PermissiveTable
from .zip import Member, ZipIndex

LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
"""LONG1 of torch's magic number, then STOP (torch/serialization.py, MAGIC_NUMBER), after the protocol and perhaps a frame."""


class Stored(NamedTuple):
    """What one `torch.save` file holds: plain Python objects with `TensorRef` leaves."""

    value: object
    source: SourceFile
    unknown_classes: tuple[str, ...] = ()
    """Classes of a person's own that it asks for, where they were let through."""
    saved_as: str = ""
    """The name without its ending under which torch.save wrote the file, which a copy keeps (torch/serialization.py, `_open_zipfile_writer_file`);
    `archive` where it wrote into a buffer; empty for the format before torch 1.6."""


def load(
    path: str,
    *,
    start: int = 0,
    length: int | None = None,
    allowed: Mapping[str, object] | None = None,
    unknown_classes: bool = False,
    digest: bool = True,
) -> Stored:
    """Return the contents of a file that torch.save wrote, zip or legacy, whole or at `start` of a larger file.

    Args:
        path: the file.
        start: first byte of the archive within it.
        length: bytes of the archive; None: to the end of the file.
        allowed: full name of a global -> what stands in for it; None: `TORCH_GLOBALS`.
        unknown_classes: keep classes of a person's own as records and name them, where the file is more than a state.
        digest: take the index's digest now, and not when it is asked for, which keeps the index: of one file, not of a thousand ranks'.

    Raises:
        UnsafePickle: the file asks for a class outside the allow-list.
        ReadError: no such file, not torch's, truncated, damaged.
    """
    size = size_of(path) - start if length is None else length
    head = read_at(path, start, min(size, 512))
    table = PermissiveTable({**(TORCH_GLOBALS if allowed is None else allowed), **REBUILD}, unknown_classes=unknown_classes)
    if head[:4] == b"PK\3\4":
        value, source, saved_as = _load_zip(path, start, size, table)
        if digest:
            source = SourceFile(path, size, source.index_sha256)
        return Stored(value, source, tuple(sorted(table.met)), saved_as)
    if starts_as_legacy(head):
        from .legacy import load_legacy

        value, source = load_legacy(path, start, size, table)
        return Stored(value=value, source=source, unknown_classes=tuple(sorted(table.met)))
    raise _no_torch_file(head, path)


def starts_as_legacy(head: bytes) -> bool:
    """True for the first bytes of a file in the format before torch 1.6."""
    return head[:1] == b"\x80" and LEGACY_MAGIC in head[:32]


def _no_torch_file(head: bytes, path: str) -> ReadError:
    kind = ("a plain pickle", "") if head[:1] == b"\x80" else kind_of_head(head)
    what = f"not a torch.save file: it is {kind[0]}" if kind else "not a torch.save file"
    return ReadError(what, where=path, fix=(kind and kind[1]) or "pass a file that torch.save wrote")


def _load_zip(path: str, start: int, length: int, table: Mapping[str, object]) -> tuple[object, SourceFile, str]:
    index = ZipIndex(path, start, length)
    pickles = [name for name in index.members if name.endswith("data.pkl") and name.count("/") < 2 and name.rpartition("/")[2] == "data.pkl"]
    if not pickles and index.members and all(name.endswith(".npy") for name in index.members):
        raise ReadError("numpy arrays (.npz), not a torch.save file", where=path, fix="pass a file that torch.save wrote")
    if len(pickles) != 1:
        raise ReadError(f"{len(pickles)} members data.pkl in the archive, one expected", where=path, fix="pass a file that torch.save wrote")
    prefix = pickles[0][: -len("data.pkl")]
    if prefix + "constants.pkl" in index:
        raise ReadError("a TorchScript program, not a state", where=path, fix="pass the optimizer file")
    data = index.read(pickles[0], MOST_PICKLE_BYTES)
    order = index.read(prefix + "byteorder", 16) if prefix + "byteorder" in index else b"little"
    if order not in {b"little", b"big"}:
        raise ReadError(f"the file's byte order is {order!r}, neither 'little' nor 'big'", where=path, fix="copy the file again")
    crc = _crc_kept(path, data, index.members[pickles[0]][2])
    places = f"{prefix}data/", index.members
    find = _storages(path, *places, swapped=order == b"big", crc=crc)
    fast_paths = [fast_path_of(path, *places, swapped=order == b"big", crc=crc, remember=remember) for remember in (False, True)]
    value = unpickle(data, where=f"{path}: data.pkl", persistent=find, allowed=table, fast_paths=(REBUILD_V2, fast_paths))
    return value, SourceFile(path, length, (data, index.directory)), prefix.rstrip("/")


def _crc_kept(path: str, data: bytes, recorded: int) -> bool:
    """True when the directory's checksums are real; torch writes zeros after `set_crc32_options(False)`.

    Raises:
        ReadError: they are, and the pickle's is wrong.
    """
    if crc32(data) == recorded:
        return True
    if recorded:
        raise ReadError("the checksum of data.pkl is wrong", where=path, fix="the copy is damaged: copy it again")
    return False


def _storages(path: str, prefix: str, members: Mapping[str, Member], *, swapped: bool, crc: bool) -> Callable[[object], Storage]:
    def persistent(asked: object) -> Storage:
        kind, key, count = asked_storage(asked)
        if prefix + key not in members:
            raise ReadError(f"the storage {key} is missing from the archive", where=path, fix="copy the file again")
        offset, size, checksum = members[prefix + key]
        if not 0 <= count * ITEMSIZE[kind] <= size:
            raise ReadError(f"the storage {key} has {size} bytes, {count} x {kind} are needed", where=path, fix="copy the file again")
        return Storage(path, offset, size, kind, checksum if crc else None, swapped)

    return persistent
