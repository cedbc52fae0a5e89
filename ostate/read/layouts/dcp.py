"""Optimizer states in torch.distributed.checkpoint folders: FSDP2, FSDP1 sharded, Accelerate, Trainer, torchtitan, NeMo Automodel.

Keys are the flattened path of a nested dict: `<root>.state.<parameter>.<slot>` and `<root>.param_groups.<group>.<hyper>`, or with the
optimizer's dict flattened before (torch.distributed.checkpoint.state_dict, flatten_optimizer_state_dict), `<root>` whatever the program chose.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ostate.core.files import absolute, is_file, is_remote, parent
from ostate.core.foreign import number_in, positions_in
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError, UnknownFormat
from ostate.optimizers.slots import MARKS_BELOW_STATE

from ..assemble import Deferred, assemble
from ..container.dcp_index import METADATA, DcpItem, Index, Objects, raw_index, read_index, tensor, tensor_or_packed
from ..hyper import MOST_ITEMS, plain_hyper
from ..parts import OptimizerPart, joined, stages
from ..pickle.records import Inert
from ..state_dict import Key
from ..which_optimizer import choose

_WEIGHT_FOLDERS = ("pytorch_model_fsdp_{n}", "pytorch_model_fsdp_0", "pytorch_model_fsdp", "model")
"""Where Accelerate and NeMo Automodel put the model beside `optimizer_N/` or `optim/`."""
_OPTIMIZER_FOLDER = re.compile(r"optim|optimizer(_\d+)?")
_MARK = re.compile(r"(?:^|\.)(state|param_groups)\.")
_WEIGHT_ROOTS = ("model", "state_dict", "module")


@dataclass
class DcpOptimizer:
    """One optimizer of the checkpoint, before anything is read: leaves by parameter, hyperparameters by group."""

    state: dict[str, dict[tuple[object, ...], DcpItem]] = field(default_factory=dict)
    groups: dict[str, dict[str, DcpItem]] = field(default_factory=dict)


def detect(folder: str) -> bool:
    """True for a folder that torch.distributed.checkpoint wrote with an optimizer in it; the index is searched, not unpickled."""
    path = os.path.join(folder, METADATA)
    raw = raw_index(path) if is_file(path) else b""
    return any(
        mark in raw for mark in (b"param_groups", *(f".{leaf}".encode() for leaf in MARKS_BELOW_STATE), b".exp_avg.", b"optimizer.distributed.")
    )


def read(folder: str, *, optimizer: int | str | None = None) -> RawState:
    """Return the optimizer state of the folder.

    Args:
        folder: where `.metadata` lies.
        optimizer: which one, where the checkpoint holds several.

    Raises:
        UnknownFormat: the checkpoint holds no optimizer state.
        ReadError: it holds several and none was chosen; a file is missing, cut short or from another save; a bucket of Megatron.
        UnsafePickle: the index or a hyperparameter asks for a class outside the allow-list.
    """
    from . import megatron

    index = read_index(folder)
    if megatron.detect(index):
        return megatron.read(index)
    found = _with_moments({root: one for root, one in optimizers_of(index.items.values()).items() if one.state})
    in_parts = stages(found, folder)
    root = in_parts[0].rpartition(".")[0] if in_parts else _choose(list(found), optimizer, folder)
    whole = [_part(found[place]) for place in in_parts or [root]]
    state, groups = joined(whole) if in_parts else whole[0]
    integers = all(isinstance(key, int) for key in state)
    names = {key for key in state if isinstance(key, str)}
    taken = {item.key for each in found.values() for row in each.state.values() for item in row.values()}
    taken |= {item.key for each in found.values() for row in each.groups.values() for item in row.values()}
    rest = {item.key: item for item in index.items.values() if item.dtype and item.key not in taken}
    return assemble(
        state,
        groups,
        source=folder,
        layout="dcp",
        files=index.files,
        recorded=None if integers else "dcp",
        weights=_weights(folder, rest, names),
        facts=_facts(folder, index, root),
    )


def others(folder: str, root: str) -> dict[str, object]:
    """Return what a folder holds beside the optimizer under `root`, by its whole key: tensors not yet read, objects as plain data.

    Raises:
        ReadError: the folder is no distributed checkpoint, a file is damaged, or an object is not plain data.
        UnsafePickle: an object asks for a class outside the allow-list.
    """
    if not is_file(os.path.join(folder, METADATA)):
        raise ReadError("not a distributed checkpoint: no .metadata", where=folder, fix="pass the folder in which .metadata lies")
    index = read_index(folder)
    own = (f"{root}.state.", f"{root}.param_groups.")
    objects = Objects()
    found = {key: tensor(item) if item.dtype else objects.value(item) for key, item in index.items.items() if not key.startswith(own)}
    for key, one in found.items():
        if isinstance(one, Inert):
            raise ReadError(f"{key} is a {one.name}, not plain data", where=folder, fix="leave --rest out, and copy this entry in your program")
    return found


def _part(one: DcpOptimizer) -> OptimizerPart:
    """Return one optimizer: entries by id or name, and its groups."""
    integers = not one.state or positions_in(one.state) is not None
    state: dict[object, object] = {_key(key, integers): _nested(leaves) for key, leaves in one.state.items()}
    return OptimizerPart(state, _groups(one, [_key(key, integers) for key in one.state], integers))


def _key(key: str, integers: bool) -> Key:
    number = number_in(key) if integers else None
    return key if number is None else number


def optimizers_of(items: Iterable[DcpItem]) -> dict[str, DcpOptimizer]:
    """Sort the keys of optimizers by their root, in the order of the index; a root is the dotted text before `state` or `param_groups`."""
    items = list(items)
    roots = _textual_roots([item.key for item in items if item.path is None])
    found: dict[str, DcpOptimizer] = {}
    for item in items:
        place = _place(item.path) if item.path is not None else _textual_place(item.key, roots)
        if place is None:
            continue
        root, kind, key, leaf = place
        one = found.setdefault(root, DcpOptimizer())
        if (kind == "state" and item.dtype is not None) or (kind == "state" and leaf == ("step",)):
            one.state.setdefault(key, {})[leaf] = item
        elif kind == "param_groups":
            one.groups.setdefault(key, {})[".".join(map(str, leaf))] = item
    return found


_Place = tuple[str, str, str, tuple[object, ...]]


def _place(path: tuple[object, ...]) -> _Place | None:
    """(root, state or param_groups, parameter or group, leaf) of a key whose nested path was recorded."""
    for at in range(len(path) - 1, -1, -1):
        part = path[at]
        if part in {"state", "param_groups"} and len(path) >= at + 3:
            return _root(path[:at]), part, str(path[at + 1]), tuple(path[at + 2 :])
        if isinstance(part, str) and at == len(path) - 1:
            for kind in ("state", "param_groups"):
                rest = part.removeprefix(kind + ".")
                if rest != part and "." in rest:
                    key, _, leaf = rest.rpartition(".")
                    return _root(path[:at]), kind, key, (leaf,)
    return None


def _root(path: tuple[object, ...]) -> str:
    return ".".join(map(str, path))


def _textual_roots(keys: list[str]) -> list[str]:
    """Roots of keys whose path was not recorded: the text before a `state.` that the keys of optimizers have in common.

    A model may have a module named `state` of its own, so a root that explains more keys wins, then the longer one.
    """
    wanted = [key for key in keys if key.rpartition(".")[2] in MARKS_BELOW_STATE]
    votes: dict[str, int] = {}
    for key in wanted:
        for match in _MARK.finditer(key):
            root = key[: match.start()]
            votes[root] = votes.get(root, 0) + 1
    return sorted(votes, key=lambda root: (-votes[root], -len(root)))


def _textual_place(key: str, roots: list[str]) -> _Place | None:
    for root in roots:
        for kind in ("state", "param_groups"):
            start = f"{root}.{kind}." if root else f"{kind}."
            rest = key.removeprefix(start)
            if rest != key and "." in rest:
                parameter, _, leaf = rest.rpartition(".")
                return root, kind, parameter, (leaf,)
    return None


def _with_moments(found: dict[str, DcpOptimizer]) -> dict[str, DcpOptimizer]:
    """Leave out what only looks like an optimizer: a model below a key called `state`, as MosaicML's Composer puts it."""
    sure = {
        root: one
        for root, one in found.items()
        if one.groups or any(str(leaf[-1]) in MARKS_BELOW_STATE for leaves in one.state.values() for leaf in leaves)
    }
    return sure or found


