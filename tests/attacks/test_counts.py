"""Files that ask for much: refused with the number they ask for, or read in time that grows as they do."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path

import pytest
import torch

import ostate
from ostate import read as formats
from ostate.core import limits
from ostate.core.names_list import read_names
from ostate.errors import ReadError
from ostate.read.adapters import read_adapter
from ostate.read.container import dcp_index
from tests.real import CASES

CHECKPOINT = CASES / "one-process" / "llama_all_linear_12" / "checkpoint-5"
STATE = torch.load(CHECKPOINT / "optimizer.pt", weights_only=True)
GROUP = STATE["param_groups"][0]


def saved(path, entries, groups):
    torch.save({"state": entries, "param_groups": groups}, path / "optimizer.pt")
    return str(path / "optimizer.pt")


def entry(tensor):
    return {"step": torch.tensor(1.0), "exp_avg": tensor, "exp_avg_sq": tensor}


def header(path, table, data=0):
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + data)


def cpu(call):
    began = time.process_time()
    call()
    return time.process_time() - began


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(100_000, 10_000), torch.zeros(20_000).as_strided((10_000, 10_000), (1, 1)), torch.zeros(8).expand(10**7, 8)],
    ids=["one number", "rows that overlap", "one row"],
)
def test_a_tensor_that_repeats_its_bytes_is_refused_before_it_is_made(tmp_path, tensor):
    path = saved(tmp_path, {0: entry(tensor)}, [{**GROUP, "params": [0]}])
    assert os.path.getsize(path) < 100_000
    for call in (lambda: ostate.inspect(path, values=True), lambda: ostate.repair(path, None)):
        with pytest.raises(ReadError, match=r"the tensors of the state claim \d+ bytes, and its files hold \d+") as caught:
            call()
        assert caught.value.fix


def test_many_parameters_over_one_storage_are_refused_and_views_of_one_buffer_are_not(tmp_path):
    shared = torch.zeros(1 << 20)
    path = saved(tmp_path, {i: entry(shared) for i in range(40)}, [{**GROUP, "params": list(range(40))}])
    with pytest.raises(ReadError, match="the tensors of the state claim"):
        formats.read(path)
    flat = torch.zeros(20 << 20)
    views = {i: {"step": torch.tensor(1.0), "exp_avg_sq": flat[i << 20 : (i + 1) << 20]} for i in range(20)}
    assert len(formats.read(saved(tmp_path, views, [{**GROUP, "params": list(range(20))}])).entries) == 20


@pytest.mark.parametrize("what", ["groups", "positions"])
def test_many_empty_groups_and_positions_without_state_cost_in_proportion(tmp_path, what):
    """Twice as many take no more than three times as long; four would be quadratic, as it was: more than 30 s for 20,000 groups."""
    times = []
    for count in (4_000, 8_000) if what == "groups" else (30_000, 60_000):
        more = [{**GROUP, "params": []} for _ in range(count)] if what == "groups" else [{**GROUP, "params": list(range(168, 168 + count))}]
        path = saved(tmp_path, STATE["state"], [*STATE["param_groups"], *more])

        def both(path=path):
            ostate.inspect(path)
            assert ostate.repair(path, None, adapter=str(CHECKPOINT)).ordering.names

        times.append(cpu(both))
    assert times[1] < 3 * times[0] + 0.5, times
    assert times[1] < 20, times


@pytest.mark.parametrize(("limit", "what"), [("GROUPS", "groups"), ("POSITIONS", "positions")])
def test_beyond_the_limit_groups_and_positions_are_refused_with_their_number(tmp_path, monkeypatch, limit, what):
    monkeypatch.setattr(limits, limit, 100)
    more = [{**GROUP, "params": []} for _ in range(100)]
    path = saved(tmp_path, STATE["state"], [*STATE["param_groups"], *more])
    with pytest.raises(ReadError, match=rf"\d+ {what}, more than 100"):
        formats.read(path)


def test_names_of_millions_of_letters_are_refused_wherever_they_lie(tmp_path):
    long = "a." * 100_000 + "b"
    path = saved(tmp_path, {0: STATE["state"][0]}, [{**GROUP, "params": [0], "param_names": [long]}])
    with pytest.raises(ReadError, match="a name of 200001 letters, more than 5000"):
        formats.read(path)
    header(tmp_path / "a.safetensors", {long: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    with pytest.raises(ReadError, match="names of 5000 letters"):
        read_adapter(str(tmp_path / "a.safetensors"))
    torch.save({long: torch.zeros(1)}, tmp_path / "a.bin")
    with pytest.raises(ReadError, match="names of 5000 letters"):
        read_adapter(str(tmp_path / "a.bin"))
    path = saved(tmp_path, {0: STATE["state"][0]}, [{**GROUP, "params": [0]}])
    (tmp_path / "optimizer_param_names.json").write_text(json.dumps([long]))
    with pytest.raises(ReadError, match="a name of 200001 letters"):
        formats.read(path)


def test_a_header_of_more_tensors_than_any_file_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "TENSORS", 100)
    header(tmp_path / "a.safetensors", {f"a{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(101)})
    with pytest.raises(ReadError, match="101 tensors in the safetensors header"):
        read_adapter(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(("length", "message"), [(1 << 40, "more than any file of weights has"), (1 << 33, "a sparse file")])
def test_a_file_of_weights_that_was_never_written_is_refused_by_its_header(tmp_path, length, message):
    """It was hashed to its end: hours for a terabyte of nothing."""
    header(tmp_path / "adapter_model.safetensors", {"a.lora_A.weight": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}}, length)
    with pytest.raises(ReadError, match=message):
        read_adapter(str(tmp_path))


def test_lists_and_objects_of_a_names_file_and_of_the_trainers_log_are_counted_before_they_are_read(tmp_path):
    path = saved(tmp_path, {0: STATE["state"][0]}, [{**GROUP, "params": [0]}])
    (tmp_path / "trainer_state.json").write_text('{"global_step": 5, "log_history": [' + "[]," * 600_000 + "[]]}")
    assert "global_step" not in formats.read(path).facts
    (tmp_path / "optimizer_param_names.json").write_text("[" + "[]," * 600_000 + "[]]")
    with pytest.raises(ReadError, match="600002 lists and objects, more than 500000"):
        formats.read(path)


def legacy():
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


ZIP = (CHECKPOINT / "optimizer.pt").read_bytes()


CONTENTS = {"zip twice": ZIP + ZIP, "legacy twice": legacy() * 2, "one of each": legacy() + ZIP, "resumed": ZIP[:1000] + ZIP}


MANY = list(map(str, range(600_000)))


@pytest.mark.parametrize("text", [json.dumps(MANY), "\n".join(MANY), "[" + '"",' * 1_600_000 + '""]'], ids=["a list", "lines", "texts of no letter"])
def test_more_names_than_any_state_has_are_refused(tmp_path, text):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(ReadError, match="more than") as refused:
        read_names(str(path))
    assert "500000" in str(refused.value)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_archives_one_after_another_are_refused(tmp_path, content):
    (tmp_path / "optimizer.pt").write_bytes(content)
    with pytest.raises(ReadError, match=r"two files one after another|zip64 record is damaged") as caught:
        formats.read(str(tmp_path / "optimizer.pt"))
    assert caught.value.fix


def test_each_archive_alone_is_read(tmp_path):
    for content in (ZIP, legacy()):
        (tmp_path / "optimizer.pt").write_bytes(content)
        assert len(formats.read(str(tmp_path / "optimizer.pt")).entries) == 168


def test_the_limits_are_those_that_the_docs_show():
    page = (Path(__file__).parents[2] / "docs" / "threats.md").read_text(encoding="utf-8")
    assert re.search(r"<!-- limits -->\n(.*?)\n<!-- end -->", page, re.S)[1] == limits.table()
    named = {name: value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}
    assert sorted(named.values()) == sorted(limit.value for limit in limits.TABLE)
    assert {
        "GROUPS": 100_000,
        "POSITIONS": 500_000,
        "CONTAINERS": 500_000,
        "NAME": 5000,
        "TENSORS": 250_000,
        "VALUES": 2_000_000,
    }.items() <= named.items()


def packed_entry(codes, scale, table):
    return {"step": torch.tensor(1.0), **{f"{word}{n}": one for n in "12" for word, one in (("state", codes), ("absmax", scale), ("qmap", table))}}


@pytest.mark.parametrize("what", ["codes", "table"])
def test_packed_moments_that_repeat_their_bytes_are_refused(tmp_path, what):
    codes = torch.zeros(1, dtype=torch.uint8).expand(1 << 28) if what == "codes" else torch.zeros(256, dtype=torch.uint8)
    scale = torch.zeros(1).expand((1 << 28) // 256) if what == "codes" else torch.ones(1)
    table = torch.zeros(1).expand(1 << 28) if what == "table" else torch.zeros(256)
    path = saved(tmp_path, {0: packed_entry(codes, scale, table)}, [{**GROUP, "params": [0]}])
    with pytest.raises(ReadError, match="the tensors of the state claim"):
        formats.read(path)


def packed_ranks(tmp_path, codes, scale, table):
    """ZeRO's flat buffers in 8 bits, of one process: two parameters cut out of one buffer."""
    half = codes.numel() // 2
    entry = packed_entry(codes, scale, table)
    state = {
        "zero_stage": 1,
        "partition_count": [1],
        "ds_version": "0.19.8",
        "base_optimizer_state": {"state": {0: entry}, "param_groups": [{**GROUP, "params": [0]}]},
    }
    torch.save({"optimizer_state_dict": state}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save({"param_shapes": [{"a": torch.Size([half]), "b": torch.Size([half])}], "module": {}}, tmp_path / "mp_rank_00_model_states.pt")
    return str(tmp_path)


def test_parameters_cut_out_of_packed_moments_that_repeat_their_bytes_are_refused(tmp_path):
    (tmp_path / "sound").mkdir()
    sound = packed_ranks(tmp_path / "sound", torch.zeros(1 << 10, dtype=torch.uint8), torch.ones(4), torch.zeros(256))
    raw = formats.read(sound)
    assert [(entry.name, entry.slots["exp_avg"].read().shape) for entry in raw.entries] == [("a", (512,)), ("b", (512,))]
    folder = packed_ranks(tmp_path, torch.zeros(1, dtype=torch.uint8).expand(1 << 28), torch.zeros(1).expand(1 << 20), torch.zeros(256))
    with pytest.raises(ReadError, match="the tensors of the state claim"):
        formats.read(folder)


def test_an_index_of_a_terabyte_of_holes_is_refused_by_its_size(tmp_path):
    with open(tmp_path / ".metadata", "wb") as file:
        file.truncate(1 << 40)
    for call in (lambda: formats.read(str(tmp_path)), lambda: dcp_index.read_index(str(tmp_path))):
        with pytest.raises(ReadError, match="1099511627776 bytes are too many") as caught:
            call()
        assert caught.value.fix
