"""Compare a named file's bytes with their digests while its numbers are read: one pass for both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostate.core.files import new_buffer
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.core.tensors import CHUNK, ITEMSIZE, Slot, TensorRef, decode_numbers, raw_chunks

from .copying import Digest, digest_of
from .loading import load
from .validating import other_bytes

if TYPE_CHECKING:
    import numpy as np


@dataclass(slots=True)
class Digested:
    """A stored slot that takes its digest while it is streamed. Satisfies `Slot`.

    A chunk lies in memory that the stream's next one takes; whoever keeps numbers copies them.
    """

    source: TensorRef
    wanted: str
    """The manifest's digest."""
    buffers: list[memoryview]
    """Free ones; a stream has one of its own and gives it back at its end."""
    found: str | None = None

    @property
    def encoding(self) -> str:
        """Always `plain`."""
        return self.source.encoding

    @property
    def dtype(self) -> str:
        """The stored dtype."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.source.shape

    def read(self) -> np.ndarray:
        """Return the values."""
        return self.source.read()

    def with_shape(self, shape: tuple[int, ...]) -> Slot:
        """Return the numbers under another shape, without a digest."""
        return self.source.with_shape(shape)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order."""
        buffer = self.buffers.pop() if self.buffers else new_buffer(CHUNK * 8)
        digest = Digest(sha256=self.wanted.startswith("sha256"))
        for raw in raw_chunks(self.source, buffer[: min(elements, CHUNK) * ITEMSIZE[self.dtype]]):
            digest.feed(raw)
            yield decode_numbers(raw, self.dtype)
        self.found = digest.text()
        self.buffers.append(buffer)

    @property
    def sound(self) -> bool:
        """True when the bytes are those that were written; they are read now where nobody streamed to the end."""
        return (self.found or digest_of(self.source, self.wanted)) == self.wanted


def digested(path: str | os.PathLike[str]) -> tuple[NamedState, Callable[[], list[Finding]]]:
    """Return the state in a sound named file, and what to ask once its numbers were read: the slots whose bytes are not those that were written.

    Raises:
        ReadError: no such file.
        StoreError: not a sound named file.
    """
    buffers: list[memoryview] = []
    state = load(path, wrap=lambda tensor, digest: Digested(tensor, digest, buffers))

    def damaged() -> list[Finding]:
        slots = [(name, slot, value) for name, parameter in state.parameters.items() for slot, value in parameter.slots.items()]
        return [other_bytes(name, slot) for name, slot, value in slots if isinstance(value, Digested) and not value.sound]

    return state, damaged
