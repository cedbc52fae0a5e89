"""optimizer.pt as bergson reads it: one group, and in each entry `param_name`, the name without the adapter's.

Read at EleutherAI/bergson 3c66bb5, bergson/utils/load_from_optimizer.py: one group keeps it from its own guess at Trainer's two.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ostate.core.naming import NamedState
from ostate.core.state import Finding

from .archive import save
from .base import Exporter, ExportOptions, groups_of, lost_groups, lost_packing, lost_slots
from .tensors import Entry, Number, Numbered
from .v_hat import refuse_unknown_bias, without_bias

KEPT = ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write second moments by position with their names."""
    made: Numbered = {"state": {}, "param_groups": []}
    names = [name for group in groups_of(state) for name in group if name in state.parameters]
    for position, name in enumerate(names):
        parameter = state.parameters[name]
        entry: Entry = {slot: parameter.slots[slot] for slot in KEPT if slot in parameter.slots}
        if not entry:
            continue
        if export_options.v_hat and "exp_avg_sq" in entry:
            entry["exp_avg_sq"] = without_bias(state, parameter)
        if parameter.step is not None:
            entry["step"] = Number(parameter.step)
        made["state"][position] = {**entry, "param_name": parameter.adapter_key or name}
    first = next((group.hyper for group in state.groups if group.names), {})
    hyper = {key: first[key] for key in ("betas", "eps") if first.get(key) is not None}
    made["param_groups"].append({"params": list(range(len(names))), **hyper})
    save(made, place)


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:
    """Bergson asks for the second moment alone."""
    yield from lost_slots(state, frozenset(KEPT), "bergson")
    yield from lost_groups(state, ("betas", "eps"), "bergson")
    yield from lost_packing(state)
    if export_options.v_hat:
        text = "v is written bias-corrected: right for bergson's normalizer; its SOURCE path would correct it a second time"
        yield Finding(rule="export-v-hat", severity="note", text=text)


EXPORTER = Exporter(
    text="bergson: second moments with param_name", file="optimizer.pt", write=write, losses=losses, refuse=refuse_unknown_bias, v_hat=True
)
