"""Where a preconditioner takes m, v, t, beta and eps from: a live optimizer, or a named state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ostate.core.names import first_names, strip_wrappers
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.errors import ProbeError
from ostate.optimizers import OPTIMIZERS
from ostate.optimizers.moments import SECOND_MOMENTS, confirmed, divisor, form_of, second_moment

from ..fill.fill import Filled, filled
from ..fill.live import moment, steps_of
from ..fill.names import match, trainable
from .layout import NAMELESS
from .shards import ShardPlace, local, place_of, read_local
from .usable import check_parameter, check_twice, rates


class Moments(NamedTuple):
    """One parameter's Adam state, not yet read."""

    name: str
    parameter: Tensor | None
    place: ShardPlace
    device: torch.device
    dtype: torch.dtype
    """Of the gradients that will come."""
    step: float | None
    """Updates taken."""
    betas: tuple[float, float]
    eps: float
    amsgrad: bool
    live: Mapping[str, object] | None = None
    """The live optimizer's entry; None: the numbers come from `state`."""
    state: NamedState | None = None
    entry: str | None = None
    """Name in `state`."""
    optimizer: str = "adamw"
    """The row of `OPTIMIZERS` that the numbers belong to."""

    @property
    def adam(self) -> bool:
        """True when v is Adam's own: `exp_avg_sq`, corrected by 1 - beta2**t, eps outside the root."""
        return OPTIMIZERS[self.optimizer].moment == "adam"

    @property
    def corrected(self) -> bool:
        """True when the optimizer divides v by 1 - beta2**t."""
        return SECOND_MOMENTS[OPTIMIZERS[self.optimizer].moment].corrected

    def read(self, slot: str) -> Tensor | None:
        """Return this rank's shard of a slot on `device`, in float32 or as stored; None when there is none."""
        if self.state is not None and self.entry is not None:
            slots = self.state.parameters[self.entry].slots
            if slot not in slots:
                return None
            values, _ = read_local(slots[slot], self.place, f"{self.name}: {slot}")
            return torch.from_numpy(values).to(self.device)
        try:
            stored = moment(self.live, slot) if self.live else None
        except ProbeError as error:
            raise error.at(self.name) from error
        if stored is None:
            return None
        own = local(stored, self.parameter)
        if tuple(own.shape) != self.place.shape:
            raise ProbeError(
                f"{slot} has shape {tuple(own.shape)}, the parameter {self.place.shape}",
                where=self.name,
                fix="the state was put there by position: use fill",
            )
        return own

    def second(self) -> Tensor | None:
        """Return the v that the optimizer divides by: max_exp_avg_sq under amsgrad, else exp_avg_sq; other optimizers' own form of it."""
        plain = self.live.get("exp_avg_sq") if self.live is not None and self.state is None and not self.amsgrad else None
        if type(plain) is Tensor and plain.dtype is torch.float32 and plain.shape == self.place.shape and _is_plain(plain):
            return plain
        if not self.adam:
            return self._own_form()
        if not self.amsgrad:
            return self.read("exp_avg_sq")
        largest = self.read("max_exp_avg_sq")
        if largest is None and self.read("exp_avg_sq") is not None:
            fix = "amsgrad=False, if the optimizer never was: what it divides by is not in its state"
            raise ProbeError("the group is amsgrad and the state has no max_exp_avg_sq", where=self.name, fix=fix)
        return largest

    def _own_form(self) -> Tensor | None:
        if self.state is None or self.entry is None:
            return None
        kept = self.state.parameters[self.entry]
        tensors = {slot: values.read() for slot, values in kept.slots.items()}
        own = second_moment(self.optimizer, tensors, self.state.hyper(self.entry), step=self.step, shape=self.place.whole, dtype=kept.dtype)
        window = tuple(slice(at, at + length) for at, length in zip(self.place.offset, self.place.shape))
        return torch.from_numpy(own.v[window].copy()).to(self.device)


