"""Files that hold nothing but parameter names: a sidecar beside a checkpoint, or an order that somebody gives."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ostate.core.files import read_at, size_of
from ostate.errors import OrderingError

SIDECAR = "optimizer_param_names.json"
"""The file that `ostate.record_names` and others write beside a checkpoint."""
LARGEST = 1 << 28
"""Bytes; a 70B model has some 10,000 names of 100 bytes."""

_FIX = "one name per line, or JSON: a list of names, or a list of lists, one for each group"


def read_names(path: str) -> list[list[str]]:
    """Return the names in `path`, in groups where it tells them apart, else as one.

    Read are: a name a line; `ostate names --csv`; JSON lists, flat or one for each group; a JSON object that holds such a list under
    `param_name_groups`, `param_names` or `groups`.

    Raises:
        ReadError: no such file.
        OrderingError: it holds something else.
    """
    size = size_of(path)
    if size > LARGEST:
        raise OrderingError(f"a file of {size} bytes is too large for a list of names", where=path, fix=_FIX)
    try:
        text = read_at(path, 0, size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OrderingError("the list of names is not text", where=path, fix=_FIX) from error
    if text.lstrip()[:1] in ("[", "{"):
        return _from_json(text, path)
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise OrderingError("the list of names is empty", where=path, fix=_FIX)
    if "," in lines[0] or "\t" in lines[0]:
        return [_from_table(lines, path)]
    return [lines]


def _from_json(text: str, path: str) -> list[list[str]]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OrderingError(f"not JSON: {error}", where=path, fix=_FIX) from error
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("param_name_groups", "param_names", "groups") if key in found), None)
    if _are_names(found):
        return [list(found)]
    if isinstance(found, list) and found and all(_are_names(group) or group == [] for group in found):
        return [list(group) for group in found]
    raise OrderingError("no list of names in this JSON", where=path, fix=_FIX)


def _are_names(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(isinstance(name, str) and name for name in value)


def _from_table(lines: list[str], path: str) -> list[str]:
    """Read `ostate names --csv`: a header with `name`, perhaps `position`, then a row each."""
    rows = list(csv.DictReader(lines, delimiter="\t" if "\t" in lines[0] else ","))
    if not rows or "name" not in rows[0]:
        raise OrderingError("a table of names needs a column `name`", where=path, fix=_FIX)
    if "position" in rows[0]:
        try:
            rows.sort(key=lambda row: int(row["position"]))
        except (TypeError, ValueError) as error:
            raise OrderingError("the column `position` must hold whole numbers", where=path, fix=_FIX) from error
    if not all(row["name"] for row in rows):
        raise OrderingError("a row has no name", where=path, fix=_FIX)
    return [row["name"] for row in rows]
