"""exp_avg_sq.safetensors by weight name, as OTA-merge's preconditioner loader reads it.

Read at pmahdavi/ota-merge eee703f, mergekit/merge_methods/ota.py. It merges full weights, so names are those of the weights' file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.errors import ExportError

from .base import Exporter, ExportOptions, groups_of, lost_hyper, lost_packing, lost_slots
from .tensors import tensor


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:  # noqa: ARG001
    """Write the second moments alone.

    Raises:
        ExportError: there are none.
    """
    from safetensors.torch import save_file

    names = [name for group in groups_of(state) for name in group if name in state.parameters]
    chosen = {state.parameters[name].adapter_key or name: state.parameters[name] for name in names}
    tensors = {key: tensor(parameter.slots["exp_avg_sq"]).contiguous() for key, parameter in chosen.items() if "exp_avg_sq" in parameter.slots}
    if not tensors:
        raise ExportError("the state holds no exp_avg_sq", where=state.optimizer, fix="only Adam's kin have one")
    save_file(tensors, str(place), metadata={"format": "pt"})


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:  # noqa: ARG001
    """OTA-merge reads v alone."""
    yield from lost_slots(state, frozenset({"exp_avg_sq"}), "OTA-merge")
    yield from lost_hyper(state, frozenset(), "OTA-merge")
    yield from lost_packing(state)
    if any("lora_" in name for name in state.parameters):
        text = "OTA-merge merges full weights; these are LoRA factors"
        yield Finding(rule="export-lora", severity="warning", text=text, fix="merge the factors, or use a state of full fine-tuning")


EXPORTER = Exporter(text="OTA-merge: exp_avg_sq by weight name", file="exp_avg_sq.safetensors", write=write, losses=losses)
