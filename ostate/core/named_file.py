"""Whether a file, or an index of several, holds a named state: its header has our manifest. What the state is, the store reads."""

from __future__ import annotations

import os

from ostate.errors import OstateError, ReadError

from .files import is_file, read_at, size_of
from .foreign import are_texts, parse_json

MANIFEST = "ostate"
"""The key of the manifest in `__metadata__`."""
INDEX = ".safetensors.index.json"
LARGEST_INDEX = 1 << 28
"""Bytes."""


def is_named(path: str) -> bool:
    """True for a safetensors file with our manifest, or the index of several.

    Raises:
        ReadError: no such file; a header that has the manifest and is damaged.
    """
    if path.endswith(INDEX):
        return _is_named_index(path)
    size = size_of(path)
    start = read_at(path, 0, min(9, size))
    if start[8:] != b"{" or not mentions_manifest(read_at(path, 8, min(int.from_bytes(start[:8], "little"), size - 8, LARGEST_INDEX))):
        return False
    from .safetensors import read_head  # json, which inspect of a torch file needs not

    return MANIFEST in read_head(path).metadata


def named_alone(file: str) -> bool:
    """As `is_named`, of a file that nobody asked about: False for one that is damaged or gone."""
    try:
        return is_file(file) and is_named(file)
    except ReadError:
        return False


def mentions_manifest(header: bytes) -> bool:
    """True for a header's JSON, or its beginning, that has our key in it: what is not ours need not be parsed to know that."""
    return b'"ostate"' in header


def files_of_index(path: str, *, error: type[OstateError] = ReadError, fix: str = "pass the folder with all the files") -> list[str]:
    """Return the names of the files that an index lists, sorted.

    Args:
        path: the index.
        error: what to raise for one that is not sound.
        fix: what to do about it.

    Raises:
        ReadError: no such file.
        OstateError: `error`: not an index, or one that leads out of its own folder.
    """
    size = size_of(path)
    if size > LARGEST_INDEX:
        raise error(f"an index of {size} bytes", where=path, fix=fix)
    try:
        index = parse_json(read_at(path, 0, size))
    except ValueError as damage:
        raise error(f"the index is not JSON: {damage}", where=path, fix=fix) from damage
    listed = index.get("weight_map") if isinstance(index, dict) else None
    files = list(listed.values()) if isinstance(listed, dict) else []
    if not files or not are_texts(files):
        raise error("the index holds no weight_map", where=path, fix=fix)
    names = sorted(set(files))
    if any(os.path.basename(name) != name or name in ("", ".", "..") for name in names):
        raise error("the index leads out of its own folder", where=path, fix="do not use this file")
    return names


def _is_named_index(path: str) -> bool:
    size_of(path)  # one that is not there is an error, not a no
    try:
        first = os.path.join(os.path.dirname(path), files_of_index(path)[0])
    except ReadError:
        return False
    return is_file(first) and is_named(first)
