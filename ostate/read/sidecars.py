"""Names files beside a state: written by a callback or by `ostate names`, preferred over guessing."""

from __future__ import annotations

import os
from typing import Any

from ostate.core.files import is_file, read_at, size_of
from ostate.errors import ReadError

SIDECARS = ("optimizer_param_names.json", "ostate_names.json")
MOST_BYTES = 1 << 28


def sidecar_of(folder: str) -> tuple[str, list[list[str]]] | None:
    """Return (file name, names by group) of the names file in `folder`, or None where there is none.

    Raises:
        ReadError: a names file that is not one of the three forms.
    """
    for file in SIDECARS:
        path = os.path.join(folder, file)
        if is_file(path):
            return file, read_names(path)
    return None


def read_names(path: str) -> list[list[str]]:
    """Return names by group from a list of lists, `{"param_name_groups": …}`, or `{"format": "ostate-names", "groups": …}`.

    Raises:
        ReadError: something else.
    """
    fix = "remove the file, or write one list of names for each parameter group"
    import json

    size = size_of(path)
    if size > MOST_BYTES:
        raise ReadError(f"a names file of {size} bytes", where=path, fix=fix)
    try:
        found: Any = json.loads(read_at(path, 0, size).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReadError(f"the names file is no JSON: {error}", where=path, fix=fix) from error
    if isinstance(found, dict):
        if found.get("format") == "ostate-names" and found.get("version") != 1:
            raise ReadError(f"a names file of version {found.get('version')!r}; version 1 is known", where=path, fix="use a newer ostate")
        found = found.get("groups", found.get("param_name_groups"))
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(group, list) and all(isinstance(name, str) for name in group) for group in found):
        raise ReadError("the names file is not a list of names by group", where=path, fix=fix)
    names = [name for group in found for name in group]
    if len(set(names)) != len(names):
        raise ReadError("the names file gives a name twice", where=path, fix=fix)
    return found
