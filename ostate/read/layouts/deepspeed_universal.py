"""DeepSpeed universal checkpoints: a folder for each parameter, `zero/<name>/{fp32,exp_avg,exp_avg_sq,step}.pt`.

Written by deepspeed/checkpoint/ds_to_universal.py. From ZeRO 1 and 2 each file holds `{"param": tensor, ...}` in full shape, from
ZeRO 3 a flat tensor; hyperparameters, and for ZeRO 3 the step, lie in `zero/optimizer_state.pt` by group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from ostate.core.files import is_file, is_folder, is_remote, names_in, parent
from ostate.core.state import Finding, RawState, SourceFile
from ostate.core.tensors import Slot, TensorRef
from ostate.errors import ReadError

from ..assemble import assemble
from ..container.torchsave import load
from ..master_weights import disagreements
from ..parts import are_groups
from ..pickle.unknown_classes import noted
from ..pickled_optimizer import params_of
from ..state_dict import Key
from .deepspeed_files import MOST_SIZE, Shapes, model_files, param_shapes

_WAY_OUT = "pass the ZeRO checkpoint that it was made from: that one has the right names"


def detect(folder: str) -> bool:
    """True for a folder that ds_to_universal wrote."""
    zero = os.path.join(folder, "zero")
    if not is_folder(zero):
        return False
    return is_file(os.path.join(zero, "optimizer_state.pt")) or any(is_file(os.path.join(zero, name, "exp_avg_sq.pt")) for name in names_in(zero))


def read(folder: str, *, optimizer: int | str | None = None) -> RawState:
    """Return the state by folder names.

    Args:
        folder: where `zero` lies.
        optimizer: there is only one; 0 or None.

    Raises:
        ReadError: a file is missing or of another step; the weights under these names are not the model's (round_robin_gradients).
        UnsafePickle: a file asks for a class outside the allow-list.
    """
    if optimizer:
        raise ReadError(f"there is only one optimizer here, not {optimizer}", where=folder, fix="drop --optimizer")
    zero = os.path.join(folder, "zero")
    models = [(path, load(path, unknown_classes=True)) for path in model_files(folder, names_in(folder))]
    model = models[0][1]
    shapes = _together([param_shapes(one.value, path) for path, one in models])
    files = [one.source for _, one in models]
    shared = _load(os.path.join(zero, "optimizer_state.pt"), files) if is_file(os.path.join(zero, "optimizer_state.pt")) else {}
    groups, steps = _groups(shared, len(shapes), zero)
    members: list[list[str]] = [[] for _ in groups]
    state: dict[Key, dict[str, object]] = {}
    master: dict[Key, Slot] = {}
    for name, shape, group in _listed(shapes, zero):
        entry, fp32 = _parameter(os.path.join(zero, name), shape, files, sliced=len(models) > 1)
        if "step" not in entry and steps[group] is not None:
            entry["step"] = steps[group]
        state[name] = entry
        if fp32 is not None:
            master[name] = fp32
        members[group].append(name)
    _check_steps(zero, state)
    held = model.value if isinstance(model.value, Mapping) else {}
    weights = _weights(held)
    _refuse_swapped(folder, held, master, weights)
    return assemble(
        state,
        [{**group, "params": names} for group, names in zip(groups, members)],
        source=folder,
        layout="universal",
        files=files,
        recorded="universal",
        weights=weights,
        master=master,
        facts=_facts(folder, held),
        findings=(*_findings(groups), *noted(model.unknown_classes)),
    )


def _facts(folder: str, model: Mapping[str, object]) -> dict[str, object]:
    around = parent(folder)
    facts: dict[str, object] = {"global_step": model["global_steps"]} if isinstance(model.get("global_steps"), int) else {}
    if any(is_file(os.path.join(around, name)) for name in ("latest_universal", "latest", "trainer_state.json")):
        facts["folder"] = around if is_remote(folder) or os.path.isabs(folder) else os.path.relpath(around)
    return facts


def _load(path: str, files: list[SourceFile]) -> object:
    stored = load(path)
    files.append(stored.source)
    return stored.value


def _together(each: Sequence[Shapes]) -> list[dict[str, tuple[int, ...]]]:
    """Return the parameters of every tensor- and pipeline-parallel rank, group by group."""
    groups: list[dict[str, tuple[int, ...]]] = [{} for _ in range(max(map(len, each)))]
    for shapes in each:
        for group, found in zip(groups, shapes):
            for name, shape in found.items():
                group.setdefault(name, shape)
    return groups


def _listed(shapes: Sequence[Mapping[str, tuple[int, ...]]], zero: str) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield name, shape and group of each trained parameter; every one must have its folder, and every folder with moments its name."""
    there = frozenset(names_in(zero))
    trained = {name for name in there if is_file(os.path.join(zero, name, "exp_avg_sq.pt"))}
    for number, group in enumerate(shapes):
        for name, shape in group.items():
            if name not in there or not is_folder(os.path.join(zero, name)):  # a name may say `../elsewhere`
                raise ReadError("the folder of a parameter is missing", where=os.path.join(zero, name), fix="copy the whole checkpoint again")
            trained.discard(name)
            yield name, shape, number
    if trained:
        raise ReadError(
            f"{len(trained)} folders that the model file does not know",
            where=os.path.join(zero, min(trained)),
            fix="the model file is of another run",
        )


