"""AdamW over the trainables only, its moments filled by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ostate.core.brief import brief
from ostate.core.names import first_names, strip_wrappers
from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Finding, Severity
from ostate.errors import ProbeError, ProbeTypeError
from ostate.optimizers.moments import confirmed, fits_adamw

from ..precondition.shards import like_parameter, local, place_of, read_local
from ..precondition.usable import check_parameter, check_twice
from . import same_run
from .fsdp1 import fill_fsdp1, is_fsdp1
from .groups import adopt_hyper, groups_of
from .live import kind_of_optimizer, put
from .names import Match, match, trainable

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("ostate.probe")

_SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

ENOUGH = 0.9
"""Coverage under this is worth a warning."""

_OF_THE_FILE = frozenset({"betas", "eps", "weight_decay", "amsgrad", "maximize"})

_FILLED: WeakKeyDictionary[Optimizer, Filled] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Filled:
    """What `fill` did to an optimizer."""

    state: NamedState
    """The named state that it was filled from."""
    names: Mapping[Tensor, str]
    """Parameter -> plain live name, in the optimizer's order."""
    entries: Mapping[str, str]
    """Live name -> name in the state."""
    missing: tuple[str, ...]
    """Live names without an entry; their Adam state is empty."""
    coverage: float
    """Share of the optimizer's parameters that got a second moment."""
    coverage_step: float
    """Share that got a step."""
    bytes_read: int
    """Bytes of tensors that this rank took from storage."""
    flat: bool = False
    """True for FSDP1, whose live tensors are flat pieces."""
    stamps: Mapping[Tensor, tuple[int, int]]
    """Parameter -> (id, version) of its second moment as filled: while it holds, the state's float32 numbers are the exact ones."""
    findings: tuple[Finding, ...] = ()
    """What a person should know of the filling."""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(slots=True)
class _Tally:
    """What filling counts as it goes."""

    with_v: int = 0
    with_step: int = 0
    bytes_read: int = 0
    flat: bool = False
    lost: dict[str, int] = field(default_factory=dict)
    no_m: list[str] = field(default_factory=list)
    stamps: dict[Tensor, tuple[int, int]] = field(default_factory=dict)
    keep: frozenset[tuple[str, str]] = frozenset()
    """(live name, slot) of the moments that are compared with the live weights."""
    kept: dict[tuple[str, str], Tensor] = field(default_factory=dict)


