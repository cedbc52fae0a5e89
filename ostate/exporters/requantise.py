"""Quantise again: the codes and scales that decode to the numbers a state holds, bit for bit where such exist.

What `read/quantized.py` decoded is `table[code] * scale` in float32. The scale is found again from the largest number of a block, whose code
is one of the table's entries; where a scale reproduces every number of its block exactly, the resumed optimizer cannot tell the difference.
Numbers that never were codes (a parameter made anew, or resized) are rounded as the library rounds, to the nearest entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from ostate.core.tensors import CHUNK, Slot

Table = Literal["dynamic", "udynamic", "dynamic4", "linear4", "int8"]
_ULPS = (0, -1, 1, -2, 2)
"""How far the quotient of two float32 numbers may lie from the scale it came from, counted in steps of float32."""


@cache
def table_of(name: Table) -> np.ndarray:
    """Return what the codes mean, float32, ascending.

    `dynamic` and `udynamic` are bitsandbytes' and torchao's signed and unsigned maps of 256 entries (Dettmers et al. 2015, arXiv 1511.04561;
    bitsandbytes/functional.py, create_dynamic_map), `dynamic4` and `linear4` torchao's of 16, `int8` the whole numbers from -127 to 127.
    """
    if name == "int8":
        return np.arange(-127, 128, dtype=np.float32)
    if name == "linear4":
        return _linspace(0.0, 1.0, 17)[1:]
    signed, exponents, bits = {"dynamic": (True, 7, 8), "udynamic": (False, 7, 8), "dynamic4": (True, 3, 4)}[name]
    entries = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for exponent in range(exponents):
        steps = 2 ** (exponent + bits - 1 - exponents + (not signed))
        edges = _linspace(0.1, 1.0, steps + 1)
        means = np.float32(10.0 ** (exponent - exponents + 1)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        entries += [means, -means] if signed else [means]
    return np.sort(np.concatenate(entries))


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """As torch.linspace in float32: from both ends, each product added before it is rounded (aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp)."""
    first, last = np.float64(np.float32(start)), np.float64(np.float32(end))
    step = np.float64((np.float32(end) - np.float32(start)) / np.float32(count - 1))
    at = np.arange(count)
    return np.asarray(np.where(at < count // 2, first + step * at, last - step * (count - 1 - at)), np.float32)


def encode(values: np.ndarray, table: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes, scales) of float32 numbers.

    Args:
        values: flat; whole blocks, but for the last.
        table: ascending, float32.
        block: elements that share a scale.

    Returns:
        codes: uint8, one an element: the entry of the table.
        scales: float32, one a block.
    """
    count = -(-values.size // block)
    rows = np.zeros((count, block), np.float32)
    rows.reshape(-1)[: values.size] = values
    peak = np.abs(rows).argmax(axis=1)
    largest = rows[np.arange(count), peak]
    scales, codes = np.abs(largest), np.zeros((count, block), np.uint8)
    codes[:] = _nearest(rows, scales, table)
    wrong = np.flatnonzero(~_decodes(codes, scales, table, rows))
    for entry in table[np.argsort(-np.abs(table), kind="stable")]:
        for ulps in _ULPS:
            tried = wrong[(np.sign(largest[wrong]) == np.sign(entry))]
            if entry == 0 or not tried.size:
                break
            scale = _moved(largest[tried] / entry, ulps)
            found = _nearest(rows[tried], scale, table)
            good = _decodes(found, scale, table, rows[tried])
            codes[tried[good]], scales[tried[good]] = found[good], scale[good]
            wrong = np.setdiff1d(wrong, tried[good], assume_unique=True)
        if not wrong.size:
            break
    return codes.reshape(-1)[: values.size], scales


def _nearest(rows: np.ndarray, scales: np.ndarray, table: np.ndarray) -> np.ndarray:
    scaled = np.divide(rows, scales[:, None], out=np.zeros_like(rows), where=scales[:, None] != 0)
    middle = (table[1:] + table[:-1]) / np.float32(2)
    return np.asarray(np.searchsorted(middle, scaled, side="right"), np.uint8)


def _decodes(codes: np.ndarray, scales: np.ndarray, table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return for each block whether its codes decode to its numbers exactly."""
    return np.asarray((table.take(codes) * scales[:, None] == rows).all(axis=1))


def _moved(values: np.ndarray, ulps: int) -> np.ndarray:
    return (values.astype(np.float32).view(np.int32) + np.int32(ulps)).view(np.float32)


@dataclass(frozen=True, slots=True)
class CodeTable:
    """A table, and how many elements share a scale."""

    table: Table
    block: int
    halves: bool = False
    """Two codes in a byte, high half first."""

    def blocks(self, source: Slot) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (numbers, codes, scales) of whole blocks, a bounded number at a time."""
        table, left = table_of(self.table), np.zeros(0, np.float32)
        for chunk in source.chunks(max(1, CHUNK // self.block) * self.block):
            values = np.concatenate([left, chunk.astype(np.float32, copy=False)]) if left.size else chunk.astype(np.float32, copy=False)
            whole = values.size // self.block * self.block
            if whole:
                yield (values[:whole], *encode(values[:whole], table, self.block))
            left = values[whole:]
        if left.size:
            yield (left, *encode(left, table, self.block))

    def error(self, source: Slot) -> float:
        """Return the largest |decoded - number| over the largest number of its block; 0 where all are reproduced bit for bit."""
        worst = 0.0
        for values, codes, scales in self.blocks(source):
            spread = np.repeat(scales, self.block)[: values.size]
            off = np.abs(table_of(self.table).take(codes) * spread - values)
            worst = max(worst, float(np.max(off[off > 0] / spread[off > 0], initial=0.0)))
        return worst


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of a slot, uint8. Satisfies `Slot`."""

    source: Slot
    packing: CodeTable
    dtype: str = "U8"
    encoding: str = "plain"

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's; flat and half as long where two codes share a byte."""
        return (math.prod(self.source.shape) // 2,) if self.packing.halves else self.source.shape

    def read(self) -> np.ndarray:
        """Return all codes."""
        return np.concatenate([*self.chunks(), np.zeros(0, np.uint8)]).reshape(self.shape)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:  # noqa: ARG002
        """Yield the codes flat."""
        for _, codes, _ in self.packing.blocks(self.source):
            yield codes[::2] << 4 | codes[1::2] if self.packing.halves else codes

    def with_shape(self, shape: tuple[int, ...]) -> Codes:
        """Return the codes of the source under another shape."""
        return Codes(self.source.with_shape(shape), self.packing)


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a slot's blocks, float32. Satisfies `Slot`."""

    source: Slot
    packing: CodeTable
    dtype: str = "F32"
    encoding: str = "plain"

    @property
    def shape(self) -> tuple[int, ...]:
        """One a block."""
        return (-(-math.prod(self.source.shape) // self.packing.block),)

    def read(self) -> np.ndarray:
        """Return all scales."""
        return np.concatenate([*self.chunks(), np.zeros(0, np.float32)])

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:  # noqa: ARG002
        """Yield the scales."""
        for _, _, scales in self.packing.blocks(self.source):
            yield scales

    def with_shape(self, shape: tuple[int, ...]) -> Scales:
        """Return the scales of the source under another shape."""
        return Scales(self.source.with_shape(shape), self.packing)


@dataclass(frozen=True, slots=True)
class Values:
    """Numbers that are known. Satisfies `Slot`."""

    values: np.ndarray
    dtype: str = "F32"
    encoding: str = "plain"

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.values.shape

    def read(self) -> np.ndarray:
        """Return them."""
        return self.values

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:  # noqa: ARG002
        """Yield them flat."""
        yield self.values.reshape(-1)

    def with_shape(self, shape: tuple[int, ...]) -> Values:
        """Return the same under another shape."""
        return Values(self.values.reshape(shape), self.dtype)


@dataclass(frozen=True, slots=True)
class Stacked:
    """Slots of one shape, one behind the other under a new first axis. Satisfies `Slot`."""

    layers: tuple[Slot, ...]
    encoding: str = "plain"

    @property
    def dtype(self) -> str:
        """The layers'."""
        return self.layers[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Their number, and a layer's shape."""
        return (len(self.layers), *self.layers[0].shape)

    def read(self) -> np.ndarray:
        """Return all layers."""
        return np.stack([layer.read() for layer in self.layers])

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the layers flat."""
        for layer in self.layers:
            yield from layer.chunks(elements)

    def with_shape(self, shape: tuple[int, ...]) -> Stacked:
        """Return the same with layers of another shape."""
        return Stacked(tuple(layer.with_shape(shape[1:]) for layer in self.layers))
