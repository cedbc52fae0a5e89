"""DeepSpeed ZeRO stages 1, 2 and 3: flat buffers over all processes, cut into parameters by `param_shapes`.

Stages 1 and 2 lay a group's parameters one after another, pad the end, and give every process an equal run
(deepspeed/runtime/zero/stage_1_and_2.py). Stage 3 gives every process its share of each parameter (deepspeed/utils/zero_to_fp32.py).
`param_slice_mappings` says the same in another way but is wrong under round_robin_gradients, so it is never used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ostate.core.files import names_in
from ostate.core.state import Finding, RawState
from ostate.core.tensors import Slot, TensorRef
from ostate.errors import ReadError

from ..assemble import assemble
from ..flat_buffers import Piece, cut
from ..hyper import plain_hyper
from ..master_weights import disagreements
from ..parts import are_groups
from ..pickle.globals import Inert
from ..pickle.unknown_classes import noted
from ..pickled_optimizer import params_of
from ..quantized import slots_of
from ..skipped import skipped_finding
from ..state_dict import Key
from . import deepspeed_stage0 as stage0
from .deepspeed_files import (
    AGAIN,
    EXPERT,
    OPTIM,
    Opened,
    check_no_rank_twice,
    common_facts,
    holds_a_share,
    is_shape,
    module_weights,
    open_all,
    param_shapes,
)

_UNIVERSAL = "convert it with `python -m deepspeed.checkpoint.ds_to_universal`, and pass the path of the result"


class RankBuffer(NamedTuple):
    """One group (or sub-group) as every process holds it."""

    slots: tuple[Mapping[str, Slot], ...]
    """By rank: flat slots."""
    scalars: tuple[Mapping[str, object], ...]
    master: tuple[Slot | None, ...]
    """By rank: float32 weights."""


def detect(folder: str) -> bool:
    """True for a folder with the optimizer files of ZeRO's processes, or with a model file of stage 0 that holds the optimizer."""
    names = names_in(folder)
    return holds_a_share(folder, names) or ("zero" not in names and stage0.detect(folder, names))


def read(folder: str, *, optimizer: int | str | None = None) -> RawState:
    """Return the state of all processes together.

    Args:
        folder: the step's folder (`global_step500`).
        optimizer: there is only one; 0 or None.

    Raises:
        ReadError: a file is missing, cut short, of another step or of another run; a layout that cannot be cut into parameters.
        UnsafePickle: a file asks for a class outside the allow-list.
    """
    if optimizer:
        raise ReadError(f"there is only one optimizer here, not {optimizer}", where=folder, fix="drop --optimizer")
    names = names_in(folder)
    if not any(OPTIM.match(name) or EXPERT.match(name) for name in names):
        return stage0.read(folder, names)
    opened = open_all(folder)
    shapes = param_shapes(opened.model, opened.model_path)
    _check_ranks(opened)
    if any(state.get("ds_zero_partition_groups") for state in opened.ranks):
        raise ReadError("experts are split over other processes than the rest (AutoEP)", where=folder, fix=_UNIVERSAL)
    inner = [state.get("optimizer_state_dict", state.get("base_optimizer_state")) for state in opened.ranks]
    stage3 = stage_of(opened.ranks[0]) == 3
    groups, of_group, findings = _groups(opened, inner[0], len(shapes), stage3)
    listed: list[list[str]] = [[] for _ in groups]
    state: dict[Key, dict[str, object]] = {}
    master: dict[Key, Slot] = {}
    for number, group_shapes in enumerate(shapes):
        if not group_shapes:
            continue
        buffer = _buffer(opened, inner, number, groups[of_group[number]])
        step = _step(opened, buffer)
        pieces = _shares if stage3 else _runs
        for slot in sorted({name for slots in buffer.slots for name in slots}):
            parts = [_flat_slot(opened, rank, slots, slot) for rank, slots in enumerate(buffer.slots)]
            for name, one in pieces(opened, number, group_shapes, parts, slot):
                state.setdefault(name, {} if step is None else {"step": step})[slot] = one
            check_no_rank_twice(opened, parts)
        if None not in buffer.master:
            whole = [one for one in buffer.master if one is not None]
            master.update(pieces(opened, number, group_shapes, whole, "master"))
        listed[of_group[number]] += group_shapes
    weights = module_weights(opened.model)
    _check_master_weights(opened, master, weights)
    return assemble(
        state,
        [{**group, "params": names_of} for group, names_of in zip(groups, listed)],
        source=folder,
        layout="zero",
        files=opened.files,
        recorded="param_shapes",
        shapes={name: shape for group in shapes for name, shape in group.items()},
        weights=weights,
        master=master,
        facts=_facts(opened),
        findings=(*findings, *noted(opened.unknown_classes), *([skipped_finding(opened.skipped, folder)] if opened.skipped else [])),
    )


