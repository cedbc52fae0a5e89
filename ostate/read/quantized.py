"""Packed moments: from the tensors a library stores to the numbers it means, equal to its own dequantisation bit for bit.

`slots_of` turns one stored entry into logical slots under torch's names, and plain scalars. numpy inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

from ostate.core import limits
from ostate.core.foreign import expanded
from ostate.core.state import Hyper
from ostate.core.tensors import CHUNK, ITEMSIZE, Fields, Part, Slot, TensorRef
from ostate.errors import ReadError
from ostate.optimizers import OPTIMIZERS
from ostate.optimizers.slots import MOMENT_SLOTS, SINGLE_NUMBERS

from .flat_buffers import Cut
from .pickle.records import Inert, whole_numbers

if TYPE_CHECKING:
    import numpy as np

Stored = Mapping[str, object]
"""One entry of `state`, as the file has it."""
Decoded = tuple[dict[str, Slot], dict[str, object]]
MOST_TENSORS = 4096
"""Of one parameter, lists and mappings included: L-BFGS keeps 200."""
_SINGLE = frozenset({TensorRef, float, int, bool, type(None)})
"""Kinds of values that hold no others."""
BNB_WRAPPED = "__bnb_optimizer_quant_state__"
_BLOCKS = (256, 2048, 128, 64, 512, 1024, 4096)
"""bitsandbytes' block sizes: 256 since 0.44, 2048 before it; the rest could be asked for."""
_OTHER = "the state was cut or changed after it was saved: pass the file that the training wrote"


class Packed(Fields):
    """A slot stored as codes, a scale for each block of elements, and perhaps a table of what a code means. Satisfies `Slot`."""

    __slots__ = ("block", "codes", "encoding", "halves", "scale", "shape", "table")

    def __init__(
        self,
        encoding: str,
        shape: tuple[int, ...],
        codes: TensorRef,
        scale: TensorRef | float,
        block: int,
        table: TensorRef | None = None,
        halves: bool = False,
    ) -> None:
        self.encoding = encoding
        self.shape = shape
        self.codes = codes
        """One code an element; two in a byte, high half first, where `halves`."""
        self.scale = scale
        """One float a block; a plain number where one goes for the whole tensor."""
        self.block = block
        """Elements that share a scale."""
        self.table = table
        """What a code means, before scaling; None: the codes are numbers themselves."""
        self.halves = halves

    @property
    def dtype(self) -> str:
        """Always F32."""
        return "F32"

    def with_shape(self, shape: tuple[int, ...]) -> Packed:
        """Return the same numbers under another shape of the same number of elements."""
        if math.prod(shape) != math.prod(self.shape):
            raise ReadError(f"{math.prod(self.shape)} elements cannot take the shape {shape}", fix=_OTHER)
        return self._replace(shape=shape)

    def read(self) -> np.ndarray:
        """Return the values, float32."""
        import numpy as np

        pieces = list(self.chunks(max(CHUNK, math.prod(self.shape))))
        flat = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        return flat.reshape(self.shape)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order, a bounded number at a time."""
        import numpy as np

        scale = self.scale.read().reshape(-1) if isinstance(self.scale, TensorRef) else np.array([self.scale], np.float32)
        table = None if self.table is None else self.table.read().reshape(-1)
        whole = max(1, elements // self.block) * self.block
        at = 0
        for codes in self.codes.chunks(max(1, whole // 2) if self.halves else whole):
            if self.halves:
                codes = np.stack([codes >> 4, codes & 15], axis=-1).reshape(-1)
            values = codes if table is None else table.take(codes)
            yield _scaled(values, scale, at, self.block)
            at += values.size


def _scaled(values: np.ndarray, scale: np.ndarray, at: int, block: int) -> np.ndarray:
    """Multiply float32 `values`, which start at element `at`, by their blocks' scales."""
    import numpy as np

    first, last = at // block, -(-(at + values.size) // block)
    if at % block == 0 and values.size % block == 0:
        return np.asarray((values.reshape(-1, block) * scale[first:last, None]).reshape(-1))
    spread = np.repeat(scale[first:last], block)[at - first * block :][: values.size]
    return np.asarray(values * spread)


