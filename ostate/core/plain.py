"""Values as JSON can hold them: one walk for documents, manifests and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ostate.errors import ReadError

from .tensors import TensorRef


def plain(value: object, odd: Callable[[float], object], other: Callable[[object], object]) -> object:
    """Return a value with only what JSON knows: mappings with text as keys, lists, texts, numbers, None.

    Args:
        value: any value of a state; a stored tensor of one element becomes its number.
        odd: what stands for nan, inf and -inf, which JSON does not know.
        other: what stands for a value of another kind; may raise.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else odd(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one, odd, other) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one, odd, other) for one in value]
    if isinstance(value, TensorRef) and value.numel == 1:
        return plain(value.item(), odd, other)
    return other(value)


def no_number(_: float) -> None:
    """Return None: for readers who take null for what is not finite."""
    return


def plain_document(value: object) -> object:
    """Return a value with only what JSON knows; nan, inf and -inf become text.

    Raises:
        ReadError: a value of a kind that no optimizer state should hold.
    """
    return plain(value, repr, _other)


def _other(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return plain_document(list(value))
    if isinstance(value, TensorRef):
        return {"shape": list(value.shape), "dtype": value.dtype}
    if isinstance(value, bytes):
        return value.hex()
    raise ReadError(f"a {type(value).__name__} cannot be printed as JSON", fix="report this layout")
