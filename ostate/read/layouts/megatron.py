"""Megatron's distributed optimizer in torch.distributed.checkpoint folders.

Read by name: the `fully_reshardable` form, `optimizer.state.<slot>.<parameter>`, where each tensor has its parameter's shape. Refused:
buckets (`dp_reshardable` and older), where a slot is one run of numbers and the order of parameters in it is in no file.
Source: megatron/core/optimizer/distrib_optimizer.py, sharded_param_state_fully_reshardable and sharded_param_state_dp_reshardable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from ostate.core import limits
from ostate.core.files import is_file
from ostate.core.foreign import expanded
from ostate.core.state import Finding, RawState
from ostate.core.tensors import Slot
from ostate.errors import ReadError

from ..assemble import Deferred, assemble
from ..container.dcp_index import DcpItem, Index, Objects, tensor
from ..container.torchsave import load
from ..hyper import plain_hyper
from ..state_dict import NO_OPTIMIZER, Key

_BY_NAME = re.compile(r"^(?:chained_\d+\.)?optimizer\.state\.(exp_avg_sq|exp_avg|momentum_buffer|param|fp32_param)\.(.+)$")
_BUCKET = re.compile(r"^(?:chained_\d+\.)?optimizer\.distributed\.dp_group_idx_\d+\.")
_MASTER = {"param", "fp32_param"}
MOST_DEPTH = 8
"""Levels below which groups are not looked for: a file's own objects may hold themselves."""
_WAY_OUT = "load it once in Megatron and save with --dist-ckpt-optim-fully-reshardable (metadata distrib_optim_sharding_type: fully_reshardable)"


def detect(index: Index) -> bool:
    """True when the keys are Megatron's: the slot stands before the parameter's name, or the state lies in buckets."""
    return any(_BUCKET.match(key) or ((match := _BY_NAME.match(key)) and _slot_first(match, index)) for key in index.items)


def _slot_first(match: re.Match[str], index: Index) -> bool:
    """A torch optimizer's parameter named `exp_avg` does not exist, but be sure: the other slot must be there under the same name."""
    other = {"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"}.get(match.group(1))
    return other is None or match.string.replace(f".state.{match.group(1)}.", f".state.{other}.", 1) in index.items


def read(index: Index) -> RawState:
    """Return the state by Megatron's own parameter names.

    Raises:
        ReadError: buckets, or flattened pieces whose shape is not the parameter's.
    """
    slots: dict[Key, dict[str, object]] = {}
    master: dict[Key, Slot] = {}
    for key, item in index.items.items():
        match = _BY_NAME.match(key)
        if match is None or item.dtype is None:
            continue
        slot, name = match.groups()
        _check_shape(index, item, name)
        if slot in _MASTER:
            master[name] = tensor(item)
        else:
            slots.setdefault(name, {})[slot] = tensor(item)
    if not slots:
        raise ReadError(
            "Megatron's optimizer is stored here in buckets, and no file records the order of parameters within a bucket",
            where=index.folder,
            fix=_WAY_OUT,
        )
    hyper, findings = _hyper(index)
    step = hyper.pop("step", None)
    if isinstance(step, (int, float)):
        for entry in slots.values():
            entry["step"] = float(step)
    names = set(slots)
    weights = {item.key.removeprefix("model."): item for item in index.items.values() if item.dtype and item.key.removeprefix("model.") in names}
    return assemble(
        slots,
        [{**hyper, "params": list(slots)}],
        source=index.folder,
        layout="dcp",
        files=index.files,
        recorded="megatron",
        weights=Deferred(weights, tensor),
        master=master,
        facts={"root": "optimizer"},
        findings=findings,
    )


def _check_shape(index: Index, item: DcpItem, name: str) -> None:
    model = index.items.get(name) or index.items.get(f"model.{name}")
    if model is not None and model.dtype is not None and model.shape != item.shape:
        raise ReadError(
            f"{item.key} has the shape {item.shape}, its parameter {model.shape}: flattened pieces (fully_sharded_model_space)",
            where=index.folder,
            fix=_WAY_OUT,
        )


def _hyper(index: Index) -> tuple[dict[str, object], list[Finding]]:
    """Return the hyperparameters that all groups agree on: Megatron does not say which parameter is in which group."""
    groups = list(_param_groups(index))
    if not groups:
        return {}, [
            Finding(
                rule="hyperparameters-missing",
                severity="warning",
                text="the checkpoint's param_groups could not be read: no step, betas or eps",
                fix="pass them: --step N --betas B1,B2 --eps E",
            )
        ]
    agreed = {name: groups[0][name] for name in groups[0] if name != "params" and all(other.get(name) == groups[0][name] for other in groups)}
    differing = sorted({name for group in groups for name in group if name != "params"} - set(agreed))
    if not differing:
        return agreed, []
    text = f"{len(groups)} groups differ in {', '.join(differing)}, and the files do not say which parameter is in which: these are left out"
    return agreed, [Finding(rule="groups-merged", severity="note", text=text)]


def _param_groups(index: Index) -> Iterator[dict[str, object]]:
    objects = Objects()
    for item in index.items.values():
        if item.dtype is None and "param_groups" in item.key and item.blobs:
            yield from _dicts(_bounded(objects.value(item), index))
    common = os.path.join(index.folder, "common.pt")
    if is_file(common):
        yield from _dicts(
            _bounded(_search(load(common, unknown_classes=True).value), index)
        )  # Megatron's arguments, with enums of its own, lie beside the groups


def _bounded(groups: object, index: Index) -> object:
    if expanded(groups, limits.VALUES) > limits.VALUES:
        raise ReadError(f"param_groups spell out more than {limits.VALUES} plain values", where=index.folder, fix=NO_OPTIMIZER)
    return groups


def _dicts(value: object, depth: int = 0) -> Iterator[dict[str, object]]:
    if isinstance(value, Mapping) and "lr" in value:
        yield plain_hyper(value)
    elif depth < MOST_DEPTH and isinstance(value, Mapping):
        for inner in value.values():
            yield from _dicts(inner, depth + 1)
    elif depth < MOST_DEPTH and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for inner in value:
            yield from _dicts(inner, depth + 1)


def _search(stored: object) -> object:
    """Return the value of the outermost key `param_groups`."""
    return _search_below(stored, 0, set())


def _search_below(stored: object, depth: int, seen: set[int]) -> object:
    if isinstance(stored, Mapping) and depth < MOST_DEPTH and id(stored) not in seen:
        seen.add(id(stored))
        if "param_groups" in stored:
            return stored["param_groups"]
        for inner in stored.values():
            if (found := _search_below(inner, depth + 1, seen)) is not None:
                return found
    return None
