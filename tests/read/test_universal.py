"""DeepSpeed universal checkpoints, converted by DeepSpeed's own program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ostate import read as formats
from ostate.errors import ReadError
from tests import real

from .made import check, made


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    pytest.importorskip("deepspeed")
    return made(tmp_path_factory, "make_zero", DS_ACCELERATOR="cpu")


@pytest.mark.parametrize("case", ["stage2_universal", "stage3_universal"])
def test_converted_folders_are_read_by_name_with_step_and_hyperparameters(runs, case):
    raw = formats.read(str(runs / case))
    assert raw.layout == "universal"
    assert raw.recorded == "universal"
    assert not raw.findings
    check(raw, runs / case)


def test_a_folder_made_wrong_by_round_robin_gradients_is_refused_with_the_way_out(runs):
    with pytest.raises(ReadError, match="round_robin_gradients") as error:
        formats.read(str(runs / "stage2_round_robin_universal"))
    assert "ZeRO checkpoint" in error.value.fix


def test_the_real_folder_made_wrong_is_refused():
    one = real.case("ds_z2_rr_universal")
    assert one.must_refuse
    with pytest.raises(ReadError, match="16 of 18 parameters"):
        formats.read(str(one.state))


def test_a_real_universal_folder_is_read_exactly():
    one = real.case("ds_z2_universal")
    raw = formats.read(str(one.state))
    one.assert_moments_of(raw)
    assert len(raw.master) == len(raw.entries)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(real.case("ds_z2_universal").state, tmp_path / "universal")) / "global_step5_universal"


def trained(folder):
    return sorted(path.parent for path in folder.glob("zero/*/exp_avg_sq.pt"))


def test_swapped_folders_are_refused_by_their_weights(copy):
    """Nothing in the folder says so but the weights: the flag is not set here."""
    one, other = (
        path for path in trained(copy) if path.name.endswith("q_proj.lora_A.default.weight") and ("layers.0" in path.name or "layers.1" in path.name)
    )
    one.rename(copy / "keep")
    other.rename(one)
    (copy / "keep").rename(other)
    with pytest.raises(ReadError, match="2 of 18 parameters"):
        formats.read(str(copy))


def test_the_flag_alone_is_enough_where_no_weights_can_tell(copy):
    path = copy / "mp_rank_00_model_states.pt"
    stored = torch.load(path, weights_only=True)
    stored["module"] = {}
    torch.save(stored, path)
    formats.read(str(copy))
    stored["ds_config"]["zero_optimization"]["round_robin_gradients"] = True
    torch.save(stored, path)
    with pytest.raises(ReadError, match="no weights here can show otherwise"):
        formats.read(str(copy))


def test_where_ranks_hold_slices_the_files_tell_the_whole_shape(copy):
    """Tensor parallelism: param_shapes of a rank's model file is of its slice, ds_to_universal has put the slices together."""
    wanted = {entry.name: entry.shape for entry in formats.read(str(copy)).entries}
    path = copy / "mp_rank_00_model_states.pt"
    stored = torch.load(path, weights_only=True)
    stored["module"] = {}
    for group in stored["param_shapes"]:
        for name, shape in group.items():
            group[name] = torch.Size([shape[0], shape[1] // 2])
    torch.save(stored, path)
    with pytest.raises(ReadError, match="numbers, the parameter has the shape"):
        formats.read(str(copy))
    shutil.copy(path, copy / "mp_rank_01_model_states.pt")
    assert {entry.name: entry.shape for entry in formats.read(str(copy)).entries} == wanted


def test_a_missing_parameter_is_named(copy):
    shutil.rmtree(trained(copy)[3])
    with pytest.raises(ReadError, match="missing") as error:
        formats.read(str(copy))
    assert error.value.where.endswith(trained(real.case("ds_z2_universal").state / "global_step5_universal")[3].name)


def test_a_parameter_of_another_step_is_named(copy):
    path = trained(copy)[2] / "step.pt"
    torch.save(torch.tensor(8.0), path)
    with pytest.raises(ReadError, match="step 8") as error:
        formats.read(str(copy))
    assert error.value.where == str(path)


def test_a_moment_of_another_size_is_named(copy):
    path = trained(copy)[2] / "exp_avg.pt"
    torch.save({"param": torch.zeros(2, 2)}, path)
    with pytest.raises(ReadError, match="4 numbers") as error:
        formats.read(str(copy))
    assert error.value.where == str(path)


def test_a_folder_that_the_model_does_not_know_is_an_error(copy):
    shutil.copytree(trained(copy)[0], copy / "zero" / "another.weight")
    with pytest.raises(ReadError, match="model file does not know"):
        formats.read(str(copy))


def test_lost_hyperparameters_are_said_aloud(copy):
    (copy / "zero" / "optimizer_state.pt").unlink()
    raw = formats.read(str(copy))
    assert [finding.rule for finding in raw.findings] == ["hyperparameters-missing"]
