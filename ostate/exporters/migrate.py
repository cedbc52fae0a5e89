"""A state for another set of trainable parameters: kept by name, made where new, dropped where gone; findings list each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ostate.core.names import by_spelling, place_in_model, twins
from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Finding, Group
from ostate.core.tensors import Slot
from ostate.errors import ExportError
from ostate.optimizers.slots import SECOND_MOMENT_SLOTS, row_of, weights_slot

from .base import MARKS
from .target import Target, shapes_unknown

New = Literal["absent", "zeros", "cold-step", "sibling"]
"""What a new parameter gets: no entry (torch makes one at its first step), zero moments at step 0, zero moments at the step of the
others, or zero momentum with the mean second moment of its nearest parameter."""
_LAYER = re.compile(r"\.(\d{1,18})\.", re.ASCII)


def migrate(
    state: NamedState,
    target: Target,
    *,
    new: New = "zeros",
    rename: Sequence[tuple[str, str]] = (),
    truncate: bool = False,
) -> NamedState:
    """Return the state of `target`'s parameters.

    Args:
        state: what there is.
        target: whom it is for.
        new: what a parameter without an entry gets.
        rename: (regular expression, replacement) over the state's names, applied in turn.
        truncate: let a parameter that shrank keep the part that fits.

    Returns:
        The state in the target's groups; `source["migration"]` lists what was kept, resized, made and dropped.

    Raises:
        ExportError: two parameters get one name, one shrank, or a new one's shape, or a parameter near it, is not known.
    """
    there, without = _renamed(state, rename)
    pairs = matched(there, target)
    keeps_nothing = not any(parameter.slots for parameter in there.values())  # SGD without momentum
    made: dict[str, NamedParameter] = {}
    fates: dict[str, list[str]] = {"kept": [], "grown": [], "cut": [], "made": [], "absent": []}
    for name in target.order:
        if name in pairs:
            made[name] = _kept(there[pairs[name]], name, target, fates, truncate=truncate)
        else:
            left = new == "absent" or keeps_nothing or (name in without and name not in target.shapes)
            one = None if left else _new(name, target, there, new)
            fates["absent" if one is None else "made"].append(name)
            made |= {} if one is None else {name: one}
    used = set(pairs.values())
    fates["dropped"] = [parameter.name for name, parameter in there.items() if name not in used]
    fates["dropped"] += [name for name in without if name not in set(target.order)]
    new_names = {*fates["made"], *fates["absent"]} - set(without)
    groups, findings = _groups(state, target, {name: p for name, p in made.items() if name not in new_names}, _places(state, target, there, without))
    findings += shapes_unknown(target)
    findings += _where_new_ones_went(state, target, [name for name in target.order if name in new_names], there, groups)
    placed = {name: replace(made[name], group=group.index) for group in groups for name in group.names or () if name in made}
    numbered = {name: replace(parameter, position=None) for name, parameter in placed.items()}
    facts = {**state.adapter, "name": target.adapter.name} if target.adapter is not None and target.adapter.name_known else state.adapter
    counts = tuple(len(group.names or ()) for group in groups)
    moved = {**state.source, "positions": counts, "migration": {"new": new, **{key: tuple(names) for key, names in fates.items() if names}}}
    return replace(
        state,
        groups=groups,
        parameters={name: numbered[name] for name in made},
        ordering=None if state.ordering is None else replace(state.ordering, names=(), keys=(), left_out=()),
        adapter=facts,
        source=moved,
        findings=(*state.findings, *_findings(fates, new), *findings),
        path=state.path,
    )


def refuse_nothing_kept(state: NamedState, where: str = "") -> None:
    """Refuse a migrated state in which no parameter kept its moments: every one of them would start anew.

    Raises:
        ExportError: it is so.
    """
    fates = state.source.get("migration")
    if isinstance(fates, Mapping) and "dropped" in fates and not any(key in fates for key in ("kept", "grown", "cut")):
        text = "none of the parameters asked for is in the state, so no moment would be kept"
        fix = "pass the adapter that continues this run; if its modules were renamed, say how with --rename OLD=NEW"
        raise ExportError(text, where=where, fix=fix)


def matched(there: Mapping[str, NamedParameter], target: Target) -> dict[str, str]:
    """Return, for the target's names that the state has moments of, the name they have there.

    It is the same, or that of the same key or of the same place; where there is none of these for any name, the one spelled as another trainer does.
    """
    by_key = {parameter.adapter_key: name for name, parameter in there.items() if parameter.adapter_key is not None}
    by_place = {place_in_model(name): name for name in there}
    for place in twins(place_in_model(name) for name in there):
        del by_place[place]  # either may be meant
    pairs: dict[str, str] = {}
    used: set[str] = set()
    for name in target.order:
        found = name if name in there else by_key.get(target.keys.get(name, "")) or by_place.get(place_in_model(name))
        if found is not None and found not in used:
            pairs[name] = found
            used.add(found)
    if pairs:
        return pairs
    own = by_spelling(there)
    return {name: own[form] for form, name in by_spelling(target.order).items() if form in own}


def _renamed(state: NamedState, rename: Sequence[tuple[str, str]]) -> tuple[dict[str, NamedParameter], dict[str, int]]:
    """Return the parameters by their new names, and the group of each name without state.

    Raises:
        ExportError: two get one name, or an expression is none.
    """
    there: dict[str, NamedParameter] = {}
    without: dict[str, int] = {}
    group_of = {name: group.index for group in state.groups for name in group.names or ()}
    for name in (*state.parameters, *state.without_state):
        wanted = name
        for pattern, replacement in rename:
            try:
                wanted = re.sub(pattern, replacement, wanted)
            except (re.error, IndexError) as error:
                fix = "write a backslash before signs that are meant as they are: \\. \\( \\+"
                raise ExportError(f"not a regular expression that can be used: {error}", where=f"{pattern}={replacement}", fix=fix) from error
        if wanted in there or wanted in without:
            raise ExportError(f"two parameters would be called {wanted!r}", where=name, fix="make the pattern of --rename more specific")
        if name in state.parameters:
            there[wanted] = state.parameters[name]
        else:
            without[wanted] = group_of[name]
    return there, without


def _kept(parameter: NamedParameter, name: str, target: Target, fates: dict[str, list[str]], *, truncate: bool) -> NamedParameter:
    shape = target.shapes.get(name, parameter.shape)
    own = replace(parameter, name=name, adapter_key=target.keys.get(name, parameter.adapter_key))
    if shape == parameter.shape:
        fates["kept"].append(name)
        return own
    differ = [axis for axis, (a, b) in enumerate(zip(parameter.shape, shape)) if a != b]
    if len(shape) != len(parameter.shape) or len(differ) != 1:
        raise ExportError(
            f"the state has shape {list(parameter.shape)}, the target {list(shape)}: not the same parameter",
            where=name,
            fix="rename it with --rename",
        )
    grown = shape[differ[0]] > parameter.shape[differ[0]]
    if not grown and not truncate:
        raise ExportError(f"shrank from {list(parameter.shape)} to {list(shape)}", where=name, fix="pass --truncate to keep the part that fits")
    if any(slot.shape != parameter.shape for slot in parameter.slots.values()):
        raise ExportError("a factored moment cannot be resized", where=name, fix="rename it with --rename, and pass --new absent")
    if grown and (slot := weights_slot(parameter)) is not None:
        raise ExportError(
            f"grew from {list(parameter.shape)} to {list(shape)}, and its {slot} holds weights, which cannot be made from a state", where=name,
            fix="rename it with --rename, and pass --new absent",
        )  # fmt: skip
    fates["grown" if grown else "cut"].append(name)
    from .made_slots import Resized

    return replace(own, shape=shape, slots={slot: Resized(value, shape) for slot, value in parameter.slots.items()})


def _new(name: str, target: Target, there: Mapping[str, NamedParameter], new: New) -> NamedParameter | None:
    """Return the entry of a new parameter; None where the optimizer makes it itself, at the first step, as zeros at step 0 would not."""
    nearest = _nearest(name, target, there)
    shape = target.shapes.get(name, nearest.shape if nearest is not None else None)
    if shape is None or name not in target.shapes:
        raise ExportError("the shape of a new parameter is not known", where=name, fix="pass --for an adapter folder, or --new absent")
    pattern = nearest if nearest is not None else next(iter(there.values()), None)
    slots = [] if pattern is None else list(pattern.slots)
    own = "" if pattern is None else _made_by_the_optimizer_alone(pattern, there)
    if own and new == "zeros" and not any(row_of(slot).role == "weights" for slot in slots):
        return None
    if own and new != "zeros":
        raise ExportError(f"its {own} can be made by the optimizer alone, at its first step", where=name, fix="pass --new absent")
    if (held := next((slot for slot in slots if row_of(slot).role == "weights"), None)) is not None:
        raise ExportError(
            f"its {held} would hold the parameter's own weights, which cannot be made from a state", where=name, fix="pass --new absent"
        )
    steps = sorted(parameter.step for parameter in there.values() if parameter.step is not None)
    step = 0.0 if new == "zeros" or not steps else steps[len(steps) // 2]
    from .made_slots import ConstantSlot

    filled: dict[str, Slot] = {slot: ConstantSlot(shape) for slot in slots}
    if new == "sibling":
        if nearest is None:
            raise ExportError("no parameter of its kind to take the second moment from", where=name, fix="pass --new zeros")
        step = nearest.step if nearest.step is not None else step
        filled = {slot: ConstantSlot(shape, _mean(nearest.slots[slot]) if slot in SECOND_MOMENT_SLOTS else 0.0) for slot in slots}
    return NamedParameter(
        name=name, shape=shape, group=nearest.group if nearest is not None else 0, slots=filled, step=step, adapter_key=target.keys.get(name)
    )


def _made_by_the_optimizer_alone(pattern: NamedParameter, there: Mapping[str, NamedParameter]) -> str:
    """Return what zeros of the parameter's shape cannot stand for in an entry like this one; empty: nothing.

    Row and column means, step sizes and earlier gradients, single numbers beside the slots, codes of a few bits.
    """
    roles = {slot: row_of(slot).role for slot in pattern.slots}
    odd = [
        slot
        for slot, values in pattern.slots.items()
        if roles[slot] != "weights" and (values.shape != pattern.shape or roles[slot] not in {"first_moment", "second_moment"})
    ]
    packed = sorted({parameter.decoded_from for parameter in there.values()} - {"plain"})
    return ", ".join([*odd, *(key for key in pattern.scalars if key not in MARKS), *packed])


def _mean(slot: Slot) -> float:
    total = sum(float(chunk.sum(dtype="f8")) for chunk in slot.chunks())
    return total / max(1, math.prod(slot.shape))


def _nearest(name: str, target: Target, there: Mapping[str, NamedParameter]) -> NamedParameter | None:
    """Return the likest parameter: same place in another layer, else same factor, of the same shape if one is known; nearest layer first."""
    shape, layer = target.shapes.get(name), _layer(name)
    same_place = [p for other, p in there.items() if _LAYER.sub(".*.", other) == _LAYER.sub(".*.", name)]
    parts = name.split(".")
    tail = ".".join(parts[-4 if "modules_to_save" in parts else -3 :])  # a norm and a head are both saved whole, and are no neighbours
    same_factor = [p for other, p in there.items() if other.endswith(tail)]
    for rows in (same_place, same_factor):
        fitting = [p for p in rows if shape is None or len(p.shape) == len(shape)]
        if fitting:
            return min(fitting, key=lambda p: (p.shape != shape, abs(_layer(p.name) - layer)))
    return None


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[1]) if found else -1


def _groups(
    state: NamedState, target: Target, kept: Mapping[str, NamedParameter], places: Mapping[str, int]
) -> tuple[tuple[Group, ...], list[Finding]]:
    """Return the groups of the target; where they join parameters with different settings, the most common stand and a finding says so.

    Args:
        state: whose settings they get: a group of nothing but new parameters those of the group of its number.
        target: whom the state is for.
        kept: the parameters that keep moments.
        places: the group of each other name, where the target tells none.
    """
    wanted = target.groups if target.groups is not None else _as_in_the_state(state, target, kept, places)
    groups, findings = [], []
    for index, names in enumerate(wanted):
        settings: dict[str, list[int]] = {}
        for name in names:
            if name in kept and kept[name].slots:
                settings.setdefault(repr(sorted(_settings(state, kept[name]).items())), []).append(kept[name].group)
        common = max(settings.values(), key=len)[0] if settings else min(index, len(state.groups) - 1)
        hyper: Mapping[str, object] = state.groups[common].hyper if state.groups else {}
        if len(settings) > 1:
            rest = sum(map(len, settings.values())) - max(map(len, settings.values()))
            text = f"group {index} joins parameters of different settings: {rest} of {len(names)} take the settings of the others"
            findings.append(Finding(rule="migration-groups", severity="warning", text=text, fix="pass the groups by a file of lists of names"))
        groups.append(Group(index=index, positions=(), hyper=hyper, names=tuple(names)))
    return tuple(groups), findings


def _settings(state: NamedState, parameter: NamedParameter) -> dict[str, object]:
    hyper = state.groups[parameter.group].hyper
    return {key: hyper.get(key) for key in ("lr", "initial_lr", "betas", "eps", "weight_decay", "amsgrad")}


def _as_in_the_state(state: NamedState, target: Target, kept: Mapping[str, NamedParameter], places: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """Return the names by group: where each stood, and for those that are new where the most similar parameter stands."""
    at = {name: kept[name].group if name in kept else places[name] for name in target.order}
    return tuple(tuple(name for name in target.order if at[name] == group.index) for group in state.groups)


def _places(state: NamedState, target: Target, there: Mapping[str, NamedParameter], without: Mapping[str, int]) -> dict[str, int]:
    """Return a group for each name of the target: its own where known without state, that of its nearest parameter, else the first with names."""
    first = next((group.index for group in state.groups if group.names), 0)
    nearest = {name: _nearest(name, target, there) for name in target.order if name not in without}
    return {**{name: first if one is None else one.group for name, one in nearest.items()}, **without}


def _where_new_ones_went(
    state: NamedState, target: Target, new: Sequence[str], there: Mapping[str, NamedParameter], groups: Sequence[Group]
) -> list[Finding]:
    """Say into which groups new parameters were put where nobody said it: by Trainer's rule, or without any parameter near them to go by."""
    at = {name: group.index for group in groups for name in group.names or ()}
    if target.by_trainer and new:
        counted = ", ".join(f"{sum(at[name] == group.index for name in new)} in group {group.index}" for group in groups)
        text = f"the state's groups are Trainer's, so its rule placed the new parameters: {counted}"
        return [Finding(rule="migration-placed", severity="note", text=text, fix="--groups file keeps new ones with the most similar parameter")]
    if target.groups is not None or sum(bool(group.names) for group in state.groups) < 2:
        return []
    alone = tuple(name for name in new if _nearest(name, target, there) is None)
    if not alone:
        return []
    text = f"{len(alone)} new parameters resemble no parameter of the state and were put into group {at[alone[0]]}"
    fix = "--groups trainer, or --for a file with a list of names for each group"
    return [Finding(rule="migration-placed", severity="warning", text=text, fix=fix, names=alone)]


def _findings(fates: Mapping[str, Sequence[str]], new: New) -> list[Finding]:
    """Say what happened to whom."""
    how = {
        "zeros": "zero moments at step 0",
        "cold-step": "zero moments at the step of the others",
        "sibling": "the mean v of the most similar parameter",
    }
    texts = {
        "kept": ("note", "{} parameters kept their moments"),
        "grown": ("note", "{} parameters grew: the new part starts at zero"),
        "cut": ("warning", "{} parameters shrank: the part that does not fit was dropped"),
        "made": ("note", f"{{}} parameters are new: {how.get(new, '')}"),
        "absent": ("note", "{} parameters have no moments and get no entry: torch makes one at their first step"),
        "dropped": ("note", "{} parameters are not in --for and were left out"),
    }
    return [
        Finding(rule=f"migration-{key}", severity=severity, text=text.format(len(fates[key])), names=tuple(fates[key]) if key != "kept" else ())  # type: ignore[arg-type]
        for key, (severity, text) in texts.items()
        if fates.get(key)
    ]
