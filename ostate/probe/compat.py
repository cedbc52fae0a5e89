"""The preconditioner under another program's calls: gradient first, a configuration, statistics under other names.

Nothing else imports this file. `AdamPreconditioner` here is the library's own with the other program's method names; the numbers are the library's,
guards included. docs/adopting.md shows each call before and after.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from ostate.errors import ProbeTypeError

from .measure.protocol import settings_of
from .precondition.guards import Guards
from .precondition.preconditioner import AdamPreconditioner as Preconditioner

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .precondition.arguments import PreconditionerOptions


class AdamPreconditioner(Preconditioner):
    """The library's preconditioner under the other program's calls.

    Args:
        optimizer: best one from `lora_adamw` or `fill`.
        config: a mapping, whose `importance:` section may say `checkpoint_step` and `identity_preconditioner_if_coverage_below`; None: neither.
        logger: where warnings go.
        checkpoint_step: in place of the configuration's.
        guards: what happens where v cannot be trusted; the coverage below which nothing is preconditioned is the configuration's.
        more: `model`, `form`, `precision` and so on, as for `ostate.probe.AdamPreconditioner`.

    Raises:
        ProbeTypeError: a configuration that is no mapping.
        ProbeError: as the library's; a value in the configuration that is no number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        config: Mapping[str, object] | None = None,
        logger: logging.Logger | None = None,
        *,
        checkpoint_step: float | None = None,
        guards: Guards | None = None,
        **more: Unpack[PreconditionerOptions],
    ) -> None:
        if config is not None and not isinstance(config, Mapping):
            raise ProbeTypeError(f"config must be a mapping, not a {type(config).__name__}", where="AdamPreconditioner", fix="config=…, logger=…")
        settings = settings_of(config, "config")
        guards = replace(guards or Guards(), identity_if_coverage_below=settings.identity_preconditioner_if_coverage_below)
        self.config = config
        step = settings.checkpoint_step if checkpoint_step is None else checkpoint_step
        super().__init__(optimizer, logger, step, guards=guards, **more)
        self.eps, self.beta2 = self.items[0].eps, self.items[0].betas[1]

    def apply_preconditioner_to_params(self, param_gradients: Iterable[tuple[Tensor, Tensor | None]]) -> list[Tensor | None]:
        """Return the preconditioned gradients of (parameter, gradient) pairs, in order; None where there is no gradient."""
        pairs = list(param_gradients)
        done = self.apply_all({parameter: gradient for parameter, gradient in pairs if gradient is not None})
        return [None if gradient is None else done[parameter] for parameter, gradient in pairs]

    def get_preconditioner_stats(self) -> dict[str, object]:
        """Return statistics of v and of the guarded scale over all elements, as plain numbers, beside those of `stats()`."""
        scale = torch.cat([flat.to(torch.float64).cpu() for flat in self.scale])
        held = [v for item in self.items if (v := item.second()) is not None]
        v = torch.cat([values.reshape(-1).to(torch.float64).cpu() for values in held]) if held else torch.zeros(0, dtype=torch.float64)
        return {
            "num_params": len(self.items),
            **{f"v_{which}": number for which, number in _of(v).items()},
            **{f"preconditioner_{which}": number for which, number in _of(scale).items()},
            "eps": self.eps,
            "beta2": self.beta2,
            **self.stats(),
        }

    def update_second_moments(self) -> None:
        """Read the moments again."""
        self.refresh()

    def validate_preconditioner(self) -> bool:
        """Return whether every parameter has a second moment to trust, and log why where one has not."""
        bad = [row for row in self.diagonal.rows if row.bad]
        for row in bad[:5]:
            self.logger.error("%s has a second moment that is %s", row.name, row.bad)
        if self.diagonal.all_identity:
            self.logger.error("exp_avg_sq covers %.1f%% of the parameters: every gradient is left as it is", 100 * self.diagonal.coverage)
        return not bad and not self.diagonal.all_identity


def _of(values: Tensor) -> dict[str, float]:
    if not values.numel():
        return dict.fromkeys(("mean", "std", "min", "max"), float("nan"))
    low, high = torch.stack(torch.aminmax(values)).tolist()
    return {"mean": float(values.mean()), "std": float(values.std()) if values.numel() > 1 else 0.0, "min": low, "max": high}
