"""Tensors of a pickle that torch wrote: views of storages, checked to lie within them.

`fast_path` reads one tensor's whole record at a time, and those of one parameter in a row. Torch writes the same thirty opcodes for each
tensor; matched as one regular expression they cost a fifth of what they cost one by one. Whatever does not match, and every reference to a
part of a record, is read the slow way.
"""

# No `from __future__ import annotations`: a named tuple compiles each annotation that is text, on every start (docs/performance.md).

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ostate.core.tensors import ITEMSIZE, Part, TensorRef
from ostate.errors import ReadError

from ..container.zip import Member
from .machine import Machine
from .records import Inert, Named, whole_numbers

_AGAIN = "the copy is damaged: copy it again"

STORAGES: dict[str, str] = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64", "UntypedStorage": "U8", "QInt8Storage": "I8", "QUInt8Storage": "U8", "QInt32Storage": "I32",
}  # fmt: skip
"""torch's storage classes (torch/storage.py) by the dtype of their elements."""

MOST_PICKLE_BYTES = 1 << 25
"""Bytes of the pickle within a file: 300,000 tensors, LoRA on each expert of the largest mixtures. Torch writes no values into it."""


class Storage(NamedTuple):
    """A run of bytes that tensors are views of."""

    file: str
    offset: int
    size: int
    """In bytes."""
    dtype: str
    crc32: int | None
    swapped: bool


def asked_storage(asked: object) -> tuple[str, str, int]:
    """Return (dtype, key, number of elements) of a persistent id `('storage', class, key, location, numel[, view])`.

    Raises:
        TypeError: something else.
    """
    if type(asked) is not tuple or len(asked) not in {5, 6} or asked[0] != "storage":
        raise TypeError("a persistent id that is no storage")
    kind, key, count = asked[1], asked[2], asked[4]
    if type(kind) is not Named or type(key) is not str or type(count) is not int:
        raise TypeError("a storage whose id is damaged")
    dtype = STORAGES.get(kind.name.rpartition(".")[2])
    if dtype is None:
        raise ReadError(f"a storage of type {kind.name}, which no optimizer uses", fix="save the optimizer's state_dict() alone")
    return dtype, key, count


