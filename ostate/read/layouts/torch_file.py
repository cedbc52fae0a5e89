"""A file of torch.save that holds an optimizer's state somewhere: alone, in a bundle, in a Lightning checkpoint, in a list.

The state is found by what it is, a mapping with `state` and `param_groups`, wherever it lies; file names and extensions are not trusted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ostate.core.state import RawState
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError, UnknownFormat
from ostate.optimizers.slots import MARKS_ANYWHERE, PARAM_SHAPED, SECOND_MOMENT_SLOTS

from ..parts import OptimizerPart, joined, refuse_one_of_several, refuse_one_process, stages
from ..peek import Peek
from ..pickle.records import Inert
from ..pickle.unknown_classes import noted, refuse_within
from ..state_dict import entries_of, raw_state
from ..which_optimizer import choose

K = TypeVar("K")
MOST_DEPTH = 8
_PACKED = "__bnb_optimizer_quant_state__"
_DOTTED_LEAVES = frozenset({"step", *MARKS_ANYWHERE})
_WEIGHTS = ("state_dict", "model", "model_state_dict", "module", "model_state", "adapter", "net", "weights")
_PARTS = ("single_partition_of_fp32_groups", "fp32_flat_groups", "base_optimizer_state")
"""Keys of what one rank of DeepSpeed's ZeRO keeps: its piece of flat buffers, whose positions are groups, not parameters."""
_STEPS = ("global_step", "step", "iteration", "steps")


class Candidate(NamedTuple):
    """An optimizer's state within a file: its path there (`optimizer`, `optimizer_states[0]`, `` for the file itself)."""

    place: str
    optimizer: Mapping[str, object]

    @property
    def text(self) -> str:
        """The place and how much is there, for messages."""
        return f"{self.place or 'the whole file'} ({len(entries_of(self.optimizer))} entries)"


def detect(seen: Peek) -> bool:
    """True for a torch.save file in which a state lies."""
    return any(True for _ in candidates(seen.value))


def read(seen: Peek, *, optimizer: int | str | None = None) -> RawState:
    """Return the state in this file, exactly as stored.

    Args:
        seen: the file.
        optimizer: which one, where several lie in it, counted from 0.

    Raises:
        UnknownFormat: several states and none chosen, or none at all.
        ReadError: the state contradicts itself.
        UnsafePickle: an entry of it is an object.
    """
    if _is_part(seen.value):
        raise ReadError("one rank's piece of a DeepSpeed ZeRO state", where=seen.path, fix="pass the checkpoint folder with the files of all ranks")
    found = list(candidates(seen.value))
    one = _chosen(found, optimizer, seen.path)
    if one.optimizer["param_groups"] is None:
        refuse_one_of_several(seen.path)
    if one.optimizer.get("names"):
        refuse_one_process(seen.path)
    stored = seen.stored
    where = f"{seen.path}: {one.place}" if one.place else seen.path
    refuse_within(one.optimizer["state"], stored.unknown_classes, where)
    layout = "lightning" if "pytorch-lightning_version" in seen.keys else "torch"
    return raw_state(
        one.optimizer,
        source=seen.asked,
        layout=layout,
        files=(stored.source,),
        where=where,
        weights=weights_in(seen.value, one.optimizer, one.place),
        facts=_facts(seen.value),
        findings=noted(stored.unknown_classes),
        names_file=seen.names_file,
    )


def _is_part(value: object) -> bool:
    inner = value.get("optimizer_state_dict") if type(value) is dict else None
    return type(inner) is dict and any(key in inner for key in _PARTS)


def _chosen(found: list[Candidate], optimizer: int | str | None, path: str) -> Candidate:
    if not found:
        raise UnknownFormat("no optimizer state in this file", where=path, fix="pass the optimizer file, not the model file")
    by_place = {one.place: one for one in found}
    if in_order := stages(by_place, path):
        return _joined([by_place[place] for place in in_order])
    return found[choose([one.place for one in found], optimizer, path, texts=[one.text for one in found])]


def _joined(found: list[Candidate]) -> Candidate:
    """Return the optimizers of a pipeline's stages as one."""
    whole = joined(
        [OptimizerPart(entries_of(one.optimizer), one.optimizer["param_groups"] or [{"params": list(entries_of(one.optimizer))}]) for one in found]
    )
    return Candidate(found[0].place.rpartition(".")[0], {"state": whole.state, "param_groups": whole.groups})


def candidates(value: object) -> Iterator[Candidate]:
    """Yield the optimizer states within plain data, outermost first, in the file's order."""
    yield from _search(value, "", 0, set())


