"""FSDP1 and FSDP2 outside torch.distributed.checkpoint, and ZeroRedundancyOptimizer: one file for all, or one a process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ostate import read as formats
from ostate.checks import judging
from ostate.commands.repair import repair
from ostate.errors import CheckError, ReadError, UnknownFormat, UnsafePickle

from .made import check, made, order_of, truth_of, two_group_order


@pytest.fixture(scope="session")
def fsdp1(tmp_path_factory):
    return made(tmp_path_factory, "make_fsdp1")


@pytest.fixture(scope="session")
def fsdp2(tmp_path_factory):
    return made(tmp_path_factory, "make_dcp")


def test_fsdp2_full_is_one_file_by_name(fsdp2):
    check(formats.read(str(fsdp2 / "full")), fsdp2 / "full")


@pytest.mark.parametrize("case", ["raw_ranks", "raw_accelerate", "hybrid_ranks"])
def test_raw_dtensors_of_all_processes_make_whole_tensors_under_integer_ids(fsdp2, case):
    raw = formats.read(str(fsdp2 / case))
    assert raw.layout == "fsdp-ranks"
    assert raw.recorded is None
    assert raw.facts["world_size"] == 2
    check(raw, fsdp2 / case, order=two_group_order(truth_of(fsdp2 / case)))


def test_dtensors_saved_by_name_keep_their_names(fsdp2):
    raw = formats.read(str(fsdp2 / "named_ranks"))
    assert raw.recorded == "name-keyed"
    check(raw, fsdp2 / "named_ranks")


@pytest.mark.parametrize("case", ["full", "sharded", "named_ranks"])
def test_fsdp1_is_read_by_name(fsdp1, case):
    check(formats.read(str(fsdp1 / case)), fsdp1 / case)


def test_fsdp1_flat_parameters_are_fine_where_the_api_wrote_them(fsdp1):
    raw = formats.read(str(fsdp1 / "flat_sharded"))
    assert raw.recorded == "dcp"
    assert len(raw.entries) == 21
    assert all(entry.shape is not None and len(entry.shape) == 2 for entry in raw.entries)


def test_fsdp1_raw_runs_are_put_one_after_another_and_are_known_to_be_flat(fsdp1):
    raw = formats.read(str(fsdp1 / "raw_ranks"))
    assert all(entry.flat for entry in raw.entries)
    check(raw, fsdp1 / "raw_ranks", order=order_of(fsdp1 / "raw_ranks"))


def test_a_run_over_the_border_of_two_processes_is_one_tensor(tmp_path):
    """Real FSDP1 pieces rarely cross a border in so small a model; this is the same layout with a parameter that does."""
    whole = torch.arange(12.0)
    group = {"lr": 1.0, "params": [0, 1]}
    for rank, (first, second) in enumerate(((whole[:7], None), (whole[7:], whole * 2))):
        state = {0: {"step": torch.tensor(3.0), "exp_avg": first}}
        if second is not None:
            state[1] = {"step": torch.tensor(3.0), "exp_avg": second}
        torch.save({"state": state, "param_groups": [group]}, tmp_path / f"optimizer_rank{rank}.pt")
    raw = formats.read(str(tmp_path))
    assert raw.entries[0].slots["exp_avg"].read().tolist() == whole.tolist()
    assert raw.entries[1].slots["exp_avg"].read().tolist() == (whole * 2).tolist()
    assert [entry.step for entry in raw.entries] == [3.0, 3.0]


def test_fsdp1_flat_parameters_saved_raw_are_refused_with_the_way_out(fsdp1):
    with pytest.raises(ReadError, match="FlatParameters") as error:
        formats.read(str(fsdp1 / "raw_flat"))
    assert "FSDP.optim_state_dict" in error.value.fix


def test_a_consolidated_zero_redundancy_optimizer_is_the_plain_layout(fsdp1):
    raw = formats.read(str(fsdp1 / "redundancy"))
    check(raw, fsdp1 / "redundancy", order=order_of(fsdp1 / "redundancy"))


def test_the_parts_of_a_zero_redundancy_optimizer_are_refused_with_the_way_out(fsdp1):
    with pytest.raises(ReadError, match="ZeroRedundancyOptimizer") as error:
        formats.read(str(fsdp1 / "redundancy_parts"))
    assert "consolidate_state_dict" in error.value.fix
    assert error.value.where.endswith("optimizer_rank1.pt")


def test_copies_of_one_whole_state_are_read_once(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    for rank in range(2):
        torch.save({"model": {}, "optimizer": optimizer.state_dict()}, tmp_path / f"rank{rank}.pt")
    raw = formats.read(str(tmp_path))
    assert (raw.entries[0].slots["exp_avg_sq"].read() == optimizer.state[parameter]["exp_avg_sq"].numpy()).all()


def test_copies_that_differ_are_refused(tmp_path):
    for rank in range(2):
        state = {0: {"step": torch.tensor(1.0), "exp_avg": torch.randn(3, 4)}}
        torch.save({"state": state, "param_groups": [{"lr": 1.0, "params": [0]}]}, tmp_path / f"optimizer_rank{rank}.pt")
    with pytest.raises(ReadError, match="parameters differ from the file of rank 0"):
        formats.read(str(tmp_path))


@pytest.fixture
def copy(fsdp2, tmp_path):
    return Path(shutil.copytree(fsdp2 / "raw_ranks", tmp_path / "ranks"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_process_is_named(copy, rank):
    (copy / f"optimizer_rank{rank}.pt").unlink()
    with pytest.raises(ReadError, match=f"rank {rank} of 2 is missing") as error:
        formats.read(str(copy))
    assert error.value.where.endswith(f"optimizer_rank{rank}.pt")


def test_a_missing_process_of_a_sharded_tensor_is_named(fsdp1, tmp_path):
    shutil.copy(fsdp1 / "named_ranks" / "optimizer_0_rank0.bin", tmp_path)
    with pytest.raises(ReadError, match="rank 1 of 2 is missing"):
        formats.read(str(tmp_path))


def test_the_world_size_in_a_name_is_believed(fsdp2, tmp_path):
    shutil.copy(fsdp2 / "hybrid_ranks" / "optim_world_size_2_rank_1.pt", tmp_path)
    with pytest.raises(ReadError, match="rank 0 of 2 is missing"):
        formats.read(str(tmp_path))


def test_a_file_of_another_step_is_named(copy):
    path = copy / "optimizer_rank1.pt"
    stored = torch.load(path, weights_only=False)
    for entry in stored["state"].values():
        entry["step"] = torch.tensor(9.0)
    torch.save(stored, path)
    with pytest.raises(ReadError, match="of step") as error:
        formats.read(str(copy))
    assert ".pt" in error.value.where


def test_a_file_of_other_hyperparameters_is_named(copy):
    path = copy / "optimizer_rank1.pt"
    stored = torch.load(path, weights_only=False)
    stored["param_groups"][0]["lr"] = 5.0
    torch.save(stored, path)
    with pytest.raises(ReadError, match="hyperparameters differ") as error:
        formats.read(str(copy))
    assert error.value.where.endswith("rank1.pt")


def test_a_file_cut_short_is_named(copy):
    path = copy / "optimizer_rank1.pt"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ReadError) as error:
        formats.read(str(copy))
    assert "rank1.pt" in error.value.where


def test_getattr_is_only_ever_a_name(tmp_path):
    """Old protocols write a class within a class as a call of getattr: here it makes a name, and only for sharded tensors."""

    class Evil:
        def __reduce__(self):
            return (getattr, (Path, "unlink"))

    for rank in range(2):
        torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}], "x": Evil()}, tmp_path / f"optimizer_rank{rank}.pt")
    with pytest.raises(UnsafePickle):
        formats.read(str(tmp_path))


def test_files_of_other_things_beside_the_optimizer_are_left_alone(fsdp2, tmp_path):
    """verl keeps model, optimizer and the state of random generators in files of each rank."""
    for rank in range(2):
        shutil.copy(fsdp2 / "hybrid_ranks" / f"optim_world_size_2_rank_{rank}.pt", tmp_path)
        torch.save({"w": torch.ones(3)}, tmp_path / f"model_world_size_2_rank_{rank}.pt")
        torch.save({"rng": Path("x").resolve}, tmp_path / f"extra_state_world_size_2_rank_{rank}.pt")
    assert len(formats.read(str(tmp_path)).entries) == 12


def test_model_shards_alone_are_no_optimizer(tmp_path):
    for rank in range(2):
        torch.save({"w": torch.ones(3)}, tmp_path / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(UnknownFormat):
        formats.read(str(tmp_path))


def test_the_copy_that_fsdp1_makes_of_the_second_moment_is_refused(fsdp1):
    """Saved in full from the CPU with offload, exp_avg is exp_avg_sq bit for bit (torch/distributed/fsdp/_optim_utils.py)."""
    raw = formats.read(str(fsdp1 / "full_offloaded"))
    _, found = judging.values(raw)
    with pytest.raises(CheckError, match="same numbers"):
        judging.refuse(found, "here")
    _, sound = judging.values(formats.read(str(fsdp1 / "full")))
    judging.refuse(sound, "here")


def test_repair_refuses_that_copy_and_writes_nothing(fsdp1, tmp_path):
    out = tmp_path / "named.safetensors"
    with pytest.raises(CheckError, match="same numbers"):
        repair(str(fsdp1 / "full_offloaded"), str(out))
    assert not list(tmp_path.iterdir())
    done = repair(str(fsdp1 / "full"), str(out))
    assert set(done.named.parameters) == set(truth_of(fsdp1 / "full"))
