"""Gradients of a probe: with dropout off, of the trainables only, averaged in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ostate.errors import ProbeError, ProbeTypeError

from ..fill.names import trainable
from ..precondition.layout import FlatBuffers
from ..precondition.shards import like_parameter, local, place_of
from ..precondition.usable import check_parameter, number


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into eval mode, and each module back into the mode it was in, also after an exception.

    Raises:
        ProbeError: a module stays in training mode, so that two passes would differ (dropout).
    """
    if not hasattr(model, "modules"):
        raise ProbeTypeError(f"a torch.nn.Module is expected, not a {type(model).__name__}", where="eval_mode", fix="eval_mode(model)")
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        awake = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
        if awake:
            raise ProbeError(
                f"{len(awake)} modules stay in training mode after eval()",
                where=", ".join(awake[:3]),
                fix="their train() is overridden: switch dropout off there",
            )
        yield model
    finally:
        for module, training in before:
            module.training = training


class GradientMean:
    """The mean gradient of the trainables over micro-batches, summed in a fixed order.

    Args:
        model: after each backward pass its trainables' `.grad` are taken by `add`, and cleared.
        dtype: of the sum; float64 keeps a thousand bfloat16 micro-batches exact enough, float32 halves the memory.
        only: predicate on plain names; a trainable that it refuses is an error, for a probe that must see LoRA alone.

    On DDP and FSDP2 `.grad` is what backward left there: averaged over ranks, and each rank's shard of it.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype = torch.float64, only: Callable[[str], bool] | None = None) -> None:
        if dtype not in (torch.float64, torch.float32):
            raise ProbeError(f"gradients are summed in float64 or float32, not in {dtype}", where="GradientMean", fix="dtype=torch.float64")
        self._model = model
        self._trainables = trainable(model)
        for name, parameter in self._trainables:
            check_parameter(name, parameter.device, parameter.dtype)
        refused = [name for name, _ in self._trainables if only is not None and not only(name)]
        if refused:
            raise ProbeError(
                f"{len(refused)} trainable parameters are of a kind that this probe does not cover", where=", ".join(refused[:3]), fix="freeze them"
            )
        self._layout = FlatBuffers.of([(name, p, place_of(p).shape, p.device, dtype) for name, p in self._trainables])
        self._sums = self._layout.zeros()
        self.weight = 0.0
        self.count = 0
        self.unused: dict[str, int] = {}

    def add(self, weight: float = 1.0) -> None:
        """Take the gradients that lie in `.grad`, times `weight` (e.g. the number of sequences), and clear them.

        Raises:
            ProbeError: a frozen parameter has a gradient; no trainable has one; a parameter was replaced or has another shape since; a weight
                that is not positive.
        """
        share = number(weight)
        if share is None or share <= 0:
            raise ProbeError(f"the weight must be a positive finite number, not {weight}", where="GradientMean.add", fix="add(number of sequences)")
        stray = [name for name, p in self._model.named_parameters() if not p.requires_grad and p.grad is not None]
        if stray:
            raise ProbeError(f"{len(stray)} frozen parameters have gradients", where=", ".join(stray[:3]), fix="clear them: model.zero_grad()")
        own = {id(p) for _, p in self._trainables}
        new = [name for name, p in self._model.named_parameters() if p.requires_grad and p.grad is not None and id(p) not in own]
        new += [
            name for name, p in self._trainables if p.grad is not None and place_of(p).shape != self._layout.members[self._layout.index[name]].shape
        ]
        if new:
            fix = "make a new GradientMean after everything that replaces parameters"
            raise ProbeError(f"{len(new)} parameters were replaced since this mean was begun", where=", ".join(new[:3]), fix=fix)
        if all(p.grad is None for _, p in self._trainables):
            raise ProbeError("no trainable parameter has a gradient", fix="call backward() before add()")
        for (name, parameter), view in zip(self._trainables, self._layout.views(self._sums).values()):
            if parameter.grad is None:
                self.unused[name] = self.unused.get(name, 0) + 1
                continue
            view.add_(local(parameter.grad, parameter), alpha=share)
            parameter.grad = None
        self.weight += share
        self.count += 1

    def mean(self) -> dict[str, Tensor]:
        """Return the mean by plain name, in the model's order; DTensors where the parameters are.

        Raises:
            ProbeError: nothing was added; a mean that is not finite, with the parameters' names.
        """
        if not self.count:
            raise ProbeError("no gradient was added", fix="call add() after each backward()")
        means = self._layout.views([flat / self.weight for flat in self._sums])
        bad = [name for name, mean in means.items() if not bool(torch.isfinite(mean).all())]
        if bad:
            raise ProbeError(
                f"the mean gradient of {len(bad)} parameters is not finite", where=", ".join(bad[:3]), fix="look at the loss of each micro-batch"
            )
        return {name: like_parameter(means[name], parameter) for name, parameter in self._trainables}
