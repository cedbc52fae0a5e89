"""optimizer.pt: `torch.save(optimizer.state_dict())`, for `load_state_dict` and Trainer's `resume_from_checkpoint`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ostate.core.naming import NamedState
from ostate.core.state import Finding

from .archive import save
from .base import Exporter, ExportOptions, lost_packing
from .own import adamw_numbered, own_numbered, refuse_for_adamw, refuse_uncounted, requantised


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write positions, each group with its `param_names`, under the slot names of the optimizer that will load it."""
    save(adamw_numbered(state) if export_options.taken_as == "adamw_torch" else own_numbered(state), place)


def refuse(state: NamedState, export_options: ExportOptions) -> None:
    """Refuse to torch's AdamW, or to the state's own optimizer, what it cannot go on from.

    Raises:
        ExportError: the state is not of Adam's kind, or its optimizer needs counters that the state is kept without.
    """
    if export_options.taken_as == "adamw_torch":
        refuse_for_adamw(state)
    refuse_uncounted(state)


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:
    """What was quantised is rounded again where it was changed since; for torch's AdamW it leaves decoded."""
    yield from requantised(state) if export_options.taken_as == "own" else lost_packing(state)


EXPORTER = Exporter(
    text="torch: optimizer.load_state_dict, Trainer.resume_from_checkpoint",
    file="optimizer.pt",
    write=write,
    losses=losses,
    refuse=refuse,
    positional=True,
    own_slots=True,
)
