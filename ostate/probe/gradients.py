"""Gradients of a probe: with dropout off, of the trainables only, averaged in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ostate.errors import ProbeError


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into eval mode, and each module back into the mode it was in, also after an exception.

    Raises:
        ProbeError: a module stays in training mode, so that two passes would differ (dropout).
    """
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
