"""The bias-corrected second moment: v / (1 - beta2**step), for programs that divide by what the file holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ostate.core.hyper import all_betas
from ostate.core.naming import NamedParameter, NamedState
from ostate.core.tensors import CHUNK, Slot
from ostate.errors import ExportError

from .base import ExportOptions

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Divided:
    """A slot's numbers divided by one number in float64, then float32. Satisfies `Slot`."""

    source: Slot
    by: float
    encoding: str = "plain"
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's shape."""
        return self.source.shape

    def read(self) -> np.ndarray:
        """Return the values, float32."""
        return self._of(self.source.read())

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order."""
        for chunk in self.source.chunks(elements):
            yield self._of(chunk)

    def with_shape(self, shape: tuple[int, ...]) -> Divided:
        """Return the same under another shape."""
        return replace(self, source=self.source.with_shape(shape))

    def _of(self, values: np.ndarray) -> np.ndarray:
        import numpy as np

        with np.errstate(over="ignore"):
            return (values.astype(np.float64) / self.by).astype(np.float32)


def refuse_unknown_bias(state: NamedState, export_options: ExportOptions) -> None:
    """Refuse `v_hat` where the bias of a second moment is not known.

    Raises:
        ExportError: a parameter has no step or no betas.
    """
    for parameter in state.parameters.values():
        if export_options.v_hat and "exp_avg_sq" in parameter.slots:
            without_bias(state, parameter)


def without_bias(state: NamedState, parameter: NamedParameter) -> Divided:
    """Return v / (1 - beta2**step) of one parameter that has an `exp_avg_sq`.

    Raises:
        ExportError: its step or its betas are not known.
    """
    beta2 = (*all_betas(state.hyper(parameter.name)), None, None)[1]
    if parameter.step is None or parameter.step < 1 or beta2 is None:
        raise ExportError("no step or no betas: the bias cannot be taken out", where=parameter.name, fix="drop --v-hat")
    return Divided(parameter.slots["exp_avg_sq"], 1.0 - math.pow(beta2, parameter.step))
