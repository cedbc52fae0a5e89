"""Change a field of a record, whichever kind it is; numbers in memory in place of a file's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np


def replace(record: Any, /, **changes: Any) -> Any:
    """Return a copy of a dataclass or of a record of ours with some fields changed (`copy.replace`, from Python 3.13 on)."""
    return record._replace(**changes) if hasattr(record, "_replace") else dataclasses.replace(record, **changes)


@dataclasses.dataclass(frozen=True)
class ArraySlot:
    """Numbers in memory; satisfies `Slot` and stands in for `TensorRef`."""

    values: np.ndarray
    encoding: str = "plain"
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def numel(self) -> int:
        return self.values.size

    def read(self) -> np.ndarray:
        return self.values

    def chunks(self, elements: int = 1 << 18) -> Iterator[np.ndarray]:
        flat = self.values.reshape(-1)
        yield from (flat[at : at + elements] for at in range(0, flat.size, elements))

    def with_shape(self, shape: tuple[int, ...]) -> ArraySlot:
        return replace(self, values=self.values.reshape(shape))
