"""What `repr` shows of values that may hold thousands of others: one line of at most 200 characters.

A dataclass that uses it says `repr=False`: otherwise one more is compiled as it is defined, for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized

MOST = 200
"""Characters in all."""
_TEXT = 60
_FEW = 4
_LARGE = 10**30
"""A whole number of a file may have as many digits as it likes; Python refuses to write those beyond 4,300."""
_PLAIN = (str, int, float, type(None))


def brief(value: object) -> str:
    """Return `Type(field=value, …)` of a dataclass or named tuple.

    Plain values stand as they are; of containers it tells how many they hold, and what is empty is left out.
    """
    fields: Iterable[str] = next(getattr(value, held) for held in ("_fields", "__dataclass_fields__", "__slots__") if hasattr(value, held))
    shown = ", ".join(f"{field}={_short(found)}" for field in fields if not _is_empty(found := getattr(value, field)))
    whole = f"{type(value).__name__}({shown})"
    return whole if len(whole) <= MOST else f"{whole[: MOST - 2]}…)"


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, (str, tuple, list, set, frozenset, Mapping)) and not value)


def _short(value: object) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= _TEXT else f"{value[: _TEXT - 1]}…")
    if isinstance(value, int) and not -_LARGE < value < _LARGE:
        return "<int>"
    if isinstance(value, _PLAIN):
        return repr(value)
    if type(value) is tuple and len(value) <= _FEW and all(isinstance(one, _PLAIN) for one in value):
        return f"({', '.join(map(_short, value))}{',' if len(value) == 1 else ''})"
    name = type(value).__name__
    if hasattr(value, "__dataclass_fields__") or hasattr(value, "_fields"):
        return f"<{name} of {len(value)}>" if isinstance(value, Sized) and not isinstance(value, tuple) else f"<{name}>"
    return f"<{len(value)}>" if isinstance(value, (tuple, list, set, frozenset, Mapping)) else f"<{name}>"