class AdamWOptions(TypedDict, total=False):
    """Options of torch.optim.AdamW."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    foreach: bool | None
    capturable: bool
    differentiable: bool
    fused: bool | None


def lora_adamw(
    model: nn.Module, state: NamedState, *, lr: float | None = None, strict: bool = False, **options: Unpack[AdamWOptions]
) -> torch.optim.AdamW:
    """Build torch.optim.AdamW over everything that requires grad (LoRA, modules_to_save, biases), filled by name.

    One group for each of the state's groups, parameters in the model's order, with the file's betas, eps, weight_decay and amsgrad.
    Moments that are not those of the model's LoRA weights (another run's adapter was loaded, or none) are a warning among `Filled.findings`.

    Args:
        model: the model with its adapter, loaded trainable; wrapped, sharded or neither.
        state: the named state (`ostate.load`).
        lr: learning rate of every group; None: the file's own (which is 0.0 at the end of many schedules).
        strict: raise when a trainable parameter has no entry.
        options: for torch.optim.AdamW: `fused`, `foreach`, `capturable`, …; `betas`, `eps`, `weight_decay` only where the file lacks them.

    Returns:
        The optimizer; `filled(optimizer)` says how well it is covered.

    Raises:
        ProbeError: nothing requires grad; an entry of another shape or of no parameter; no second moment; a hyperparameter that
            nobody knows or that contradicts the file; missing entries under `strict`.
    """
    _check_kinds(model, state, "lora_adamw(model, state)")
    if is_fsdp1(model):
        raise ProbeError("an FSDP1 model's parameters are flat pieces", fix="make torch.optim.AdamW over them, then fill; or use FSDP2 (fully_shard)")
    found = match(model, state, trainable(model))
    with_v = [name for name in found.entries.values() if "exp_avg_sq" in state.parameters[name].slots]
    if not with_v and found.entries:
        slots = sorted({slot for entry in state.parameters.values() for slot in entry.slots})
        raise ProbeError(
            f"the state has no exp_avg_sq for any trainable parameter (optimizer: {state.optimizer}; slots: {slots})",
            where=state.path or "the named state",
            fix="Adam preconditioning needs a state of Adam or AdamW",
        )
    _check_form(state)
    switches = cast("AdamWOptions", {key: value for key, value in options.items() if key not in _OF_THE_FILE})
    groups = groups_of(found, state, lr, options)
    try:
        optimizer = torch.optim.AdamW(groups, **switches)
    except (TypeError, ValueError, RuntimeError) as error:  # no such option, or two that exclude each other
        raise ProbeTypeError(
            f"torch.optim.AdamW refuses the options: {error}",
            where="lora_adamw",
            fix="pass options of torch.optim.AdamW: fused, foreach, capturable, …",
        ) from error
    _fill(optimizer, model, state, found, strict=strict, notes=[])
    return optimizer


def fill(optimizer: Optimizer, model: nn.Module, state: NamedState, *, strict: bool = False, hyper: bool = True) -> Filled:
    """Fill the Adam state of an optimizer made elsewhere, by name.

    Knows torch's Adam and AdamW (plain, foreach, fused, capturable) and bitsandbytes' 32-bit ones; on one device, DDP, FSDP2 and FSDP1.
    As with `lora_adamw`, the state of another run is a warning; sharded weights are not compared.

    Args:
        optimizer: its parameters are parameters of `model`.
        model: the live model.
        state: the named state.
        strict: raise when a parameter of the optimizer has no entry.
        hyper: give each group the file's betas, eps and weight_decay (never lr); False leaves them, and says where they differ.

    Raises:
        ProbeError: an entry fits no parameter or has another shape; the optimizer is of another family; the file's hyperparameters differ
            within one live group.
    """
    _check_kinds(model, state, "fill(optimizer, model, state)")
    _check_form(state)
    live = first_names(model, error=ProbeError)
    kind_of_optimizer(optimizer)
    check_twice([parameter for group in optimizer.param_groups for parameter in group["params"]])
    wanted = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in live:
                raise ProbeError("the optimizer holds a parameter that the model does not have", fix="pass the model that the optimizer was made for")
            wanted.append((live[id(parameter)], parameter))
    if not wanted:
        raise ProbeError("the optimizer holds no parameter", where="param_groups", fix="make it over the parameters that require grad")
    if is_fsdp1(model):
        return _fill_wrapped(optimizer, model, state)
    found = match(model, state, wanted)
    notes = adopt_hyper(optimizer, state, found, hyper)
    return _fill(optimizer, model, state, found, strict=strict, notes=notes)


def _check_kinds(model: object, state: object, call: str) -> None:
    """Name an argument that stands in another's place, or a path where the loaded state is wanted.

    Raises:
        ProbeTypeError: one of them is of another kind.
    """
    if not isinstance(state, NamedState):
        fix = f"{call}, with state = ostate.load(path)"
        raise ProbeTypeError(f"the state must be a named state, not a {type(state).__name__}", where=call.partition("(")[0], fix=fix)
    if not isinstance(model, nn.Module):
        raise ProbeTypeError(f"the model must be a torch.nn.Module, not a {type(model).__name__}", where=call.partition("(")[0], fix=call)


def _check_form(state: NamedState) -> None:
    """Refuse a second moment that AdamW would divide by in another way than the optimizer that made it."""
    confirmed(state.optimizer)
    if not fits_adamw(state.optimizer):
        raise ProbeError(
            f"the state is of {state.optimizer}, whose second moment is not used as AdamW uses its own",
            where=state.path or "the named state",
            fix="pass the named state itself: AdamPreconditioner(state, model=model)",
        )


def filled(optimizer: Optimizer) -> Filled | None:
    """Return what `fill` or `lora_adamw` did to this optimizer; None: they did not."""
    return _FILLED.get(optimizer)


def _fill_wrapped(optimizer: Optimizer, model: nn.Module, state: NamedState) -> Filled:
    entries, count = fill_fsdp1(optimizer, model, state, _SLOTS)
    live = first_names(model, error=ProbeError)
    names = {parameter: live[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}
    tally = _Tally(
        with_v=len(entries), with_step=sum(state.parameters[entry].step is not None for entry in entries.values()), bytes_read=count, flat=True
    )
    found = Match(tuple((name, parameter) for parameter, name in names.items()), entries, ())
    return _report(optimizer, state, found, tally, [])


def _fill(optimizer: Optimizer, model: nn.Module, state: NamedState, found: Match, *, strict: bool, notes: list[Finding]) -> Filled:
    if strict and found.missing:
        text = f"{len(found.missing)} of {len(found.parameters)} parameters have no entry in the state"
        raise ProbeError(text, where=", ".join(found.missing[:3]), fix="freeze them, or drop strict=True to leave them without moments")
    kind = kind_of_optimizer(optimizer)
    pairs = same_run.chosen(state, model, found.parameters, found.entries)
    tally = _Tally(keep=same_run.wanted(pairs))
    place_in = {id(p): (at, index) for at, group in enumerate(optimizer.param_groups) for index, p in enumerate(group["params"])}
    for name, parameter in found.parameters:
        if name in found.entries:
            _fill_one(optimizer, kind, (name, parameter), state.parameters[found.entries[name]], place_in[id(parameter)], tally)
    steps = [state.parameters[found.entries[name]].step or 0.0 for pair in pairs for name in pair]
    notes = [*notes, *same_run.findings(pairs, found.parameters, tally.kept, step=min(steps, default=None))]
    return _report(optimizer, state, found, tally, notes)


def _report(optimizer: Optimizer, state: NamedState, found: Match, tally: _Tally, notes: list[Finding]) -> Filled:
    total = len(found.parameters)
    report = Filled(
        state=state,
        names={parameter: name for name, parameter in found.parameters},
        entries=found.entries,
        missing=found.missing,
        coverage=tally.with_v / total,
        coverage_step=tally.with_step / total,
        bytes_read=tally.bytes_read,
        stamps=tally.stamps,
        flat=tally.flat,
        findings=(*notes, *_of_names(state, found), *_findings(state, found, tally, total)),
    )
    for finding in report.findings:
        if finding.severity != "note":
            log.warning("%s%s", finding.text, f" ({finding.fix})" if finding.fix else "")
    _FILLED[optimizer] = report
    return report


def _fill_one(optimizer: Optimizer, kind: str, live: tuple[str, Tensor], entry: NamedParameter, at: tuple[int, int], tally: _Tally) -> None:
    name, parameter = live
    check_parameter(name, parameter.device, parameter.dtype)
    place = place_of(parameter)
    own = local(parameter.detach())
    moments: dict[str, Tensor] = {}
    for slot in _SLOTS:
        if slot not in entry.slots:
            continue
        values, count = read_local(entry.slots[slot], place, f"{name}: {slot}")
        tally.bytes_read += count
        exact = torch.from_numpy(values)
        if (name, slot) in tally.keep:
            tally.kept[name, slot] = exact
        cast = torch.empty_like(own, dtype=own.dtype if kind == "torch" else torch.float32).copy_(exact)
        if cast.dtype not in (torch.float32, torch.float64):
            lost = int(((exact != 0) & (cast.cpu() == 0)).sum())
            if lost:
                tally.lost[entry.name] = tally.lost.get(entry.name, 0) + lost
        moments[slot] = like_parameter(cast, parameter)
    if "exp_avg_sq" not in moments:
        return
    if "exp_avg" not in moments:
        tally.no_m.append(entry.name)
        moments["exp_avg"] = torch.zeros_like(moments["exp_avg_sq"])
    tally.with_v += 1
    tally.with_step += entry.step is not None
    v = put(optimizer, kind, parameter, at, moments, entry.step or 0.0)
    tally.stamps[parameter] = (id(v), v._version)


def _of_names(state: NamedState, found: Match) -> list[Finding]:
    """Say what of the state's names was assumed when they were written, and whether the live model has exactly these names."""
    if state.ordering is None or not state.ordering.assumed:
        return []
    other = tuple(live for live, name in found.entries.items() if live != strip_wrappers(name))
    here = f"{len(other)} of them are spelled otherwise in this model" if other else "this model has exactly these names"
    text = f"of the state's names something was assumed, not read: {'; '.join(state.ordering.assumed)} ({here})"
    return [Finding(rule="name-assumed", severity="note", text=text, names=other)]