def slots_of(entry: Stored, hyper: Hyper | None = None) -> Decoded:
    """Return the entry's tensors as slots under torch's names, and its plain numbers.

    Args:
        entry: one value of the file's `state`.
        hyper: its group's hyperparameters, which tell bitsandbytes' one-state optimizers apart; without them their moment keeps
            the name `state1`.

    Returns:
        slots: name -> slot, without `step`.
        scalars: everything else that is not a tensor; `step` a float; `bitsandbytes`, `torchao` or `auto8bit` say who packed the entry.
            What lies in a list or a mapping is called `<slot>.<index>` or `<slot>.<key>`.

    Raises:
        ReadError: a packed slot is incomplete or of an unknown kind.
    """
    if not all(type(key) is str for key in entry):
        raise ReadError("an entry of the state has a slot that is not called by a text", fix="save optimizer.state_dict()")
    if not _SINGLE.issuperset(map(type, entry.values())):
        _refuse_endless(entry)
    slots: dict[str, Slot] = {}
    scalars: dict[str, object] = {}
    if not _BNB.isdisjoint(entry):
        wrapped = entry.get(BNB_WRAPPED)
        packed: dict[str, object] = dict(wrapped) if isinstance(wrapped, Mapping) else {}
        packed.update({key: value for key, value in entry.items() if key in BNB_SLOTS})
        entry = {key: value for key, value in entry.items() if key not in _BNB}
        if packed:
            _bitsandbytes(packed, hyper or {}, slots, scalars)
    for key, value in entry.items():
        if type(value) is TensorRef and key not in SINGLE_NUMBERS:
            slots[key] = value
        elif type(value) is float:
            scalars[key] = value
        else:
            _put(key, value, slots, scalars)
    return (_unmasked(slots) if "mask" in slots else slots), scalars


def _unmasked(slots: dict[str, Slot]) -> dict[str, Slot]:
    """Return SPAM's moments in their parameter's shape: they are kept as the run of the elements that its mask lets through.

    Raises:
        ReadError: the mask leaves some out, so that the moments are of a random part of the parameter.
    """
    shape = slots["mask"].shape
    runs = {name: slot for name, slot in slots.items() if len(slot.shape) == 1 and name in MOMENT_SLOTS}
    if len(shape) != 2 or not runs:
        return slots
    if any(slot.shape[0] != math.prod(shape) for slot in runs.values()):
        raise ReadError(
            "the moments are of a random part of each matrix, which a mask beside them draws anew (SPAM with density below 1)",
            fix="take a few hundred steps with AdamW from this checkpoint, and use the state they leave",
        )
    return {name: slot.with_shape(shape) if name in runs else slot for name, slot in slots.items()}


def _refuse_endless(entry: Stored) -> None:
    if expanded(dict(entry), limits.VALUES) > limits.VALUES:
        raise ReadError(f"an entry of the state spells out more than {limits.VALUES} values", fix="save optimizer.state_dict()")
    if sum(1 for value in entry.values() for _ in _tensors_in(value)) > MOST_TENSORS:
        raise ReadError(f"an entry of the state holds more than {MOST_TENSORS} tensors", fix="save optimizer.state_dict()")


def _put(key: str, value: object, slots: dict[str, Slot], scalars: dict[str, object]) -> None:
    if isinstance(value, TensorRef):
        if key in SINGLE_NUMBERS and value.numel == 1:
            scalars[key] = value.item()
        else:
            slots[key] = value
    elif isinstance(value, (Packed, Cut)):  # out of a buffer of many parameters, decoded before
        slots[key] = value
    elif isinstance(value, (list, tuple)) and any(True for _ in _tensors_in(value)):
        for index, item in enumerate(value):
            _put(f"{key}.{index}", item, slots, scalars)
    elif isinstance(value, Mapping) and _is_auto8bit(value):
        slots[key] = _auto8bit(value)
        scalars["auto8bit"] = 8
    elif isinstance(value, Mapping) and any(True for _ in _tensors_in(value)):
        for inner, item in value.items():
            _put(f"{key}.{inner}", item, slots, scalars)
    elif (kind := _torchao_kind(value)) is not None:
        packed = _torchao(kind, cast(Inert, value))
        slots[key] = packed
        scalars |= {"torchao": kind, "torchao_block": packed.block}
    elif key == "step" and isinstance(value, (int, float)):
        scalars[key] = float(value)
    elif isinstance(value, Inert) and (value.name in _NO_VALUES or key in MOMENT_SLOTS):
        what, fix = _NO_VALUES.get(value.name, (f"a {value.name[:80]}, whose numbers are not read", "save it as a plain tensor"))
        raise ReadError(f"{key} is {what}", fix=fix)
    else:
        scalars[key] = value.name if isinstance(value, Inert) else value


