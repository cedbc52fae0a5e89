"""An adapter passed as an earlier one of the run (`--previous`) is held against the state's own before it is used."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ostate
from ostate.errors import Contradiction
from ostate.evidence.earlier import related
from tests import trained
from tests.evidence import runs

LORA = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Twelve layers, twelve steps; `earlier/` was saved after the fourth."""
    model = runs.language_model(lambda: trained.llama(12))
    return runs.train(tmp_path_factory.mktemp("run"), model, LORA, steps=12, earlier=4)


def rewritten(folder, to, change):
    """Copy an adapter with each of its tensors changed: change(key, tensor), None leaves it out."""
    shutil.copytree(folder, to)
    file = to / "adapter_model.safetensors"
    made = {key: change(key, tensor) for key, tensor in load_file(file).items()}
    save_file({key: tensor for key, tensor in made.items() if tensor is not None}, file, metadata={"format": "pt"})
    return to


def test_an_earlier_adapter_of_the_run_is_taken_without_a_word(checkpoint):
    found = ostate.verify(checkpoint / "optimizer.pt", adapter=checkpoint, previous=checkpoint / "earlier")
    assert found.verdict == "verified"
    assert not found.findings


def test_an_earlier_adapter_of_another_run_is_refused(checkpoint, other_run):
    with pytest.raises(Contradiction, match="of another run: its numbers are unrelated") as caught:
        ostate.repair(checkpoint / "optimizer.pt", adapter=checkpoint, previous=other_run.checkpoint)
    assert caught.value.fix == "pass the adapter of an earlier checkpoint of this run, or drop --previous"


def test_a_head_that_all_runs_take_from_the_base_model_does_not_make_another_run_this_one(checkpoint, other_run, tmp_path):
    head = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    now, other = (
        rewritten(folder, tmp_path / name, lambda _, tensor: tensor) for folder, name in ((checkpoint, "now"), (other_run.checkpoint, "other"))
    )
    for folder in (now, other):
        file = folder / "adapter_model.safetensors"
        save_file({**load_file(file), "base_model.model.lm_head.weight": head}, file, metadata={"format": "pt"})
    with pytest.raises(Contradiction, match="of another run"):
        ostate.verify(checkpoint / "optimizer.pt", adapter=now, previous=other)


def test_an_earlier_adapter_of_another_model_is_refused(checkpoint, opt_run):
    with pytest.raises(Contradiction, match="of another model: none of its"):
        ostate.verify(checkpoint / "optimizer.pt", adapter=checkpoint, previous=opt_run.checkpoint)


def test_the_adapter_itself_is_no_earlier_one_and_proves_what_it_proved_without(checkpoint):
    found = ostate.verify(checkpoint / "optimizer.pt", adapter=checkpoint, previous=checkpoint)
    assert found.proven
    assert [finding.rule for finding in found.findings if finding.severity == "warning"] == ["previous-not-used"]


def test_what_an_earlier_adapter_lacks_is_said(checkpoint, tmp_path):
    part = rewritten(checkpoint / "earlier", tmp_path / "part", lambda key, tensor: None if ".layers.3." in key else tensor)
    found = ostate.repair(checkpoint / "optimizer.pt", adapter=checkpoint, previous=part)
    assert not found.settled
    said = next(finding for finding in found.findings if finding.rule == "previous-lacks-tensors")
    assert "lacks 14 of 168 tensors" in said.text


def test_unrelated_numbers_lie_within_five_deviations():
    draw = np.random.default_rng(0)
    drawn = [related([(draw.normal(size=64) + 3, draw.normal(size=64) + 3) for _ in range(20)]) for _ in range(300)]
    assert max(map(abs, drawn)) < 5
    assert 0.8 < np.std(drawn) < 1.2
