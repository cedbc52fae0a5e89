"""Telling a named file from others: by the manifest in its header, wherever it lies. Reading it is the store's business."""

from __future__ import annotations

import os

from ostate.core.files import is_file, is_remote, read_at, size_of
from ostate.errors import ReadError, UnknownFormat

from .detect import NO_STATE, find_state
from .peek import Peek

INDEX = ".index.json"
MOST_BYTES = 1 << 28


def is_named(path: str) -> bool:
    """True for a safetensors file with `__metadata__["ostate"]`, the index of several, or a folder whose only state is one of these.

    Raises:
        ReadError: a safetensors file whose header is damaged.
    """
    seen = Peek(path)
    if seen.is_folder:
        return _in_folder(seen)
    if not is_remote(path) and not os.path.exists(path):
        return os.path.exists(path + INDEX) and is_named(path + INDEX)
    return _index_is_named(path) if path.endswith(".safetensors" + INDEX) else "ostate" in seen.header[1]


def _index_is_named(path: str) -> bool:
    import json

    size = size_of(path)
    try:
        shards = json.loads(read_at(path, 0, min(size, MOST_BYTES)))["weight_map"].values()
        first = str(min(shards))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    beside = os.path.join(os.path.dirname(path), os.path.basename(first))
    return os.path.basename(first) == first and is_file(beside) and "ostate" in Peek(beside).header[1]


def _in_folder(seen: Peek) -> bool:
    files = [os.path.join(seen.path, name) for name in seen.names if name.endswith(".safetensors")]
    if not any(_says_so(file) and is_named(file) for file in files):
        return False
    try:
        find_state(seen.path, state=None, optimizer=None)
    except UnknownFormat as error:
        return error.what == NO_STATE
    except ReadError:
        return False
    return False


def _says_so(file: str) -> bool:
    """True when the word stands early in the header: the manifest's key comes first, and a large header is not parsed for nothing."""
    return b'"ostate"' in read_at(file, 0, min(4096, size_of(file)))
