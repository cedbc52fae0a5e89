"""Tensors of a pickle that torch wrote: views of storages, checked to lie within them.

`leap` reads one tensor's whole record at a time. Torch writes the same thirty opcodes for each tensor; matched as one regular expression
they cost a fifth of what they cost one by one. Whatever does not match, and every reference to a part of a record, is read the slow way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ostate.errors import ReadError
from ostate.model import ITEMSIZE, Part, TensorRef

from .machine import Inert, Machine, Named
from .zips import Member

_AGAIN = "the copy is damaged: copy it again"

STORAGES: dict[str, str] = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64", "UntypedStorage": "U8", "QInt8Storage": "I8", "QUInt8Storage": "U8", "QInt32Storage": "I32",
}  # fmt: skip
"""torch's storage classes (torch/storage.py) by the dtype of their elements."""


class Storage(NamedTuple):
    """A run of bytes that tensors are views of."""

    file: str
    offset: int
    size: int
    """In bytes."""
    dtype: str
    crc32: int | None
    swapped: bool


def view(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str) -> TensorRef:
    """Return the tensor of this shape and these strides, in elements, that starts `offset` elements into the storage.

    Raises:
        ReadError: it reaches outside its storage.
        TypeError: not a storage, or not whole numbers.
    """
    if type(storage) is not Storage or len(shape) != len(stride) or type(offset) is not int:
        raise TypeError("a tensor that is no view of a storage")
    width = ITEMSIZE[dtype]
    count, last = _extent(shape, stride)
    if offset < 0 or (count and (offset + last + 1) * width > storage.size):
        raise ReadError(f"a tensor of shape {shape!r} reaches past its storage", where=storage.file, fix=_AGAIN)
    part = Part(storage.file, storage.offset + offset * width, shape, stride, (0,) * len(shape))
    whole = storage.crc32 if count * width == storage.size and not offset and part.contiguous else None
    return TensorRef(dtype, shape, (part,), storage.swapped, whole)


def _extent(shape: tuple[Any, ...], stride: tuple[Any, ...]) -> tuple[int, int]:
    """Return the number of elements, and the distance in elements from the first to the last."""
    count, last = 1, 0
    for extent, step in zip(shape, stride):
        if type(extent) is not int or type(step) is not int or not (0 <= extent < 1 << 62 and 0 <= step < 1 << 62):
            raise ReadError("a tensor whose shape or strides are no sizes", fix=_AGAIN)
        count *= extent
        last += (extent - 1) * step
    return count, last


def _rebuild_v1(storage: Any, offset: Any, shape: Any, stride: Any) -> TensorRef:
    return view(storage, offset, tuple(shape), tuple(stride), storage.dtype)


def _rebuild_v2(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = None, _hooks: Any = None, bits: Any = None) -> TensorRef:
    _no_bits(bits)
    return view(storage, offset, tuple(shape), tuple(stride), storage.dtype)


def _rebuild_v3(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, bits: Any = None) -> TensorRef:
    _no_bits(bits)
    if type(dtype) is not str or dtype not in ITEMSIZE:
        raise ReadError("a tensor of a type that no optimizer keeps", fix="save the optimizer's state_dict() alone")
    return view(storage, offset, tuple(shape), tuple(stride), dtype)


def _no_bits(bits: Any) -> None:
    if bits:
        raise ReadError("a tensor with a pending conjugate or negative sign", fix="save a copy made by tensor.resolve_neg()")


def _meta(dtype: Any, shape: Any, _stride: Any = None, _grad: Any = None) -> Inert:
    return Inert("torch.meta", kwargs={"dtype": dtype, "shape": tuple(shape)})


REBUILD_V2 = "torch._utils._rebuild_tensor_v2"
REBUILD: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _rebuild_v1,
    REBUILD_V2: _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda tensor, *_: tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda array, *_: array,
}
"""How torch writes a tensor (torch/_utils.py): storage, offset, shape and strides in elements."""

_GET = rb"(?:h.|j....)"
_PUT = rb"(?:q.|r....)"
_INT = rb"(?:K.|M..|J....)"
_SIZES = rb"(\)|%(int)b{1,3}[\x85-\x87]|\(%(int)b{4,8}t)" % {b"int": _INT}
_RECORD = re.compile(
    rb"\(\((%(get)b%(get)b)X[\x01-\x14]\0\0\0([0-9]+)%(put)b%(get)b(%(int)b)t%(put)bQ"
    rb"(%(int)b)%(sizes)b%(put)b?%(sizes)b%(put)b?\x89(%(get)b)\)R%(put)bt%(put)bR(%(put)b)"
    % {b"get": _GET, b"put": _PUT, b"int": _INT, b"sizes": _SIZES},
    re.DOTALL,
).match
"""After the function: ('storage', class, key, location, count) as persistent id, offset, shape, strides, False, OrderedDict()."""


