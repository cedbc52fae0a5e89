"""Files beside a state that cannot be read and are not needed: skipped, kept in a list, and said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from ostate.core.state import Finding
from ostate.errors import ReadError


class Skipped(NamedTuple):
    """A file or folder that was looked into for a state and cannot be read."""

    path: str
    error: ReadError


def skipped_finding(skipped: Sequence[Skipped], folder: str, *, fix: str = "") -> Finding:
    """Return what a person should know of files that were skipped: a warning where there is something to do, else a note.

    Args:
        skipped: at least one.
        folder: paths are said as they lie in it.
        fix: what to do.
    """
    first = f"{os.path.relpath(skipped[0].path, folder)}: {skipped[0].error.what}"
    return Finding(
        rule="files-skipped",
        severity="warning" if fix else "note",
        text=f"{len(skipped)} other file{'s' * (len(skipped) > 1)} could not be read as a state: left out ({first})",
        fix=fix,
        names=tuple(os.path.relpath(one.path, folder) for one in skipped),
    )