def _search(value: object, place: str, depth: int, seen: set[int]) -> Iterator[Candidate]:
    if not isinstance(value, (dict, list, tuple, Inert)) or not value or depth > MOST_DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Inert):
        for inner in (value.state, value.held, value.args):
            yield from _search(inner, place, depth + 1, seen)
    elif isinstance(value, dict):
        found = _as_optimizer(value)
        if found is not None:
            yield Candidate(place, found)
            return
        for key, inner in value.items():
            if type(key) is str and type(inner) is not TensorRef:
                yield from _search(inner, f"{place}.{key}" if place else key, depth + 1, seen)
    elif len(value) <= 1024:
        for name, inner in _pairs(value):
            yield from _search(inner, f"{place}.{name}" if place else name, depth + 1, seen)
        for index, inner in enumerate(value if not _pairs(value) else ()):
            yield from _search(inner, f"{place}[{index}]", depth + 1, seen)


def _pairs(value: Sequence[object]) -> list[tuple[str, object]]:
    """Return a list of (name, what it names), as StyleTTS2 writes its optimizers (optimizers.py, `MultiOptimizer.state_dict`); else nothing."""
    rows = [one for one in value if isinstance(one, (list, tuple)) and len(one) == 2 and type(one[0]) is str]
    found = {row[0]: row[1] for row in rows}
    return list(found.items()) if len(found) == len(value) else []


def _as_optimizer(value: dict[object, object]) -> Mapping[str, object] | None:
    """Return `{"state", "param_groups"}` when this mapping is a state in one of the forms that are written, else None."""
    state = value.get("state")
    groups = value.get("param_groups")
    if type(state) is dict and (isinstance(groups, (list, tuple, dict)) or _holds_slots(state)):
        return {"state": state, "param_groups": groups, "names": value.get("names")}
    if state is None and any(type(key) is str and key.startswith("state.") for key in value):
        return _unflattened(value)
    if _holds_slots(value):
        return {"state": value, "param_groups": None}
    return _slot_first(value) or _dotted(value) or _one_each(value)


def _one_each(value: dict[object, object]) -> Mapping[str, object] | None:
    """Return one state of many optimizers, each of one parameter and under its name: those that step within backward.

    torchtune's `optimizer_in_bwd` (training/memory.py, `OptimizerInBackwardWrapper.state_dict`). Equal groups become one.
    """
    state: dict[str, object] = {}
    groups: dict[str, dict[str, object]] = {}
    for name, one in value.items():
        if type(name) is not str or "." not in name or type(one) is not dict or one.keys() != {"state", "param_groups"}:
            return None
        entries, own = one["state"], one["param_groups"]
        if type(entries) is not dict or type(own) is not list or len(own) != 1 or type(own[0]) is not dict:
            return None
        params = own[0].get("params")
        if type(params) is not list or len(params) != 1 or any(key != params[0] for key in entries):
            return None
        if entries:
            state[name] = entries[params[0]]
        groups[name] = {key: held for key, held in own[0].items() if key not in ("params", "param_names")}
    return {"state": state, "param_groups": groups} if len(groups) > 1 else None


def _slot_first(value: dict[object, object]) -> Mapping[str, object] | None:
    """Return the usual form of `{"exp_avg_sq": {name: tensor}, …}`, whose step, if any, is one number for all."""
    second = value.get("exp_avg_sq")
    if type(second) is not dict or not second or not all(type(one) is TensorRef for one in second.values()):
        return None
    slots = {slot: rows for slot, rows in value.items() if type(rows) is dict and rows.keys() == second.keys()}
    shared = {} if "step" in slots or type(value.get("step")) not in {int, float, TensorRef} else {"step": value["step"]}
    return {"state": {key: shared | {slot: rows[key] for slot, rows in slots.items()} for key in second}, "param_groups": value.get("param_groups")}


def _dotted(value: dict[object, object]) -> Mapping[str, object] | None:
    """Return the usual form of `<name>.<slot>`, where every key is one."""
    state: dict[str, dict[str, object]] = {}
    for key, one in value.items():
        name, _, slot = key.rpartition(".") if type(key) is str else ("", "", "")
        if not name or slot not in _DOTTED_LEAVES or type(one) not in {TensorRef, int, float}:
            return None
        state.setdefault(name, {})[slot] = one
    return {"state": state, "param_groups": None} if any(not SECOND_MOMENT_SLOTS.isdisjoint(entry) for entry in state.values()) else None


def _holds_slots(state: Mapping[K, object]) -> bool:
    """True when every entry is a mapping, and one of them holds an optimizer's tensors."""
    if type(next(iter(state.values()), None)) is not dict:
        return False
    entries = [entry for entry in state.values() if type(entry) is dict]
    if len(entries) != len(state):
        return False
    packed = any(type(entry.get(_PACKED)) is dict for entry in entries)
    return packed or any(type(entry.get(slot)) in {TensorRef, Inert} for entry in entries for slot in MARKS_ANYWHERE)


