"""From an optimizer's `state_dict()`, as plain data, to a `RawState`: positions, groups, slots, and the names that stand in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

from ostate.core import limits
from ostate.core.foreign import expanded, number_in, positions_in
from ostate.core.state import Entry, Finding, Group, RawState, SourceFile
from ostate.core.tensors import Slot, TensorRef
from ostate.errors import OstateError, ReadError
from ostate.optimizers import parameter_shape, recognise

from .hyper import plain_hyper, plain_number, typed_hyper
from .pickle.records import Inert
from .pickled_optimizer import numbered, params_of, whole_tensor
from .quantized import slots_of

_NOT_HYPER = {"params", "param_names", "names"}
Key = int | str
NO_OPTIMIZER = "no optimizer writes this: save optimizer.state_dict() again, or do not use this file"
_DAMAGED = "the file is damaged, or no release that is known wrote it: take another checkpoint"


def raw_state(
    optimizer: Mapping[str, object],
    *,
    source: str,
    layout: str,
    files: tuple[SourceFile, ...],
    where: str,
    weights: Mapping[str, TensorRef] | None = None,
    facts: Mapping[str, object] | None = None,
    findings: tuple[Finding, ...] = (),
    names_file: tuple[str, Sequence[Sequence[str]]] | None = None,
    master: Mapping[Key, Slot] | None = None,
) -> RawState:
    """Return the state that `{"state": …, "param_groups": […]}` describes, exactly as it stands there.

    Args:
        optimizer: plain data with `TensorRef` leaves; `param_groups` may be missing (then all entries are one group); `names` may give id -> name.
        source: the path that was asked for.
        layout: the row of `READERS`.
        files: what was read.
        where: file and place within it, for messages.
        weights: named weights that lie in the same file.
        facts: what else is known of the checkpoint.
        findings: what was noticed so far.
        names_file: file name and names by group, of a names file beside the state.
        master: key -> fp32 master weights, where the state keeps them.

    Raises:
        ReadError: ids twice, entries that no group lists, names that do not go with the groups.
    """
    state = optimizer.get("state", {})
    if not isinstance(state, Mapping):
        raise ReadError("`state` is not a mapping", where=where, fix="pass the file of the optimizer's state_dict()")
    state, param_groups, own = numbered(*_ids(state, optimizer.get("param_groups")), where)
    listed = _groups_of(param_groups, state, where)
    keys = _positions(listed, where)
    state = _by_position(state, listed, keys, where)
    names, recorded = _names(listed, keys, state, names_file, where)
    if _are_by_id(by_id := optimizer.get("names"), keys, state):
        names, recorded = [by_id.get(key) for key in keys], "names"
    groups, notes = _groups(listed, names, where)
    master = {**own, **(master or {})}
    of_group = [group.index for group in groups for _ in group.positions]
    hypers = [group.hyper for group in groups]
    contents = list(_contents(state, keys, of_group, hypers, where))
    kind = _kind_of(contents, hypers)
    entries = tuple(_entries(contents, keys, of_group, names, kind))
    return RawState(
        source=source,
        layout=layout,
        files=files,
        groups=groups,
        entries=entries,
        optimizer=kind,
        recorded=recorded,
        weights=weights or {},
        master={position: master[key] for position, key in enumerate(keys) if key in master},
        facts=facts or {},
        findings=(*findings, *notes, *_wrong_steps(entries)),
    )


def entries_of(optimizer: Mapping[str, object]) -> Mapping[object, object]:
    """Return the entries of `{"state": …, "param_groups": …}`; nothing where `state` is no mapping."""
    state = optimizer.get("state")
    return state if isinstance(state, Mapping) else {}


def _kind_of(contents: Sequence[tuple[Mapping[str, Slot], Mapping[str, object]]], hypers: Sequence[Mapping[str, object]]) -> str:
    """Return the optimizer that these slots, scalars and hyperparameters are of."""
    merged = {key: value for hyper in reversed(hypers) for key, value in hyper.items()}
    kinds = {tuple(slots) for slots, _ in contents}
    return recognise({slot for some in kinds for slot in some}, merged, {name for _, scalars in contents for name in scalars})


def _ids(state: Mapping[object, object], groups: object) -> tuple[Mapping[object, object], object]:
    """Return positions that went through text (JSON, file names) as the numbers they are: no parameter is called `0`."""
    positions = positions_in(state)
    if positions is None:
        return state, groups
    return dict(zip(positions, state.values())), [_listed_ids(group) for group in groups] if isinstance(groups, (list, tuple)) else groups


def _listed_ids(group: object) -> object:
    if type(group) is not dict or not (params := params_of(group)):
        return group
    numbers = [number_in(key) if type(key) is str else None for key in params]
    return {**group, "params": [key if number is None else number for key, number in zip(params, numbers)]}


def _groups_of(groups: object, state: Mapping[object, object], where: str) -> list[dict[str, object]]:
    """Return the groups as a list of dicts with `params`; a state without groups is one group of all its entries."""
    if groups is None or (groups == [] and state):
        numbers = [key for key in state if type(key) is int]
        return [{"params": sorted(numbers) if len(numbers) == len(state) else list(state)}]
    if isinstance(groups, Mapping):
        return _by_name(groups, where)
    if not isinstance(groups, (list, tuple)) or not all(type(group) is dict for group in groups):
        raise ReadError("`param_groups` is not a list of groups", where=where, fix="pass the file of the optimizer's state_dict()")
    if len(groups) == 1 and "params" not in groups[0]:
        return [{**groups[0], "params": list(state)}]
    for index, group in enumerate(groups):
        if not isinstance(group.get("params"), (list, tuple)):
            raise ReadError(f"group {index} does not list its parameters", where=where, fix="save the whole state_dict()")
    return list(groups)


def _by_name(groups: Mapping[str, object], where: str) -> list[dict[str, object]]:
    """Return groups of torch's flattened form, {name: hyperparameters}: equal hyperparameters are one group."""
    found: dict[str, dict[str, object]] = {}
    members: dict[str, list[str]] = {}
    for name, hyper in groups.items():
        if type(hyper) is not dict:
            raise ReadError(f"the hyperparameters of {name!r} are not a mapping", where=where, fix="save the whole state_dict()")
        if isinstance(hyper.get("params"), (list, tuple)):
            found[f"group {name}"] = hyper
        else:
            mark = repr(sorted(plain_hyper(hyper).items(), key=lambda item: item[0]))
            found.setdefault(mark, dict(hyper))
            members.setdefault(mark, []).append(name)
    return [{**hyper, "params": members.get(mark, hyper.get("params"))} for mark, hyper in found.items()]


