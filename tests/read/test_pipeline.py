"""DeepSpeed's pipeline without ZeRO: each stage has an optimizer of its own, numbered from 0."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ostate import read as formats
from ostate.commands.repair import repair
from ostate.errors import ReadError

from .made import made

STAGE = "mp_rank_{:02d}_model_states.pt"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("deepspeed")
    return made(tmp_path_factory, "make_pipeline", DS_ACCELERATOR="cpu")


def _truth(run: Path) -> list[tuple[str, torch.Tensor]]:
    return [row for rank in (0, 1) for row in torch.load(run / f"truth_{rank}.pt")]


def test_the_stages_of_a_pipeline_are_one_state_in_their_order(run):
    raw = formats.read(str(run / "global_step40"))
    truth = _truth(run)
    assert [entry.position for entry in raw.entries] == list(range(len(truth)))
    assert all((entry.slots["exp_avg_sq"].read() == v.numpy()).all() for entry, (_, v) in zip(raw.entries, truth))
    assert len(raw.groups) == 1


def test_a_pipelines_lora_is_proven_under_the_models_own_names(run):
    done = repair(str(run / "global_step40"))
    assert list(done.ordering.names) == [name for name, _ in _truth(run)]
    assert done.ordering.verdict in ("verified", "recovered")


def test_a_stage_that_is_missing_is_asked_for(run, tmp_path):
    for gone in (0, 1):
        folder = tmp_path / f"without_{gone}"
        shutil.copytree(run / "global_step40", folder)
        (folder / STAGE.format(gone)).unlink()
        with pytest.raises(ReadError, match=f"stage {gone} of 2 of the pipeline is missing"):
            formats.read(str(folder))


def test_stages_of_two_steps_are_not_joined(run, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(run / "global_step40", folder)
    shutil.copy(run / "global_step20" / STAGE.format(1), folder)
    with pytest.raises(ReadError, match="this stage is of step 20, the first of 40"):
        formats.read(str(folder))


def test_slices_of_tensors_are_no_stages(run, tmp_path):
    """Tensor parallelism alone writes no layer files; with a pipeline around it their names tell the rank."""
    for name in ("alone", "both"):
        folder = tmp_path / name
        shutil.copytree(run / "global_step40", folder)
        for layer in folder.glob("layer_*"):
            layer.rename(folder / layer.name.replace("-model_states", "-model_01-model_states")) if name == "both" else layer.unlink()
        with pytest.raises(ReadError, match="each holds a slice of every parameter"):
            formats.read(str(folder))