_NO_VALUES = {
    "torch.meta": ("a tensor on the meta device, without values", "the state was never loaded: save it once its tensors have values"),
    "torch._utils._rebuild_sparse_tensor": ("a sparse tensor", "save a copy of the state whose tensors went through to_dense()"),
    "torch._utils._rebuild_sparse_csr_tensor": ("a sparse tensor", "save a copy of the state whose tensors went through to_dense()"),
    "torch._utils._rebuild_qtensor": ("a quantised tensor of torch", "save a copy of the state whose tensors went through dequantize()"),
    "torch._utils._rebuild_nested_tensor": ("a nested tensor", "save its parts as tensors of their own"),
}
"""Class of a record of torch's -> what the tensor is, and what to do: its numbers do not lie as a tensor's do."""


def _tensors_in(value: object) -> Iterator[TensorRef]:
    """Yield the tensors at any depth of lists and mappings."""
    if isinstance(value, TensorRef):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(inner)


# ---- ai-toolkit ------------------------------------------------------------------------------------------------------------------


def _is_auto8bit(value: Mapping[object, object]) -> bool:
    """True for what `Auto8bitTensor.state_dict()` gives, bare or under its `_type` (ostris/ai-toolkit, toolkit/optimizers/optimizer_utils.py)."""
    return value.get("_type") == "Auto8bitTensor" or {"quantized", "scale"} <= value.keys() <= {"quantized", "scale", "orig_dtype"}


def _auto8bit(value: Mapping[object, object]) -> Slot:
    """Return the slot that is meant: `quantized` times `scale`, one scale for the tensor."""
    state = value.get("state", value)
    codes, scale = (state.get("quantized"), state.get("scale")) if isinstance(state, Mapping) else (None, None)
    if isinstance(scale, TensorRef) and scale.numel == 1:
        scale = scale.item()
    if not isinstance(codes, TensorRef) or codes.dtype != "I8" or isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ReadError("an Auto8bitTensor lacks its int8 numbers or its scale", fix=_OTHER)
    return Packed("auto8bit", codes.shape, codes, float(scale), max(1, codes.numel))


# ---- bitsandbytes ----------------------------------------------------------------------------------------------------------------

BNB_SLOTS = {"state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2", "max1", "max2", "new_max1", "new_max2", "unorm_vec", "gnorm_vec"}
_BNB = {BNB_WRAPPED, *BNB_SLOTS}


def _bitsandbytes(packed: Mapping[str, object], hyper: Hyper, slots: dict[str, Slot], scalars: dict[str, object]) -> None:
    bits = 32
    for number in ("1", "2"):
        state = packed.get("state" + number)
        if not isinstance(state, TensorRef):
            continue
        if state.dtype == "U8":
            bits = 8
        other = packed.get("state2")
        if number == "1" and isinstance(other, TensorRef) and state.shape == (2, *other.shape):
            # AdEMAMix keeps its fast and its slow average in one tensor (bitsandbytes/optim/ademamix.py, _get_state_double_buffer).
            slots["exp_avg"] = _bnb_slot(packed, number, _layer(state, 0), 0)
            slots["exp_avg_slow"] = _bnb_slot(packed, number, _layer(state, 1), 1)
        else:
            slots[_bnb_name(number, packed, hyper)] = _bnb_slot(packed, number, state, None)
    for key in ("unorm_vec", "gnorm_vec"):
        if key in packed:
            _put(key, packed[key], slots, scalars)
    scalars["bitsandbytes"] = bits


def _bnb_name(number: str, packed: Mapping[str, object], hyper: Hyper) -> str:
    if number == "2":
        return "exp_avg_sq"
    if "state2" in packed:
        return "exp_avg"
    for spec in OPTIMIZERS.values():
        if "bitsandbytes" in spec.tells and spec.when is not None and len(spec.slots) == 1 and spec.when(hyper):
            return next(iter(spec.slots))
    return "state1"


