"""Slots of parameters that a state did not hold, or held in another size. Imports numpy; `migrate` imports this module where it makes one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ostate.core.tensors import CHUNK, Slot
from ostate.errors import ExportError


@dataclass(frozen=True, slots=True)
class ConstantSlot:
    """One number all over a shape. Satisfies `Slot`."""

    shape: tuple[int, ...]
    value: float = 0.0
    encoding: str = "plain"
    dtype: str = "F32"

    def read(self) -> np.ndarray:
        """Return the values, float32."""
        return np.full(self.shape, self.value, np.float32)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, a bounded number at a time."""
        left = math.prod(self.shape)
        while left > 0:
            yield np.full(min(elements, left), self.value, np.float32)
            left -= elements

    def with_shape(self, shape: tuple[int, ...]) -> ConstantSlot:
        """Return the same under another shape."""
        return replace(self, shape=shape)


@dataclass(frozen=True, slots=True)
class Resized:
    """Another slot's numbers in a larger or smaller box: cut at the end, or followed by zeros. Satisfies `Slot`."""

    source: Slot
    shape: tuple[int, ...]

    @property
    def encoding(self) -> str:
        """Always `plain`."""
        return "plain"

    @property
    def dtype(self) -> str:
        """Always F32."""
        return "F32"

    def read(self) -> np.ndarray:
        """Return the values, float32."""
        out = np.zeros(self.shape, np.float32)
        box = tuple(slice(min(a, b)) for a, b in zip(self.shape, self.source.shape))
        out[box] = self.source.read()[box]
        return out

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order."""
        flat = self.read().reshape(-1)
        for at in range(0, flat.size, elements):
            yield flat[at : at + elements]

    def with_shape(self, shape: tuple[int, ...]) -> Slot:
        """Refuse: a box has its shape.

        Raises:
            ExportError: the shape is another.
        """
        if shape != self.shape:
            raise ExportError(f"a resized slot of shape {self.shape} cannot become {shape}", fix="report this layout")
        return self