def _positions(groups: Sequence[Mapping[str, object]], where: str) -> list[Key]:
    """Return the key at each position: the groups' lists, one after another."""
    positions = sum(len(params_of(group)) for group in groups)
    for count, most, what in ((len(groups), limits.GROUPS, "groups"), (positions, limits.POSITIONS, "positions")):
        if count > most:
            raise ReadError(f"{count} {what}, more than {most}", where=where, fix=NO_OPTIMIZER)
    listed = [key for group in groups for key in params_of(group)]
    keys = [key for key in listed if type(key) is int or type(key) is str]
    if len(keys) != len(listed):
        raise ReadError("a group lists something that is neither a number nor a name", where=where, fix="save optimizer.state_dict()")
    if len(set(keys)) != len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise ReadError(f"parameter {twice!r} is in the groups twice", where=where, fix="the file was assembled wrongly: save it again")
    return keys


def _by_position(state: Mapping[object, object], groups: list[dict[str, object]], keys: list[Key], where: str) -> Mapping[object, object]:
    """Return the state under the groups' own keys.

    Raises:
        ReadError: an entry that no group lists.
    """
    known: set[object] = set(keys)
    stray = [key for key in state if key not in known]
    named = [key for key in stray if type(key) is str]
    counters = [key for key in named if type(state[key]) in (int, float)]
    if stray and len(counters) == len(stray) and len(state) > len(stray):
        return {key: entry for key, entry in state.items() if key in known}  # SPAM of pytorch_optimizer counts its steps there
    if not stray:
        return state
    if not set(state) & known and len(groups) == 1 and len(named) == len(stray) == len(keys):
        groups[0] = {**groups[0], "params": named}
        keys[:] = named
        return state
    found = _lora_fa(state, groups)
    if found is not None:
        return found
    shown = ", ".join(repr(key)[:80] for key in stray[:5])
    raise ReadError(
        f"{len(stray)} entries of the state belong to no group: {shown}",
        where=where,
        fix="the groups were changed after training; save the optimizer's whole state_dict()",
    )