def _bnb_slot(packed: Mapping[str, object], number: str, codes: TensorRef, layer: int | None) -> Slot:
    if codes.dtype != "U8":
        return codes
    table, scale, largest = (packed.get(key + number) for key in ("qmap", "absmax", "max"))
    if isinstance(table, TensorRef) and table.numel < 256:
        raise ReadError(f"a table of {table.numel} entries cannot give 256 codes their meaning", fix=_OTHER)
    if isinstance(table, TensorRef) and isinstance(scale, TensorRef):
        if scale.dtype == "U8":
            raise ReadError("the block scales are packed themselves, which no release of bitsandbytes is known to write", fix="report this layout")
        if layer is not None:
            scale = _layer(scale, layer)
        return Packed("bitsandbytes-8bit", codes.shape, codes, scale, _block(codes.numel, scale.numel), table)
    if isinstance(table, TensorRef) and isinstance(largest, TensorRef):
        return Packed("bitsandbytes-8bit-tensor", codes.shape, codes, largest, max(1, codes.numel), table)
    raise ReadError(f"state{number} holds 8-bit codes, but the table or the scales that give them meaning are missing", fix=_OTHER)


def _block(elements: int, scales: int) -> int:
    for block in _BLOCKS:
        if -(-elements // block) == scales:
            return block
    sizes = ", ".join(map(str, sorted(_BLOCKS)))
    raise ReadError(f"{scales} scales do not go with {elements} codes in blocks of {sizes}", fix=_OTHER)


def _layer(ref: TensorRef, index: int) -> TensorRef:
    """Return `ref[index]`."""
    part = ref.parts[0]
    if len(ref.parts) != 1 or part.sizes != ref.shape or ref.shape[:1] != (2,):
        raise ReadError("a tensor that holds two moments is stored in pieces", where=part.file, fix=_OTHER)
    offset = part.offset + index * part.strides[0] * ITEMSIZE[ref.dtype]
    inner = Part(part.file, offset, part.sizes[1:], part.strides[1:], (0,) * (len(ref.shape) - 1))
    return ref._replace(shape=ref.shape[1:], parts=(inner,), crc32=None)


# ---- torchao ---------------------------------------------------------------------------------------------------------------------


def _torchao_kind(value: object) -> str | None:
    """Return `8bit`, `4bit` or `fp8` for the record of a torchao state tensor, else None."""
    if not isinstance(value, Inert) or not value.name.startswith("torchao."):
        return None
    return next((kind for kind in ("8bit", "4bit", "fp8") if value.name.lower().endswith(".optimstate" + kind)), None)


def _shape_of(value: object, kind: str) -> tuple[int, ...]:
    try:
        return whole_numbers(value)
    except TypeError as error:
        raise ReadError(f"a torchao {kind} tensor whose shape is {ascii(value)[:60]}", fix=_OTHER) from error


def _torchao(kind: str, record: Inert) -> Packed:
    state = record.state if isinstance(record.state, Mapping) else {}
    codes, scale, table = (state.get(key) for key in ("codes", "scale", "qmap"))
    if not isinstance(codes, TensorRef) or not isinstance(scale, TensorRef) or (kind != "fp8" and not isinstance(table, TensorRef)):
        raise ReadError(f"a torchao {kind} tensor lacks its codes, its scales or its table", fix=_OTHER)
    halves = kind == "4bit"
    if codes.dtype != ("F8_E4M3" if kind == "fp8" else "U8") or (isinstance(table, TensorRef) and table.numel < (16 if halves else 256)):
        raise ReadError(f"a torchao {kind} tensor has codes of type {codes.dtype}, or a table that is too short for them", fix=_OTHER)
    shape = _shape_of(record.kwargs.get("shape", codes.shape), kind)
    count = codes.numel * (2 if halves else 1)
    if math.prod(shape) != count or scale.numel == 0 or count % scale.numel:
        raise ReadError(f"a torchao {kind} tensor of shape {shape} does not go with {count} codes and {scale.numel} scales", fix=_OTHER)
    return Packed(f"torchao-{kind}", shape, codes, scale, count // scale.numel, table if isinstance(table, TensorRef) else None, halves)
