"""Positions of parameters that were trained beside the adapter and are not in its file: a projector, a value head, a reward head.

Counts, groups and shapes refute every order of the adapter's keys while such positions stand among the others. They are set aside by their
shapes; the order is settled over the rest, as if the optimizer had never held them, and laid back. Their own names come from further weights
of the checkpoint, by shape and order alone: no number is asked of them, and none of them is proven.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from ostate.core.foreign import number_in
from ostate.core.naming import PROVEN, Adapter, Evidence, Ordering
from ostate.core.state import Entry, Finding, RawState
from ostate.core.tensors import TensorRef, shape_text

from .assumed import assume
from .grouping.refute import positions_of
from .sources.from_keys import trained_keys

RULE = "positions-not-in-adapter"
MOST_WAYS = 6
"""Ways to set positions aside that are worth trying, where several positions of one shape may be the ones that the adapter lacks."""
WRAPPED_BY = {"v_head.": "pretrained_model."}
"""What lies beside the model -> what the model lies in: trl models/modeling_value_head.py, `AutoModelForCausalLMWithValueHead`."""

Size = tuple[int, ...]


def ways_to_set_aside(raw: RawState, adapter: Adapter) -> list[tuple[int, ...]]:
    """Return sets of positions with state that the adapter has no tensor for, the likeliest first; none where it has one for each, or for none.

    Where the adapter has tensors of a shape and the state more positions of it, any of these may be the foreign ones: those of one group, the last,
    the first.
    """
    keys = trained_keys(adapter)
    flat = any(entry.flat for entry in raw.entries)
    held = Counter(_size(adapter.tensors[key].shape, flat=flat) for key in keys)
    stated = [raw.entries[position] for position in positions_of(raw) if raw.entries[position].has_state]
    there: dict[Size, list[Entry]] = {}
    for entry in stated:
        if entry.shape is not None:
            there.setdefault(_size(entry.shape, flat=flat), []).append(entry)
    sure = [entry.position for size, entries in there.items() if size not in held for entry in entries]
    choices = [list(_choices(entries, len(entries) - held[size])) for size, entries in there.items() if size in held and len(entries) > held[size]]
    if not (sure or choices) or len(sure) == len(stated):
        return []
    found = (tuple(sorted([*sure, *(position for some in chosen for position in some)])) for chosen in product(*choices))
    return list(dict.fromkeys(found))[:MOST_WAYS]


def _size(shape: Size, *, flat: bool) -> Size:
    return (math.prod(shape),) if flat else tuple(shape)


def _choices(entries: Sequence[Entry], excess: int) -> Iterator[tuple[int, ...]]:
    """Yield the choices of `excess` among these positions of one shape that may not be the adapter's."""
    positions = [entry.position for entry in entries]
    for group in dict.fromkeys(entry.group for entry in entries):
        own = tuple(entry.position for entry in entries if entry.group == group)
        if len(own) == excess:
            yield own
    yield tuple(positions[-excess:])
    yield tuple(positions[:excess])


def without(raw: RawState, aside: Sequence[int], *, emptied: bool) -> tuple[RawState, tuple[int, ...]]:
    """Return the state as if the optimizer had never held these positions, and the old position of each new one.

    Args:
        raw: the state.
        aside: positions to leave out.
        emptied: keep groups that lose all their positions; otherwise they were groups of the foreign parameters alone.
    """
    gone = set(aside)
    places = tuple(entry.position for entry in raw.entries if entry.position not in gone)
    new = {old: position for position, old in enumerate(places)}
    kept = [group for group in raw.groups if emptied or not group.positions or not gone.issuperset(group.positions)]
    number = {group.index: index for index, group in enumerate(kept)}
    groups = tuple(
        group._replace(index=index, positions=tuple(new[position] for position in group.positions if position in new))
        for index, group in enumerate(kept)
    )
    entries = tuple(raw.entries[old]._replace(position=new[old], group=number[raw.entries[old].group]) for old in places)
    master = {new[position]: slot for position, slot in raw.master.items() if position in new}
    return raw._replace(groups=groups, entries=entries, master=master), places