def view(storage: object, offset: object, shape: tuple[int, ...], stride: tuple[int, ...], dtype: str) -> TensorRef:
    """Return the tensor of this shape and these strides, in elements, that starts `offset` elements into the storage.

    Raises:
        ReadError: it reaches outside its storage.
        TypeError: not a storage, or the place in it no whole number.
    """
    if type(storage) is not Storage or len(shape) != len(stride) or type(offset) is not int:
        raise TypeError("a tensor that is not a view of a storage")
    width = ITEMSIZE[dtype]
    count, last = _extent(shape, stride)
    if offset < 0 or (count and (offset + last + 1) * width > storage.size):
        raise ReadError(f"a tensor of shape {shape!r} reaches past its storage", where=storage.file, fix=_AGAIN)
    part = Part(storage.file, storage.offset + offset * width, shape, stride, (0,) * len(shape))
    whole = storage.crc32 if count * width == storage.size and not offset and part.contiguous else None
    return TensorRef(dtype, shape, (part,), storage.swapped, whole)


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of elements, and the distance in elements from the first to the last."""
    count, last = 1, 0
    for extent, step in zip(shape, stride):
        if not (0 <= extent < 1 << 62 and 0 <= step < 1 << 62):
            raise ReadError("a tensor whose shape or strides are not sizes", fix=_AGAIN)
        count *= extent
        last += (extent - 1) * step
    return count, last


def _rebuild_v1(storage: object, offset: object, shape: object, stride: object) -> TensorRef:
    return view(storage, offset, whole_numbers(shape), whole_numbers(stride), _dtype_of(storage))


def _rebuild_v2(
    storage: object, offset: object, shape: object, stride: object, _grad: object = None, _hooks: object = None, bits: object = None
) -> TensorRef:
    _no_bits(bits)
    return view(storage, offset, whole_numbers(shape), whole_numbers(stride), _dtype_of(storage))


def _rebuild_v3(
    storage: object, offset: object, shape: object, stride: object, _grad: object, _hooks: object, dtype: object, bits: object = None
) -> TensorRef:
    _no_bits(bits)
    if type(dtype) is not str or dtype not in ITEMSIZE:
        raise ReadError("a tensor of a type that no optimizer uses", fix="save the optimizer's state_dict() alone")
    return view(storage, offset, whole_numbers(shape), whole_numbers(stride), dtype)


def _dtype_of(storage: object) -> str:
    if type(storage) is not Storage:
        raise TypeError("a tensor that is not a view of a storage")
    return storage.dtype


def _no_bits(bits: object) -> None:
    if bits:
        raise ReadError("a tensor with a pending conjugate or negative sign", fix="save a copy made by tensor.resolve_neg()")


def _meta(dtype: object, shape: object, _stride: object = None, _grad: object = None) -> Inert:
    return Inert("torch.meta", kwargs={"dtype": dtype, "shape": whole_numbers(shape)})


REBUILD_V2 = "torch._utils._rebuild_tensor_v2"
REBUILD: dict[str, object] = {
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
_SIZES = rb"(\)|\(?%(int)b{1,8}[t\x85-\x87])" % {b"int": _INT}
_RECORD = re.compile(
    rb"\(\((%(get)b%(get)b)X[\x01-\x14]\0\0\0([0-9]+)%(put)b%(get)b(%(int)b)t%(put)bQ"
    rb"(%(int)b)%(sizes)b%(put)b?%(sizes)b%(put)b?\x89(%(get)b)\)R%(put)bt%(put)bR(%(put)b)"
    % {b"get": _GET, b"put": _PUT, b"int": _INT, b"sizes": _SIZES},
    re.DOTALL,
).match
"""After the function: ('storage', class, key, location, count) as persistent id, offset, shape, strides, False, OrderedDict()."""


class _RecordForm(NamedTuple):
    """What a record says besides its key and its memo numbers: the same for all tensors of one shape."""

    need: int
    """Bytes that the storage must have."""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    skipped: int = 0
    """Bytes of the storage before the tensor."""
    whole: int = -1
    """Bytes of a storage that is this tensor and nothing else; -1: no storage is."""


_NONE = _RecordForm(1 << 63)
"""Left to the slow way, which says what is wrong."""


def fast_path_of(
    path: str, prefix: str, members: Mapping[str, Member], *, swapped: bool, crc: bool, remember: bool = False
) -> Callable[[Machine, int], int]:
    """Return the function that reads one tensor's record, and those that follow with a key between (`exp_avg`, then `exp_avg_sq`).

    `members` are the archive's, and those under `prefix` its storages. The function is given the position after the one that rebuilds the first
    tensor, and returns the position after the last record, or -1 where the first is not of the usual form. A tensor that stands in the pickle
    twice is known by its memo number the second time; that is rare, and all of them are kept by their numbers only where asked to `remember`.
    """
    forms: dict[tuple[bytes, ...], _RecordForm] = {}

    def fast_path(m: Machine, at: int) -> int:
        data, memo, stack, before, end = m.data, m.memo, m.stack, m.before, -1
        while True:
            match = _RECORD(data, at)
            if match is None or data[match.start(2) - 4] != len(match[2]):  # the digits that the length leaves out are opcodes
                return end
            said = match.group(1, 3, 4, 5, 6, 7)
            form = forms.get(said)
            if form is None:
                form = forms[said] = _form(memo, *said, whole=crc)
            need, dtype, shape, stride, starts, skipped, whole = form
            place, size, crc32 = members.get(prefix + str(match[2], "ascii"), _MISSING)
            if need > size:
                return end
            if end > 0:
                stack.append(memo[data[end + 1]])
            ref = TensorRef(dtype, shape, (Part(path, place + skipped, shape, stride, starts),), swapped, crc32 if size == whole else None)
            stack.append(ref)
            if remember:
                put = match[8]
                memo[put[1] if len(put) == 2 else int.from_bytes(put[1:], "little")] = ref
            end = match.end()
            if data[end] != _BINGET or data[end + 2] != _BINGET or memo.get(data[end + 3]) is not before:
                return end
            at = end + 4

    return fast_path


_BINGET = 0x68
_MISSING = (0, -1, 0)
"""In place of a member that is not there: too small for any form."""


def _form(
    memo: Mapping[int, object], kind: bytes, count: bytes, offset: bytes, shape: bytes, stride: bytes, hooks: bytes, *, whole: bool
) -> _RecordForm:
    """Return what these parts of a record say together; `_NONE` when it is not what torch writes."""
    dtype, sizes, steps = _kind(memo, kind, hooks), _ints(shape), _ints(stride)
    start, asked = _int(offset), _int(count)
    if not dtype or len(sizes) != len(steps) or min((start, asked, *sizes, *steps)) < 0 or not all(sizes):
        return _NONE
    elements, last = _extent(sizes, steps)
    starts = (0,) * len(sizes)
    width = ITEMSIZE[dtype]
    alone = whole and not start and Part("", 0, sizes, steps, starts).contiguous
    return _RecordForm(max(asked, start + last + 1) * width, dtype, sizes, steps, starts, start * width, elements * width if alone else -1)


def _kind(memo: Mapping[int, object], kind: bytes, hooks: bytes) -> str:
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


def _ints(raw: bytes) -> tuple[int, ...]:
    """Return the numbers of a tuple's opcodes; what is no tuple of that many gives one that no tensor has."""
    found, at, end = [], int(raw[0] == 0x28), len(raw) - 1
    marked = at
    while at < end:
        width = {0x4B: 1, 0x4D: 2, 0x4A: 4}[raw[at]]
        found.append(_int(raw[at : at + 1 + width]))
        at += 1 + width
    if end and (marked if raw[-1] in {0x85, 0x86, 0x87} else not marked):
        return (-1,)
    if raw[-1] in {0x85, 0x86, 0x87} and len(found) != raw[-1] - 0x84:
        return (-1,)
    return tuple(found)
