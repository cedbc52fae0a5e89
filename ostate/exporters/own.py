"""A state as its own optimizer writes it, so that the same optimizer goes on: its slot names, codes, and tensors where it keeps some."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Finding
from ostate.core.tensors import Slot
from ostate.errors import ExportError
from ostate.optimizers import OPTIMIZERS
from ostate.optimizers.moments import fits_adamw

from .base import MARKS
from .pickling import Call, Global
from .requantise import Codes, CodeTable, Scales, Stacked, Values, encode, table_of
from .tensors import Number, entry, numbered, step_in_entry

_SIGNED, _UNSIGNED = "exp_avg", "exp_avg_sq"
_BNB_BLOCK = 256
_TORCHAO: dict[str, tuple[str, dict[bool, CodeTable]]] = {
    "torchao-8bit": ("torchao.optim.subclass_8bit OptimState8bit", {True: CodeTable("dynamic", 256), False: CodeTable("udynamic", 256)}),
    "torchao-4bit": (
        "torchao.optim.subclass_4bit OptimState4bit",
        {True: CodeTable("dynamic4", 128, halves=True), False: CodeTable("linear4", 128, halves=True)},
    ),
}
"""Packing -> (class, packing of signed and of unsigned numbers)."""
_AUTO8BIT = ("exp_avg", "exp_avg_sq", "s", "p0", "lr_mask")
"""What ai-toolkit's own optimizers keep as an `Auto8bitTensor` where they keep any."""
_ADAMW = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_ADAMW_HYPER = ("lr", "initial_lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")


_GROUP_TENSORS: tuple[tuple[str, str, tuple[str, ...], tuple[int, ...], str], ...] = (
    ("adam_torchao", "lr", ("lr",), (), "F32"),
    *((row, "gradient_release", ("step",), (), "I32") for row in ("stable_adamw", "ranger_optimi", "adan")),
    ("prodigy_schedulefree", "running_d_numerator", ("running_d_numerator", "running_d_denom"), (), "F32"),
    ("prodigy", "d_de_nom", ("d_numerator", "d_de_nom"), (1,), "F32"),
    *((row, "weight_decouple", ("numerator_weighted",), (1,), "F32") for row in ("dadapt_adam", "dadapt_lion")),
)
"""(row, a key that its groups hold and those of its namesakes do not, keys kept as tensors, shape, dtype): torchao, optimi, prodigyplus and
pytorch_optimizer change these in place or hand them to tensors' methods."""


def own_numbered(state: NamedState) -> dict[str, Any]:
    """Return the state dict by position that the state's own optimizer loads, with slots for tensors."""
    made = numbered(state, names=True)
    for group in made["param_groups"]:
        group.update(_tensors_of_group(state.optimizer, group))
    position = 0
    for group in state.groups:
        for name in group.names or ():
            if position in made["state"]:
                made["state"][position] = _nested(_own_entry(state, state.parameters[name]))
            position += 1
    return made


def refuse_for_adamw(state: NamedState) -> None:
    """Refuse a state that torch's AdamW cannot go on from.

    Raises:
        ExportError: the state is not of Adam's kind.
    """
    slots = {slot for parameter in state.parameters.values() for slot in parameter.slots}
    if not {"exp_avg", "exp_avg_sq"} <= slots <= set(_ADAMW) or not fits_adamw(state.optimizer):
        what = f"a state of {state.optimizer} with {', '.join(sorted(slots))} cannot be continued by torch's AdamW"
        raise ExportError(what, where="--as adamw_torch", fix="drop --as: the state goes back into its own optimizer")


def adamw_numbered(state: NamedState) -> dict[str, Any]:
    """Return the state dict by position that torch.optim.AdamW loads, of a state that `refuse_for_adamw` lets pass."""
    slots = {slot for parameter in state.parameters.values() for slot in parameter.slots}
    made = numbered(state, names=True)
    for group in made["param_groups"]:
        for key in [key for key in group if key not in (*_ADAMW_HYPER, "params", "param_names")]:
            del group[key]
        group.setdefault("amsgrad", "max_exp_avg_sq" in slots)
    own = [name for group in state.groups for name in group.names or ()]
    for position in made["state"]:
        parameter = state.parameters[own[position]]
        made["state"][position] = {**({} if parameter.step is None else {"step": Number(parameter.step)}), **parameter.slots}
    return made