def laid_back(found: Ordering, raw: RawState, places: Sequence[int], names: Mapping[int, str], adapter: Adapter, file: str) -> Ordering:
    """Return an order that was settled over the rest as one of the whole state.

    Args:
        found: the order of the rest.
        raw: the whole state.
        places: the old position of each of the rest.
        names: of positions set aside, as further weights tell.
        adapter: the weights that lack them.
        file: where `names` come from; empty where there are none.
    """
    lead = next((inside for word, inside in WRAPPED_BY.items() if any(name.startswith(word) for name in names.values())), "")
    whole: list[str | None] = [names.get(entry.position) for entry in raw.entries]
    keys: list[str | None] = [None] * len(raw.entries)
    for old, name, key in zip(places, found.names, found.keys):
        whole[old], keys[old] = (None if name is None else f"{lead}{name}"), key
    aside = [entry for entry in raw.entries if entry.has_state and entry.position not in set(places)]
    named = [entry for entry in aside if entry.position in names]
    doubted = _doubted(raw, aside, places, found)
    unnamed = tuple(entry.position for entry in aside if entry.position not in names)
    order = replace(
        found,
        names=tuple(whole),
        keys=tuple(keys),
        verdict="partial" if found.verdict in PROVEN else found.verdict,
        proof=None,
        undecided=tuple(
            dict.fromkeys(
                (
                    *(f"{lead}{name}" for name in found.undecided),
                    *(f"{lead}{name}" for position in doubted if (name := found.names[position]) is not None),
                    *(names[entry.position] for entry in named),
                )
            )
        ),
        left_out=(*(places[position] for position in found.left_out), *unnamed),
        findings=(*found.findings, _finding(aside, names, adapter, file)),
        evidence=None if found.evidence is None else _evidence_of(found.evidence, places, aside, frozenset(doubted)),
    )
    return _with_lead_assumed(order, found, names, lead, adapter)


def _doubted(raw: RawState, aside: Sequence[Entry], places: Sequence[int], found: Ordering) -> list[int]:
    """Return positions of the rest that have the shape of one set aside, and are not proven by themselves."""
    shapes = {entry.shape for entry in aside}
    alone = found.evidence.alone if found.evidence is not None else frozenset[int]()
    return [new for new, old in enumerate(places) if raw.entries[old].has_state and raw.entries[old].shape in shapes and new not in alone]


def _evidence_of(evidence: Evidence, places: Sequence[int], aside: Sequence[Entry], doubted: frozenset[int]) -> Evidence:
    order: dict[int, str | None] = dict(zip(places, evidence.order))
    size = max([*places, *(entry.position for entry in aside)]) + 1
    return replace(
        evidence,
        proven=frozenset(places[position] for position in evidence.proven - doubted),
        undecided=(*(places[position] for position in dict.fromkeys((*evidence.undecided, *sorted(doubted)))), *(entry.position for entry in aside)),
        alone=frozenset(places[position] for position in evidence.alone),
        apart=tuple(places[position] for position in evidence.apart),
        untrained=tuple(places[position] for position in evidence.untrained),
        order=tuple(order.get(position) for position in range(size)) if evidence.order else (),
        contradictions=tuple((places[position], claimed, better) for position, claimed, better in evidence.contradictions),
        weakest=tuple(replace(each, position=places[each.position]) for each in evidence.weakest),
    )


