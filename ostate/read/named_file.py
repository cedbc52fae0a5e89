"""Telling a named file from others: by the manifest in its header, wherever it lies. Reading it is the store's business."""

from __future__ import annotations

import os

from ostate.core import named_file
from ostate.core.files import is_remote
from ostate.errors import ReadError, UnknownFormat

from .detect import NO_STATE, find_state
from .peek import Peek


def is_named(path: str) -> bool:
    """True for a safetensors file with `__metadata__["ostate"]`, the index of several, or a folder whose only state is one of these.

    Raises:
        ReadError: a safetensors file whose header is damaged.
    """
    seen = Peek(path)
    if seen.is_folder:
        return _in_folder(seen)
    if not is_remote(path) and not os.path.exists(path):
        path += ".index.json"
        return os.path.exists(path) and named_file.is_named(path)
    return named_file.is_named(path)


def _in_folder(seen: Peek) -> bool:
    files = [os.path.join(seen.path, name) for name in seen.names if name.endswith(".safetensors")]
    if not any(named_file.is_named(file) for file in files):
        return False
    try:
        find_state(seen.path, state=None, optimizer=None)
    except UnknownFormat as error:
        return error.what == NO_STATE
    except ReadError:
        return False
    return False
