"""Files that hold nothing but parameter names: a names file beside a checkpoint, or an order that somebody gives."""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING

from ostate.errors import OstateError, ReadError

from . import limits
from .files import is_file, read_at, size_of
from .foreign import are_texts, parse_json
from .names import twins

if TYPE_CHECKING:
    from typing import TypeGuard

    from .foreign import Json

NAMES_FILE = "optimizer_param_names.json"
"""The file that `ostate.record_names` and others write beside a checkpoint."""
NAMES_FILES = (NAMES_FILE, "ostate_names.json")
"""Looked for beside a state, the first that is there."""
LARGEST = 1 << 28
"""Bytes; a 70B model has some 10,000 names of 100 bytes."""
FORMS = "one name a line, or JSON: a list of names, or a list of lists, one for each group"
_STRINGS = 3 * limits.POSITIONS
"""Each name may stand in two lists and beside its shape; JSON of nothing but short texts takes fifteen times its length of memory."""
_KEYS = ("groups", "param_name_groups", "param_names")
"""Where a JSON object may hold its list."""


def names_file_in(folder: str) -> str | None:
    """Return the path of the names file in `folder`; None where there is none."""
    return next((path for file in NAMES_FILES if is_file(path := os.path.join(folder, file))), None)


def read_names(path: str, *, error: type[OstateError] = ReadError, fix: str = FORMS) -> list[list[str]]:
    """Return the names in `path`, in groups where it tells them apart, else as one.

    Read are: a name a line; `ostate names --csv`; JSON lists, flat or one for each group; a JSON object that holds such a list under `groups`,
    `param_name_groups` or `param_names`. A file that is called .json holds JSON.

    Args:
        path: the file.
        error: what to raise for a file that is no such list.
        fix: what to do about it.

    Raises:
        ReadError: no such file.
        OstateError: `error`: it holds something else, no name at all, an empty name, or one name twice.
    """
    size = size_of(path)
    if size > LARGEST:
        raise error(f"{size} bytes cannot be a list of names", where=path, fix=fix)
    try:
        text = read_at(path, 0, size).decode("utf-8-sig")
        if text.count('"') > 2 * _STRINGS:
            raise ValueError(f"it holds more than {_STRINGS} texts, where no state has more than {limits.POSITIONS} names")
        groups = _from_json(text) if path.endswith(".json") or text.lstrip()[:1] in ("[", "{") else [_from_lines(text)]
        _check(groups)
    except UnicodeDecodeError as damage:
        raise error("the list of names is not text", where=path, fix=fix) from damage
    except ValueError as damage:  # json's own errors too
        raise error(f"no list of names: {damage}", where=path, fix=fix) from damage
    return groups


def read_shapes(path: str, *, error: type[OstateError] = ReadError) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a file of names gives beside them: a JSON object's `shapes`, name -> list of sizes; none where it has no such key.

    Args:
        path: a file that `read_names` reads.
        error: what to raise for shapes that are none.

    Raises:
        OstateError: `error`: a shape is no list of whole numbers.
    """
    text = read_at(path, 0, size_of(path)).decode("utf-8-sig")
    found = parse_json(text) if text.lstrip()[:1] == "{" else {}
    shapes = found.get("shapes") if isinstance(found, dict) else None
    if shapes is None:
        return {}
    sizes = {name: tuple(shape) for name, shape in shapes.items() if _is_shape(shape)} if isinstance(shapes, dict) else {}
    if not isinstance(shapes, dict) or len(sizes) < len(shapes):
        raise error("its shapes are no lists of whole numbers", where=path, fix='write {"param_names": ["a", …], "shapes": {"a": [4, 32], …}}')
    return sizes


def _is_shape(value: Json) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= limits.DEPTH and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _check(groups: list[list[str]]) -> None:
    names = [name for group in groups for name in group]
    if not names or not all(names):
        raise ValueError("it is empty" if not names else f"name {names.index('')} of {len(names)} is empty")
    if len(names) > limits.POSITIONS:
        raise ValueError(f"{len(names)} names, more than {limits.POSITIONS}")
    if max(map(len, names)) > limits.NAME:
        raise ValueError(f"a name of {max(map(len, names))} letters, more than {limits.NAME}")
    if len(set(names)) != len(names):
        raise ValueError(f"it gives a name twice: {twins(names)[0]!r}")


def _from_json(text: str) -> list[list[str]]:
    found = parse_json(text)
    if isinstance(found, dict):
        if found.get("format") == "ostate-names" and found.get("version") != 1:
            raise ValueError(f"it is of version {found.get('version')!r}, and version 1 is known: use a newer ostate")
        lists = [found[key] for key in _KEYS if key in found]
        if any(other != lists[0] for other in lists[1:]):
            raise ValueError(f"it holds several that differ, under {' and '.join(repr(key) for key in _KEYS if key in found)}")
        found = lists[0] if lists else None
    if are_texts(found):
        return [found]
    groups = [group for group in found if are_texts(group)] if isinstance(found, list) else []
    if isinstance(found, list) and len(groups) == len(found):
        return groups
    raise ValueError("it is JSON, but neither a list of names nor a list of such lists")


def _from_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or ("," not in lines[0] and "\t" not in lines[0]):
        return lines
    return _from_table(lines)


def _from_table(lines: list[str]) -> list[str]:
    """Read `ostate names --csv`: a header with `name`, perhaps `position`, then a row each."""
    rows = list(csv.DictReader(lines, delimiter="\t" if "\t" in lines[0] else ","))
    if not rows or "name" not in rows[0]:
        raise ValueError("a table needs a column `name`")
    if "position" in rows[0]:
        try:
            rows.sort(key=lambda row: int(row["position"]))
        except (TypeError, ValueError):
            raise ValueError("the column `position` must hold whole numbers") from None
    return [row["name"] or "" for row in rows]
