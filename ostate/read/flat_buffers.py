"""Cutting one parameter out of runs of numbers that lie in several tensors, without reading them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ostate.core.tensors import CHUNK, ITEMSIZE, Fields, Part, Slot, TensorRef

from ..errors import ReadError

if TYPE_CHECKING:
    import numpy as np


class Piece(Fields):
    """`count` elements from element `start` of a flat slot."""

    __slots__ = ("count", "slot", "start")

    def __init__(self, slot: Slot, start: int, count: int) -> None:
        self.slot = slot
        self.start = start
        self.count = count


class Cut(Fields):
    """Pieces of packed slots, one after another, under one shape. Satisfies `Slot`."""

    __slots__ = ("pieces", "shape")

    def __init__(self, pieces: tuple[Piece, ...], shape: tuple[int, ...]) -> None:
        self.pieces = pieces
        self.shape = shape

    @property
    def encoding(self) -> str:
        """The encoding of the slots it was cut from."""
        return self.pieces[0].slot.encoding if self.pieces else "plain"

    @property
    def dtype(self) -> str:
        """The dtype of the slots it was cut from."""
        return self.pieces[0].slot.dtype if self.pieces else "F32"

    def with_shape(self, shape: tuple[int, ...]) -> Cut:
        """Return the same numbers under another shape of the same number of elements."""
        if math.prod(shape) != math.prod(self.shape):
            raise ReadError(f"{math.prod(self.shape)} elements cannot take the shape {shape}", fix="copy the whole folder again")
        return self._replace(shape=shape)

    def read(self) -> np.ndarray:
        """Return the values in the logical shape."""
        import numpy as np

        pieces = list(self.chunks())
        return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)).reshape(self.shape)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, a bounded number at a time; what lies before a piece in its slot is decoded and dropped."""
        for piece in self.pieces:
            at, end = 0, piece.start + piece.count
            for values in piece.slot.chunks(elements):
                low, high = max(piece.start - at, 0), min(end - at, values.size)
                if low < high:
                    yield values[low:high]
                at += values.size
                if at >= end:
                    break


def cut(pieces: Sequence[Piece], shape: tuple[int, ...], where: str) -> Slot:
    """Return the pieces, one after another, as one slot of that shape.

    Raises:
        ReadError: the pieces do not hold as many elements as the shape wants, or reach past their tensors.
    """
    pieces = [piece for piece in pieces if piece.count > 0]
    held = sum(piece.count for piece in pieces)
    if held != math.prod(shape):
        raise ReadError(f"{held} elements for a parameter of shape {shape}", where=where, fix="a file is from another run: copy the folder again")
    for piece in pieces:
        if piece.start < 0 or piece.start + piece.count > math.prod(piece.slot.shape):
            raise ReadError(f"a parameter of shape {shape} reaches past its buffer", where=where, fix="copy the folder again")
    refs = [piece.slot for piece in pieces if isinstance(piece.slot, TensorRef)]
    if len(refs) != len(pieces) or not refs:
        return Cut(tuple(pieces), shape)
    if len({(ref.dtype, ref.swapped) for ref in refs}) > 1:
        raise ReadError("the pieces of one parameter have several dtypes", where=where, fix="a file is from another run: copy the folder again")
    parts, at = [], 0
    for piece, ref in zip(pieces, refs):
        for part in _window(ref, piece, where):
            parts.append(part._replace(starts=(at,)))
            at += part.sizes[0]
    return TensorRef(refs[0].dtype, shape, tuple(parts), refs[0].swapped)


def _window(ref: TensorRef, piece: Piece, where: str) -> Iterator[Part]:
    """Yield the runs of the file that hold the piece."""
    at, end, width = 0, piece.start + piece.count, ITEMSIZE[ref.dtype]
    for part in sorted(ref.parts, key=lambda part: part.starts):
        if not part.contiguous:
            raise ReadError("a flat buffer is not stored in one run", where=where, fix="save it again as contiguous tensors")
        count = math.prod(part.sizes)
        low, high = max(piece.start - at, 0), min(end - at, count)
        if low < high:
            yield part._replace(offset=part.offset + low * width, sizes=(high - low,), strides=(1,), starts=(0,))
        at += count
