"""The step of the weights against the step of the state: names of one run are the same at every step, the numbers are not."""

from __future__ import annotations

import os
import re

from ostate.core.files import absolute, parent
from ostate.core.naming import Adapter
from ostate.core.state import Finding, RawState
from ostate.optimizers import OPTIMIZERS, step_of
from ostate.read.checkpoint_folder import trainer_step

_COUNTED = r"(?:checkpoint-|(?:global_)?step[-_]?)(\d{1,15})"
"""Folders named by updates: transformers' and diffusers' `checkpoint-500`, DeepSpeed's `global_step500`, `step_500`; `checkpoint_3` counts saves."""
_SKIPPED = 0.9
"""Share of the trainer's steps that a state has at least where gradient scaling skipped some; DeepSpeed may count one more."""


def other_step(raw: RawState, adapter: Adapter | None) -> list[Finding]:
    """Return a finding where weights and state were saved at different steps; nothing where they lie together, or a step is not known.

    A warning where a trainer's log tells both steps; a note where a folder's name or the optimizer's own count is one of them.
    """
    if adapter is None or not adapter.file:
        return []
    home, folder = absolute(os.path.dirname(adapter.file)), _folder_of(raw)
    if folder is not None and (_within(home, folder) or _within(folder, home)):
        return []
    weights, logged = _step_of(home)
    own, own_logged = _step_of(folder) if folder is not None else (None, False)
    if own is None and weights is not None:
        own = _counted(raw)
        if own is not None and _SKIPPED * weights <= own <= weights + 1:
            return []
    if weights is None or own is None or weights == own:
        return []
    return [
        Finding(
            rule="adapter-of-another-step",
            severity="warning" if logged and own_logged else "note",
            text=f"the adapter is of step {weights:g}, the state of step {own:g}: within one run the names are the same, the weights are not",
            fix="for a probe, pass the adapter that was saved with this state",
        )
    ]


def _folder_of(raw: RawState) -> str | None:
    """Return the checkpoint folder that the state belongs to; None for a named file, which may lie anywhere, and for a state in memory."""
    folder = raw.facts.get("folder") or os.path.dirname(raw.source)
    return absolute(folder) if raw.layout != "named" and raw.source and isinstance(folder, str) else None


def _within(one: str, other: str) -> bool:
    """Return whether the folder `one` is `other` or lies below it, with no folder between that says a step of its own."""
    return one == other or (one.startswith(other.rstrip("/") + "/") and _step_of(one, above=other)[0] is None)


def _step_of(folder: str, above: str | None = None) -> tuple[float | None, bool]:
    """Return the step that a folder tells, or the one above it, and whether it is a trainer's log that does.

    Args:
        folder: where weights or a state lie.
        above: a folder that is not asked.
    """
    for place in (folder, parent(folder)):
        if place == above:
            break
        step = trainer_step(os.path.join(place, "trainer_state.json"))
        if step is not None:
            return float(step), True
        named = re.fullmatch(_COUNTED, os.path.basename(place.rstrip("/")))
        if named:
            return float(named[1]), False
    return None, False


def _counted(raw: RawState) -> float | None:
    """Return the updates that the optimizer counted, the most of any parameter."""
    spec = OPTIMIZERS.get(raw.optimizer)
    hyper = {group.index: group.hyper for group in raw.groups}
    steps = [entry.step if spec is None else step_of(spec, entry.step, hyper.get(entry.group, {})) for entry in raw.entries if entry.has_state]
    return max((step for step in steps if step is not None), default=None)
