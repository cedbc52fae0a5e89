"""Telling a named file from others: by the manifest in its header, wherever it lies. Reading it is the store's business."""

from __future__ import annotations

import os

from ostate.core import named_file
from ostate.core.files import is_remote, names_in
from ostate.core.state import Finding
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


def beside(path: str, *, but: str | None = None) -> list[Finding]:
    """Say that a named state lies in the folder of the state at `path`: `SaveNamed` or an earlier `ostate repair` wrote it.

    For people alone, and so no finding of the state itself: what `repair` writes must not depend on what lies beside the state. `but` is a file
    that is not spoken of: what is being written.
    """
    if is_remote(path):
        return []
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    names = [name for name in names_in(folder) if name.endswith(".safetensors")]
    names = [name for name in names if but is None or os.path.abspath(os.path.join(folder, name)) != os.path.abspath(but)]
    named = [os.path.join(folder, name) for name in names if named_file.named_alone(os.path.join(folder, name))]
    if not named:
        return []
    text = f"a named state lies in the same folder: {', '.join(named)}"
    return [Finding(rule="named-state-beside", severity="note", text=text, fix="if it is of the same save, use it: it needs no repair")]


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