def _unflattened(flat: dict[object, object]) -> Mapping[str, object] | None:
    """Return the nested form of `state.<name>.<slot>` and `param_groups.<name>.<hyper>` (torch's flattened optimizer state dict)."""
    state: dict[str, dict[str, object]] = {}
    groups: dict[str, dict[str, object]] = {}
    for key, value in flat.items():
        if type(key) is not str:
            return None
        section, _, rest = key.partition(".")
        name, _, leaf = rest.rpartition(".")
        if section not in {"state", "param_groups"} or not name:
            return None
        (state if section == "state" else groups).setdefault(name, {})[leaf] = value
    return {"state": state, "param_groups": groups or None} if _holds_slots(state) else None


def weights_in(value: object, optimizer: Mapping[str, object] | None = None, place: str = "") -> dict[str, TensorRef]:
    """Return the model's named weights that lie in the same file: the mapping of tensors under a usual key, or the only one there is.

    Of several models, averages and best ones left aside, the only one with tensors of all the optimizer's shapes; of several of these the one that
    is called as the optimizer is: `net.decoder` of `optimizer.decoder`, `generator` of `optim_g`.
    """
    found: dict[str, dict[str, TensorRef]] = {}
    _tensor_maps(value, "", 0, found, set(), optimizer)
    for key in _WEIGHTS:
        if key in found:
            return found[key]
    if len(found) < 2 or optimizer is None:
        return next(iter(found.values()), {}) if len(found) == 1 else {}
    wanted = _shapes(optimizer)
    live = {  # without averages and the best ones so far, which no optimizer trains
        where: tensors
        for where, tensors in found.items()
        if not re.search(r"(?:^|[._])(?:ema|best|shadow|average[ds]?)(?:[._]|$)", where, re.IGNORECASE)
    }
    able = {where: tensors for where, tensors in live.items() if not wanted - Counter(ref.shape for ref in tensors.values())}
    called = {where: tensors for where, tensors in able.items() if _called_alike(where, place)}
    return next(iter(own.values())) if len(own := called if len(able) > 1 else able) == 1 else {}


def _shapes(optimizer: Mapping[str, object]) -> Counter[tuple[int, ...]]:
    """Return how many entries have a slot of each shape of a parameter."""
    entries = [entry for entry in entries_of(optimizer).values() if type(entry) is dict]
    slots = ([one.shape for slot, one in entry.items() if slot in PARAM_SHAPED and type(one) is TensorRef] for entry in entries)
    return Counter(shapes[0] for shapes in slots if shapes)


def _called_alike(where: str, place: str) -> bool:
    """True when the last words of two places are one, or one is the other's first letter."""
    one, other = (re.split(r"[\W_]+", name.lower())[-1] for name in (where, place))
    return bool(one and other) and (one == other or (1 in (len(one), len(other)) and one[0] == other[0]))


def _tensor_maps(
    value: object, place: str, depth: int, found: dict[str, dict[str, TensorRef]], seen: set[int], optimizer: Mapping[str, object] | None
) -> None:
    if isinstance(value, (list, tuple)) and depth == 0:
        value = {str(index): one for index, one in enumerate(value[:16])}  # `torch.save((epoch, weights, state), …)`
    if type(value) is not dict or depth > 3 or id(value) in seen or (optimizer is not None and value is optimizer["state"]):
        return
    seen.add(id(value))
    if depth and _as_optimizer(value) is not None:
        return
    tensors = {key: one for key, one in value.items() if type(one) is TensorRef and type(key) is str}
    if depth and tensors and len(tensors) * 2 > len(value):
        found[place] = tensors
        return
    for key, inner in value.items():
        if type(key) is str:
            _tensor_maps(inner, f"{place}.{key}" if place else key, depth + 1, found, seen, optimizer)


def _facts(value: object) -> dict[str, object]:
    """Return what a bundle says of its run: `global_step`, Lightning's version, whether OneTrainer wrote it (InternalModelSaverMixin.py)."""
    if type(value) is not dict:
        return {}
    facts: dict[str, object] = {}
    step = next((value[key] for key in _STEPS if type(value.get(key)) is int), None)
    states = value.get("optimizer_states")
    if step is not None and not (isinstance(states, list) and len(states) > 1):  # Lightning counts the steps of all its optimizers together
        facts["global_step"] = step
    version = value.get("pytorch-lightning_version")
    if type(version) is str:
        facts["lightning_version"] = version
    if "param_group_mapping" in value:
        facts["program"] = "OneTrainer"
    return facts