def _is_plain(tensor: Tensor) -> bool:
    """True where the numbers can be read as they lie."""
    return tensor.layout is torch.strided and not tensor.is_meta and not tensor.requires_grad


def findings(items: Sequence[Moments]) -> Iterator[Finding]:
    """Yield what a person should know of second moments that are not Adam's own."""
    for optimizer in sorted({item.optimizer for item in items}):
        form = SECOND_MOMENTS[OPTIMIZERS[optimizer].moment]
        if form.approximate:
            text = f"{OPTIMIZERS[optimizer].classes}: {form.approximate}"
            yield Finding(rule="second-moment-rebuilt", severity="warning", text=text, fix="a few steps with AdamW give an exact one")


def of_optimizer(
    optimizer: Optimizer, model: nn.Module | None, checkpoint_step: float | None, known: Mapping[Tensor, str] | None = None
) -> list[Moments]:
    """Return the moments of each parameter of a live optimizer, in its order.

    Where `fill` put them there and nothing has moved since, the numbers are the named state's own in float32, whatever dtype the optimizer keeps.

    Args:
        optimizer: torch's or bitsandbytes'.
        model: gives names.
        checkpoint_step: for parameters whose state has no step.
        known: parameter -> name, as an earlier call found them; None: they are looked for.
    """
    report = filled(optimizer)
    if report is not None and report.flat:
        raise ProbeError(
            "FSDP1 keeps flat pieces of parameters, which cannot be probed by name", fix="probe an FSDP2 (fully_shard) or unsharded model"
        )
    check_twice([parameter for group in optimizer.param_groups for parameter in group["params"]])
    names = _names(optimizer, model, report) if known is None else known
    parameters = list(names)
    steps = dict(zip(parameters, steps_of(optimizer, parameters)))
    out = []
    for index, group in enumerate(optimizer.param_groups):
        if group.get("betas") is None or not isinstance(group.get("eps"), (int, float)):
            what = f"a {type(optimizer).__name__} keeps no second moment of Adam's form"
            raise ProbeError(what, where=f"group {index}", fix="repair its state, and pass the named state in its place")
        betas, eps = rates(group["betas"], group["eps"], f"group {index}")
        amsgrad = bool(group.get("amsgrad", False))
        for parameter in group["params"]:
            name, live = names.get(parameter), optimizer.state.get(parameter) or None
            if name is None:
                raise ProbeError("the optimizer was given other parameters since", where=f"group {index}", fix="make a new AdamPreconditioner")
            check_parameter(name, parameter.device, parameter.dtype)
            exact = report is not None and live is not None and _untouched(report, parameter, live)
            out.append(
                Moments(
                    name=name,
                    parameter=parameter,
                    place=place_of(parameter),
                    device=parameter.device,
                    dtype=parameter.dtype,
                    step=_known_step(steps[parameter], report, name, exact, checkpoint_step),
                    betas=betas,
                    eps=eps,
                    amsgrad=amsgrad,
                    live=live,
                    state=report.state if exact and report is not None else None,
                    entry=report.entries[name] if exact and report is not None else None,
                )
            )
    return out


