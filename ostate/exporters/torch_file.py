"""optimizer.pt: `torch.save(optimizer.state_dict())`, for `load_state_dict` and Trainer's `resume_from_checkpoint`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ostate.core.naming import NamedState
from ostate.core.state import Finding

from .archive import save
from .base import Exporter, Wishes, lost_packing
from .tensors import numbered


def write(state: NamedState, place: Path, wishes: Wishes) -> None:  # noqa: ARG001
    """Write positions, each group with its `param_names`."""
    save(numbered(state, names=True), place)


def losses(state: NamedState, wishes: Wishes) -> Iterator[Finding]:  # noqa: ARG001
    """Nothing is lost but the packing of quantised moments."""
    yield from lost_packing(state)


EXPORTER = Exporter(
    text="torch: optimizer.load_state_dict, Trainer.resume_from_checkpoint", file="optimizer.pt", write=write, losses=losses, positional=True
)
