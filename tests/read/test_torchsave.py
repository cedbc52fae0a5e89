"""Files of torch.save, read without torch, against what torch itself reads."""

from __future__ import annotations

import pickletools
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ostate.core import files
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError
from ostate.read.container import torchsave
from ostate.read.container.zip import ZipIndex
from ostate.read.pickle import globals as pickles
from ostate.read.pickle import torch_tensors as tensors
from tests import real
from tests.read.archives import Tensor, saved, state_of

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def same(ref: TensorRef, tensor: torch.Tensor) -> bool:
    wanted = tensor.float().numpy() if tensor.dtype.is_floating_point and tensor.dtype is not torch.float64 else tensor.numpy()
    return ref.shape == tuple(tensor.shape) and ref.read().tobytes() == np.ascontiguousarray(wanted).tobytes()


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.randn(shape) * 30
    return values.to(dtype) if dtype is not torch.bool else values > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (2, 0, 5), (2, 3, 4, 5)], ids=str)
def test_every_dtype_and_shape_reads_as_torch_reads_it(tmp_path, dtype, shape):
    tensor = tensor_of(dtype, shape)
    torch.save({"a": tensor}, tmp_path / "x.pt")
    ref = torchsave.load(str(tmp_path / "x.pt")).value["a"]
    assert ref.dtype == DTYPES[dtype]
    assert same(ref, tensor)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_views_of_a_shared_storage_keep_their_own_place_and_strides(tmp_path, new):
    whole = torch.arange(120.0).reshape(10, 12)
    views = {"t": whole.t(), "rows": whole[3:5], "columns": whole[:, 2:7:2], "one": whole[4, 4], "wide": whole[0].expand(3, 12), "whole": whole}
    torch.save(views, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert all(same(stored[name], view) for name, view in views.items())
    assert len({ref.parts[0].file for ref in stored.values()}) == 1
    assert (stored["whole"].crc32 is not None) == new
    assert stored["rows"].crc32 is None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_that_torch_can_load(tmp_path, protocol):
    value = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 5)}}, "n": [1, 2.5, None, True, "ä\n", b"\0\xff", (1, (2,)), {3}]}
    torch.save(value, tmp_path / "x.pt", pickle_protocol=protocol)
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert stored["n"] == value["n"]
    assert same(stored["state"][0]["exp_avg"], value["state"][0]["exp_avg"])