def _findings(state: NamedState, found: Match, tally: _Tally, total: int) -> list[Finding]:
    out = []
    if tally.with_v < total:
        names = tuple(name for name in found.missing)
        severity: Severity = "warning" if tally.with_v / total < ENOUGH else "note"
        text = f"exp_avg_sq covers {tally.with_v} of {total} parameters ({tally.with_v / total:.1%})"
        out.append(
            Finding(
                rule="poor-coverage",
                severity=severity,
                text=text,
                fix="freeze the parameters that the state does not have, or load the state of the run that trained them",
                names=names,
            )
        )
    if tally.with_step < tally.with_v:
        text = f"{tally.with_v - tally.with_step} entries have no step: their bias correction is unknown"
        out.append(Finding(rule="step-missing", severity="warning", text=text, fix="pass checkpoint_step to AdamPreconditioner"))
    if tally.lost:
        count = sum(tally.lost.values())
        text = f"{count} moments became 0 in the parameters' own dtype; the preconditioner takes them from the state in float32"
        out.append(
            Finding(
                rule="moments-underflow",
                severity="warning",
                text=text,
                fix="do not step this optimizer; load the adapter in float32",
                names=tuple(tally.lost),
            )
        )
    if tally.no_m:
        out.append(
            Finding(rule="first-moment-missing", severity="warning", text="no exp_avg in the state: zeros were used instead", names=tuple(tally.no_m))
        )
    if found.unused:
        text = f"{len(found.unused)} entries of the state belong to parameters that are frozen here or not in the optimizer"
        out.append(
            Finding(
                rule="entries-unused",
                severity="warning",
                text=text,
                fix="load the adapter with is_trainable=True and train the same parameters",
                names=found.unused,
            )
        )
    if state.optimizer not in ("adam", "adamw", "unknown"):
        text = f"the state is of {state.optimizer}; its second moment is taken as Adam's"
        out.append(Finding(rule="another-optimizer", severity="warning", text=text))
    elif state.optimizer == "adam" and any(group.hyper.get("weight_decay") for group in state.groups):
        text = "the state is of Adam with L2 decay inside the gradient; the preconditioner is the same, a step of AdamW is not"
        out.append(Finding(rule="another-optimizer", severity="note", text=text))
    return out
