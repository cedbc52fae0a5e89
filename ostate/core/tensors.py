"""Tensors that lie in files: where their bytes are, and how bytes become numbers. Nothing is read until someone asks."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from ostate.errors import ReadError

from .brief import brief
from .files import read_at, read_into

if TYPE_CHECKING:
    from typing import TypeGuard

    import numpy as np
    from typing_extensions import Self

ITEMSIZE: dict[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
"""Bytes an element, by safetensors' dtype tag."""

NUMPY: dict[str, str] = {
    "F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4",
    "U16": "u2", "U8": "u1", "BOOL": "?", "C64": "c8",
}  # fmt: skip
"""numpy's name of a dtype tag, without byte order; the 16-bit brain float and the 8-bit floats have none."""
STRUCT: dict[str, str] = {
    "F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U64": "Q", "U32": "I", "U16": "H", "U8": "B", "BOOL": "?",
}  # fmt: skip
"""`struct`'s letter of a dtype tag, for one number without numpy."""
_FLOAT8 = {  # exponent bits, mantissa bits, bias, has infinities, unsigned zero only (OCP 8-bit float specification; fnuz: arXiv 2206.02915)
    "F8_E4M3": (4, 3, 7, "nan-only"), "F8_E5M2": (5, 2, 15, "ieee"), "F8_E4M3FNUZ": (4, 3, 8, "fnuz"), "F8_E5M2FNUZ": (5, 2, 16, "fnuz"),
}  # fmt: skip

CHUNK = 1 << 18
"""Elements read at a time: 1 MB of float32, which stays in a core's cache."""


class Slot(Protocol):
    """One tensor of a parameter's state, not yet read. `dtype` is what `read` gives in safetensors' words, F32 for anything packed."""

    @property
    def encoding(self) -> str:
        """`plain`, or the row of `optimizers.PACKINGS` that packs it."""

    @property
    def dtype(self) -> str:
        """The stored dtype of a plain slot; F32 for a packed one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""

    def read(self) -> np.ndarray:
        """Return the values: float32 (float64 for F64), the logical shape."""

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order, a bounded number at a time."""

    def with_shape(self, shape: tuple[int, ...]) -> Slot:
        """Return the same numbers under another shape of the same number of elements."""


def is_slot(value: object) -> TypeGuard[Slot]:
    """True for a slot among plain values."""
    return hasattr(value, "chunks")


class Fields:
    """Equality, hash, text and `_replace` by `__slots__`.

    What a dataclass would give; but making one costs every command a millisecond, and a frozen one takes three times as long to fill. A state
    has thousands of these, and nobody changes one.
    """

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __repr__(self) -> str:
        return brief(self)

    def _replace(self, **changes: object) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})


class Part(Fields):
    """A piece of a tensor in a file: a strided view of `sizes` that lies at `starts` in the whole.

    A part whose `starts` has one entry addresses the flattened tensor, whatever the tensor's rank.
    """

    __slots__ = ("file", "offset", "sizes", "starts", "strides")

    def __init__(self, file: str, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], starts: tuple[int, ...]) -> None:
        self.file = file
        self.offset = offset
        """Bytes from the start of the file to the first element."""
        self.sizes = sizes
        self.strides = strides
        """In elements."""
        self.starts = starts

    @property
    def contiguous(self) -> bool:
        """True when the elements lie in C order without holes."""
        wanted = 1
        for size, stride in zip(reversed(self.sizes), reversed(self.strides)):
            if size != 1 and stride != wanted:
                return False
            wanted *= size
        return True


