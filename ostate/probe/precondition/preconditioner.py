"""Adam's preconditioner, guarded: the diagonal 1 / (sqrt(v_hat) + eps), computed once in float64, kept flat, applied by one multiply."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, cast, overload
from weakref import ref

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer

from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.errors import ProbeError

from ..fill import same_run
from . import arguments, moments
from .arguments import Form
from .diagonal import Diagonal, build
from .dots import triple_dot
from .formulas import less_update, next_step_update
from .guards import Guards
from .layout import FlatBuffers, Gradients, Key, Key2, Member, in_chunks
from .moments import Moments
from .shards import Ranks, is_sharded, like_parameter
from .stats import Stats, describe, findings_of, table
from .usable import FLOATS, check_gradient

_PRECISION = {"float32": torch.float32, "float64": torch.float64}


def _kind_of(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class AdamPreconditioner:
    """What Adam multiplies a gradient by, taken from a live optimizer or straight from a named state.

    Args:
        source: an optimizer (best one from `lora_adamw` or `fill`), or a `NamedState`.
        logger: where warnings go, each once; None: `ostate.probe`.
        checkpoint_step: the step of parameters whose state has none.
        optimizer: the same as an optimizer for `source`, by keyword.
        model: the live model: gives names to an optimizer's parameters, and picks the trainables of a named state.
        guards: what happens where v cannot be trusted; `Guards.seed()` for a fixed cap of 1e3.
        form: `frozen` g * P with v_hat at the state's own step; `next_step` what torch's AdamW would do with g at t + 1; `less` LESS's form.
        precision: of the kept diagonal and of the product: `float32` (one multiply), or `float64` (cast back at the end).
        device: where a named state without a model is put.
        betas: (beta1, beta2) for a named state that does not say them.
        eps: likewise.

    On a sharded model, building it and `stats` are collective: every rank calls them.

    Raises:
        ProbeTypeError: an argument that is not of the kind said above, such as a configuration in the logger's place.
        ProbeError: nothing to precondition, or a state that does not fit.
    """

    def __init__(
        self,
        source: Optimizer | NamedState | None = None,
        logger: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
        checkpoint_step: float | None = None,
        *,
        optimizer: Optimizer | None = None,
        model: nn.Module | None = None,
        guards: Guards | None = None,
        form: Form = "frozen",
        precision: Literal["float32", "float64"] = "float32",
        device: torch.device | str | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
    ) -> None:
        if form not in ("frozen", "next_step", "less"):
            raise ProbeError(f"form must be frozen, next_step or less, not {form!r}")
        if precision not in _PRECISION:
            raise ProbeError(f"precision must be float32 or float64, not {precision!r}")
        source = arguments.source(source, optimizer)
        arguments.refuse_other_kinds(logger, checkpoint_step, guards)
        self.guards = guards or Guards()
        self.form = form
        self.precision = precision
        self.checkpoint_step = checkpoint_step
        self.logger = logger or logging.getLogger("ostate.probe")
        self.optimizer = source if isinstance(source, Optimizer) else None
        self._state = None if isinstance(source, Optimizer) else source
        self._model = model
        self._device = arguments.device_of(device)
        self._hyper = {key: value for key, value in (("betas", betas), ("eps", eps)) if value is not None}
        self._warned: set[str] = set()
        self._overflowed = 0
        self._names: dict[Tensor, str] | None = None
        items = self._moments()
        if not items:
            raise ProbeError("there is no parameter to precondition", fix="make the optimizer over the parameters that require grad")
        self._names = {item.parameter: item.name for item in items if item.parameter is not None}
        self.ranks = Ranks.of([item.parameter for item in items if item.parameter is not None])
        self.layout = FlatBuffers.of([(item.name, item.parameter, item.place.shape, item.device, item.dtype) for item in items])
        self._simple = form == "frozen" and not self.ranks.groups
        self._of_state = self._compared(items)
        self._diagonal: Diagonal | None = None
        self._views: list[Tensor] | None = None
        self.refresh(items)
        if self.optimizer is not None:
            self._follow(self.optimizer)

    def _moments(self) -> list[Moments]:
        if self.optimizer is not None:
            return moments.of_optimizer(self.optimizer, self._model, self.checkpoint_step, self._names)
        return moments.of_state(cast(NamedState, self._state), self._model, self._device, self.checkpoint_step, self._hyper)

    def _compared(self, items: Sequence[Moments]) -> tuple[Finding, ...]:
        """Return whether a named state is of the live model's run; an optimizer was compared when it was filled."""
        if self._state is None or self._model is None:
            return ()
        known = {item.name: item for item in items if item.entry is not None}
        live = [(item.name, item.parameter) for item in known.values() if item.parameter is not None]
        pairs = same_run.chosen(self._state, self._model, live, {name: str(item.entry) for name, item in known.items()})
        read = {(name, slot): value for name, slot in same_run.wanted(pairs) if (value := known[name].read(slot)) is not None}
        steps = [known[name].step or 0.0 for pair in pairs for name in pair]
        return same_run.findings(pairs, live, read, step=min(steps, default=None))

    def _follow(self, optimizer: Optimizer) -> None:
        me = ref(self)

        def moved(*_: object) -> None:
            found = me()
            if found is not None:
                found._stale = True

        optimizer.register_step_post_hook(moved)
        optimizer.register_load_state_dict_post_hook(moved)

    def refresh(self, items: list[Moments] | None = None) -> None:
        """Read the moments again. Done by itself after the optimizer stepped or loaded a state; call it after an edit by hand.

        Raises:
            ProbeError: `fallback="raise"` and a second moment that cannot be trusted.
        """
        self._stale = True  # also where what follows refuses: a scale half written is never used
        self.items = items if items is not None else self._moments()
        if [(item.name, item.place.shape) for item in self.items] != [(member.name, member.shape) for member in self.layout.members]:
            what = "the optimizer's parameters are no longer those that this preconditioner was made for"
            raise ProbeError(what, where=type(self.optimizer).__name__, fix="make a new AdamPreconditioner")
        into = self._diagonal.scale if self._diagonal is not None else None
        self._diagonal = build(self.items, self.layout, self.ranks, self.guards, _PRECISION[self.precision], into)
        self._stale = False
        self._stats: Stats | None = None
        self.findings: tuple[Finding, ...] = (*self._of_state, *findings_of(self._diagonal, self.guards), *moments.findings(self.items))
        loud = [finding for finding in self.findings if finding.severity != "note" and finding.rule not in self._warned]
        for finding in loud:
            self._warned.add(finding.rule)
            self.logger.warning("%s%s", finding.text, f" ({finding.fix})" if finding.fix else "")

    @property
    def diagonal(self) -> Diagonal:
        """The scale and what is known of it, refreshed when the optimizer moved."""
        if self._stale or self._diagonal is None:
            self.refresh()
        return cast(Diagonal, self._diagonal)

    @property
    def scale(self) -> list[Tensor]:
        """P itself, guarded and capped: one flat tensor a buffer; units 1/grad."""
        return self.diagonal.scale

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return tuple(member.name for member in self.layout.members)

    def apply(self, parameter: Tensor | str, gradient: Tensor) -> Tensor:
        """Return the preconditioned gradient of one parameter, in the gradient's shape and dtype.

        Args:
            parameter: a parameter of the optimizer, or its name.
            gradient: of the parameter's shape (a DTensor where it is one); leading batch dimensions allowed on plain tensors.

        Raises:
            ProbeError: unknown parameter (unless the guards say identity), another shape, or a parameter in the gradient's place.
        """
        member, gradient = self._sorted(parameter, gradient)
        if member is None:
            self._warn_once("unknown-parameter", "a gradient was passed for a parameter that the optimizer does not hold: it is not preconditioned")
            return gradient
        if self._is_plain(gradient) and gradient.shape == member.shape:
            part = self._parts()[self.layout.index[member.name]]
            if gradient.device == part.device:
                return gradient * part
        own = self.layout.local_of(member, gradient)
        lead = own.shape[: own.ndim - len(member.shape)]
        out = self._one(member, own.reshape(*lead, member.stop - member.start)).view(own.shape)
        return like_parameter(out, member.parameter) if is_sharded(gradient) and member.parameter is not None else out

    apply_preconditioner = apply

    def _sorted(self, parameter: Tensor | str, gradient: Tensor | str) -> tuple[Member | None, Tensor]:
        """Return (member or None where the guards let an unknown parameter pass, gradient), whichever way round the two were given.

        Some programs call `apply_preconditioner(gradient, parameter)`. A parameter handed back as if it were its gradient would go unnoticed, so
        the order is taken from what the two are, and where that does not tell, refused.
        """
        member, other = self.layout.find(parameter), self.layout.find(gradient) if isinstance(gradient, (Tensor, str)) else None
        if member is None and other is not None:
            member, gradient = other, parameter
            self._warn_once("arguments-swapped", "apply was given (gradient, parameter): taken as (parameter, gradient)")
        elif other is not None:
            raise ProbeError("a parameter was given in the gradient's place", where=other.name, fix="pass its gradient: parameter.grad")
        elif member is None:
            if self.guards.unknown != "identity":
                self.layout.member(parameter)  # says what it does not know
            gradient = arguments.gradient_of_unknown(parameter, gradient)
        return member, gradient if isinstance(gradient, Tensor) else check_gradient(gradient, member.name if member else "apply")

    @overload
    def apply_all(self, gradients: nn.Module) -> dict[str, Tensor]: ...
    @overload
    def apply_all(self, gradients: Mapping[Key, Tensor]) -> dict[Key, Tensor]: ...
    @overload
    def apply_all(self, gradients: Tensor, *, out: Tensor | None = None) -> Tensor: ...
    @overload
    def apply_all(self, gradients: Sequence[Tensor], *, out: list[Tensor] | None = None) -> list[Tensor]: ...
    def apply_all(
        self, gradients: Gradients[Key] | nn.Module, *, out: Tensor | list[Tensor] | None = None
    ) -> dict[Key, Tensor] | dict[str, Tensor] | Tensor | list[Tensor]:
        """Precondition many gradients at once.

        For float32 gradients and the default form one multiply of all tensors together: no launch and no wait for each, and nothing that a CUDA graph
        could not hold (what is captured reads the scale in place, so that a later `refresh` is seen by a replay).

        Args:
            gradients: by name or parameter (any subset); a model, for the `.grad` of its parameters, those without one left out; or flat as `layout`
                lays them out: (P,) or per-sample (n, P), one tensor a buffer.
            out: for flat input, where to write; may be the input itself.

        Returns:
            The same kind: a dict under the same keys (by name for a model), a flat tensor, or a list of them.

        Raises:
            ProbeError: as `apply`; a model of which no parameter has a gradient.
        """
        if isinstance(gradients, nn.Module):
            return self._mapping(self.layout.gradients_of(gradients))
        if isinstance(gradients, Mapping):
            return self._mapping(gradients)
        flats = self.layout.flatten(gradients)
        outs: Sequence[Tensor | None] = [out] if isinstance(out, Tensor) else out or [None] * len(flats)
        done_flats = [self._flat(at, flat, into) for at, (flat, into) in enumerate(zip(flats, outs))]
        return done_flats[0] if isinstance(gradients, Tensor) else done_flats

    def _mapping(self, gradients: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        values = list(gradients.values())
        places = [self.layout.index.get(key, -1) for key in gradients]
        shapes = self.layout.shapes
        if values and self._all_plain(values) and min(places) >= 0 and [g.shape for g in values] == [shapes[at] for at in places]:
            parts = self._parts()
            scales = [parts[at] for at in places]
            devices = {g.device for g in values}.union(buffer.device for buffer in self.layout.buffers)
            if len(devices) == 1 or all(g.device == scale.device for g, scale in zip(values, scales)):
                return dict(zip(gradients, torch._foreach_mul(values, scales)))
        if len(gradients) != len(self.layout.members) or not {type(g) for g in values} <= {Tensor}:
            return {key: self.apply(key, gradient) for key, gradient in gradients.items()}
        flats = self.layout.flatten(gradients)
        done = self.layout.views([self._flat(at, flat, flat) for at, flat in enumerate(flats)])
        return {key: done[self.layout.member(key).name].to(gradient.dtype) for key, gradient in gradients.items()}

    def _is_plain(self, gradient: Tensor) -> bool:
        """True where the preconditioned gradient is one product in the scale's own dtype."""
        plain = self._simple and type(gradient) is Tensor and gradient.dtype is _PRECISION[self.precision]
        return plain and gradient.layout is torch.strided and not gradient.is_nested

    def _all_plain(self, gradients: Sequence[Tensor]) -> bool:
        """`_is_plain` of every one."""
        if not self._simple or {type(g) for g in gradients} != {Tensor}:
            return False
        return {(g.dtype, g.layout, g.is_nested) for g in gradients} == {(_PRECISION[self.precision], torch.strided, False)}

    def _parts(self) -> list[Tensor]:
        """Return each parameter's part of the scale, in its local shape: views of buffers that a refresh writes into."""
        if self._stale and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise ProbeError("the optimizer moved, and the moments cannot be read while a CUDA graph is captured", fix="call refresh() before")
        scale = self.scale
        if self._views is None:
            self._views = list(self.layout.views(scale).values())
        return self._views

    def _flat(self, at: int, flat: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            out = torch.empty_like(flat)
        elif not isinstance(out, Tensor) or out.shape != flat.shape or out.device != flat.device or out.dtype not in FLOATS:
            what = f"out is {_kind_of(out)}, the gradients are {_kind_of(flat)}"
            raise ProbeError(what, where="apply_all", fix="out=torch.empty_like(gradients), or the gradients themselves")
        if self.form == "frozen":
            return self._times(flat, self.scale[at], out)
        for member in self.layout.members:
            if member.buffer == at:
                out[..., member.start : member.stop] = self._one(member, flat[..., member.start : member.stop])
        return out

    def _one(self, member: Member, flat: Tensor) -> Tensor:
        if self.form == "frozen":
            return self._times(flat, self.scale[member.buffer][member.start : member.stop], torch.empty_like(flat))
        return self._fit(self.updated(member, flat), torch.empty_like(flat))

    def _times(self, flat: Tensor, scale: Tensor, out: Tensor) -> Tensor:
        if torch.float16 in (flat.dtype, out.dtype):
            return self._fit(flat.to(torch.float32) * scale, out)
        if flat.dtype == scale.dtype == out.dtype:
            return torch.mul(flat, scale, out=out)
        return in_chunks(torch.mul, out, flat, scale)

    def _fit(self, values: Tensor, out: Tensor) -> Tensor:
        # float16 ends at 65504, where a healthy scale is 1e4 and more: hold at the edge and say so, rather than return inf.
        if out.dtype == torch.float16:
            edge = torch.finfo(torch.float16).max
            over = int((values.abs() > edge).sum())
            if over:
                self._overflowed += over
                self._warn_once(
                    "float16-overflow", f"{over} preconditioned elements do not fit float16 and were held at {edge:g}: give float32 gradients"
                )
                values = values.clamp(-edge, edge)
        return out.copy_(values)

    def updated(self, member: Member, flat: Tensor) -> Tensor:
        """Return the preconditioned gradient of one parameter in float64, by this preconditioner's form; flat, leading batch dimensions allowed."""
        diagonal = self.diagonal
        at = self.layout.index[member.name]
        if self.form == "frozen" or diagonal.is_identity(at, self.form):
            return flat.to(torch.float64) * diagonal.scale[member.buffer][member.start : member.stop]
        item = self.items[at]
        if not item.adam:
            raise ProbeError(f"form {self.form!r} is Adam's, and this state is {item.optimizer}'s", where=item.name, fix='form="frozen"')
        v = item.read("exp_avg_sq")
        m = item.read("exp_avg")
        if v is None or m is None:
            raise ProbeError(f"form {self.form!r} needs exp_avg and exp_avg_sq", where=item.name, fix='form="frozen" needs v alone')
        m, v = m.reshape(-1), v.reshape(-1)
        if self.form == "less":
            return less_update(flat, m, v, betas=item.betas, eps=item.eps)
        largest = item.read("max_exp_avg_sq") if item.amsgrad else None
        step = item.step
        if step is None or step < 0:
            raise ProbeError("the next step needs this step", where=item.name, fix="pass checkpoint_step")
        return next_step_update(flat, m, v, step=step, betas=item.betas, eps=item.eps, largest=None if largest is None else largest.reshape(-1))

    def dot(self, x: Gradients[Key], g: Gradients[Key2]) -> float:
        """Return <x, P g> over all parameters (and all ranks), summed in float64, without writing P g anywhere.

        Args:
            x: the left gradients, by name or flat.
            g: the right gradients.
        """
        xs, gs = self.layout.flatten(x, what="x"), self.layout.flatten(g, what="g")
        if any(flat.ndim != 1 for flat in (*xs, *gs)):
            raise ProbeError("dot takes one gradient on each side, not a batch", fix="apply_all(batch) @ x")
        if self.form == "frozen" and not self.ranks.groups:
            return sum(float(triple_dot(x, scale, g)) for x, scale, g in zip(xs, self.scale, gs))
        total = torch.zeros((), dtype=torch.float64, device=self.layout.buffers[0].device)
        for member, item in zip(self.layout.members, self.items):
            run = slice(member.start, member.stop)
            left, right = xs[member.buffer][run], gs[member.buffer][run]
            if self.form == "frozen":
                part = triple_dot(left, self.scale[member.buffer][run], right)
            else:
                part = torch.dot(left.to(torch.float64), self.updated(member, right))
            total += part.to(total.device) / self.ranks.copies(item.place)
        return float(self.ranks.total(total))

    def stats(self) -> Stats:
        """Return what is known of this preconditioner as plain floats and ints, ready for a logger (the parts by kind and the worst are nested)."""
        diagonal = self.diagonal
        if self._stats is None:
            self._stats = describe(diagonal, self.items, self.layout, self.ranks, self._overflowed)
        return {**self._stats, "overflowed": self._overflowed}

    get_stats = stats

    def summary(self) -> Table:
        """Return the same as a rich table."""
        return table(self.stats(), self.findings)

    def _warn_once(self, rule: str, text: str) -> None:
        if rule not in self._warned:
            self._warned.add(rule)
            self.logger.warning("%s", text)