def of_state(
    state: NamedState, model: nn.Module | None, device: torch.device | str | None, checkpoint_step: float | None, hyper: Mapping[str, object]
) -> list[Moments]:
    """Return the moments of a named state: for each trainable of `model`, or, without a model, for each of its own names.

    Raises:
        ProbeError: an entry that does not fit the model; a state that does not say its betas or eps, or whose optimizer was only assumed.
    """
    confirmed(state.optimizer)
    if model is None:
        rows: list[tuple[str, Tensor | None, str | None]] = [(name, None, name) for name in state.parameters]
    else:
        found = match(model, state, trainable(model))
        rows = [(name, parameter, found.entries.get(name)) for name, parameter in found.parameters]
    out = []
    for name, parameter, entry in rows:
        known = {**hyper, **(state.hyper(entry) if entry else state.groups[0].hyper if state.groups else {})}
        step = state.parameters[entry].step if entry else None
        step = step if step is not None else checkpoint_step
        at = torch.device(device) if device is not None else parameter.device if parameter is not None else torch.device("cpu")
        dtype = parameter.dtype if parameter is not None else torch.float32
        check_parameter(name, at, dtype)
        betas, eps = _constants(state.optimizer, known, step, name, there=entry is not None)
        whole = tuple(parameter.shape) if parameter is not None else tuple(state.parameters[name].shape)
        out.append(
            Moments(
                name=name,
                parameter=parameter,
                place=place_of(parameter) if parameter is not None else ShardPlace(whole, (0,) * len(whole), whole, 1),
                device=at,
                dtype=dtype,
                step=step,
                betas=betas,
                eps=eps,
                amsgrad=bool(known.get("amsgrad", False)),
                state=state if entry else None,
                entry=entry,
                optimizer=state.optimizer,
            )
        )
    return out


def _constants(optimizer: str, known: Mapping[str, object], step: float | None, name: str, *, there: bool) -> tuple[tuple[float, float], float]:
    """Return (beta1, beta2), which are 0 where the optimizer has none, and the eps to add outside the root.

    Raises:
        ProbeError: the optimizer has no second moment to divide by; a number that its formula wants is missing.
    """
    form = form_of(optimizer)
    betas, eps = known.get("betas"), known.get("eps")
    if betas is None and known.get("beta2") is not None:
        betas = (known.get("beta1") or 0.0, known["beta2"])
    if OPTIMIZERS[optimizer].moment == "adam":
        if betas is None or eps is None:
            raise ProbeError("the state does not say its betas or eps", where=name, fix="pass betas=(…, …) and eps=…")
        return rates(betas, eps, name)
    try:
        eps = divisor(optimizer, known, step)[1] if there else 0.0
    except ProbeError as error:
        raise error.at(name) from error
    return rates(betas if betas and form.corrected else (0.0, 0.0), eps, name)


def _names(optimizer: Optimizer, model: nn.Module | None, report: Filled | None) -> dict[Tensor, str]:
    known: dict[Tensor, str] = dict(report.names) if report is not None else {}
    if model is not None:
        plain = first_names(model, error=ProbeError)
        replaced = [name for parameter, name in known.items() if id(parameter) not in plain]
        if replaced:
            fix = "make the optimizer anew and fill it, after everything that replaces parameters (merging, resizing, moving, quantising)"
            raise ProbeError(f"{len(replaced)} parameters were replaced in the model since the optimizer was filled", where=replaced[0], fix=fix)
        known |= {parameter: plain[id(parameter)] for parameter in model.parameters()}
    out: dict[Tensor, str] = {}
    position = 0
    for group in optimizer.param_groups:
        recorded: Sequence[str | None] = group.get("param_names") or [None] * len(group["params"])
        if not isinstance(recorded, (list, tuple)) or len(recorded) != len(group["params"]):
            fix = "delete the group's param_names, or make them as many as its params"
            raise ProbeError(f"a group of {len(group['params'])} parameters has other param_names", where=f"position {position}", fix=fix)
        for parameter, name in zip(group["params"], recorded):
            out[parameter] = known.get(parameter) or (strip_wrappers(name) if name else f"{NAMELESS}{position}")
            position += 1
    return out


def _untouched(report: Filled, parameter: Tensor, live: Mapping[str, object]) -> bool:
    v = live.get("exp_avg_sq", live.get("state2"))
    return isinstance(v, Tensor) and report.stamps.get(parameter) == (id(v), v._version)


def _known_step(live: float | None, report: Filled | None, name: str, exact: bool, checkpoint_step: float | None) -> float | None:
    if exact and report is not None:
        # The optimizer had to be given some number; the state knows whether there was one.
        stored = report.state.parameters[report.entries[name]].step
        return stored if stored is not None else checkpoint_step
    return live if live is not None else checkpoint_step