class TensorRef(Fields):
    """A stored tensor: where its bytes lie. Nothing is read until someone asks. Satisfies `Slot`."""

    __slots__ = ("crc32", "dtype", "parts", "shape", "swapped")
    encoding = "plain"

    def __init__(self, dtype: str, shape: tuple[int, ...], parts: tuple[Part, ...], swapped: bool = False, crc32: int | None = None) -> None:
        self.dtype = dtype
        self.shape = shape
        self.parts = parts
        self.swapped = swapped
        """True when the file is big-endian."""
        self.crc32 = crc32
        """CRC32 of exactly these bytes, where the file's own directory records it."""

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as stored."""
        return self.numel * ITEMSIZE[self.dtype]

    @property
    def run(self) -> tuple[str, int] | None:
        """(file, offset) when the tensor is one run of bytes in C order and in this machine's order, else None."""
        part = self.parts[0] if len(self.parts) == 1 else None
        if part is None or self.swapped or not part.contiguous or math.prod(part.sizes) != self.numel:
            return None
        return part.file, part.offset

    def with_shape(self, shape: tuple[int, ...]) -> TensorRef:
        """Return the same numbers under another shape of the same number of elements."""
        if shape == self.shape:
            return self
        if math.prod(shape) != self.numel:
            raise ReadError(f"{self.numel} elements cannot take the shape {shape}", fix="the file was assembled wrongly: save it again")
        return self._replace(shape=shape, parts=tuple(_flat_parts(self)))

    def read(self) -> np.ndarray:
        """Return the values in the logical shape: float32 for float16, bfloat16 and 8-bit floats, else the stored type."""
        import numpy as np

        if len(self.parts) == 1 and math.prod(self.parts[0].sizes) == self.numel:
            return _read_part(self, self.parts[0]).reshape(self.shape)
        flat = all(len(part.starts) == 1 for part in self.parts)
        out: np.ndarray | None = None
        for part in self.parts:
            values = _read_part(self, part)
            if out is None:
                out = np.zeros((self.numel,) if flat else self.shape, values.dtype)
            out[tuple(slice(at, at + size) for at, size in zip(part.starts, part.sizes))] = values
        if out is None:
            out = np.zeros(self.shape, np.float32)
        return out.reshape(self.shape)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order, at most `elements` at a time where the layout allows it."""
        try:
            runs = _flat_parts(self)
        except ReadError:
            flat = self.read().reshape(-1)
            for at in range(0, flat.size, elements):
                yield flat[at : at + elements]
            return
        size = ITEMSIZE[self.dtype]
        for part in sorted(runs, key=lambda run: run.starts):
            for at in range(0, part.sizes[0], elements):
                count = min(elements, part.sizes[0] - at)
                yield decode_numbers(read_at(part.file, part.offset + at * size, count * size), self.dtype, self.swapped)

    def item(self) -> float:
        """Return the only element as a Python number, without numpy.

        Raises:
            ReadError: more than one element.
        """
        if self.numel != 1:
            raise ReadError(f"one number expected, the tensor has shape {self.shape}", fix="the file was assembled wrongly: save it again")
        part = self.parts[0]
        raw = read_at(part.file, part.offset, ITEMSIZE[self.dtype])
        order = ">" if self.swapped else "<"
        if self.dtype == "BF16":
            raw = raw + b"\0\0" if self.swapped else b"\0\0" + raw
            return float(struct.unpack(order + "f", raw)[0])
        code = STRUCT.get(self.dtype)
        if code is None:
            raise ReadError(f"a number of type {self.dtype} is not expected here", where=part.file, fix="report this layout")
        value = struct.unpack(order + code, raw)[0]
        return float(value)


def _flat_parts(ref: TensorRef) -> list[Part]:
    """Return the parts as runs of the flattened tensor.

    Raises:
        ReadError: a part is not a run (a column shard, a transposed view).
    """
    runs = []
    for part in ref.parts:
        if not part.contiguous:
            raise ReadError("a tensor is not stored in C order", where=part.file, fix="save it again as a contiguous tensor")
        if len(part.starts) == 1:
            start = part.starts[0]
        elif part.sizes[1:] == ref.shape[1:]:
            start = part.starts[0] * math.prod(ref.shape[1:]) if part.starts else 0
        else:
            raise ReadError("a part of a tensor does not span whole rows", where=part.file, fix="report this layout")
        runs.append(part._replace(sizes=(math.prod(part.sizes),), strides=(1,), starts=(start,)))
    return runs


def _read_part(ref: TensorRef, part: Part) -> np.ndarray:
    import numpy as np

    size = ITEMSIZE[ref.dtype]
    count = math.prod(part.sizes)
    if part.contiguous or count == 0:
        return decode_numbers(read_at(part.file, part.offset, count * size), ref.dtype, ref.swapped).reshape(part.sizes)
    span = 1 + sum((length - 1) * stride for length, stride in zip(part.sizes, part.strides))
    values = decode_numbers(read_at(part.file, part.offset, span * size), ref.dtype, ref.swapped)
    steps = tuple(stride * values.itemsize for stride in part.strides)
    return np.lib.stride_tricks.as_strided(values, part.sizes, steps).copy()


def raw_chunks(source: TensorRef, buffer: memoryview) -> Iterator[memoryview]:
    """Yield the bytes of a tensor that is one run; each piece lies in `buffer`, over the one before.

    Raises:
        ReadError: the file cannot be read.
    """
    run = source.run
    assert run is not None
    file, offset = run
    for at in range(0, source.nbytes, len(buffer)):
        piece = buffer[: min(len(buffer), source.nbytes - at)]
        read_into(file, offset + at, piece, on=at > 0)
        yield piece


def decode_numbers(raw: bytes | memoryview, dtype: str, swapped: bool = False) -> np.ndarray:
    """Return the flat numbers that `raw` holds: float32 for float16, bfloat16 and 8-bit floats, else the stored type."""
    import numpy as np

    order = ">" if swapped else "<"
    if dtype == "BF16":
        return (np.frombuffer(raw, order + "u2").astype("<u4") << 16).view("<f4")
    if dtype in _FLOAT8:
        return np.asarray(_float8_table(dtype)[np.frombuffer(raw, "u1")])
    if dtype not in NUMPY:
        raise ReadError(f"numbers of type {dtype} are not known", fix="report this layout")
    values = np.frombuffer(raw, order + NUMPY[dtype])
    if dtype == "F16":
        return values.astype("<f4")
    return values.astype(values.dtype.newbyteorder("<")) if swapped else values


def _float8_table(dtype: str) -> np.ndarray:
    import numpy as np

    exponent_bits, mantissa_bits, bias, kind = _FLOAT8[dtype]
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    values = np.where(codes & 0x80, -values, values)
    top = exponent == (1 << exponent_bits) - 1
    if kind == "ieee":
        values = np.where(top, np.where(mantissa == 0, np.copysign(np.inf, values), np.nan), values)
    elif kind == "nan-only":
        values = np.where((codes & 0x7F) == 0x7F, np.nan, values)
    else:
        values = np.where(codes == 0x80, np.nan, values)
    return np.asarray(values, np.float32)


def shape_text(shape: tuple[int, ...] | None) -> str:
    """Return `4x32`; `scalar` for a 0-d tensor; `-` where the state does not tell."""
    if shape is None:
        return "-"
    return "x".join(map(str, shape)) if shape else "scalar"
