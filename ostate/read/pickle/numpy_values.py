"""numpy's scalars and small arrays out of a pickle, decoded with `struct`: no numpy code runs for a file's sake."""

from __future__ import annotations

import math
import struct
from typing import Any

from ostate.core.tensors import NUMPY, STRUCT

from .records import Array, Inert

NUMPY_CODES: dict[str, str] = {
    "float64": "f8", "float32": "f4", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
    "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1", "bool_": "b1", "bool": "b1",
}  # fmt: skip
_STRUCT = {"b1" if tag == "BOOL" else NUMPY[tag]: letter for tag, letter in STRUCT.items()}
MOST_ITEMS = 1 << 20


def numpy_dtype(code: Any = "", *_: Any) -> Inert:
    """Stand in for `numpy.dtype(code, align, copy)`; BUILD adds the byte order."""
    return Inert("numpy.dtype", (code if type(code) is str else getattr(code, "name", ""),))


def plain_scalar(value: Any = 0) -> Any:
    """Stand in for `numpy.float64(value)` and its like: the value itself."""
    return value


def _format(dtype: Any) -> tuple[str, int]:
    """Return the struct format of one item, with its byte order, and its size in bytes; ("", 0) where it is no number."""
    if type(dtype) is not Inert or dtype.name != "numpy.dtype":
        raise TypeError("not a numpy dtype")
    code = dtype.args[0].lstrip("<>=|")
    code = NUMPY_CODES.get(code.removeprefix("numpy."), code)
    if code not in _STRUCT:
        return "", 0
    order = ">" if dtype.state is not None and dtype.state[1] == ">" else "<"
    return order + _STRUCT[code], int(code[1:])


def decode_scalar(dtype: Any, raw: Any = b"") -> Any:
    """Stand in for `numpy.core.multiarray.scalar(dtype, bytes)`: a Python number, or a record where it is none."""
    form, _ = _format(dtype)
    return struct.unpack(form, raw)[0] if form else Inert("numpy.scalar", (dtype, raw))


def from_buffer(raw: Any, dtype: Any, shape: Any, _order: Any = "C") -> Array:
    """Stand in for `numpy.core.numeric._frombuffer`, how protocol 5 writes an array."""
    array = Array()
    filled_array(array, (1, shape, dtype, False, raw))
    return array


def filled_array(array: Array, state: Any) -> None:
    """Fill an array from `(version, shape, dtype, fortran, bytes)`; what holds no numbers keeps an empty dtype."""
    _, shape, dtype, _, data = state
    form, size = _format(dtype)
    shape = tuple(int(extent) for extent in shape)
    if form and (type(data) is not bytes or min(shape, default=0) < 0 or math.prod(shape) * size != len(data)):
        raise ValueError("the array's bytes do not fill its shape")
    array.shape, array.dtype, array.data = shape, form, data


def values_of(array: Array) -> list[Any]:
    """Return the numbers, flat, in the order they are stored.

    Raises:
        ValueError: no numbers, or more than a million.
    """
    count = math.prod(array.shape)
    if not array.dtype or count > MOST_ITEMS:
        raise ValueError(f"{count} items of a numpy array that are not numbers, or too many")
    return list(struct.unpack(f"{array.dtype[0]}{count}{array.dtype[1]}", array.data))