def _parameter(folder: str, shape: tuple[int, ...], files: list[SourceFile], *, sliced: bool) -> tuple[dict[str, object], TensorRef | None]:
    """Return the slots and the float32 weights of one parameter. Where `sliced`, param_shapes tell a rank's slice, the files the whole."""
    entry: dict[str, object] = {}
    fp32 = None
    names = sorted(name for name in names_in(folder) if name.endswith(".pt"))
    if "exp_avg_sq.pt" not in names and names == ["fp32.pt"]:
        raise ReadError("no moments, only weights", where=folder, fix="the conversion did not finish: run ds_to_universal again")
    for file in names:
        slot = file.removesuffix(".pt")
        path = os.path.join(folder, file)
        value = _load(path, files)
        value = value.get("param") if isinstance(value, Mapping) else value
        if sliced and isinstance(value, TensorRef) and len(value.shape) == len(shape) and slot != "step":
            shape, sliced = value.shape, False
        if slot == "step":
            entry["step"] = _step(value, path)
        elif not isinstance(value, TensorRef):
            raise ReadError("no tensor in this file", where=path, fix="run ds_to_universal again")
        elif value.numel != _product(shape):
            raise ReadError(f"{value.numel} numbers, the parameter has the shape {shape}", where=path, fix="run ds_to_universal again")
        elif slot == "fp32":
            fp32 = value.with_shape(shape)
        else:
            entry[slot] = value.with_shape(shape)
    return entry, fp32


def _step(value: object, where: str) -> float | None:
    """Return a stored step as a number; None where there is none."""
    if isinstance(value, TensorRef) and value.numel == 1:
        value = value.item()
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MOST_SIZE):
        raise ReadError("the step is not a number of updates", where=where, fix="run ds_to_universal again")
    return None if value is None else float(value)


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _groups(shared: object, count: int, where: str) -> tuple[list[dict[str, object]], list[float | None]]:
    """Return param_groups (their `params` empty) for each entry of param_shapes, and the step that each group's own state tells."""
    shared = shared if isinstance(shared, Mapping) else {}
    inner: Mapping[str, object] = next(
        (shared[key] for key in ("optimizer_state_dict", "base_optimizer_state") if isinstance(shared.get(key), Mapping)), {}
    )
    stored = inner.get("param_groups", shared.get("param_groups"))
    if stored and not are_groups(stored):
        raise ReadError("`param_groups` is not a list of groups", where=where, fix="run ds_to_universal again")
    rows = stored if are_groups(stored) else ()
    order = [number for number, group in enumerate(rows) for _ in params_of(group)]
    if len(order) != count:
        order = list(range(count)) if len(rows) == count else []
    groups: list[dict[str, object]] = [
        {key: value for key, value in rows[order[number]].items() if key not in {"params", "step", "param_names"}} | {"params": []}
        if order
        else {"params": []}
        for number in range(count)
    ]
    states = inner.get("state")
    steps: list[float | None] = []
    for number in range(count):
        entry = states.get(number) if isinstance(states, Mapping) else None
        step = entry.get("step") if isinstance(entry, Mapping) else None
        steps.append(_step(step, where))
    return groups, steps


def _findings(groups: Sequence[Mapping[str, object]]) -> list[Finding]:
    if all(len(group) > 1 for group in groups):
        return []
    text = "zero/optimizer_state.pt is missing or without param_groups: lr, betas, eps and weight_decay are not in this checkpoint"
    return [Finding(rule="hyperparameters-missing", severity="warning", text=text, fix="pass them: --betas B1,B2 --eps E")]


def _check_steps(zero: str, state: Mapping[Key, Mapping[str, object]]) -> None:
    steps = {name: entry["step"] for name, entry in state.items() if "step" in entry}
    stated = list(steps.values())
    common = max(set(stated), key=stated.count) if stated else None
    for name, step in steps.items():
        if step != common:
            where = os.path.join(zero, str(name), "step.pt")
            raise ReadError(f"this parameter is of step {step}, the others of {common}", where=where, fix="run ds_to_universal again")


def _weights(model: Mapping[str, object]) -> dict[str, TensorRef]:
    module = model.get("module")
    if not isinstance(module, Mapping):
        return {}
    return {str(name): ref for name, ref in module.items() if isinstance(ref, TensorRef) and ref.numel}


def _refuse_swapped(folder: str, model: Mapping[str, object], master: Mapping[Key, Slot], weights: Mapping[str, TensorRef]) -> None:
    """Refuse a folder whose float32 weights are not the model's own under the same names.

    ds_to_universal cuts ZeRO 1 and 2 by `param_slice_mappings`, which DeepSpeed writes wrong under round_robin_gradients
    (stage_1_and_2.py, _link_all_hp_params): the moments then lie under other parameters' names.
    """
    compared, wrong = disagreements({str(name): slot for name, slot in master.items()}, weights)
    if wrong:
        raise ReadError(
            f"{len(wrong)} of {len(compared)} parameters do not have the model's own weights under their names, first {wrong[0]}: "
            "made from a run with round_robin_gradients, ds_to_universal puts moments under wrong names",
            where=folder,
            fix=_WAY_OUT,
        )
    config = model.get("ds_config")
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    if isinstance(zero, Mapping) and zero.get("round_robin_gradients") and zero.get("stage") in (1, 2) and not compared:
        raise ReadError(
            "the run had round_robin_gradients, under which ds_to_universal puts moments under wrong names, and no weights here can show otherwise",
            where=folder,
            fix=_WAY_OUT,
        )