def _choose(roots: list[str], optimizer: int | str | None, folder: str) -> str:
    if not roots:
        raise UnknownFormat("the checkpoint holds no optimizer state", where=folder, fix="pass the folder that was saved with the optimizer")
    return roots[choose(roots, optimizer, folder)]


def _nested(leaves: Mapping[tuple[object, ...], DcpItem]) -> dict[str, object]:
    """Put the leaves of one parameter back into the dict that was flattened."""
    entry: dict[str, object] = {}
    for path, item in leaves.items():
        place = entry
        for part in path[:-1]:
            inner = place.setdefault(str(part), {})
            if type(inner) is not dict:
                raise ReadError(f"{part!r} is both a value and a mapping", where=item.key, fix="copy the whole folder again")
            place = inner
        place[str(path[-1])] = tensor_or_packed(item) if item.dtype is not None else None
    return entry


def _groups(one: DcpOptimizer, keys: list[Key], integers: bool) -> list[dict[str, object]]:
    """Return `param_groups` with `params`: as stored, or for a flattened dict parameters of equal hyperparameters together."""
    objects = Objects()
    stored = {group: {name: objects.value(item) for name, item in items.items() if item.dtype is None} for group, items in one.groups.items()}
    for group, items in one.groups.items():
        stored[group].update({name: _number(tensor(item)) for name, item in items.items() if item.dtype is not None})
    if not stored:
        return [{"params": keys}]
    if all("params" in group for group in stored.values()):
        order = sorted(stored, key=lambda name: (number_in(name) is None, number_in(name) or 0, name))
        groups = [dict(stored[name]) for name in order]
        for listed in groups:
            if not isinstance(listed["params"], (list, tuple)):
                raise ReadError("a group does not list its parameters", where="param_groups", fix="copy the whole folder again")
            listed["params"] = [_key(str(key), integers) for key in listed["params"]]
        return groups
    alike: dict[str, list[str]] = {}
    for name, hyper in stored.items():
        alike.setdefault(repr(sorted(plain_hyper(hyper).items())), []).append(name)
    gathered: list[dict[str, object]] = [{**stored[names[0]], "params": [_key(name, integers) for name in names]} for names in alike.values()]
    grouped = {_key(name, integers) for name in stored}
    if rest := [key for key in keys if key not in grouped]:
        gathered.append({"params": rest})
    return gathered


