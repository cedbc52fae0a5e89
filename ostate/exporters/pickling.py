"""The pickle that `torch.save` makes of plain data and tensors: protocol 2, each tensor a call with the key of its storage.

Read at torch 2.13, torch/_tensor.py (`_reduce_ex_internal`) and torch/serialization.py (`persistent_id`); `torch.load(weights_only=True)` knows
every opcode used here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from struct import pack
from typing import NamedTuple

from ostate.core.tensors import ITEMSIZE, NUMPY, Slot, TensorRef, is_slot
from ostate.errors import ExportError

_STORAGES = {
    "F64": "torch DoubleStorage", "F32": "torch FloatStorage", "F16": "torch HalfStorage", "C64": "torch ComplexFloatStorage",
    "I64": "torch LongStorage", "I32": "torch IntStorage", "I16": "torch ShortStorage", "I8": "torch CharStorage", "U8": "torch ByteStorage",
    "BOOL": "torch BoolStorage",
}  # fmt: skip
_LATER = {"U64": "torch uint64", "U32": "torch uint32", "U16": "torch uint16"}
"""Types that came after typed storages."""
_DECODED = frozenset({"F16", "BF16"})
"""Types that `Slot.chunks` gives as float32, beside the 8-bit floats."""


class Kind(NamedTuple):
    """How a slot's numbers lie in the file."""

    dtype: str
    numpy: str
    stored: bool
    """True when they lie so in their source too, in one run."""


def kind_of(slot: Slot) -> Kind:
    """Return the type of the tensor that a slot becomes: the stored one where torch has it, float32 for what is packed or was stored in fewer bits.

    Float16 stays where it lies in one run, as its numbers need not be looked at.
    """
    if isinstance(slot, TensorRef) and slot.run is not None and slot.dtype in NUMPY:
        return Kind(slot.dtype, "<" + NUMPY[slot.dtype], stored=True)
    dtype = "F32" if slot.encoding != "plain" or slot.dtype in _DECODED or slot.dtype not in NUMPY else slot.dtype
    return Kind(dtype, "<" + NUMPY[dtype], stored=False)


def pickled(value: object) -> tuple[bytes, list[Slot]]:
    """Return the pickle, and the slots whose numbers it calls `data/0`, `data/1`, …

    Raises:
        ExportError: a value that is neither plain nor a slot.
    """
    writer = _Writer()
    writer.add(value)
    return b"\x80\x02" + b"".join(writer.out) + b".", writer.slots


class Global(NamedTuple):
    """A class or function by its name, which whoever loads the file must allow: `module name`."""

    name: str


class Call(NamedTuple):
    """What loading the file gives by calling a function."""

    function: str
    """`module name`."""
    args: tuple[object, ...]


class WrapperTensor(NamedTuple):
    """A library's own tensor, which wraps others."""

    cls: Global
    arguments: tuple[object, ...]
    """Of `_rebuild_wrapper_subclass`, the class first."""
    attributes: dict[str, object]
    """Attribute -> value, some of them slots."""

    @property
    def call(self) -> Call:
        """What `torch.save` writes of it (torch/_tensor.py, Tensor.__reduce_ex__ of a wrapper subclass)."""
        rebuild = Global("torch._utils _rebuild_wrapper_subclass")
        return Call("torch._tensor _rebuild_from_type_v2", (rebuild, self.cls, self.arguments, self.attributes))


class _Writer:
    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.slots: list[Slot] = []
        self._memo: dict[bytes, int] = {}

    def add(self, value: object) -> None:
        """Write one value."""
        if value is None or isinstance(value, bool):
            self.out.append(b"N" if value is None else b"\x88" if value else b"\x89")
        elif isinstance(value, int):
            self._integer(value)
        elif isinstance(value, float):
            self.out.append(b"G" + pack(">d", value))
        elif isinstance(value, str):
            raw = value.encode("utf-8", "surrogatepass")
            self._once(b"X" + pack("<I", len(raw)) + raw)
        elif isinstance(value, Global):
            self._global(value.name)
        elif isinstance(value, Call):
            self._global(value.function)
            self._many(b"(", value.args, b"t")
            self.out.append(b"R")
        elif isinstance(value, WrapperTensor):
            self.add(value.call)
        elif isinstance(value, Mapping):
            self._many(b"}(", (part for row in value.items() for part in row), b"u")
        elif isinstance(value, list):
            self._many(b"](", value, b"e")
        elif isinstance(value, tuple):
            self._many(b"(", value, b"t")
        elif is_slot(value):
            self._tensor(value)
        else:
            raise ExportError(f"a value of type {type(value).__name__} cannot be stored in torch's file", fix="report this layout")

    def _integer(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self.out.append(b"J" + pack("<i", value))
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out.append(b"\x8a" + bytes([len(raw)]) + raw)

    def _once(self, made: bytes) -> None:
        """Write a string or a global, or where it stood before."""
        if made in self._memo:
            self.out.append(b"j" + pack("<I", self._memo[made]))
            return
        self._memo[made] = len(self._memo)
        self.out.append(made + b"r" + pack("<I", self._memo[made]))

    def _global(self, name: str) -> None:
        self._once(b"c" + name.replace(" ", "\n").encode() + b"\n")

    def _many(self, start: bytes, values: Iterable[object], end: bytes) -> None:
        self.out.append(start)
        for value in values:
            self.add(value)
        self.out.append(end)

    def _tensor(self, slot: Slot) -> None:
        """Write `_rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())`; a type that came later stands behind (`_v3`)."""
        kind = kind_of(slot).dtype
        count = math.prod(slot.shape) * (ITEMSIZE[kind] if kind in _LATER else 1)
        strides = tuple(math.prod(max(1, size) for size in slot.shape[axis + 1 :]) for axis in range(len(slot.shape)))
        self._global(f"torch._utils _rebuild_tensor_v{3 if kind in _LATER else 2}")
        self.out.append(b"((")
        self.add("storage")
        self._global(_STORAGES.get(kind, "torch.storage UntypedStorage"))
        for part in (str(len(self.slots)), "cpu", count):
            self.add(part)
        self.out.append(b"tQ")
        for value in (0, slot.shape, strides, False):
            self.add(value)
        self._global("collections OrderedDict")
        self.out.append(b")R")
        if kind in _LATER:
            self._global(_LATER[kind])
        self.out.append(b"tR")
        self.slots.append(slot)
