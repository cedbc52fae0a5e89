"""What is written as `torch.save` would write it is what `torch.load` gives back, and what torch itself would have saved."""

from __future__ import annotations

import io
import math
import os
import zipfile

import numpy as np
import pytest
import torch

import ostate
from ostate import read as formats
from ostate.core.tensors import Part, TensorRef
from ostate.errors import ExportError, ReadError
from ostate.exporters import archive
from ostate.exporters.made_slots import ConstantSlot
from ostate.exporters.pickling import kind_of
from ostate.exporters.tensors import Number, numbered, with_tensors
from ostate.exporters.v_hat import Divided
from ostate.read.container.zip import ZipIndex

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.float32, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "F8_E4M3": torch.float32,
}  # fmt: skip
"""What is stored -> what torch is given."""
SIZES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def laid(folder, dtype, shape, strides=None, offset=13):
    """Lay small whole numbers into a file at an odd place."""
    count, size = math.prod(shape), SIZES.get(dtype, 1)
    raw = (np.arange(count * size) % 2).astype("u1").tobytes() if dtype == "BOOL" else (np.arange(count * size) % 50 + 1).astype("u1").tobytes()
    path = folder / f"{dtype}.bin"
    path.write_bytes(bytes(offset) + raw)
    strides = strides or tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return TensorRef(dtype, shape, (Part(str(path), offset, shape, strides, (0,) * len(shape)),))


def back(tmp_path, value, **options):
    archive.save(value, tmp_path / "x.pt")
    return torch.load(tmp_path / "x.pt", weights_only=True, **options)


def same(x, y):
    """True when two state dicts are equal: keys in order, types, and every bit of every tensor."""
    if isinstance(x, torch.Tensor):
        bits = [torch.atleast_1d(t).contiguous().view(torch.uint8) for t in (x, y)] if x.numel() else [x, y]
        return (x.dtype, x.shape, x.stride(), x.requires_grad) == (y.dtype, y.shape, y.stride(), y.requires_grad) and torch.equal(*bits)
    if isinstance(x, dict):
        return type(x) is type(y) and list(x) == list(y) and all(same(x[key], y[key]) for key in x)
    if isinstance(x, (list, tuple)):
        return type(x) is type(y) and len(x) == len(y) and all(map(same, x, y))
    return type(x) is type(y) and (x == y or (x != x and y != y))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", ["bias_state", "llama_state"])
def test_a_whole_state_comes_back_as_torch_would_have_saved_it(tmp_path, request, name, mmap):
    state = request.getfixturevalue(name)
    saved = io.BytesIO()
    torch.save(with_tensors(numbered(state, names=True)), saved)
    saved.seek(0)
    ours = torch.load(ostate.export(state, "torch", tmp_path / "optimizer.pt").path, weights_only=True, mmap=mmap)
    assert same(ours, torch.load(saved, weights_only=True))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 3), (3, 0, 2), (1,)])
def test_every_type_and_shape_comes_back(tmp_path, dtype, shape):
    slot = laid(tmp_path, dtype, shape)
    found = back(tmp_path, slot)
    assert found.dtype == TYPES[dtype]
    assert found.is_contiguous()
    assert same(found, torch.zeros(shape, dtype=found.dtype)) if 0 in shape else found.shape == shape
    values = slot.read() if dtype != "F16" else np.frombuffer(slot.read().astype("<f2").tobytes(), "<f2").reshape(shape)
    assert found.numpy().tobytes() == values.tobytes()


def test_what_lies_in_the_file_as_strides_is_put_in_order(tmp_path):
    slot = laid(tmp_path, "F32", (3, 4), strides=(1, 3))
    assert not kind_of(slot).stored
    assert back(tmp_path, slot).numpy().tobytes() == slot.read().tobytes()


@pytest.mark.parametrize("value", [3.0, 0.1, 16777217.0, 1e300, -0.0, math.nan])
def test_a_step_is_rounded_as_torch_rounds(tmp_path, value):
    assert same(back(tmp_path, Number(value)), torch.tensor(value, dtype=torch.float32))


def test_numbers_that_lie_in_no_file_are_written_too(tmp_path):
    assert same(back(tmp_path, ConstantSlot((700, 700), 0.25)), torch.full((700, 700), 0.25))


def test_division_is_torchs(tmp_path):
    slot = laid(tmp_path, "F32", (50, 50))
    assert same(back(tmp_path, Divided(slot, 0.0299)), torch.from_numpy(slot.read().copy()).double().div(0.0299).float())


