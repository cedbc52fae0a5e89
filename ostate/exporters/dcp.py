"""A torch.distributed.checkpoint folder, written by torch itself: what FSDP2 and `set_optimizer_state_dict` load, on any mesh."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from ostate.core.extras import needed
from ostate.core.naming import NamedState
from ostate.core.state import Finding

from .base import Exporter, ExportOptions, lost_packing
from .tensors import named, with_tensors


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write the state dict by name under `export_options.root`; Trainer and accelerate call it `optimizer`."""
    with needed("a distributed checkpoint"):
        from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is one process only, which is so
        save({export_options.root: with_tensors(named(state))}, checkpoint_id=str(place), no_dist=True)


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:  # noqa: ARG001
    """Nothing is lost but the packing of quantised moments."""
    yield from lost_packing(state)


EXPORTER = Exporter(text="torch.distributed.checkpoint: FSDP2, torchtitan, accelerate", file=None, write=write, losses=losses)
