"""A folder for dattri-llm: optimizer.pt by position, and param_names.json, the list its `optimizer_from_state_dict` takes.

Read at TRAIS-Lab/dattri-llm 4d5f835, dattri_llm/gradient/optimizer_state.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ostate.core.naming import NamedState
from ostate.core.state import Finding

from .archive import save
from .base import Exporter, ExportOptions, groups_of, lost_packing
from .tensors import numbered


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:  # noqa: ARG001
    """Write both files; the state dict without `param_names`, which the list beside it replaces."""
    place.mkdir()
    save(numbered(state, names=False), place / "optimizer.pt")
    names = [name for group in groups_of(state) for name in group]
    (place / "param_names.json").write_text(json.dumps(names, indent=1, ensure_ascii=False), encoding="utf-8", newline="\n")


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:  # noqa: ARG001
    """Nothing is lost but the packing of quantised moments."""
    yield from lost_packing(state)


EXPORTER = Exporter(text="dattri-llm: optimizer.pt and the list of names", file=None, write=write, losses=losses, positional=True)