PLAIN = {
    "none": None, "yes": True, "no": False, "zero": 0, "small": -(1 << 31), "edge": (1 << 31) - 1, "wide": 1 << 31, "wider": -(1 << 31) - 1,
    "large": 1 << 80, "minus": -255, "float": 1e-8, "inf": math.inf, "nan": math.nan, "text": "ünï", "empty": "", "half": "\ud800",
    "list": [1, [2.0, ()]], "tuple": (0.9, (0.999,), None), "dict": {0: {"a": []}, (1, "b"): {}},
    "again": "text",
}  # fmt: skip


def test_plain_values_come_back_with_their_types(tmp_path):
    assert same(back(tmp_path, PLAIN), PLAIN)


def test_what_is_not_plain_is_refused(tmp_path):
    with pytest.raises(ExportError, match="type object cannot be stored"):
        archive.save({"x": object()}, tmp_path / "x.pt")


def test_bytes_begin_aligned_and_carry_the_checksum_of_their_source(tmp_path):
    slot = laid(tmp_path, "F32", (5, 5))
    archive.save([slot, Number(1.0), slot, ConstantSlot((3,))], tmp_path / "x.pt")
    members = ZipIndex(str(tmp_path / "x.pt")).members
    assert all(offset % 64 == 0 for offset, _, _ in members.values())
    with zipfile.ZipFile(tmp_path / "x.pt") as opened:
        assert opened.testzip() is None


def test_a_checksum_that_is_known_is_passed_on_so_that_damage_is_not_made_good(tmp_path):
    slot = laid(tmp_path, "F32", (5, 5))
    slot.crc32 = 0x1234
    archive.save([slot], tmp_path / "x.pt")
    assert ZipIndex(str(tmp_path / "x.pt")).members["archive/data/0"][2] == 0x1234
    state = {"state": {0: {"exp_avg": slot, "exp_avg_sq": slot, "step": Number(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    archive.save(state, tmp_path / "y.pt")
    with pytest.raises(ReadError, match="CRC32 00001234 recorded"):
        ostate.inspect(str(tmp_path / "y.pt"), checksum=True)


def test_a_source_that_gives_too_little_is_refused(tmp_path):
    class Short(ConstantSlot):
        def chunks(self, elements=9):
            yield np.zeros(3, np.float32)

    with pytest.raises(ExportError, match="12 bytes were written, 40 expected"):
        archive.save(Short((10,)), tmp_path / "x.pt")


@pytest.mark.parametrize("by_torch", [False, pytest.param(True, marks=pytest.mark.long)])
def test_more_members_than_a_plain_zip_counts(tmp_path, by_torch):
    archive.save([Number(float(i)) for i in range(66_000)], tmp_path / "x.pt")
    index = ZipIndex(str(tmp_path / "x.pt"))
    assert len(index.members) == 66_004
    assert index.read("archive/data/65999", 4) == Number(65999.0).raw
    if by_torch:
        assert torch.equal(torch.stack(torch.load(tmp_path / "x.pt", weights_only=True)), torch.arange(66_000.0))


def test_beyond_four_gigabytes_sizes_and_places_are_wide(tmp_path):
    """The large member is a hole in the file, so that nothing is written."""
    path, size = tmp_path / "x.pt", (1 << 32) + 64
    large = TensorRef("U8", (size,), (Part(str(tmp_path / "none"), 0, (size,), (1,), (0,)),))
    pickle, _ = archive.pickled([large, Number(7.0)])
    with path.open("xb") as file:
        members = [archive._small(file, "data.pkl", pickle)]
        hole = archive._ZipMember(b"archive/data/0", file.tell(), size, 0)
        file.write(archive._local(hole))
        file.seek(size - 1, os.SEEK_CUR)
        file.write(b"\5")
        members += [hole, archive._small(file, "data/1", Number(7.0).raw), archive._small(file, "version", b"3\n")]
        archive._close(file, members)
    found = torch.load(path, weights_only=True, mmap=True)
    assert (found[0].numel(), int(found[0][-1]), float(found[1])) == (size, 5, 7.0)
    with zipfile.ZipFile(path) as opened:
        assert [member.file_size for member in opened.infolist()] == [len(pickle), size, 4, 2]
        assert opened.read("archive/data/1") == np.float32(7).tobytes()
    assert ZipIndex(str(path)).members["archive/data/0"][1] == size


def test_what_was_exported_is_read_here_again_without_torch(tmp_path, llama_state):
    path = ostate.export(llama_state, "torch", tmp_path / "optimizer.pt").path
    raw = formats.read(path)
    assert [entry.name for entry in raw.entries] == list(llama_state.parameters)
    assert ostate.diff(path, llama_state.path).same
    ostate.inspect(path, checksum=True)
