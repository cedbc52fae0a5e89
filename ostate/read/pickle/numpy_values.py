"""numpy's scalars and small arrays out of a pickle, decoded with `struct`: no numpy code runs for a file's sake."""

from __future__ import annotations

import math
import struct

from ostate.core.tensors import NUMPY, STRUCT

from .records import Array, Inert, whole_numbers

NUMPY_CODES: dict[str, str] = {
    "float64": "f8", "float32": "f4", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
    "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1", "bool_": "b1", "bool": "b1",
}  # fmt: skip
_STRUCT = {"b1" if tag == "BOOL" else NUMPY[tag]: letter for tag, letter in STRUCT.items()}
MOST_ITEMS = 1 << 20


def numpy_dtype(code: object = "", *_: object) -> Inert:
    """Stand in for `numpy.dtype(code, align, copy)`; BUILD adds the byte order."""
    return Inert("numpy.dtype", (code if type(code) is str else getattr(code, "name", ""),))


def plain_scalar(value: object = 0) -> object:
    """Stand in for `numpy.float64(value)` and its like: the value itself."""
    return value


def _format(dtype: object) -> tuple[str, int]:
    """Return the struct format of one item, with its byte order, and its size in bytes; ("", 0) where it is no number."""
    if type(dtype) is not Inert or dtype.name != "numpy.dtype":
        raise TypeError("not a numpy dtype")
    written, state = dtype.args[0], dtype.state
    if type(written) is not str or (state is not None and (type(state) is not tuple or len(state) < 2)):
        raise TypeError("a numpy dtype that is damaged")
    code = written.lstrip("<>=|")
    code = NUMPY_CODES.get(code.removeprefix("numpy."), code)
    if code not in _STRUCT:
        return "", 0
    order = ">" if state is not None and state[1] == ">" else "<"
    return order + _STRUCT[code], int(code[1:])


def decode_scalar(dtype: object, raw: object = b"") -> bool | int | float | Inert:
    """Stand in for `numpy.core.multiarray.scalar(dtype, bytes)`: a Python number, or a record where it is none."""
    form, _ = _format(dtype)
    if not form:
        return Inert("numpy.scalar", (dtype, raw))
    if type(raw) is not bytes:
        raise TypeError("a number without its bytes")
    number: bool | int | float = struct.unpack(form, raw)[0]
    return number


def from_buffer(raw: object, dtype: object, shape: object, _order: object = "C") -> Array:
    """Stand in for `numpy.core.numeric._frombuffer`, how protocol 5 writes an array."""
    array = Array()
    filled_array(array, (1, shape, dtype, False, raw))
    return array


def filled_array(array: Array, state: object) -> None:
    """Fill an array from `(version, shape, dtype, fortran, bytes)`; what holds no numbers keeps an empty dtype."""
    if type(state) is not tuple or len(state) != 5:
        raise TypeError("an array's state that is damaged")
    _, extents, dtype, _, data = state
    form, size = _format(dtype)
    shape = whole_numbers(extents)
    if form and (type(data) is not bytes or min(shape, default=0) < 0 or math.prod(shape) * size != len(data)):
        raise ValueError("the array's bytes do not fill its shape")
    array.shape, array.dtype, array.data = shape, form, data if type(data) is bytes else b""


def values_of(array: Array) -> list[bool | int | float]:
    """Return the numbers, flat, in the order they are stored.

    Raises:
        ValueError: no numbers, or more than a million.
    """
    count = math.prod(array.shape)
    if not array.dtype or count > MOST_ITEMS:
        raise ValueError(f"{count} items of a numpy array that are not numbers, or too many")
    return list(struct.unpack(f"{array.dtype[0]}{count}{array.dtype[1]}", array.data))
