"""optimizer.bin as LESS and GREATS read it: `state[name]["exp_avg"]`, by every trainable parameter's live name.

Read at princeton-nlp/LESS 8abf962, less/data_selection/get_info.py and collect_grad_reps.py. It is also FSDP's full optimizer state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ostate.core.hyper import all_betas
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.errors import ExportError

from .archive import save
from .base import Exporter, ExportOptions, lost_packing
from .tensors import named


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:  # noqa: ARG001
    """Write a state dict by name."""
    save(named(state), place)


def refuse(state: NamedState, export_options: ExportOptions) -> None:  # noqa: ARG001
    """Refuse a state without the two moments that LESS asks of each parameter.

    Raises:
        ExportError: a parameter lacks one of them.
    """
    lacking = [name for name, p in state.parameters.items() if not {"exp_avg", "exp_avg_sq"} <= set(p.slots)]
    if lacking:
        raise ExportError("LESS needs exp_avg and exp_avg_sq of every parameter", where=", ".join(lacking[:3]), fix="use --to torch")


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:  # noqa: ARG001
    """Say what LESS will not look at."""
    yield from lost_packing(state)
    if idle := state.without_state:
        text = f"LESS needs the moments of every trainable parameter, and {len(idle)} have none"
        yield Finding(rule="export-without-state", severity="warning", text=text, names=idle, fix="fill them with zeros: --for ADAPTER")
    used = [group for group in state.groups if group.names]
    if any((all_betas(group.hyper) or (0.9, 0.999)) != (0.9, 0.999) or group.hyper.get("eps") not in {None, 1e-8} for group in used):
        text = "LESS always uses betas 0.9, 0.999 and eps 1e-8; this state was trained with other values"
        yield Finding(rule="export-hyper-lost", severity="warning", text=text)


EXPORTER = Exporter(
    text="LESS, GREATS (and FSDP full state dicts): state by live name", file="optimizer.bin", write=write, losses=losses, refuse=refuse
)