class _Geometry(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    starts: tuple[int, ...]
    elements: int
    last: int
    contiguous: bool


def leaper(path: str, members: Mapping[bytes, Member], *, swapped: bool, crc: bool) -> Callable[[Machine, int], int]:
    """Return the function that reads one tensor's record, given the position after the function that rebuilds it.

    It returns the position after the record, or -1 where the record is not of the usual form.
    """
    numbers: dict[bytes, int] = {}
    geometries: dict[tuple[bytes, bytes], _Geometry] = {}
    kinds: dict[tuple[bytes, bytes], str] = {}

    def leap(m: Machine, at: int) -> int:
        match = _RECORD(m.data, at)
        if match is None:
            return -1
        kind, key, count, offset, shape, stride, hooks, put = match.groups()
        dtype = kinds.get((kind, hooks)) or kinds.setdefault((kind, hooks), _kind(m.memo, kind, hooks))
        known = geometries.get((shape, stride)) or geometries.setdefault((shape, stride), _geometry(shape, stride))
        member = members.get(key)
        if not dtype or member is None:
            return -1
        start = numbers.get(offset)
        if start is None:
            start = numbers[offset] = _int(offset)
        asked = numbers.get(count)
        if asked is None:
            asked = numbers[count] = _int(count)
        width, (place, size, crc32) = ITEMSIZE[dtype], member
        if start < 0 or asked < 0 or asked * width > size or known.last < 0 or (start + known.last + 1) * width > size:
            return -1
        whole = crc32 if crc and known.contiguous and known.elements * width == size else None
        part = Part(path, place + start * width, known.shape, known.stride, known.starts)
        ref = TensorRef(dtype, known.shape, (part,), swapped, whole)
        m.stack.append(ref)
        m.memo[put[1] if len(put) == 2 else int.from_bytes(put[1:], "little")] = ref
        return match.end()

    return leap


def _kind(memo: Mapping[int, Any], kind: bytes, hooks: bytes) -> str:
    """Return the dtype, or nothing when what the record refers to is not what torch writes there."""
    word, storage = (memo.get(index) for index in _indices(kind))
    (ordered,) = (memo.get(index) for index in _indices(hooks))
    if word != "storage" or type(storage) is not Named or type(ordered) is not Named or ordered.name != "collections.OrderedDict":
        return ""
    return STORAGES.get(storage.name.rpartition(".")[2], "")


def _indices(raw: bytes) -> list[int]:
    found, at = [], 0
    while at < len(raw):
        width = 1 if raw[at] == 0x68 else 4
        found.append(int.from_bytes(raw[at + 1 : at + 1 + width], "little"))
        at += 1 + width
    return found


def _int(raw: bytes) -> int:
    return int.from_bytes(raw[1:], "little", signed=raw[:1] == b"J")


def _geometry(shape: bytes, stride: bytes) -> _Geometry:
    sizes, steps = _ints(shape), _ints(stride)
    if len(sizes) != len(steps) or min((*sizes, *steps), default=0) < 0 or not all(sizes):
        return _Geometry(sizes, steps, (), 0, -1, False)  # left to the slow way, which says what is wrong
    count, last = _extent(sizes, steps)
    contiguous = Part("", 0, sizes, steps, ()).contiguous
    return _Geometry(sizes, steps, (0,) * len(sizes), count, last, contiguous)


def _ints(raw: bytes) -> tuple[int, ...]:
    """Return the numbers of a tuple's opcodes; a count that differs from its TUPLE opcode gives a tuple that fits nothing."""
    found, at, end = [], int(raw[0] == 0x28), len(raw) - 1
    while at < end:
        width = {0x4B: 1, 0x4D: 2, 0x4A: 4}[raw[at]]
        found.append(_int(raw[at : at + 1 + width]))
        at += 1 + width
    if raw[-1] in {0x85, 0x86, 0x87} and len(found) != raw[-1] - 0x84:
        return (-1,)
    return tuple(found)
