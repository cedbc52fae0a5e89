"""What rules on numbers look at: ranges and counts, found by one pass over every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ostate.optimizers import OptimizerSpec
from ostate.optimizers.slots import SECOND_MOMENT_SLOTS

from .context import CheckedRow

if TYPE_CHECKING:
    from ostate.core.stream import Summary


class Measured(NamedTuple):
    """One parameter's numbers."""

    row: CheckedRow
    slots: Mapping[str, Summary]
    unbounded: int = 0
    """Elements whose first moment is larger than Adam allows; counted only when both moments were read side by side."""
    unpaired: int = 0
    """Elements with a first moment and no second; 0 also when not counted."""


class MeasuredState(NamedTuple):
    """A state whose numbers were all read once."""

    rows: tuple[Measured, ...]
    spec: OptimizerSpec | None
    exact: bool = False
    """True when tiny and negative numbers and pairs of moments were counted too."""
    facts: Mapping[str, Any] = MappingProxyType({})

    def second(self) -> Iterator[tuple[CheckedRow, str, Summary]]:
        """Yield every second moment."""
        for measured in self.rows:
            for slot, summary in measured.slots.items():
                if slot in SECOND_MOMENT_SLOTS:
                    yield measured.row, slot, summary
