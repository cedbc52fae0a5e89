"""Names that the checkpoint itself records: in the state, or in a names file beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ostate.core.files import is_remote
from ostate.core.naming import Adapter, Claim, Question
from ostate.core.state import Names, RawState

from ..grouping.refute import Refused, positions_of, refused, refute_groups, refute_positions
from ..keys import is_key_form, live_name, match_all, strip_wrappers
from .names_file import SIDECAR, read_names


def recorded(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return what the state, or the file `optimizer_param_names.json` beside it, says of every position.

    Raises:
        OrderingError: the names file is there and cannot be read.
    """
    raw = question.raw
    if raw.recorded is not None:
        names: Names = [entry.name for entry in raw.entries]
        return told("recorded", raw.recorded, names, raw, question.adapter)
    path = _sidecar(raw)
    if path is None:
        return [], []
    groups = read_names(path)
    return by_position("recorded", os.path.basename(path), groups, raw, question.adapter)


def by_position(source: str, rule: str, groups: Sequence[Sequence[str]], raw: RawState, adapter: Adapter | None) -> tuple[list[Claim], list[Refused]]:
    """Lay listed names over positions: over all of them, or over those with state where exactly so many are listed."""
    flat = [name for group in groups for name in group]
    with_state = [position for position in positions_of(raw) if raw.entries[position].has_state]
    names: list[str | None] = [None] * len(raw.entries)
    if len(groups) > 1 and (why := refute_groups(raw, [len(group) for group in groups])):
        return [], [refused(source, rule, why.replace("it makes", "it lists").replace("its groups hold", "its groups list"))]
    if len(flat) == len(raw.entries):
        places = positions_of(raw)
    elif len(flat) == len(with_state):
        places = with_state
    else:
        return [], [refused(source, rule, f"it lists {len(flat)} names, the file has {len(raw.entries)} positions, {len(with_state)} with state")]
    for position, name in zip(places, flat):
        names[position] = name
    return told(source, rule, names, raw, adapter)


def told(source: str, rule: str, names: Names, raw: RawState, adapter: Adapter | None) -> tuple[list[Claim], list[Refused]]:
    """Return the claim that somebody's own list of names makes, or why it cannot be one."""
    bare = [strip_wrappers(name) if name is not None else None for name in names]
    keys: tuple[str | None, ...] = (None,) * len(bare)
    lost = []
    from_keys = False
    if adapter is not None:
        keys = match_all(bare, adapter)[0]
        live = [live_name(name, adapter) if name is not None and is_key_form(name, adapter) else name for name in bare]
        from_keys, bare = live != bare, live
        if not any(keys):
            lost = [refused(source, rule, "none of these names is in the adapter file, so the numbers cannot be asked; another model's adapter?")]
    why = refute_positions(raw, bare, keys, [None] * len(bare), adapter)
    if why:
        return [], [refused(source, rule, why)]
    return [Claim(source=source, rule=rule, names=tuple(bare), keys=keys, from_keys=from_keys)], lost  # type: ignore[arg-type]


def _sidecar(raw: RawState) -> str | None:
    folder = raw.facts.get("folder")
    places = [folder if isinstance(folder, str) else None, raw.source, os.path.dirname(raw.source) or "."]
    for place in places:
        path = os.path.join(place, SIDECAR) if place else ""
        if path and not is_remote(path) and os.path.isfile(path):
            return path
    return None
