"""optimizer.pt as bergson reads it: one group, and in each entry `param_name`, the name without the adapter's.

Read at EleutherAI/bergson 3c66bb5, bergson/utils/load_from_optimizer.py: one group keeps it from its own guess at Trainer's two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Finding
from ostate.core.tensors import CHUNK, Slot
from ostate.errors import ExportError

from .archive import save
from .base import Exporter, ExportOptions, groups_of, lost_groups, lost_packing, lost_slots
from .tensors import Number

if TYPE_CHECKING:
    import numpy as np

KEPT = ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")


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


def write(state: NamedState, place: Path, export_options: ExportOptions) -> None:
    """Write second moments by position with their names.

    Raises:
        ExportError: `v_hat` where a step or beta2 is not known.
    """
    made: dict[str, Any] = {"state": {}, "param_groups": []}
    names = [name for group in groups_of(state) for name in group if name in state.parameters]
    for position, name in enumerate(names):
        parameter = state.parameters[name]
        entry: dict[str, Any] = {slot: parameter.slots[slot] for slot in KEPT if slot in parameter.slots}
        if not entry:
            continue
        if export_options.v_hat and "exp_avg_sq" in entry:
            entry["exp_avg_sq"] = Divided(entry["exp_avg_sq"], _correction(state, parameter))
        if parameter.step is not None:
            entry["step"] = Number(parameter.step)
        made["state"][position] = {**entry, "param_name": parameter.adapter_key or name}
    first = next((group.hyper for group in state.groups if group.names), {})
    hyper = {key: first[key] for key in ("betas", "eps") if first.get(key) is not None}
    made["param_groups"].append({"params": list(range(len(names))), **hyper})
    save(made, place)


def _correction(state: NamedState, parameter: NamedParameter) -> float:
    betas = state.hyper(parameter.name).get("betas")
    if parameter.step is None or parameter.step < 1 or not betas:
        raise ExportError("no step or no betas: the bias cannot be taken out", where=parameter.name, fix="leave --v-hat out")
    return 1.0 - math.pow(float(betas[1]), parameter.step)


def losses(state: NamedState, export_options: ExportOptions) -> Iterator[Finding]:
    """Bergson asks for the second moment alone."""
    yield from lost_slots(state, frozenset(KEPT), "bergson")
    yield from lost_groups(state, ("betas", "eps"), "bergson")
    yield from lost_packing(state)
    if export_options.v_hat:
        text = "v is written freed from its bias: right for bergson's normalizer, twice corrected for its SOURCE path"
        yield Finding(rule="export-v-hat", severity="note", text=text)


EXPORTER = Exporter(text="bergson: second moments with param_name", file="optimizer.pt", write=write, losses=losses)
