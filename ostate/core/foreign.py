"""Parsing of text that others wrote, within bounds: JSON, whole numbers in names, releases of libraries."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from . import limits

if TYPE_CHECKING:
    from typing import TypeAlias, TypeGuard

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""What JSON text holds. Whoever reads an entry looks what it is first: the type checker asks for it."""
JsonObject: TypeAlias = "dict[str, Json]"

_MOST_DIGITS = 18


def parse_json(text: bytes | str) -> Json:
    """Return what JSON text holds.

    Args:
        text: UTF-8, with or without a byte order mark.

    Raises:
        ValueError: no JSON, or more lists and objects, or deeper ones, than any file of this kind has.
    """
    import json

    containers = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if containers > limits.CONTAINERS:
        raise ValueError(f"{containers} lists and objects, more than {limits.CONTAINERS}")
    try:
        found: Json = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("lists within lists without end") from error
    return found


def are_texts(value: Json) -> TypeGuard[list[str]]:
    """True for a list of texts, an empty one too."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def too_deep(value: object) -> bool:
    """True for lists and objects within one another deeper than any configuration goes: whoever walks them by recursion would not come back."""
    level = [value]
    for _ in range(limits.DEPTH):
        level = [inner for one in level if isinstance(one, (dict, list)) for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return True


def expanded(value: object, most: int) -> int:
    """Return how many values a value holds, each counted wherever it stands, and 64 letters as one; above `most` for more, or deeper ones.

    In a pickle one list may stand in many places and hold itself: a few kilobytes spell out more values than any memory holds.
    """
    count, level = 0, [value]
    for _ in range(limits.DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, (str, bytes)):
                count += len(one) >> 6
            elif isinstance(one, (dict, list, tuple, set, frozenset)):
                count += len(one)
                below.extend((one.values() if isinstance(one, dict) else one) if count <= most else ())
            if count > most:
                return count
        if not below:
            return count
        level = below
    return most + 1


def number_in(part: str) -> int | None:
    """Return the whole number that a component of a name is, of 0 to 9 and 18 digits at most; None for anything else (`²`, 5,000 digits)."""
    return int(part) if part.isascii() and part.isdigit() and len(part) <= _MOST_DIGITS else None


def positions_in(keys: Collection[object]) -> list[int] | None:
    """Return the positions that all these keys spell, in their order; None where one is none, or there are none. `01` is no other spelling of 1."""
    numbers = [number_in(key) if isinstance(key, str) and (key == "0" or key[:1] != "0") else None for key in keys]
    known = [number for number in numbers if number is not None]
    return known if known and len(known) == len(numbers) else None


def release(text: object) -> tuple[int, int] | None:
    """Return (major, minor) of a library's release such as `0.15.2`; None where the text does not begin with one."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})", text, re.ASCII) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else None
