"""verl's actors: each process's share of the optimizer by number, and of the model by live name, side by side."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ostate.commands.repair import repair
from ostate.errors import OstateError, ReadError

from .made import made


@pytest.fixture(scope="session")
def verl(tmp_path_factory):
    return made(tmp_path_factory, "make_verl")


@pytest.mark.parametrize("kind", ["fsdp2", "fsdp1", "fsdp1-of-one-size"])
def test_the_weights_beside_give_the_live_names(verl: Path, kind: str):
    done = repair(str(verl / kind))
    truth = torch.load(verl / kind / "truth.pt")
    assert done.named.parameters.keys() == truth.keys()
    for name, live in truth.items():
        assert np.array_equal(done.named.tensor(name, "exp_avg_sq"), live.numpy()), name
    assert done.ordering.verdict == "verified"
    assert done.ordering.assumed == ()


def test_flat_factors_of_one_size_in_each_others_places_are_not_proven(verl: Path, tmp_path: Path):
    names = list(torch.load(verl / "fsdp1-of-one-size" / "truth.pt"))
    swapped = [name.replace("lora_A", "lora_?").replace("lora_B", "lora_A").replace("lora_?", "lora_B") for name in names]
    by_block = [name for at in range(0, len(names), 4) for word in ("lora_B", "lora_A") for name in names[at : at + 4] if word in name]
    for order in (swapped, by_block):
        assert order != names
        assert len(set(order)) == len(names)
        (tmp_path / "order.txt").write_text("\n".join(order))
        with pytest.raises(OstateError):
            repair(str(verl / "fsdp1-of-one-size"), order=str(tmp_path / "order.txt"), strict=True)


@pytest.mark.parametrize("kind", ["optim", "model"])
def test_files_of_two_processes_in_each_others_places_are_refused(verl: Path, tmp_path: Path, kind: str):
    shutil.copytree(verl / "fsdp2", tmp_path, dirs_exist_ok=True)
    first, second = sorted((tmp_path / "actor").glob(f"{kind}_*_rank_*.pt"))[:2]
    bytes_of_first = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(bytes_of_first)
    with pytest.raises(ReadError, match="the file of rank 0 was saved as that of rank 1"):
        repair(str(tmp_path))


def test_an_adapter_written_below_does_not_change_the_live_names(verl: Path, tmp_path: Path):
    from safetensors.torch import save_file

    shutil.copytree(verl / "fsdp2", tmp_path, dirs_exist_ok=True)
    truth = torch.load(tmp_path / "truth.pt")
    (tmp_path / "actor" / "lora_adapter").mkdir()
    tensors = {name.replace(".default", ""): torch.randn(live.shape) for name, live in truth.items()}
    save_file(tensors, tmp_path / "actor" / "lora_adapter" / "adapter_model.safetensors")
    assert repair(str(tmp_path)).named.parameters.keys() == truth.keys()


def test_flat_parameters_without_the_weights_are_refused_as_before(verl: Path, tmp_path: Path):
    shutil.copytree(verl / "fsdp1", tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "actor").glob("model_*"):
        file.unlink()
    with pytest.raises(ReadError, match="whose borders no file records"):
        repair(str(tmp_path))


def test_weights_of_which_a_process_is_missing_are_not_used(verl: Path, tmp_path: Path):
    shutil.copytree(verl / "fsdp1", tmp_path, dirs_exist_ok=True)
    (tmp_path / "actor" / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(ReadError, match="whose borders no file records"):
        repair(str(tmp_path))