def _check_ranks(opened: Opened) -> None:
    """Files of one run agree in everything but their numbers."""
    first = _marks(opened.ranks[0])
    for path, state in zip(opened.optim[1:], opened.ranks[1:]):
        for what, value in _marks(state).items():
            if value != first[what]:
                raise ReadError(f"{what} differs from the file of rank 0", where=path, fix=AGAIN)


def _marks(state: Mapping[str, object]) -> dict[str, object]:
    inner = state.get("optimizer_state_dict", state.get("base_optimizer_state"))
    groups = inner.get("param_groups") if isinstance(inner, Mapping) else None
    return {
        "ZeRO stage": stage_of(state),
        "version of DeepSpeed": version if isinstance(version := state.get("ds_version"), str) else None,
        "set of keys": sorted(map(str, state)),
        "set of hyperparameters": [plain_hyper(group) for group in groups] if are_groups(groups) else None,
    }


def _check_master_weights(opened: Opened, master: Mapping[Key, Slot], weights: Mapping[str, TensorRef]) -> None:
    """The master weights must be the model's own weights under the names that the cut gave them: if not, files of two runs lie here."""
    compared, wrong = disagreements({str(name): slot for name, slot in master.items()}, weights)
    if wrong:
        raise ReadError(
            f"the float32 weights of {len(wrong)} of {len(compared)} parameters are not the model's own, first {wrong[0]}",
            where=opened.folder,
            fix="a file is of another run or step: " + AGAIN,
        )


def stage_of(state: Mapping[str, object]) -> int:
    """Return the ZeRO stage; files of the bf16 optimizer (stage 1 with float32 gradients) do not say it."""
    stage = state.get("zero_stage", 3 if "fp32_flat_groups" in state else 1)
    if isinstance(stage, Inert):
        stage = stage.args[0] if stage.args else stage.state
    return stage if isinstance(stage, int) else 1


def _groups(opened: Opened, inner: object, count: int, stage3: bool) -> tuple[list[dict[str, object]], list[int], list[Finding]]:
    """Return param_groups (their `params` empty), which of them each entry of param_shapes belongs to, and what was lost."""
    stored = inner.get("param_groups") if isinstance(inner, Mapping) else None
    if stored and not are_groups(stored):
        raise ReadError("`param_groups` is not a list of groups", where=opened.optim[0], fix=AGAIN)
    if not isinstance(stored, (list, tuple)):
        hyper = _configured(opened.config)
        finding = Finding(
            rule="hyperparameters-missing",
            severity="note" if {"betas", "eps"} <= set(hyper) else "warning",
            text="saved with elastic_checkpoint, which drops lr, betas, eps and weight_decay"
            + ("; taken from ds_config" if hyper else "; ds_config does not define the optimizer either"),
            fix="" if hyper else "pass them: --betas B1,B2 --eps E",
        )
        return [{**hyper, "params": []} for _ in range(count)], list(range(count)), [finding]
    groups = [{name: value for name, value in group.items() if name not in {"params", "step", "param_names"}} | {"params": []} for group in stored]
    # Stage 3 splits a group into sub-groups, whose numbers stand in the group's `params`.
    order = [number for number, group in enumerate(stored) for _ in (params_of(group) if stage3 else [number])]
    if len(order) != count:
        raise ReadError(
            f"param_shapes has {count} groups, the optimizer {len(order)}",
            where=opened.model_path,
            fix="the model file is from another run: copy it again",
        )
    return groups, order, []


def _configured(config: Mapping[str, object]) -> dict[str, object]:
    optimizer = config.get("optimizer")
    params = optimizer.get("params") if isinstance(optimizer, Mapping) else None
    wanted = ("lr", "betas", "eps", "weight_decay")
    return {name: params[name] for name in wanted if isinstance(params.get(name), (int, float, list, tuple))} if isinstance(params, Mapping) else {}


def _buffer(opened: Opened, inner: Sequence[object], number: int, hyper: Mapping[str, object]) -> RankBuffer:
    slots, scalars, master_weights = [], [], []
    for path, state, one in zip(opened.optim, opened.ranks, inner):
        entries = one.get("state") if isinstance(one, Mapping) else one
        entry = (
            entries.get(number) if isinstance(entries, Mapping) else entries[number] if isinstance(entries, list) and number < len(entries) else None
        )
        if not isinstance(entry, Mapping):
            raise ReadError(f"no state for group {number}", where=path, fix="the run saved before its first step, or " + AGAIN)
        flat, rest = slots_of(entry, hyper)
        if "step" not in rest and isinstance(step := state.get("base_optimizer_state_step"), (int, float)):
            rest["step"] = float(step)
        slots.append(flat)
        scalars.append(rest)
        whole = state.get("single_partition_of_fp32_groups", state.get("fp32_flat_groups"))
        weights = whole[number] if isinstance(whole, (list, tuple)) and number < len(whole) else None
        master_weights.append(weights if isinstance(weights, TensorRef) else None)
    return RankBuffer(tuple(slots), tuple(scalars), tuple(master_weights))


