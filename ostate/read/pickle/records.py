"""What a pickle is turned into where it is more than plain data, and what may be a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping

MOST_KEY_DEPTH = 8
"""Tuples within tuples in a dictionary key: hashing recurses, and deeper ones come from no optimizer."""
MOST_KEY_VALUES = 512
"""Within one key: a tuple may stand in itself many times over, and hashing counts each."""
RECORD = object()
"""Marks a class that is kept as an `Inert`."""
_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})


class Refusal(Exception):
    """The pickle asks for something that plain data never needs; the text says what."""


class Inert:
    """A record of a class that was not imported: its name, the arguments of its call, the state it was given, and what it holds as a container."""

    __slots__ = ("args", "held", "kwargs", "name", "state")

    def __init__(self, name: str, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None, state: object = None) -> None:
        self.name = name
        self.args = args
        self.kwargs = {} if kwargs is None else dict(kwargs)
        self.state = state
        self.held: dict[object, object] | list[object] | None = None

    def __repr__(self) -> str:
        return f"Inert({self.name!r})"


class Array:
    """A numpy array as the file holds it; `values` decodes it without numpy. Filled by BUILD."""

    __slots__ = ("data", "dtype", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype = ""
        self.data = b""


class Named:
    """A global that may be called: the table's function under the name the file used."""

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., object]) -> None:
        self.name = name
        self.call = call

    def __repr__(self) -> str:
        return f"Named({self.name!r})"


def whole_numbers(value: object) -> tuple[int, ...]:
    """Return a shape or strides as the file holds them.

    Raises:
        TypeError: no list of whole numbers.
    """
    if not isinstance(value, (tuple, list)) or not all(type(one) is int for one in value):
        raise TypeError("a list of whole numbers wanted")
    return tuple(value)


def check_key(key: object, depth: int = 0) -> int:
    """Refuse a key whose hash could recurse without end; return how many values it holds, each counted wherever it stands."""
    count = 1
    if type(key) is tuple:
        if depth >= MOST_KEY_DEPTH or len(key) > 64:
            raise Refusal("a dictionary key nests too deep")
        for part in key:
            count += check_key(part, depth + 1)
            if count > MOST_KEY_VALUES:
                raise Refusal(f"a dictionary key of more than {MOST_KEY_VALUES} values")
    elif type(key) in {dict, list, set}:
        raise Refusal(f"a dictionary key of type {type(key).__name__}")
    return count


def check_keys(keys: list[object]) -> None:
    """Refuse keys that are not plain, at C speed for those that are."""
    if not _ATOMS.issuperset(map(type, keys)):
        for key in keys:
            check_key(key)