def _lora_fa(state: Mapping[object, object], groups: Sequence[Mapping[str, object]]) -> dict[object, object] | None:
    """Return PEFT's LoRA-FA state by position, or None when it is none (peft/optimizers/lorafa.py, step).

    Its entries are keyed `<module>.lora` for the pair, moments of lora_B only, or by the parameter's name; the groups keep `names`.
    """
    found: dict[object, object] = {}
    for group in groups:
        names = group.get("names")
        if not isinstance(names, (list, tuple)) or len(names) != len(params_of(group)):
            return None
        for key, name in zip(params_of(group), names):
            if type(name) is not str:
                return None
            pair = state.get(name[: name.find("lora")] + "lora") if "lora_B" in name else None
            entry = state.get(name, pair)
            if type(entry) is dict:
                found[key] = {slot.removesuffix("_B"): value for slot, value in entry.items()}
    return found if len(found) == len(state) else None


def _names(
    groups: Sequence[Mapping[str, object]],
    keys: Sequence[Key],
    state: Mapping[object, object],
    names_file: tuple[str, Sequence[Sequence[str]]] | None,
    where: str,
) -> tuple[list[str | None], str | None]:
    """Return a name by position, and where the names come from."""
    names: list[str | None] = [key if type(key) is str else None for key in keys]
    if keys and all(name is not None for name in names):
        return names, "name-keyed"
    for field in ("param_names", "names"):
        if any(group.get(field) for group in groups):
            return _group_names(groups, field, where), "param_names"
    own = [entry.get("param_name") if type(entry := state.get(key)) is dict else None for key in keys]
    if any(type(name) is str for name in own):
        return [name if type(name) is str else None for name in own], "param_name"
    if names_file is not None:
        return _names_of_file(groups, *names_file, where=where), names_file[0]
    return names, None


def _are_by_id(names: object, keys: Sequence[Key], state: Mapping[object, object]) -> TypeGuard[Mapping[Key, str]]:
    """True for nanotron's names beside the state, {id: name} of every id with state (nanotron/optim/named_optimizer.py, `state_dict`)."""
    return isinstance(names, Mapping) and all(type(name) is str for name in names.values()) and all(key in names for key in keys if state.get(key))


def _group_names(groups: Sequence[Mapping[str, object]], field: str, where: str) -> list[str | None]:
    names: list[str | None] = []
    for index, group in enumerate(groups):
        given = group.get(field) or [None] * len(params_of(group))
        if not isinstance(given, (list, tuple)) or len(given) != len(params_of(group)):
            count = f"{len(given)} {field}" if isinstance(given, (list, tuple)) else f"{field} that are no list"
            raise ReadError(
                f"group {index} has {len(params_of(group))} parameters and {count}",
                where=where,
                fix="the file was assembled wrongly: save it again",
            )
        names += [name if type(name) is str else None for name in given]
    return names


def _names_of_file(groups: Sequence[Mapping[str, object]], file: str, given: Sequence[Sequence[str]], *, where: str) -> list[str | None]:
    sizes, wanted = [len(names) for names in given], [len(params_of(group)) for group in groups]
    if sizes != wanted and [size for size in sizes if size] != [size for size in wanted if size]:
        raise ReadError(
            f"{file} names {sizes} parameters by group, the state has {wanted}",
            where=where,
            fix=f"{file} belongs to another run: remove it, or put the right one there",
        )
    return [name for names in given for name in names]