def packed_slots(state: NamedState) -> Iterator[tuple[str, Slot, CodeTable]]:
    """Yield (packing's name, slot, packing) of everything that goes back into few bits."""
    for parameter in state.parameters.values():
        for kind in parameter.decoded_from.split("+"):
            if kind in _TORCHAO:
                yield from ((kind, value, _torchao_packing(kind, slot, parameter)) for slot, value in parameter.slots.items() if slot in _ADAMW)
            elif kind == "auto8bit":
                own = ((slot, value) for slot, value in parameter.slots.items() if slot in _AUTO8BIT)
                yield from ((kind, value, CodeTable("int8", max(1, math.prod(value.shape)))) for _, value in own)
            elif kind.startswith("bitsandbytes-8bit"):
                yield from ((kind, value, _bnb_packing(slot)) for slot, value in parameter.slots.items())


def requantised(state: NamedState) -> Iterator[Finding]:
    """Say that moments were rounded to few bits again, and how far that moved them; or that they are the same to the last bit."""
    spec = OPTIMIZERS.get(state.optimizer)
    if spec is not None and {"bitsandbytes", "torchao"} & set(spec.tells):
        text = f"the slots are those of {spec.classes}: resume with the same optimizer"
        fix = "to resume with torch's AdamW: --as adamw_torch" if fits_adamw(state.optimizer) else ""
        yield Finding(rule="export-own-slots", severity="note", text=text, fix=fix)
    if spec is not None and spec.starts_cold:
        yield Finding(
            rule="export-starts-cold", severity="warning", text=f"{spec.classes} starts cold from any file, its own included: {spec.starts_cold}"
        )
    kinds: set[str] = set()
    worst = 0.0
    for kind, slot, packing in packed_slots(state):
        kinds.add(kind)
        worst = max(worst, packing.error(slot))
    stay = {kind for parameter in state.parameters.values() for kind in parameter.decoded_from.split("+")} - kinds - {"plain"}
    if kinds and not worst:
        text = f"the moments go back into {', '.join(sorted(kinds))}: each code decodes to the same number, bit for bit"
        yield Finding(rule="export-packed-again", severity="note", text=text)
    elif kinds:
        text = f"the moments go back into {', '.join(sorted(kinds))} and are rounded: off by up to {worst:.1g} of the largest in their block"
        yield Finding(rule="export-requantised", severity="warning", text=text, fix="--as adamw_torch keeps them exact, for torch's AdamW")
    if stay:
        text = f"the moments were {', '.join(sorted(stay))}; they are written decoded, as float32 under their own names"
        yield Finding(rule="export-packing-lost", severity="warning", text=text)


def _own_entry(state: NamedState, parameter: NamedParameter) -> dict[str, Any]:
    spec = OPTIMIZERS.get(state.optimizer)
    if spec is not None and "bitsandbytes" in spec.tells:
        return _bitsandbytes(parameter)
    if "auto8bit" in parameter.scalars:
        return {slot: _auto8bit(slot, value) if slot in _AUTO8BIT and hasattr(value, "chunks") else value for slot, value in entry(parameter).items()}
    kind = next((kind for kind in parameter.decoded_from.split("+") if kind in _TORCHAO), None)
    made = entry(parameter, step=step_in_entry(state))
    return made if kind is None else {slot: _torchao(kind, slot, value, parameter) if slot in _ADAMW else value for slot, value in made.items()}


def _bnb_packing(slot: str) -> CodeTable:
    return CodeTable("udynamic" if slot == _UNSIGNED else "dynamic", _BNB_BLOCK)


