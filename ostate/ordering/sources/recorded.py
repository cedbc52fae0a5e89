"""Names that the checkpoint itself records: in the state, or in a names file beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ostate.core.files import is_remote
from ostate.core.names import plain_names, twins, without_inner
from ostate.core.names_list import names_file_in, read_names
from ostate.core.naming import Adapter, Claim, Question
from ostate.core.state import Names, RawState
from ostate.errors import OrderingError

from ..grouping.refute import Refused, positions_of, refused, refute_groups, refute_positions
from ..keys import live_names, match_all
from .rebuilt.model import layouts_of
from .rebuilt.older_names import saved_apart


def recorded(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return what the state, or the file `optimizer_param_names.json` beside it, says of the name at each position.

    Raises:
        OrderingError: the names file is there and cannot be read.
    """
    raw = question.raw
    if raw.recorded is not None:
        names: Names = [entry.name for entry in raw.entries]
        return explicit_names("recorded", raw.recorded, names, question)
    path = _names_file(raw)
    if path is None:
        return [], []
    groups = read_names(path, error=OrderingError)
    return by_position("recorded", os.path.basename(path), groups, question)


def by_position(source: str, rule: str, groups: Sequence[Sequence[str]], question: Question) -> tuple[list[Claim], list[Refused]]:
    """Lay listed names over positions: over all of them, or over those with state where exactly so many are listed."""
    raw = question.raw
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
        listed = f"it lists {len(flat)} {'name' if len(flat) == 1 else 'names'}"
        return [], [refused(source, rule, f"{listed}, the file has {len(raw.entries)} positions, {len(with_state)} with state")]
    for position, name in zip(places, flat):
        names[position] = name
    return explicit_names(source, rule, names, question)


def explicit_names(source: str, rule: str, names: Names, question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the claim that somebody's own list of names makes, or why it cannot be one.

    Raises:
        OrderingError: two positions end under one name, or under one key of the adapter.
    """
    raw, adapter = question.raw, question.adapter
    bare, keys = _read_as(names, raw, adapter)
    of_model = _keys_of_model(bare, question)
    lost = []
    from_keys = False
    if of_model is not None:
        keys = of_model
    elif adapter is not None:
        live = bare if raw.recorded == "named" else live_names(bare, keys, adapter)
        from_keys, bare = live != bare, live
        if not any(keys):
            lost = [
                refused(
                    source,
                    rule,
                    "none of these names is in the adapter file, so the tensor values cannot be compared; is it another model's adapter?",
                )
            ]
    for word, column in (("name", bare), ("key", keys)):
        for twice in twins(column):
            at = [position for position, value in enumerate(column) if value == twice]
            raise OrderingError(
                f"{rule} gives positions {at[0]} and {at[1]} the one {word} {twice!r}",
                where=f"{raw.source}: {names[at[0]]!r} and {names[at[1]]!r}",
                fix="pass --order FILE with a name of its own for each position",
            )
    why = refute_positions(raw, bare, keys, [None] * len(bare), adapter)
    if why:
        return [], [refused(source, rule, why)]
    return [Claim(source=source, rule=rule, names=tuple(bare), keys=keys, from_keys=from_keys)], lost  # type: ignore[arg-type]


def _read_as(names: Names, raw: RawState, adapter: Adapter | None) -> tuple[list[str | None], tuple[str | None, ...]]:
    """Return the names without wrappers' segments, and their keys.

    Where all names begin with `module.`, a wrapper put it there, unless the adapter has more of them with it. A named file's names are final.
    """
    whole = [without_inner(name) if name is not None and raw.recorded != "named" else name for name in names]
    plain = iter(plain_names([name for name in whole if name is not None]))
    bare = [next(plain) if name is not None else None for name in whole]
    if raw.recorded == "named":
        bare = whole
    if adapter is None:
        return bare, (None,) * len(bare)
    keys = match_all(bare, adapter)[0]
    if bare != whole:
        with_lead = match_all(whole, adapter)[0]
        if sum(key is not None for key in with_lead) > sum(key is not None for key in keys):
            return whole, with_lead
    return bare, keys


def _keys_of_model(names: Names, question: Question) -> tuple[str | None, ...] | None:
    """Return the key of each name of a whole model that was saved under keys of an older release, as the rebuilt model has them; None elsewhere."""
    adapter = question.adapter
    if adapter is None or not saved_apart(adapter) or all(name is None or name in adapter.tensors for name in names):
        return None
    layouts = layouts_of(question)
    for layout in layouts if isinstance(layouts, list) else ():
        key_of = {row.name: row.key for row in layout.parameters}
        if layout.keys_apart and all(name is None or name in key_of for name in names):
            return tuple(None if name is None else key_of[name] for name in names)
    return None


def _names_file(raw: RawState) -> str | None:
    folder = raw.facts.get("folder")
    places = [folder if isinstance(folder, str) else "", raw.source, os.path.dirname(raw.source) or "."]
    return next((path for place in places if place and not is_remote(place) and (path := names_file_in(place)) is not None), None)
