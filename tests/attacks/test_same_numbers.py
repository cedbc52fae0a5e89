"""What one file means to two readers: every number is the one that torch itself loads, or the file is refused. There is no third answer."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest
import torch

from ostate import read as formats
from ostate.errors import ReadError
from tests.real import CASES

SHAPE = (3, 4)


def state():
    def entry(shape, seed):
        m = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return {"step": torch.tensor(5.0), "exp_avg": m, "exp_avg_sq": m * m + 1e-3}

    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0, 1, 2]}
    return {"state": {0: entry(SHAPE, 0), 1: entry(SHAPE, 1), 2: entry((5,), 2)}, "param_groups": [group]}


def ours(path):
    """Return the numbers by place in the groups."""
    raw = formats.read(str(path))
    return {entry.position: {slot: np.asarray(values.read()) for slot, values in entry.slots.items()} for entry in raw.entries if entry.has_state}


def theirs(path):
    """The same as torch loads them; load_state_dict gives the i-th parameter what the i-th id of `params` stands for."""
    stored = torch.load(path, weights_only=False)
    ids = [one for group in stored["param_groups"] for one in group["params"]]
    return {
        place: {slot: values.detach().to(torch.float64).numpy() for slot, values in stored["state"][one].items() if slot != "step"}
        for place, one in enumerate(ids)
    }


def same_or_refused(path):
    try:
        mine = ours(path)
    except ReadError as error:
        return "refused" if error.fix else "refused without a way out"
    for place, slots in theirs(path).items():
        assert slots.keys() == mine[place].keys()
        for slot, values in slots.items():
            assert mine[place][slot].shape == values.shape
            assert np.array_equal(mine[place][slot].astype(np.float64), values)
    return "same"


def moments(first, second=None):
    def change(stored):
        stored["state"][0].update(exp_avg=first, exp_avg_sq=torch.rand(first.shape) if second is None else second)

    return change


def cast(dtype):
    return lambda stored: [entry.update({slot: entry[slot].to(dtype) for slot in ("exp_avg", "exp_avg_sq")}) for entry in stored["state"].values()]


def ids(*params):
    def change(stored):
        stored["state"] = dict(zip(sorted(params), stored["state"].values()))
        stored["param_groups"][0]["params"] = list(params)

    return change


ONE = torch.arange(100.0)
MEANT = {
    "transposed": (moments(torch.randn(4, 3).T, torch.rand(4, 3).T), "same"),
    "cut out": (moments(torch.randn(9, 9)[2:5, 3:7], torch.rand(9, 9)[::3, 1:5]), "same"),
    "two views of one storage": (moments(ONE[:12].view(SHAPE), ONE[50:62].view(SHAPE)), "same"),
    "views over each other": (moments(ONE[:12].view(SHAPE), ONE[6:18].view(SHAPE)), "same"),
    "one tensor in both slots": (moments(ONE[:12].view(SHAPE), ONE[:12].view(SHAPE)), "same"),
    "one entry for two": (lambda stored: stored["state"].update({1: stored["state"][0]}), "same"),
    "spread by a stride of zero": (moments(torch.randn(1, 4).expand(SHAPE)), "same"),
    "channels last": (moments(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)), "same"),
    "no element": (moments(torch.zeros(0, 4)), "same"),
    "one number": (moments(torch.tensor(3.0), torch.tensor(4.0)), "same"),
    "a parameter": (moments(torch.nn.Parameter(torch.randn(SHAPE))), "same"),
    "float16": (cast(torch.float16), "same"),
    "bfloat16": (cast(torch.bfloat16), "same"),
    "float64": (cast(torch.float64), "same"),
    "ids in another order": (ids(2, 0, 1), "same"),
    "ids with gaps": (ids(0, 5, 9), "same"),
    "ids of numpy": (lambda stored: stored["param_groups"][0].update(params=[np.int64(one) for one in (0, 1, 2)]), "same"),
    "an id twice": (lambda stored: stored["param_groups"][0].update(params=[0, 1, 1]), "refused"),
    "one list for two groups": (lambda stored: stored["param_groups"].append({**stored["param_groups"][0]}), "refused"),
    "an id that is text too": (lambda stored: stored["state"].update({"0": stored["state"][1]}), "refused"),
    "a pending conjugate": (moments(torch.randn(SHAPE, dtype=torch.complex64).conj()), "refused"),
    "a pending sign": (moments(torch.imag(torch.randn(SHAPE, dtype=torch.complex64).conj())), "refused"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("kind", MEANT)
def test_numbers_are_those_that_torch_loads(tmp_path, kind, zipped):
    change, ends = MEANT[kind]
    stored = state()
    change(stored)
    torch.save(stored, tmp_path / "optimizer.pt", _use_new_zipfile_serialization=zipped)
    assert same_or_refused(tmp_path / "optimizer.pt") == ends


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz], ids=str)
def test_every_kind_of_float8_is_decoded_as_torch_does(tmp_path, dtype):
    stored = state()
    cast(dtype)(stored)
    torch.save(stored, tmp_path / "optimizer.pt")
    assert same_or_refused(tmp_path / "optimizer.pt") == "same"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_that_torch_loads_gives_the_same(tmp_path, protocol, zipped):
    torch.save(state(), tmp_path / "optimizer.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert same_or_refused(tmp_path / "optimizer.pt") == "same"


def archived(source, target, *, change=lambda name, data: data, order=list, prefix=b"", comment=b"", zip64=False):
    """Write the archive's members again, by Python's own module."""
    with zipfile.ZipFile(source) as old, open(target, "wb") as file:
        file.write(prefix)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new:
            for name in order(old.namelist()):
                with new.open(zipfile.ZipInfo(name), "w", force_zip64=zip64) as member:
                    member.write(change(name, old.read(name)))
            new.comment = comment


def byte_order(text):
    return lambda name, data: text if name.endswith("byteorder") else data


ARCHIVES = {
    "by Python": ({}, "same"),
    "with sizes of 64 bits": ({"zip64": True}, "same"),
    "members in another order": ({"order": lambda names: names[::-1]}, "same"),
    "with a comment": ({"comment": b"hello" * 100}, "same"),
    "the other byte order": ({"change": byte_order(b"big")}, "same"),
    "without a byte order": ({"order": lambda names: [name for name in names if not name.endswith("byteorder")]}, "same"),
    "a byte order in capitals": ({"change": byte_order(b"LITTLE")}, "refused"),
    "a byte order with a line's end": ({"change": byte_order(b"big\n")}, "refused"),
    "an end record within its comment": ({"comment": b"PK\5\6" + bytes(18)}, "refused"),
    "behind a script": ({"prefix": b"#!/bin/sh\n" * 20}, "refused"),
    "a storage cut short": ({"change": lambda name, data: data[:-4] if "/data/1" in name else data}, "refused"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_written_by_another_program_is_read_as_torch_reads_it(tmp_path, kind):
    changes, ends = ARCHIVES[kind]
    torch.save(state(), tmp_path / "source.pt")
    archived(tmp_path / "source.pt", tmp_path / "optimizer.pt", **changes)
    assert same_or_refused(tmp_path / "optimizer.pt") == ends


def test_digits_behind_a_storages_name_are_opcodes_and_no_part_of_it(tmp_path):
    """`0` takes the last value away, `2` doubles it: "1" with `20` behind it is storage 1 to torch, and was storage 120 here."""
    torch.save(state(), tmp_path / "source.pt")

    def change(name, data):
        at = data.index(b"X\1\0\0\0" + b"1") if name.endswith("data.pkl") else 0
        return data[: at + 6] + b"20" + data[at + 6 :] if name.endswith("data.pkl") else data

    archived(tmp_path / "source.pt", tmp_path / "optimizer.pt", change=change)
    with zipfile.ZipFile(tmp_path / "optimizer.pt", "a") as archive:
        (first,) = (name for name in archive.namelist() if name.endswith("data/1"))
        archive.writestr(first + "20", bytes(4096))
    assert same_or_refused(tmp_path / "optimizer.pt") == "same"


# files of several ranks


def copied_run(tmp_path, case):
    shutil.copytree(CASES / "distributed" / case, tmp_path / "run")
    return sorted((tmp_path / "run").rglob("*optim_states.pt"))


@pytest.mark.parametrize("how", ["copy", "link", "hard link"])
@pytest.mark.parametrize("case", ["ds_z2", "ds_z2_rr", "ds_z3"])
def test_a_ranks_file_in_the_place_of_another_is_seen(tmp_path, case, how):
    """In ZeRO-3 both hold as many numbers, half of every parameter: nothing but their being the same tells."""
    first, second = copied_run(tmp_path, case)
    second.unlink()
    {"copy": shutil.copy, "link": lambda a, b: b.symlink_to(a), "hard link": lambda a, b: b.hardlink_to(a)}[how](first, second)
    with pytest.raises(ReadError) as told:
        formats.read(str(tmp_path / "run"))
    assert told.value.fix


def test_two_ranks_whose_moments_are_all_zero_are_no_copies(tmp_path):
    paths = copied_run(tmp_path, "ds_z3")
    for path in paths:
        stored = torch.load(path, weights_only=False)
        for entry in stored["optimizer_state_dict"]["optimizer_state_dict"]["state"].values():
            entry["exp_avg"].zero_(), entry["exp_avg_sq"].zero_()
        torch.save(stored, path)
    assert len(formats.read(str(tmp_path / "run")).entries) == 18


PADDINGS = {
    "more padding": lambda inner, rank: inner.update(group_paddings=[one + 3 for one in inner["group_paddings"]]),
    "padding on one rank": lambda inner, rank: inner.update(group_paddings=[5 * rank, 7 * rank]),
    "fewer processes": lambda inner, rank: inner.update(partition_count=[1, 1]),
    "more processes": lambda inner, rank: inner.update(partition_count=[4, 4]),
    "longer buffers": lambda inner, rank: lengthened(inner, 8),
    "shorter buffers": lambda inner, rank: lengthened(inner, -8),
    "longer on one rank": lambda inner, rank: lengthened(inner, 16 * rank),
}


def lengthened(inner, count):
    """Add zeros to every flat buffer of moments and of master weights, or take numbers off their end."""

    def other(flat):
        return flat[:count].clone() if count < 0 else torch.cat([flat, flat.new_zeros(count)])

    for entry in inner["base_optimizer_state"]["state"].values():
        entry.update({slot: other(values) for slot, values in entry.items() if isinstance(values, torch.Tensor) and values.ndim})
    inner["single_partition_of_fp32_groups"] = [other(flat.detach()) for flat in inner["single_partition_of_fp32_groups"]]


@pytest.mark.parametrize("kind", PADDINGS)
def test_buffers_and_paddings_that_do_not_go_together_are_refused_and_nothing_is_shifted(tmp_path, kind):
    for rank, path in enumerate(copied_run(tmp_path, "ds_z2")):
        stored = torch.load(path, weights_only=False)
        PADDINGS[kind](stored["optimizer_state_dict"], rank)
        torch.save(stored, path)
    with pytest.raises(ReadError):
        formats.read(str(tmp_path / "run"))