def test_parameters_and_tensors_with_attributes_are_their_data(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    marked = torch.randn(4)
    marked.note = "kept by torch, of no use here"
    torch.save({"p": parameter, "m": marked}, tmp_path / "x.pt")
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert same(stored["p"], parameter.detach())
    assert same(stored["m"], marked)


def test_a_big_endian_file_gives_the_same_numbers(tmp_path):
    values = np.arange(6, dtype=">f4")
    saved(tmp_path / "x.pt", {"a": Tensor("0", (2, 3)), "h": Tensor("1", (3,), kind="BFloat16Storage")},
          {"0": values.tobytes(), "1": b"\x3f\x80\x40\x00\x40\x40"}, byteorder=b"big")  # fmt: skip
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert stored["a"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert stored["h"].read().tolist() == [1, 2, 3]
    assert stored["a"].run is None


def test_a_file_above_four_gigabytes_is_read_through_its_zip64_directory(tmp_path):
    with torch.serialization.skip_data():
        torch.save(
            {"big": torch.empty(3 << 30, dtype=torch.uint8), "more": torch.empty(3 << 30, dtype=torch.uint8), "a": torch.zeros(5)}, tmp_path / "x.pt"
        )
    offset = torch.load(tmp_path / "x.pt", mmap=True, weights_only=True)["a"].untyped_storage()
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert stored["a"].parts[0].offset > 6 << 30
    assert stored["big"].shape == (3 << 30,)
    with (tmp_path / "x.pt").open("r+b") as file:
        file.seek(stored["a"].parts[0].offset)
        file.write(np.arange(5, dtype="<f4").tobytes())
    del offset
    assert torch.load(tmp_path / "x.pt", mmap=True, weights_only=True)["a"].tolist() == stored["a"].read().tolist() == [0, 1, 2, 3, 4]


def test_an_archive_within_a_larger_file(tmp_path):
    torch.save({"a": torch.arange(7.0)}, tmp_path / "x.pt")
    blob = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "large").write_bytes(b"#" * 1001 + blob + b"tail that belongs to another")
    stored = torchsave.load(str(tmp_path / "large"), start=1001, length=len(blob))
    assert stored.value["a"].read().tolist() == list(range(7))
    assert stored.source.size == len(blob)


def test_without_checksums_none_is_claimed(tmp_path):
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save({"a": torch.zeros(3), "b": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert stored["a"].crc32 is None
    assert stored["b"].read().tolist() == [1, 1, 1]


def test_opening_reads_the_index_and_no_tensor(tmp_path, monkeypatch):
    torch.save({i: torch.zeros(4096) for i in range(500)}, tmp_path / "x.pt")
    read: list[int] = []

    def counted(path: str, offset: int, length: int) -> bytes:
        read.append(length)
        return files.read_at(path, offset, length)

    monkeypatch.setattr("ostate.read.container.zip.read_at", counted)
    monkeypatch.setattr("ostate.read.container.torchsave.read_at", counted)
    torchsave.load(str(tmp_path / "x.pt"))
    assert len(read) < 10
    assert sum(read) < 150_000 < 500 * 4096 * 4


def slowly(path: str, monkeypatch: pytest.MonkeyPatch) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(torchsave, "fast_path_of", lambda *_, **__: lambda _, at: -1)
        return torchsave.load(path).value


@pytest.mark.parametrize("name", [*real.names("one-process"), "lit_single", "tune_single"])
def test_a_record_read_in_one_match_is_the_record_read_opcode_by_opcode(name, monkeypatch):
    case = real.case(name)
    folder = case.state if case.state.is_dir() else case.state.parent
    for file in [path for path in folder.rglob("*") if path.suffix in {".pt", ".bin", ".ckpt"} and name != "neg_truncated"]:
        assert repr(torchsave.load(str(file)).value) == repr(slowly(str(file), monkeypatch))


def test_the_usual_record_is_read_in_one_match(tmp_path, monkeypatch):
    torch.save({i: torch.zeros(2, 3 + i) for i in range(300)}, tmp_path / "x.pt")
    calls = []
    monkeypatch.setitem(tensors.REBUILD, tensors.REBUILD_V2, lambda *args: calls.append(args) or tensors._rebuild_v2(*args))
    torchsave.load(str(tmp_path / "x.pt"))
    assert len(calls) <= 1


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_tensor_that_stands_in_the_pickle_twice_is_read_twice(tmp_path, monkeypatch, protocol):
    shared = torch.arange(6.0).reshape(2, 3)
    states = {i: {"exp_avg": torch.full((2, 3 + i), float(i)), "exp_avg_sq": shared} for i in range(300)}
    torch.save(states, tmp_path / "x.pt", pickle_protocol=protocol)
    calls = []
    monkeypatch.setitem(tensors.REBUILD, tensors.REBUILD_V2, lambda *args: calls.append(args) or tensors._rebuild_v2(*args))
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    for i, entry in stored.items():
        assert entry["exp_avg"].read().tolist() == states[i]["exp_avg"].tolist()
        assert entry["exp_avg_sq"].read().tolist() == shared.tolist()
    assert len(calls) <= 2 or protocol == 4  # once in each run: the first leaves out what the second is asked for


def test_numbers_that_memoize_counts_are_never_taken_from_a_memo_with_gaps(tmp_path):
    """A record written with BINPUT beside text that MEMOIZE numbers: no writer mixes them, and the number of the text is Python's."""
    torch.save({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "x.pt")
    index = ZipIndex(str(tmp_path / "x.pt"))
    name = next(name for name in index.members if name.endswith("data.pkl"))
    pickled = index.read(name, 1 << 20)
    assert pickled.endswith(b"u.")
    puts = [argument for opcode, argument, _ in pickletools.genops(pickled) if opcode.name == "BINPUT"]
    assert puts == list(range(len(puts)))
    prefix = name.removesuffix("data.pkl") + "data/"
    storage = pickled.index(b"X\1\0\0\x001q") + 7  # the second record's number of its storage's key: the first number that a fast path leaves out
    mixed = pickled[:-2] + b"X\1\0\0\0c\x94h" + pickled[storage : storage + 1] + b"u."
    find = torchsave._storages("x", prefix, index.members, swapped=False, crc=True)
    fast_paths = (tensors.REBUILD_V2, [tensors.fast_path_of("x", prefix, index.members, swapped=False, crc=True)])
    table = {**pickles.TORCH_GLOBALS, **tensors.REBUILD}
    slow = pickles.unpickle(mixed, where="", persistent=find, allowed=table)
    assert slow["c"] == "1"
    assert repr(pickles.unpickle(mixed, where="", persistent=find, allowed=table, fast_paths=fast_paths)) == repr(slow)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), NAMES, st.binary(max_size=20))
PLAIN = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(NAMES, st.integers()), inner, max_size=4),
        st.tuples(inner, inner),
        st.sets(NAMES, max_size=3),
    ),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=PLAIN, protocol=st.integers(2, 5), new=st.booleans())