def _flat_slot(opened: Opened, rank: int, slots: Mapping[str, Slot], name: str) -> Slot:
    if name not in slots:
        raise ReadError(f"this file has no {name}, those of the other processes have it", where=opened.optim[rank], fix=AGAIN)
    return slots[name]


def _step(opened: Opened, buffer: RankBuffer) -> float | None:
    steps = [scalars.get("step") for scalars in buffer.scalars]
    for path, step in zip(opened.optim, steps):
        if step is not None and type(step) is not float:
            raise ReadError(f"the step is not a number: {ascii(step)[:60]}", where=path, fix=AGAIN)
    stated = [step for step in steps if type(step) is float]
    if not stated:
        return None
    common = max(set(stated), key=stated.count)
    for path, step in zip(opened.optim, steps):
        if step != common:
            raise ReadError(f"this file is of step {step}, the others of {common}", where=path, fix=AGAIN)
    return common


def _runs(opened: Opened, number: int, shapes: Mapping[str, tuple[int, ...]], flat: Sequence[Slot], what: str) -> Iterator[tuple[str, Slot]]:
    """Stages 1 and 2: cut one buffer that lies over the ranks one after another."""
    lengths = [math.prod(slot.shape) for slot in flat]
    short = next((rank for rank, length in enumerate(lengths) if length < lengths[0]), len(lengths))
    for rank, length in enumerate(lengths):
        if length > lengths[0] or (rank > short and length):
            raise ReadError(
                f"group {number}: {length} numbers of {what} in this file, {lengths[0]} in that of rank 0", where=opened.optim[rank], fix=AGAIN
            )
    paddings = _alignment(opened, number, len(shapes))
    used = sum(map(math.prod, shapes.values())) + sum(paddings)
    _check_tail(opened, number, used, sum(lengths), lengths, what)
    at = 0
    for (name, shape), padding in zip(shapes.items(), paddings):
        count = math.prod(shape)
        yield name, cut(list(_pieces(flat, lengths, at, count)), shape, f"{opened.folder}: {name}")
        at += count + padding


def _pieces(flat: Sequence[Slot], lengths: Sequence[int], at: int, count: int) -> Iterator[Piece]:
    begin = 0
    for slot, length in zip(flat, lengths):
        low, high = max(at, begin), min(at + count, begin + length)
        if low < high:
            yield Piece(slot, low - begin, high - low)
        begin += length


def _alignment(opened: Opened, number: int, count: int) -> list[int]:
    """Padding after each parameter (releases that align every parameter record it), zeros otherwise."""
    stored = opened.ranks[0].get("param_alignment_paddings")
    row = stored[number] if isinstance(stored, (list, tuple)) and number < len(stored) else [0] * count
    if not is_shape(row) or len(row) != count:
        raise ReadError(f"group {number}: no padding for each of its {count} parameters", where=opened.optim[0], fix=AGAIN)
    return list(row)


def _check_tail(opened: Opened, number: int, used: int, total: int, lengths: Sequence[int], what: str) -> None:
    """What is left behind the last parameter must be the padding that the files record, or (taken off on saving) nothing."""
    recorded = [state.get("group_paddings") for state in opened.ranks]
    paddings = [row[number] for row in recorded if isinstance(row, (list, tuple)) and number < len(row) and isinstance(row[number], int)]
    tail = sum(paddings) if len(paddings) == len(recorded) else None
    left = total - used
    allowed = left in {0, tail} if tail is not None else 0 <= left < 2 * len(lengths) * 64
    if not allowed:
        raise ReadError(
            f"group {number}: param_shapes needs {used} values of {what}, the {len(lengths)} processes hold {total}",
            where=opened.model_path,
            fix="the model file and the optimizer files are from different runs, or a rank is missing: " + AGAIN,
        )


def _shares(opened: Opened, number: int, shapes: Mapping[str, tuple[int, ...]], flat: Sequence[Slot], what: str) -> Iterator[tuple[str, Slot]]:
    """Stage 3: every rank holds ceil(numel / world) of each parameter, the last ones less."""
    world = len(flat)
    wanted = sum(-(-math.prod(shape) // world) for shape in shapes.values())
    for path, slot in zip(opened.optim, flat):
        if math.prod(slot.shape) != wanted:
            raise ReadError(
                f"sub-group {number}: param_shapes needs {wanted} values of {what} per process, {math.prod(slot.shape)} are present",
                where=path,
                fix="the model file and the optimizer files are from different runs: " + AGAIN,
            )
    at = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        share = -(-count // world)
        pieces = [Piece(slot, at, max(0, min(share, count - rank * share))) for rank, slot in enumerate(flat)]
        yield name, cut(pieces, shape, f"{opened.folder}: {name}")
        at += share


def _facts(opened: Opened) -> dict[str, object]:
    stated = {"world_size": len(opened.optim), "zero_stage": stage_of(opened.ranks[0])}
    return common_facts(opened.folder, opened.model) | stated
