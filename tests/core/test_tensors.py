"""Numbers out of bytes, by one table of types: with numpy, without it, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ostate.core.tensors import ITEMSIZE, Part, TensorRef, decode_numbers
from ostate.store.copying import encode

KINDS = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1"}


@pytest.mark.parametrize(("tag", "code"), [*KINDS.items(), ("BOOL", "?")])
@pytest.mark.parametrize("swapped", [False, True])
def test_every_type_is_read_alike_with_numpy_and_without(tag: str, code: str, swapped: bool, tmp_path: Path):
    """An unsigned step of two bytes or more was read with numpy and refused without it."""
    numbers = np.array([1], code)
    raw = numbers.astype(numbers.dtype.newbyteorder(">" if swapped else "<")).tobytes()
    (tmp_path / "x").write_bytes(raw)
    ref = TensorRef(tag, (1,), (Part(str(tmp_path / "x"), 0, (1,), (1,), (0,)),), swapped=swapped)
    assert len(raw) == ITEMSIZE[tag]
    assert ref.item() == decode_numbers(raw, tag, swapped)[0] == 1


@pytest.mark.parametrize(("tag", "code"), [*KINDS.items(), ("BOOL", "?"), ("C64", "c8")])
def test_what_was_read_is_written_as_it_was(tag: str, code: str):
    raw = np.array([0, 1, 1, 0], code).tobytes()
    assert encode(decode_numbers(raw, tag), tag) == raw