def _finding(aside: Sequence[Entry], names: Mapping[int, str], adapter: Adapter, file: str) -> Finding:
    unnamed = [entry for entry in aside if entry.position not in names]
    shapes = Counter(shape_text(entry.shape or ()) for entry in unnamed)
    listed = ", ".join(f"{count} of {shape}" for shape, count in shapes.items())
    them = "position was" if len(aside) == 1 else "positions were"
    said = [f"{len(aside)} {them} trained beside the adapter: {adapter.file} has no tuner's tensor for {'it' if len(aside) == 1 else 'them'}"]
    if names:
        said.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} named from {file}, by shape and order alone")
    if unnamed:
        said.append(f"{len(unnamed)} {'has' if len(unnamed) == 1 else 'have'} no name ({listed})")
    return Finding(
        rule=RULE,
        severity="warning",
        text="; ".join(said),
        fix="to name them for certain, pass --order FILE (one name per line, in the optimizer's order)",
        names=tuple(names.get(entry.position, f"position {entry.position}") for entry in aside),
    )


def _with_lead_assumed(order: Ordering, rest: Ordering, names: Mapping[int, str], lead: str, adapter: Adapter) -> Ordering:
    """Say that the adapter's model may lie within a module of the one that was trained, unless the further weights' names tell that it does not."""
    if lead:
        return assume(order, (f"the model lies in {lead.rstrip('.')!r}, where TRL keeps it beside a value head",))
    if adapter.lead or (names and all(name in adapter.tensors for name in names.values())):  # the checkpoint's own weights have shown it
        return order
    head = next((name.partition(".")[0] for name in rest.names if name is not None), "")
    if names and all(name.partition(".")[0] == head for name in names.values()):
        return order
    text = f"names begin as the keys of {adapter.file} do; a model that trains more than its adapter may have a module's name in front"
    return assume(order, (text,), (text,))


def names_from(raw: RawState, aside: Sequence[int], tensors: Mapping[str, TensorRef], *, ordered: bool) -> dict[int, str]:
    """Return names for positions set aside, from further weights: those of one module that has just their shapes, else shape by shape.

    Args:
        raw: the state.
        aside: positions set aside.
        tensors: further weights by name.
        ordered: their order is the model's; otherwise numbers in their names are.

    Returns:
        Position -> name; nothing for a shape that the weights have another number of times, or under words that were sorted, or that lies in two
        groups of the optimizer.
    """
    keys = list(tensors) if ordered else sorted(tensors, key=_natural)
    flat = any(entry.flat for entry in raw.entries)
    chosen = set(aside)
    wanted = [raw.entries[position] for position in positions_of(raw) if position in chosen and raw.entries[position].has_state]
    sizes = {key: _size(tensors[key].shape, flat=flat) for key in keys}
    own = _module_of(keys, sizes, Counter(_size(entry.shape or (), flat=flat) for entry in wanted)) or keys
    found: dict[int, str] = {}
    for size in dict.fromkeys(_size(entry.shape or (), flat=flat) for entry in wanted):
        entries = [entry for entry in wanted if _size(entry.shape or (), flat=flat) == size]
        alike = [key for key in own if sizes[key] == size]
        sortable = ordered or len({re.sub(r"\d+", "#", key) for key in alike}) == 1  # words that were sorted tell nothing of the model's order
        if len(alike) == len(entries) and sortable and len({entry.group for entry in entries}) == 1:
            found.update(zip((entry.position for entry in entries), alike))
    return found


def _module_of(keys: Sequence[str], sizes: Mapping[str, Size], wanted: Counter[Size]) -> list[str]:
    """Return the keys of the only module whose tensors have just these sizes; nothing where none or several have."""
    modules: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(".")
        for length in range(len(parts)):
            modules.setdefault(".".join(parts[:length]), []).append(key)
    fitting = {tuple(own) for own in modules.values() if len(own) == wanted.total() and Counter(sizes[key] for key in own) == wanted}
    return list(fitting.pop()) if len(fitting) == 1 else []


def _natural(key: str) -> list[tuple[bool, int, str]]:
    numbers = [(part, number_in(part)) for part in key.split(".")]
    return [(number is None, number or 0, part) for part, number in numbers]
