"""Tests that refute a claim without reading a number: sizes of groups, shapes, weight decay. They prove none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ostate.core.naming import Adapter
from ostate.core.state import Entry, Names, RawState

Sizes = Sequence[int]
Refused = dict[str, str]
"""A losing claim: `source`, `rule`, `reason`."""


def refused(source: str, rule: str, reason: str) -> Refused:
    """Return the row of `Ordering.rejected` for a claim: its source, rule and the reason."""
    return {"source": source, "rule": rule, "reason": reason}


def positions_of(raw: RawState) -> list[int]:
    """Return the positions group after group, as `load_state_dict` would walk them."""
    return [position for group in raw.groups for position in group.positions]


def refute_groups(raw: RawState, sizes: Sizes, no_decay: Sequence[int] = (), same_lr: Sequence[Sequence[int]] = ()) -> str | None:
    """Return why groups of these sizes cannot be the file's, or None.

    Args:
        raw: the state.
        sizes: parameters in each group the rule makes.
        no_decay: groups whose weight decay the rule sets to zero.
        same_lr: sets of groups to which the rule gives one learning rate.
    """
    found = [len(group.positions) for group in raw.groups]
    if len(found) != len(sizes):
        return f"it makes {len(sizes)} group{'s' * (len(sizes) != 1)}, the file has {len(found)}"
    if list(sizes) != found:
        return f"its groups hold {list(sizes)} parameters, the file's {found}"
    for index in no_decay:
        decay = raw.groups[index].hyper.get("weight_decay")
        if found[index] and isinstance(decay, (int, float)) and decay > 0:
            return f"its group {index} has no weight decay, the file's has {decay:g}"
    for together in same_lr:
        rates = {rate for index in together if isinstance(rate := _rate(raw, index), (int, float))}
        if len(rates) > 1:
            return f"it gives groups {list(together)} one learning rate, the file has {sorted(rates)}"
    return None


def refute_positions(raw: RawState, names: Names, keys: Names, shapes: Sequence[tuple[int, ...] | None], adapter: Adapter | None) -> str | None:
    """Return why these names cannot belong to these positions, or None.

    Shapes are compared where both sides know them; of an `Entry.flat` only the number of elements is.
    """
    if len(names) != len(raw.entries):
        return f"it names {len(names)} parameters, the file has {len(raw.entries)} positions"
    for word, column in (("name", names), ("key", keys)):
        twice = [value for value, count in Counter(value for value in column if value is not None).items() if count > 1]
        if twice:
            return f"two positions have the {word} {twice[0]!r}"
    for entry, name, key, shape in zip(raw.entries, names, keys, shapes):
        if name is None and entry.has_state:
            return f"it has no name for position {entry.position}, which has state"
        stored = adapter.tensors[key].shape if adapter is not None and key is not None else shape
        if stored is not None and not fits(entry, stored):
            return f"position {entry.position} has shape {list(entry.shape or ())}, {key or name} has {list(stored)}"
    return None


def fits(entry: Entry, shape: tuple[int, ...]) -> bool:
    """True unless the entry is known to be of another shape (of another size, where only that is known)."""
    if entry.shape is None:
        return True
    return math.prod(entry.shape) == math.prod(shape) if entry.flat else entry.shape == tuple(shape)


def _rate(raw: RawState, index: int) -> object:
    hyper = raw.groups[index].hyper
    return hyper.get("initial_lr", hyper.get("lr"))
