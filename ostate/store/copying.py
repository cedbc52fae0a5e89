"""Bytes from a source tensor to the open output, a chunk at a time, measured and digested while in cache."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ostate.core import system
from ostate.core.files import new_buffer
from ostate.core.stream import Meter, Summary
from ostate.core.tensors import NUMPY, Slot, TensorRef, decode_numbers, raw_chunks
from ostate.errors import StoreError

from .plan import Job

if TYPE_CHECKING:
    import numpy as np

CHUNK_BYTES = 1 << 20
"""Bytes copied at a time: few enough to stay in a cache, and enough for the system to take large pages."""
Raw = bytes | memoryview


class Digest:
    """CRC32 or SHA-256 of what is fed to it, as the manifest writes it."""

    def __init__(self, *, sha256: bool) -> None:
        self._sha = hashlib.sha256() if sha256 else None
        self._crc = 0

    def feed(self, raw: Raw) -> None:
        """Take in the next bytes."""
        if self._sha is not None:
            self._sha.update(raw)
        else:
            self._crc = zlib.crc32(raw, self._crc)

    def text(self) -> str:
        """Return `crc32:0a1b2c3d` or `sha256:…`."""
        return f"sha256:{self._sha.hexdigest()}" if self._sha is not None else crc_text(self._crc)


def crc_text(crc: int) -> str:
    """Return a CRC32 as the manifest writes it."""
    return f"crc32:{crc:08x}"


def copy(job: Job, descriptor: int, data_start: int, buffer: memoryview, *, sha256: bool, measure: bool) -> tuple[str, Summary | None]:
    """Copy one slot to its place, `CHUNK_BYTES` of `buffer` at a time; return its digest and what was seen.

    Raises:
        ReadError: the source cannot be read.
        StoreError: the source gives another number of elements than its shape says.
        OSError: the output cannot be written.
    """
    meter = Meter() if measure else None
    known = job.source.crc32 if isinstance(job.source, TensorRef) and job.raw is not None and not sha256 else None
    digest = Digest(sha256=sha256)
    at = job.tensor.start
    for raw, values in _pieces(job, buffer):
        if meter is not None:
            meter.add(values)
        if known is None:
            digest.feed(raw)
        system.write_all(descriptor, raw, data_start + at)
        at += len(raw)
    if at != job.tensor.end:
        written, expected = at - job.tensor.start, job.tensor.end - job.tensor.start
        fix = "wait until the run has finished writing its files, and try again"
        raise StoreError(f"{written} bytes were written, {expected} expected", where=job.tensor.key, fix=fix)
    return crc_text(known) if known is not None else digest.text(), None if meter is None else meter.summary()


def _pieces(job: Job, buffer: memoryview) -> Iterator[tuple[Raw, np.ndarray]]:
    source = job.raw
    if source is None:
        for values in job.source.chunks():
            yield encode(values, job.tensor.dtype), values
        return
    for raw in raw_chunks(source, buffer):
        yield raw, decode_numbers(raw, source.dtype)


def encode(values: np.ndarray, dtype: str) -> bytes:
    """Return numbers as the bytes of `dtype`, little-endian, C order."""
    import numpy as np

    if dtype == "BF16":  # exact: what comes here was bfloat16 before
        return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values, "<" + NUMPY[dtype]).tobytes()


def shift(descriptor: int, start: int, to: int, length: int) -> None:
    """Move `length` bytes of the open file from `start` up to `to`, last chunk first.

    Raises:
        OSError: disk full, quota, file size limit.
    """
    end = length
    while end > 0:
        size = min(CHUNK_BYTES, end)
        end -= size
        system.write_all(descriptor, system.read(descriptor, size, start + end), to + end)


def digest_of(slot: Slot, text: str) -> str:
    """Return the digest of a stored slot's bytes, of the same kind as `text`."""
    digest = Digest(sha256=text.startswith("sha256"))
    assert isinstance(slot, TensorRef)
    for raw in raw_chunks(slot, new_buffer(CHUNK_BYTES)):
        digest.feed(raw)
    return digest.text()