def _bitsandbytes(parameter: NamedParameter) -> dict[str, Any]:
    """Return `state1`, `state2` and what decodes them (bitsandbytes/optim/optimizer.py, init_state; ademamix.py for two averages in one)."""
    second = parameter.slots.get(_UNSIGNED)
    first = [parameter.slots[slot] for slot in (_SIGNED, "exp_avg_slow") if slot in parameter.slots]
    first = first or [value for slot, value in parameter.slots.items() if slot != _UNSIGNED][:1]
    packed = "bitsandbytes-8bit" in parameter.decoded_from
    made: dict[str, Any] = {"step": int(parameter.step or 0)}
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
            made[key] = Number(float(value), (1,)) if key in ("unorm_vec", "gnorm_vec") else value
    return made


def _joined(layers: list[Any]) -> Slot:
    joined: Slot = layers[0] if len(layers) == 1 else Stacked(tuple(layers))
    return joined


def _torchao_packing(kind: str, slot: str, parameter: NamedParameter) -> CodeTable:
    """Return torchao's packing of a slot; how many elements share a scale is the user's choice, and was noted when the state was read."""
    packing = _TORCHAO[kind][1][slot == _SIGNED]
    return replace(packing, block=int(parameter.scalars.get("torchao_block", packing.block)))


def _torchao(kind: str, slot: str, value: Slot, parameter: NamedParameter) -> Call:
    """Return what unpickles as torchao's tensor, as `torch.save` writes it (torch/_tensor.py, Tensor.__reduce_ex__ of a wrapper subclass)."""
    cls, signed = _TORCHAO[kind][0], slot == _SIGNED
    packing = _torchao_packing(kind, slot, parameter)
    shape = tuple(value.shape)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    layout, device = Call("torch.serialization _get_layout", ("torch.strided",)), Call("torch device", ("cpu",))
    held = {"codes": Codes(value, packing), "scale": Scales(value, packing), "qmap": Values(table_of(packing.table)), "signed": signed}
    if packing.halves:
        held["_shape"] = shape
    held["block_size"] = packing.block
    wrapper = (Global(cls), Global("torch float32"), shape, strides, 0, layout, device, False)
    return Call("torch._tensor _rebuild_from_type_v2", (Global("torch._utils _rebuild_wrapper_subclass"), Global(cls), wrapper, held))


def _auto8bit(slot: str, value: Slot) -> dict[str, Any]:
    """Return ai-toolkit's mapping of a packed tensor; Automagic writes it bare, the others under `_type` (toolkit/optimizers)."""
    codes, scales = encode(value.read().reshape(-1), table_of("int8"), max(1, math.prod(value.shape)))
    numbers = Values((codes.astype("i2") - 127).astype("i1").reshape(value.shape), dtype="I8")
    bare = {"quantized": numbers, "scale": float(scales[0]) or 1.0 if scales.size else 1.0, "orig_dtype": Global("torch float32")}
    return bare if slot == "lr_mask" else {"_type": "Auto8bitTensor", "state": bare}


def _tensors_of_group(optimizer: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the optimizer keeps as tensors in its groups, from `_GROUP_TENSORS`."""
    made: dict[str, Any] = {}
    for row, marker, keys, shape, dtype in _GROUP_TENSORS:
        if optimizer == row and marker in group:
            made |= {key: Number(float(group[key]), shape, dtype=dtype) for key in keys if isinstance(group.get(key), (int, float))}
    return made


def _nested(made: dict[str, Any]) -> dict[str, Any]:
    """Put `GG.0`, `GG.1` back into the list, `odd.inner` back into the mapping that they were read from."""
    out: dict[str, Any] = {}
    for key, value in made.items():
        place, parts = out, key.split(".")
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = value
    return {key: _listed(value) if any(other.startswith(f"{key}.") for other in made) else value for key, value in out.items()}


def _listed(value: Any) -> Any:
    """Return a mapping whose keys count from 0 as the list it was."""
    if not isinstance(value, dict):
        return value
    inner = {key: _listed(item) for key, item in value.items()}
    return [inner[str(at)] for at in range(len(inner))] if set(inner) == {str(at) for at in range(len(inner))} else inner
