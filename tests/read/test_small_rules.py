"""Rules of one operator each in the reading of states, found by changing them one at a time (`python -m tests.mutate`)."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from ostate import read as formats
from ostate.core.tensors import Part, TensorRef
from ostate.errors import OstateError, ReadError
from ostate.read.container.zip import ZipIndex
from ostate.read.pickle.records import Inert
from ostate.read.quantized import slots_of


def saved(tmp_path, state, groups):
    path = tmp_path / "optimizer.pt"
    torch.save({"state": state, "param_groups": groups}, path)
    return str(path)


def entry(step=None, size=3):
    numbers = {"exp_avg": torch.arange(1.0, size + 1), "exp_avg_sq": torch.arange(1.0, size + 1)}
    return {"step": torch.tensor(1.0) if step is None else step, **numbers}


def test_a_lone_group_without_a_list_holds_every_entry(tmp_path):
    raw = formats.read(saved(tmp_path, {0: entry(), 1: entry()}, [{"lr": 0.1}]))
    assert [group.positions for group in raw.groups] == [(0, 1)]


@pytest.mark.parametrize(("groups", "index"), [([{"lr": 0.1}, {"lr": 0.2}], 0), ([{"lr": 0.1, "params": [0]}, {"lr": 0.2}], 1)])
def test_of_two_groups_each_must_list_its_parameters(tmp_path, groups, index):
    with pytest.raises(ReadError, match=f"group {index} does not list its parameters"):
        formats.read(saved(tmp_path, {0: entry(), 1: entry()}, groups))


def test_five_entries_that_no_group_lists_are_named(tmp_path):
    with pytest.raises(ReadError, match=r"6 entries of the state belong to no group: 1, 2, 3, 4, 5\n") as caught:
        formats.read(saved(tmp_path, {at: entry() for at in range(7)}, [{"lr": 0.1, "params": [0]}]))
    assert caught.value.fix


def forge(path, target, source):
    """Give one stored step the recorded checksum of another, in the zip's directory."""
    index = ZipIndex(path)
    steps = {ref: crc for ref, (_, size, crc) in index.members.items() if "/data/" in ref and size == 8}
    crcs = sorted(set(steps.values()))
    assert len(crcs) == 2
    raw = Path(path).read_bytes()
    Path(path).write_bytes(raw.replace(struct.pack("<I", crcs[target]), struct.pack("<I", crcs[source])))


def test_steps_of_eight_bytes_are_read_one_by_one_whatever_their_checksums_say(tmp_path):
    """CRC32 is one-to-one on four bytes only."""
    path = saved(tmp_path, {at: entry(torch.tensor(3.0 + at, dtype=torch.float64)) for at in range(2)}, [{"lr": 0.1, "params": [0, 1]}])
    forge(path, 0, 1)
    assert [one.step for one in formats.read(path).entries] == [3.0, 4.0]


def test_a_step_of_several_numbers_is_no_step(tmp_path):
    raw = formats.read(saved(tmp_path, {0: entry(torch.tensor([1.0, 2.0]))}, [{"lr": 0.1, "params": [0]}]))
    assert raw.entries[0].step is None


def test_a_slot_that_cannot_be_told_is_said_with_its_entry(tmp_path):
    broken = {"step": 3, "state1": torch.zeros(300, dtype=torch.uint8), "state2": torch.zeros(300, dtype=torch.uint8), "qmap1": torch.zeros(7)}
    with pytest.raises(OstateError) as caught:
        formats.read(saved(tmp_path, {5: broken}, [{"lr": 0.1, "params": [5]}]))
    assert "entry 5" in caught.value.where


def test_names_over_a_list_of_numbers_are_taken_only_where_one_group_lists_as_many(tmp_path):
    named = {"a": entry(), "b": entry()}
    raw = formats.read(saved(tmp_path, named, [{"lr": 0.1, "params": [0, 1]}]))
    assert [one.key for one in raw.entries] == ["a", "b"]
    wrong = (
        (named, [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}]),  # whose is whose
        (named, [{"lr": 0.1, "params": [0, 1, 2]}]),
        ({5: entry(), 6: entry()}, [{"lr": 0.1, "params": [0, 1]}]),
        ({0: entry(), "b": entry(), "c": entry()}, [{"lr": 0.1, "params": [0, 1]}]),
    )
    for state, groups in wrong:
        with pytest.raises(ReadError, match="belong to no group"):
            formats.read(saved(tmp_path, state, groups))


def test_a_packed_moment_whose_shape_is_no_list_of_sizes_is_refused():
    def flat(elements, dtype):
        return TensorRef(dtype, (elements,), (Part("file", 0, (elements,), (1,), (0,)),))

    inner = {"codes": flat(256, "U8"), "scale": flat(1, "F32"), "qmap": flat(256, "F32")}
    name = "torchao.optim.subclass_8bit.OptimState8bit"
    assert slots_of({"exp_avg": Inert(name, kwargs={"shape": (2, 128)}, state=inner)})[0]["exp_avg"].shape == (2, 128)
    for shape in (5, "ab", [2, "x"], None):
        with pytest.raises(ReadError, match="whose shape is"):
            slots_of({"exp_avg": Inert(name, kwargs={"shape": shape}, state=inner)})


def test_master_weights_of_a_parameter_that_is_neither_a_number_nor_a_name_are_refused_in_words(tmp_path):
    """Stage 0 of DeepSpeed keeps them by group, beside the optimizer's own state."""
    groups = [{"lr": 0.1, "params": [[1]]}]
    optimizer = {"state": {0: entry()}, "param_groups": groups, "fp32_groups": [[torch.zeros(3)]]}
    torch.save({"module": {}, "optimizer": optimizer}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(ReadError, match="neither a number nor a name"):
        formats.read(str(tmp_path))
