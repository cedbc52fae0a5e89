"""One flat buffer per device and dtype: which parameter lies where, and gradients in and out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ostate.core.names import any_adapter, kind_of, named_parameters, strip_wrappers
from ostate.errors import ProbeError, ProbeTypeError

from .shards import like_parameter, local
from .usable import check_gradient

Key = TypeVar("Key", bound="str | Tensor")
Key2 = TypeVar("Key2", bound="str | Tensor")
Gradients = Mapping[Key, Tensor] | Tensor | Sequence[Tensor]
"""By name or parameter; or flat, as `FlatBuffers.flatten` lays them out: one tensor, or one a buffer. Flat ones may have leading batch dimensions."""

NAMELESS = "position "
"""How a member is called, its position behind it, whose optimizer knows no name for it."""
CHUNK = 1 << 16
"""Elements at a time on a CPU: float64 temporaries of this size stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Member:
    """One parameter's run of a buffer: its local shard."""

    name: str
    parameter: Tensor | None
    buffer: int
    start: int
    stop: int
    shape: tuple[int, ...]
    """Of the local shard."""
    kind: str = "other"
    """`lora_A`, `head`, …: parameters of one kind share a cap."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """What a flat buffer is like."""

    device: torch.device
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class FlatBuffers:
    """Members in the optimizer's order, back to back, and the buffers they lie in."""

    members: tuple[Member, ...]
    buffers: tuple[Buffer, ...]
    index: Mapping[object, int] = field(default_factory=dict)
    """Name (plain, or with `*` for the adapter's) or parameter -> member."""
    shapes: tuple[torch.Size, ...] = ()
    """Each member's local shape."""

    @classmethod
    def of(cls, items: Sequence[tuple[str, Tensor | None, tuple[int, ...], torch.device, torch.dtype]]) -> FlatBuffers:
        """Lay out (name, parameter, local shape, device, dtype)."""
        kinds: dict[tuple[torch.device, torch.dtype], int] = {}
        filled: list[int] = []
        members = []
        for name, parameter, shape, device, dtype in items:
            at = kinds.setdefault((device, dtype), len(kinds))
            if at == len(filled):
                filled.append(0)
            stop = filled[at] + torch.Size(shape).numel()
            members.append(Member(name, parameter, at, filled[at], stop, tuple(shape), kind_of(name, len(shape))))
            filled[at] = stop
        index: dict[object, int] = {}
        for place, member in enumerate(members):
            loose = any_adapter(member.name)
            index[loose] = -1 if loose in index and loose != member.name else place
        for place, member in enumerate(members):
            index[member.name] = place
            if member.parameter is not None:
                index[member.parameter] = place
        return cls(tuple(members), tuple(Buffer(d, t, n) for (d, t), n in zip(kinds, filled)), index, tuple(torch.Size(m.shape) for m in members))

    def find(self, key: object) -> Member | None:
        """Return the member of that parameter or name (wrappers' segments ignored, the adapter's name too where it decides nothing)."""
        at = self.index.get(key)
        if at is None and isinstance(key, str):
            plain = strip_wrappers(key)
            at = self.index.get(plain, self.index.get(any_adapter(plain)))
        return None if at is None or at < 0 else self.members[at]

    def member(self, key: object) -> Member:
        """Return the member of that parameter or name.

        Raises:
            ProbeError: there is none.
        """
        found = self.find(key)
        if found is None:
            what = f"{key!r}" if isinstance(key, str) else f"a tensor of shape {tuple(getattr(key, 'shape', ()))}"
            nameless = isinstance(key, str) and any(member.name.startswith(NAMELESS) for member in self.members)
            fix = "let it know names: AdamPreconditioner(optimizer, model=model)" if nameless else "build it from the same optimizer or model"
            raise ProbeError(f"{what} is not one of the {len(self.members)} parameters of this preconditioner", fix=fix)
        return found

    def zeros(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return flat buffers of zeros, in their own dtype or another."""
        return [torch.zeros(b.numel, device=b.device, dtype=dtype or b.dtype) for b in self.buffers]

    def parts(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """Return each member's part of flat buffers, flat itself, in the members' order; they share the buffers' memory."""
        sizes: list[list[int]] = [[] for _ in flats]
        for member in self.members:
            sizes[member.buffer].append(member.stop - member.start)
        waiting = [iter(torch.split(flat, size)) for flat, size in zip(flats, sizes)]
        return [next(waiting[member.buffer]) for member in self.members]

    def views(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return each parameter's part of flat buffers, by name, in the local shape; they share the buffers' memory."""
        out = {}
        for member in self.members:
            flat = flats[member.buffer]
            out[member.name] = flat[..., member.start : member.stop].view((*flat.shape[:-1], *member.shape))
        return out

    def gradients_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the `.grad` of every member that has one, by name.

        Raises:
            ProbeError: none has one; the parameters are not the model's.
        """
        own = [member.parameter for member in self.members]
        if any(parameter is None for parameter in own):
            live = dict(named_parameters(model, error=ProbeError))
            own = [live.get(member.name) if parameter is None else parameter for member, parameter in zip(self.members, own)]
        every: list[Tensor | None] = [None if parameter is None else parameter.grad for parameter in own]
        if any(gradient is None for gradient in every):  # most often a parameter that took no part; a replaced one would be left out silently
            known = {id(parameter) for parameter in model.parameters()}
            replaced = [member.name for member, parameter in zip(self.members, own) if parameter is not None and id(parameter) not in known]
            if replaced:
                fix = "make the optimizer and the preconditioner anew, after everything that replaces parameters"
                raise ProbeError(f"{len(replaced)} parameters of this preconditioner are not the model's", where=replaced[0], fix=fix)
        found = {member.name: gradient for member, gradient in zip(self.members, every) if gradient is not None}
        if not found:
            raise ProbeError("no parameter of this preconditioner has a gradient", where=type(model).__name__, fix="call backward() first")
        return found

    def attach(self, flats: Sequence[Tensor]) -> None:
        """Make each parameter's `.grad` its part of the buffers: autograd then accumulates straight into them.

        Clear them by `flat.zero_()`; `zero_grad(set_to_none=True)` would take the views off.
        """
        for member, view in zip(self.members, self.views(flats).values()):
            if member.parameter is None:
                raise ProbeError("this preconditioner knows names only", fix="pass model= when it is built")
            member.parameter.grad = like_parameter(view, member.parameter)

    def flatten(self, gradients: Gradients[Key], *, what: str = "gradients") -> list[Tensor]:
        """Return one flat tensor a buffer; flat input is taken as it is, a mapping is copied together in the buffers' dtype order.

        Raises:
            ProbeError: a parameter without a gradient, one of another shape, or flats of another size.
        """
        if isinstance(gradients, Tensor):
            gradients = [gradients]
        if not isinstance(gradients, (Mapping, list, tuple)):
            fix = "pass a mapping by name or parameter, or flat tensors"
            raise ProbeTypeError(f"{what} are a {type(gradients).__name__}", where="flatten", fix=fix)
        if not isinstance(gradients, Mapping):
            for flat, buffer in zip(gradients, self.buffers):
                check_gradient(flat, f"flat {what}", buffer.device)
            for flat, buffer in zip(gradients, self.buffers):
                if flat.shape[-1:] != (buffer.numel,):
                    raise ProbeError(
                        f"flat {what} of {tuple(flat.shape)} where {buffer.numel} elements are expected",
                        fix="use the layout's own `flatten` or `zeros`",
                    )
            if len(gradients) != len(self.buffers):
                raise ProbeError(f"{len(gradients)} flat {what}, {len(self.buffers)} buffers", fix="pass one flat tensor for each device and dtype")
            return list(gradients)
        parts: list[list[Tensor]] = [[] for _ in self.buffers]
        by_member = {self.member(key).name: gradient for key, gradient in gradients.items()}
        if len(by_member) < len(gradients):
            raise ProbeError(f"two of the {what} belong to one parameter", where="flatten", fix="pass each parameter once, under one name")
        missing = [member.name for member in self.members if member.name not in by_member]
        if missing:
            raise ProbeError(
                f"{what} lack {len(missing)} of {len(self.members)} parameters",
                where=", ".join(missing[:3]),
                fix="pass zeros where a parameter took no part",
            )
        for member in self.members:
            own = self.local_of(member, by_member[member.name])
            parts[member.buffer].append(own.reshape(*own.shape[: own.ndim - len(member.shape)], member.stop - member.start))
        return [torch.cat(part, dim=-1) for part in parts]

    def local_of(self, member: Member, gradient: Tensor) -> Tensor:
        """Return this rank's shard of a gradient, which may have leading batch dimensions.

        Raises:
            ProbeError: another shape than the parameter's, or a kind of tensor that cannot be multiplied.
        """
        check_gradient(gradient, member.name, self.buffers[member.buffer].device)
        own = local(gradient, member.parameter) if member.parameter is not None else local(gradient)
        rank = len(member.shape)
        if tuple(own.shape[own.ndim - rank :]) != member.shape:
            raise ProbeError(f"the gradient has shape {tuple(own.shape)}, the parameter {member.shape}", where=member.name)
        return own


def chunks(numel: int, device: torch.device, size: int = CHUNK) -> Iterator[slice]:
    """Yield slices that cover a flat tensor: small ones on a CPU, large ones on an accelerator."""
    step = size if device.type == "cpu" else 1 << 26
    for start in range(0, numel, step):
        yield slice(start, min(start + step, numel))


def in_chunks(work: Callable[..., Tensor], out: Tensor, *inputs: Tensor) -> Tensor:
    """Write `work(*inputs)` into `out`, flat tensors all, some elements at a time; the result is cast to out's dtype."""
    for part in chunks(out.shape[-1], out.device):
        out[..., part].copy_(work(*(tensor[..., part] for tensor in inputs)))
    return out