def _number(ref: TensorRef) -> object:
    """Return a hyperparameter that was a tensor as numbers; one that is none (too long for that) stays as it is."""
    if ref.numel == 1:
        return ref.item()
    return list(map(float, ref.read().reshape(-1))) if ref.numel <= MOST_ITEMS else ref


def weights_of(folder: str) -> Mapping[str, TensorRef]:
    """Return the named weights in a folder of torch.distributed.checkpoint that holds no optimizer; nothing of another folder.

    Raises:
        ReadError: its index is damaged.
    """
    if not is_file(os.path.join(folder, METADATA)) or detect(folder):
        return {}
    return Deferred({_weight_name(item, ()): item for item in read_index(folder).items.values() if item.dtype}, tensor)


def _weights(folder: str, rest: Mapping[str, DcpItem], trained: Collection[str]) -> Mapping[str, TensorRef]:
    """Named weights of the same checkpoint: beside the optimizer in this folder, or in the folder that Accelerate puts them in."""
    named = {_weight_name(item, trained): item for item in rest.values()}
    if not named:
        last = os.path.basename(absolute(folder))
        number = last.rpartition("_")[2] if last.startswith("optimizer_") else "0"
        for pattern in _WEIGHT_FOLDERS if _OPTIMIZER_FOLDER.fullmatch(last) else ():
            beside = os.path.join(parent(folder), pattern.format(n=number))
            if is_file(os.path.join(beside, METADATA)):
                named = {_weight_name(item, trained): item for item in read_index(beside).items.values() if item.dtype}
                break
    return Deferred(named, tensor)


def _weight_name(item: DcpItem, trained: Collection[str]) -> str:
    """Return the name in the model: what follows `model` in the path, or the last part of it; without a recorded path the key less its root."""
    path = item.path
    for root in _WEIGHT_ROOTS if path is not None else ():
        if path is not None and root in path[:-1]:
            return ".".join(map(str, path[path.index(root) + 1 :]))
    whole = item.key if path is None else str(path[-1])
    first, _, rest = whole.partition(".")
    # One level of keys: a root only where none was recorded, or where it makes the name that of a trained parameter.
    cut = first in _WEIGHT_ROOTS and rest and (path is None or (whole not in trained and rest in trained))
    return rest if cut else whole


def _facts(folder: str, index: Index, root: str) -> dict[str, object]:
    ranks = {match.group(1) for file in index.files if (match := re.search(r"__(\d+)_\d+\.distcp$", file.path))}
    path = absolute(folder) if is_remote(folder) else os.path.normpath(folder)
    above, last = (path.rpartition("/")[0], path.rpartition("/")[2]) if is_remote(folder) else os.path.split(path)
    return {
        **({"folder": above} if _OPTIMIZER_FOLDER.fullmatch(last) and above else {}),
        "root": root,
        **({"world_size": len(ranks)} if ranks else {}),
    }