def _groups(listed: Sequence[Mapping[str, object]], names: Sequence[str | None], where: str) -> tuple[tuple[Group, ...], list[Finding]]:
    groups: list[Group] = []
    notes: list[Finding] = []
    at = values = 0
    for index, group in enumerate(listed):
        end = at + len(params_of(group))
        own = tuple(name for name in names[at:end] if name is not None)
        hyper, wrong = typed_hyper(index, {key: value for key, value in group.items() if key not in _NOT_HYPER})
        notes += wrong
        values += expanded(hyper, limits.VALUES)
        _refuse_more(values, where)
        positions = tuple(range(at, end))
        groups.append(Group(index=index, positions=positions, hyper=hyper, names=own if len(own) == end - at and own else None))
        at = end
    return tuple(groups), notes


def _refuse_more(values: int, where: str) -> None:
    if values > limits.VALUES:
        raise ReadError(f"the state spells out more than {limits.VALUES} plain values", where=where, fix=NO_OPTIMIZER)


def _contents(
    state: Mapping[object, object], keys: Sequence[Key], of_group: Sequence[int], hypers: Sequence[Mapping[str, object]], where: str
) -> Iterator[tuple[dict[str, Slot], dict[str, object]]]:
    """Yield (slots, scalars) by position."""
    seen: dict[object, float] = {}
    values = 0
    for key, group in zip(keys, of_group):
        entry = state.get(key)
        if entry is None or entry == {}:
            yield {}, {}
            continue
        if type(entry) is not dict:
            raise ReadError(f"the entry of {key!r} is a {type(entry).__name__}, not a mapping", where=where, fix="save optimizer.state_dict()")
        if Inert in map(type, entry.values()):
            entry = {slot: whole_tensor(value, where) for slot, value in entry.items()}
        step = entry.get("step")
        if step is not None:
            entry = {**entry, "step": _step(step, seen)}
        try:
            slots, scalars = slots_of(entry, hypers[group])
        except OstateError as error:
            error.fix = error.fix or _DAMAGED
            raise error.at(f"{where}: entry {key!r}") from error
        values += expanded(scalars, limits.VALUES)
        _refuse_more(values, where)
        yield slots, scalars


def _step(step: object, seen: dict[object, float]) -> object:
    """Return the step as a number.

    A step lies between the tensors of its parameter, so reading each costs a request on a remote path. CRC32 is one-to-one on four
    bytes: storages with the same checksum in the zip's directory hold the same step, and each value is read once.
    """
    if type(step) is not TensorRef:
        return plain_number(step)
    mark = step.crc32, step.dtype, step.shape
    if mark in seen:
        return seen[mark]
    if step.numel != 1:
        return step
    value = step.item()
    if step.crc32 is not None and step.nbytes == 4:
        seen[mark] = value
    return value


def _entries(
    contents: Sequence[tuple[dict[str, Slot], dict[str, object]]],
    keys: Sequence[Key],
    of_group: Sequence[int],
    names: Sequence[str | None],
    kind: str,
) -> Iterator[Entry]:
    for position, ((slots, scalars), key, group, name) in enumerate(zip(contents, keys, of_group, names)):
        step = scalars.pop("step", None)
        if step is not None and (type(step) is not float or not 0 <= step < math.inf):
            scalars["step"], step = step, None
        scalars.pop("param_name", None)
        shape = parameter_shape({slot: value.shape for slot, value in slots.items()}, kind) if slots else None
        yield Entry(position, key, group, slots, step, scalars, name, shape)


def _wrong_steps(entries: Sequence[Entry]) -> Iterator[Finding]:
    wrong = [entry for entry in entries if entry.step is None and "step" in entry.scalars]
    if wrong:
        text = f"the step of {len(wrong)} parameters is not a number of updates: {ascii(wrong[0].scalars['step'])[:60]}"
        names = tuple(f"position {entry.position}" for entry in wrong[:20])
        yield Finding(rule="step-not-a-number", severity="error", text=text, fix="pass the right one with --step", names=names)
