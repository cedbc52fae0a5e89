"""`torch.save` files from before torch 1.6, and those of `_use_new_zipfile_serialization=False`.

Five pickles follow one another (magic number, protocol, system, the object, the storages' keys), then each storage as its number of elements in
eight bytes and its bytes (torch/serialization.py, _legacy_save). Where a storage lies is known last, so the object is read twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ostate.core.files import read_at
from ostate.core.state import SourceFile
from ostate.core.tensors import ITEMSIZE
from ostate.errors import ReadError

from ..pickle.globals import ENDS_EARLY, unpickle_at
from ..pickle.records import Named
from ..pickle.torch_tensors import MOST_PICKLE_BYTES, Storage, asked_storage

_AGAIN = "the copy is incomplete or damaged: copy it again"


def load_legacy(path: str, start: int, length: int, table: Mapping[str, object]) -> tuple[object, SourceFile]:
    """Return the object and the file's digest.

    Raises:
        ReadError: truncated or damaged.
        UnsafePickle: a class outside `table`.
    """
    span = 1 << 20
    while True:
        data = read_at(path, start, min(span, length))
        try:
            return _load(path, start, length, data, table)
        except ReadError as error:
            if error.what != ENDS_EARLY or span >= min(length, MOST_PICKLE_BYTES):
                raise
        span *= 4


def _load(path: str, start: int, length: int, data: bytes, table: Mapping[str, object]) -> tuple[object, SourceFile]:
    _, at = unpickle_at(data, 0, where=path, allowed={})
    _, at = unpickle_at(data, at, where=path, allowed={})
    system, first = unpickle_at(data, at, where=path, allowed={})
    kinds: dict[str, str] = {}

    def note(asked: object) -> object:
        if (module := _module(asked)) is not None:
            return module
        kind, key, _ = asked_storage(asked)
        kinds[key] = kind
        return Storage(path, 0, 1 << 62, kind, None, swapped=False)

    _, at = unpickle_at(data, first, where=path, persistent=note, allowed=table)
    keys, at = unpickle_at(data, at, where=path, allowed={})
    places = _places(path, start, at, length, keys, kinds)
    swapped = type(system) is dict and system.get("little_endian") is False

    def find(asked: object) -> object:
        if (module := _module(asked)) is not None:
            return module
        kind, key, _ = asked_storage(asked)
        offset, size = places[key]
        skip, count = _view(asked)
        if skip or count is not None:
            width = ITEMSIZE[kind]
            count = 0 if count is None else count
            if skip < 0 or count < 0 or (skip + count) * width > size:
                raise ReadError(f"a view reaches past the storage {key}", where=path, fix=_AGAIN)
            offset, size = offset + skip * width, count * width
        return Storage(path, offset, size, kind, None, swapped)

    value, _ = unpickle_at(data, first, where=path, persistent=find, allowed=table)
    digest = hashlib.sha256(data[:at]).hexdigest()
    return value, SourceFile(path, length, digest)


def _module(asked: object) -> Named | None:
    """Return a model's class, which torch.save writes as `('module', class, source file, source)`; None for anything else."""
    found = asked[1] if type(asked) is tuple and len(asked) == 4 and asked[0] == "module" else None
    return found if type(found) is Named else None


def _view(asked: object) -> tuple[int, int | None]:
    """Return (elements to skip, number of elements) of a storage that is a window on another (files of torch 0.3 and older)."""
    window = asked[5] if type(asked) is tuple and len(asked) > 5 else None
    if window is None:
        return 0, None
    if type(window) is not tuple or len(window) != 3:
        raise TypeError("a view that is damaged")
    _, skip, count = window
    if type(skip) is not int or type(count) is not int:
        raise TypeError("a view whose place is not a number")
    return skip, count


def _places(path: str, start: int, at: int, length: int, keys: object, kinds: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Return key -> (first byte in the file, bytes): storages follow one another in the order of `keys`."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(keys) != len(set(keys)) or set(keys) != set(kinds):
        raise ReadError("the file lists other storages than its tensors use", where=path, fix=_AGAIN)
    places = {}
    for key in keys:
        if at + 8 > length:
            raise ReadError(f"the storage {key} lies past the end of the file", where=path, fix=_AGAIN)
        count = int.from_bytes(read_at(path, start + at, 8), "little", signed=True)
        size = count * ITEMSIZE[kinds[key]]
        if count < 0 or at + 8 + size > length:
            raise ReadError(f"the storage {key} reaches past the end of the file", where=path, fix=_AGAIN)
        places[key] = (start + at + 8, size)
        at += 8 + size
    if at != length:
        what = f"{length - at} bytes after the last tensor: two files one after another, or an interrupted copy that was resumed"
        raise ReadError(what, where=path, fix="copy it again, each file by itself")
    return places
