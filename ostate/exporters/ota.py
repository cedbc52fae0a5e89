"""exp_avg_sq.safetensors by weight name, as OTA-merge's preconditioner loader reads it.

Read at pmahdavi/ota-merge eee703f, mergekit/merge_methods/ota.py. It merges full weights, so names are those of the weights' file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.core.tensors import ITEMSIZE, Slot
from ostate.errors import ExportError

from .base import Exporter, ExportOptions, groups_of, lost_hyper, lost_packing, lost_slots
from .pickling import kind_of
from .v_hat import refuse_unknown_bias, without_bias


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write the second moments alone, those of one item size after those of a larger one, as the safetensors library lays them."""
    slots: dict[str, Slot] = {}
    for name in _with_second_moment(state):
        parameter = state.parameters[name]
        slots[parameter.adapter_key or name] = without_bias(state, parameter) if export_options.v_hat else parameter.slots["exp_avg_sq"]
    ordered = dict(sorted(slots.items(), key=lambda row: -ITEMSIZE[kind_of(row[1]).dtype]))
    with place.open("xb") as file:
        file.write(_head(ordered))
        for slot in ordered.values():
            for chunk in slot.chunks():
                file.write(chunk.astype(kind_of(slot).numpy, copy=False).tobytes())


def _with_second_moment(state: NamedState) -> list[str]:
    return [name for group in groups_of(state) for name in group if "exp_avg_sq" in getattr(state.parameters.get(name), "slots", ())]


def refuse(state: NamedState, export_options: ExportOptions) -> None:
    """Refuse a state without second moments.

    Raises:
        ExportError: there are none, or `v_hat` where a step or beta2 is not known.
    """
    if not _with_second_moment(state):
        raise ExportError("the state holds no exp_avg_sq", where=state.optimizer, fix="only Adam and optimizers like it have one")
    refuse_unknown_bias(state, export_options)


def _head(slots: Mapping[str, Slot]) -> bytes:
    """Return the header of a safetensors file that holds the slots one after another."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key, slot in slots.items():
        dtype = kind_of(slot).dtype
        end = at + math.prod(slot.shape) * ITEMSIZE[dtype]
        table[key], at = {"dtype": dtype, "shape": list(slot.shape), "data_offsets": [at, end]}, end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:
    """OTA-merge reads v alone."""
    yield from lost_slots(state, frozenset({"exp_avg_sq"}), "OTA-merge")
    yield from lost_hyper(state, frozenset(), "OTA-merge")
    yield from lost_packing(state)
    if any("lora_" in name for name in state.parameters):
        text = "OTA-merge merges full weights; these are LoRA factors"
        yield Finding(rule="export-lora", severity="warning", text=text, fix="merge the factors, or use a state of full fine-tuning")
    if export_options.v_hat:
        text = "v is written bias-corrected: states of different steps weigh alike"
        yield Finding(rule="export-v-hat", severity="note", text=text)


EXPORTER = Exporter(text="OTA-merge: exp_avg_sq by weight name", file="exp_avg_sq.safetensors", write=write, losses=losses, refuse=refuse, v_hat=True)
