"""optimizer_param_names.json: the names of each group, in order; what some trainers keep beside optimizer.pt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ostate.core.names_list import NAMES_FILE
from ostate.core.naming import NamedState
from ostate.core.state import Finding

from .base import Exporter, ExportOptions, groups_of


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:  # noqa: ARG001
    """Write a list of lists, one for each group."""
    text = json.dumps([list(group) for group in groups_of(state)], indent=1, ensure_ascii=False)
    place.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:  # noqa: ARG001
    """Say that this is names alone."""
    yield Finding(rule="export-names-only", severity="note", text="names only: keep this file beside the optimizer.pt that it describes")


EXPORTER = Exporter(text="names of each group, to keep beside optimizer.pt", file=NAMES_FILE, write=write, losses=losses, positional=True)
