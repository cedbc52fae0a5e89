"""Moments packed again as their own library packs them: bitsandbytes' states, torchao's tensors, ai-toolkit's mappings.

Imports numpy; `own` imports this module for packed moments and for bitsandbytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ostate.core.naming import NamedParameter, NamedState
from ostate.core.tensors import Slot, is_slot

from .base import ADAMW_SLOTS, AUTO8BIT_SLOTS, MARKS
from .pickling import Call, Global, WrapperTensor
from .requantise import Codes, CodeTable, Scales, Stacked, Values, encode, table_of
from .tensors import Number

_SIGNED, _UNSIGNED = "exp_avg", "exp_avg_sq"
_BNB_BLOCK = 256
_NORMS = ("unorm_vec", "gnorm_vec")
_TORCHAO: dict[str, tuple[str, dict[bool, CodeTable]]] = {
    "torchao-8bit": ("torchao.optim.subclass_8bit OptimState8bit", {True: CodeTable("dynamic", 256), False: CodeTable("udynamic", 256)}),
    "torchao-4bit": (
        "torchao.optim.subclass_4bit OptimState4bit",
        {True: CodeTable("dynamic4", 128, halves=True), False: CodeTable("linear4", 128, halves=True)},
    ),
}
"""Packing -> (class, packing of signed and of unsigned numbers)."""


def packed_slots(state: NamedState) -> Iterator[tuple[str, Slot, CodeTable]]:
    """Yield (packing's name, slot, packing) of everything that goes back into few bits."""
    for parameter in state.parameters.values():
        for kind in parameter.decoded_from.split("+"):
            if kind in _TORCHAO:
                yield from ((kind, value, _torchao_packing(kind, slot, parameter)) for slot, value in parameter.slots.items() if slot in ADAMW_SLOTS)
            elif kind == "auto8bit":
                own = ((slot, value) for slot, value in parameter.slots.items() if slot in AUTO8BIT_SLOTS)
                yield from ((kind, value, CodeTable("int8", max(1, math.prod(value.shape)))) for _, value in own)
            elif kind.startswith("bitsandbytes-8bit"):
                yield from ((kind, value, _bnb_packing(slot)) for slot, value in parameter.slots.items())


def largest_error(state: NamedState) -> float:
    """Return how far rounding moves any number, over the largest of its block; 0 where each is the same to the last bit."""
    return max((packing.error(slot) for _, slot, packing in packed_slots(state)), default=0.0)


def bitsandbytes(parameter: NamedParameter) -> dict[str, object]:
    """Return `state1`, `state2` and what decodes them (bitsandbytes/optim/optimizer.py, init_state; ademamix.py for two averages in one)."""
    second = parameter.slots.get(_UNSIGNED)
    first = [parameter.slots[slot] for slot in (_SIGNED, "exp_avg_slow") if slot in parameter.slots]
    first = first or [value for slot, value in parameter.slots.items() if slot != _UNSIGNED][:1]
    packed = "bitsandbytes-8bit" in parameter.decoded_from
    made: dict[str, object] = {"step": int(parameter.step or 0)}
    for number, layers in (("1", first), ("2", [] if second is None else [second])):
        if not layers:
            continue
        packing = _bnb_packing(_SIGNED if number == "1" else _UNSIGNED)
        made["state" + number] = _joined([Codes(layer, packing) if packed else layer for layer in layers])
        if packed:
            made["qmap" + number] = Values(table_of(packing.table))
            made["absmax" + number] = _joined([Scales(layer, packing) for layer in layers])
    for key, value in parameter.scalars.items():
        if key not in MARKS:
            made[key] = Number(float(value), (1,)) if key in _NORMS and isinstance(value, (int, float)) else value
    return made


def auto8bit(made: dict[str, object]) -> dict[str, object]:
    """Return an entry with ai-toolkit's mappings in place of the slots that it packs."""
    return {slot: _auto8bit(slot, value) if slot in AUTO8BIT_SLOTS and is_slot(value) else value for slot, value in made.items()}


def torchao(made: dict[str, object], parameter: NamedParameter) -> dict[str, object]:
    """Return an entry with torchao's tensors in place of its moments."""
    kind = next(kind for kind in parameter.decoded_from.split("+") if kind in _TORCHAO)
    return {slot: _torchao(kind, slot, value, parameter) if slot in ADAMW_SLOTS and is_slot(value) else value for slot, value in made.items()}


def _bnb_packing(slot: str) -> CodeTable:
    return CodeTable("udynamic" if slot == _UNSIGNED else "dynamic", _BNB_BLOCK)


def _joined(layers: Sequence[Slot]) -> Slot:
    return layers[0] if len(layers) == 1 else Stacked(tuple(layers))


def _torchao_packing(kind: str, slot: str, parameter: NamedParameter) -> CodeTable:
    """Return torchao's packing of a slot; how many elements share a scale is the user's choice, and was noted when the state was read."""
    packing = _TORCHAO[kind][1][slot == _SIGNED]
    block = parameter.scalars.get("torchao_block")
    return replace(packing, block=block) if isinstance(block, int) else packing


def _torchao(kind: str, slot: str, value: Slot, parameter: NamedParameter) -> WrapperTensor:
    """Return what unpickles as torchao's tensor."""
    cls, signed = _TORCHAO[kind][0], slot == _SIGNED
    packing = _torchao_packing(kind, slot, parameter)
    shape = tuple(value.shape)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    layout, device = Call("torch.serialization _get_layout", ("torch.strided",)), Call("torch device", ("cpu",))
    held: dict[str, object] = {
        "codes": Codes(value, packing),
        "scale": Scales(value, packing),
        "qmap": Values(table_of(packing.table)),
        "signed": signed,
    }
    if packing.halves:
        held["_shape"] = shape
    held["block_size"] = packing.block
    wrapper = (Global(cls), Global("torch float32"), shape, strides, 0, layout, device, False)
    return WrapperTensor(Global(cls), wrapper, held)


def _auto8bit(slot: str, value: Slot) -> dict[str, object]:
    """Return ai-toolkit's mapping of a packed tensor; Automagic writes it bare, the others under `_type` (toolkit/optimizers)."""
    codes, scales = encode(value.read().reshape(-1), table_of("int8"), max(1, math.prod(value.shape)))
    numbers = Values((codes.astype("i2") - 127).astype("i1").reshape(value.shape), dtype="I8")
    bare = {"quantized": numbers, "scale": float(scales[0]) or 1.0 if scales.size else 1.0, "orig_dtype": Global("torch float32")}
    return bare if slot == "lr_mask" else {"_type": "Auto8bitTensor", "state": bare}