def test_plain_data_comes_back_equal(tmp_path, value, protocol, new):
    torch.save({"v": value}, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    assert torchsave.load(str(tmp_path / "x.pt")).value == {"v": value}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), new=st.booleans())
def test_random_views_read_as_torch_reads_them(tmp_path, seed, new):
    chance = random.Random(seed)
    base = tensor_of(chance.choice(list(DTYPES)), (chance.randint(1, 4), chance.randint(1, 5), chance.randint(1, 6)))
    views = [
        base.permute(*chance.sample(range(3), 3))[chance.randrange(base.shape[0]) :: chance.randint(1, 2)] if chance.random() < 0.7 else base
        for _ in range(5)
    ]
    torch.save(views, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    assert all(same(ref, view) for ref, view in zip(torchsave.load(str(tmp_path / "x.pt")).value, views))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"\0" * 4096), "nothing but zeros"),
        (lambda path: path.write_bytes(b"{}"), "it is JSON"),
        (lambda path: path.write_bytes(b"\x80\x04K\x01."), "a plain pickle"),
        (lambda path: path.write_bytes(b"hello world, this is a text"), "not a torch.save file"),
        (lambda path: path.write_bytes(b"PK\3\4" + b"x" * 100), "no archive directory"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_torchs_says_what_it_is(tmp_path, make, text):
    make(tmp_path / "x.pt")
    with pytest.raises(ReadError, match=text) as caught:
        torchsave.load(str(tmp_path / "x.pt"))
    assert caught.value.where == str(tmp_path / "x.pt")
    assert caught.value.fix


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, share, new):
    torch.save(state_of(torch.randn(30, 30)), tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ReadError, match=r"x\.pt"):
        torchsave.load(str(tmp_path / "x.pt"))


def test_a_pickle_whose_checksum_is_wrong_is_refused(tmp_path):
    torch.save({"lr": 0.001953125, "a": torch.zeros(3)}, tmp_path / "x.pt")
    raw = bytearray((tmp_path / "x.pt").read_bytes())
    at = raw.index(b"\x3f\x60\0\0\0\0\0\0")
    raw[at + 3] = 1
    (tmp_path / "x.pt").write_bytes(raw)
    assert torch.load(tmp_path / "x.pt", weights_only=True)["lr"] != 0.001953125
    with pytest.raises(ReadError, match=r"checksum of data\.pkl"):
        torchsave.load(str(tmp_path / "x.pt"))


def test_a_torchscript_program_is_no_state(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as out:
        out.writestr("x/data.pkl", b"\x80\x02}.")
        out.writestr("x/constants.pkl", b"\x80\x02).")
    with pytest.raises(ReadError, match="TorchScript"):
        torchsave.load(str(tmp_path / "x.pt"))


def test_a_reference_to_a_part_of_a_record_is_followed(tmp_path):
    torch.save({"a": torch.zeros(2), "b": torch.ones(2), "keys": ["0", "1"]}, tmp_path / "x.pt")
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert stored["keys"] == ["0", "1"]
    assert stored["b"].read().tolist() == [1, 1]


def test_a_tensor_that_stands_twice_is_one(tmp_path):
    shared = torch.randn(3)
    torch.save([torch.zeros(1), shared, shared, {"again": shared}], tmp_path / "x.pt")
    _, first, second, third = torchsave.load(str(tmp_path / "x.pt")).value
    assert first == second == third["again"]
    assert same(first, shared)


@pytest.mark.parametrize("alignment", [1, 8, 16, 64, 128, 4096])
def test_any_alignment_that_torch_can_be_told_gives_the_same_numbers(tmp_path, alignment):
    from torch.utils.serialization import config

    tensors_ = {f"t{index}": torch.randn(1 + index % 7) for index in range(60)}
    with config.patch("save.storage_alignment", alignment):
        torch.save(tensors_, tmp_path / "x.pt")
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert all(same(stored[name], tensor) for name, tensor in tensors_.items())


def test_tensors_that_begin_within_a_storage_of_their_own(tmp_path):
    tensors_ = {index: torch.randn(12)[1 + index % 5 :: 1 + index % 2] for index in range(40)}
    torch.save(tensors_, tmp_path / "x.pt")
    stored = torchsave.load(str(tmp_path / "x.pt")).value
    assert all(same(stored[index], tensor) for index, tensor in tensors_.items())
    assert all(ref.crc32 is None for ref in stored.values())
