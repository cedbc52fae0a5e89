"""A DeepSpeed universal checkpoint: a folder a parameter with fp32, exp_avg, exp_avg_sq and step, and the trained weights.

Read at deepspeed 0.19.8, checkpoint/universal_checkpoint.py, runtime/base_optimizer.py and runtime/engine.py. Frozen weights are not in
it, as in a run saved with `exclude_frozen_parameters`: load it with `load_module_strict=False`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ostate.core import system
from ostate.core.extras import needed
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.core.tensors import Slot
from ostate.errors import ExportError

from .base import Exporter, ExportOptions, groups_of, lost_packing, lost_scalars, lost_slots

KEPT = ("exp_avg", "exp_avg_sq")


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write `zero/<name>/{fp32,exp_avg,exp_avg_sq,step}.pt` and `zero/optimizer_state.pt`.

    Raises:
        ExportError: names that differ in capitals alone, where these do not count.
    """
    with needed("a DeepSpeed checkpoint"):
        from .universal_files import write_files

    (place / "zero").mkdir(parents=True)
    names = state.parameters
    if system.folds_case(place) and len({name.casefold() for name in names}) < len(names):
        raise ExportError("two names differ in capitals alone, and would be one file here", fix="write where capitals count, or --rename one")
    write_files(state, place, groups_of(state), export_options.weights or {})


def _weights(export_options: ExportOptions) -> Mapping[str, Slot]:
    return export_options.weights or {}


def refuse(state: NamedState, export_options: ExportOptions) -> None:
    """Refuse what DeepSpeed would not load.

    Raises:
        ExportError: a weight, a moment or a step is missing, or a name cannot be a folder's.
    """
    if idle := state.without_state:
        raise ExportError(
            f"DeepSpeed needs moments for every parameter, and {len(idle)} have none",
            where=", ".join(idle[:3]),
            fix="fill them with zeros: --for ADAPTER",
        )
    weights = _weights(export_options)
    if lacking := [name for group in groups_of(state) for name in group if name not in weights]:
        what = "DeepSpeed stores the weights with the moments, and "
        raise ExportError(
            what + ("there are none" if export_options.weights is None else f"--adapter has none of {len(lacking)} parameters"),
            where=", ".join(lacking[:3]),
            fix="pass --adapter DIR" if export_options.weights is None else "pass the weights that were saved with this state",
        )
    for name, parameter in state.parameters.items():
        if "/" in name or name.startswith("."):
            raise ExportError("this name cannot be used as a folder name", where=name, fix="rename it with --rename OLD=NEW")
        if not set(KEPT) <= set(parameter.slots) or parameter.step is None:
            raise ExportError("DeepSpeed needs exp_avg, exp_avg_sq and a step of every parameter", where=name, fix="use --to torch")


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:  # noqa: ARG001
    """The layout knows Adam's two moments."""
    yield from lost_slots(state, frozenset(KEPT), "a universal checkpoint")
    yield from lost_scalars(state, "a universal checkpoint")
    yield from lost_packing(state)
    used = [group for group in state.groups if group.names]
    differ = [key for key in ("lr", "betas", "eps", "weight_decay") if len({repr(group.hyper.get(key)) for group in used}) > 1]
    steps = {parameter.step for parameter in state.parameters.values()}
    if differ or len(steps) > 1:
        text = f"ZeRO-3 takes one group's settings and one step for all; here {' and '.join([*differ, *(['step'] * (len(steps) > 1))])} differ"
        yield Finding(rule="export-stage-3", severity="warning", text=text, fix="load it under ZeRO 1 or 2, or set the groups after loading")


EXPORTER = Exporter(text="DeepSpeed universal checkpoint", file=None, write=write, losses=losses, refuse=refuse)
