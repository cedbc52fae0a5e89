"""The adapter of another step of the same run: the names are right, and the step is said where it can be told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ostate

RUN = Path(__file__).parent.parent / "cases" / "long" / "long_opt"
RULE = "adapter-of-another-step"


def said(state, adapter):
    """Return the severity and text of the finding, or None."""
    found = [one for one in ostate.verify(str(state), adapter=str(adapter)).findings if one.rule == RULE]
    assert len(found) < 2
    return (found[0].severity, found[0].text) if found else None


@pytest.fixture
def run(tmp_path):
    """Two checkpoints of one run, as Trainer left them."""
    for step in (60, 300):
        shutil.copytree(RUN / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path


def moved(folder, to, *, log=True):
    """Move a checkpoint elsewhere, with its trainer's log or without."""
    shutil.move(folder, to)
    if not log:
        (to / "trainer_state.json").unlink()
    return to


def test_both_logs_tell_the_steps_and_a_person_should_look(run):
    severity, text = said(run / "checkpoint-60" / "optimizer.pt", run / "checkpoint-300")
    assert severity == "warning"
    assert "adapter is of step 300, the state of step 60" in text
    done = ostate.repair(str(run / "checkpoint-60"), adapter=str(run / "checkpoint-300"))
    assert RULE in {one.rule for one in done.named.findings}


def test_the_names_are_those_of_the_own_adapter(run):
    own = ostate.verify(str(run / "checkpoint-300"))
    other = ostate.verify(str(run / "checkpoint-300" / "optimizer.pt"), adapter=str(run / "checkpoint-60"))
    assert other.names == own.names


@pytest.mark.parametrize("log", [True, False])
def test_of_an_adapter_elsewhere_its_log_tells_the_step_and_nothing_else(run, tmp_path, log):
    there = moved(run / "checkpoint-300", tmp_path / "weights", log=log)
    assert (said(run / "checkpoint-60" / "optimizer.pt", there) is not None) == log


def test_a_folders_name_tells_it_as_a_note(run, tmp_path):
    there = tmp_path / "kept" / "checkpoint-300"
    moved(run / "checkpoint-300", there, log=False)
    assert said(run / "checkpoint-60" / "optimizer.pt", there) == (
        "note",
        "the adapter is of step 300, the state of step 60: within one run the names are the same, the weights are not",
    )


def test_of_a_named_file_the_count_of_its_optimizer_tells_it(run, tmp_path):
    ostate.repair(str(run / "checkpoint-60"), str(tmp_path / "checkpoint-300" / "named.safetensors"), adapter=str(run / "checkpoint-60"))
    named = tmp_path / "checkpoint-300" / "named.safetensors"
    assert said(named, run / "checkpoint-60") is None
    assert said(named, run / "checkpoint-300")[0] == "note"


@pytest.mark.parametrize("where", ["default", "."])
def test_weights_within_the_checkpoint_are_its_own(run, where):
    """Trainer saves several adapters in folders of their own below the checkpoint."""
    folder = run / "checkpoint-60"
    (folder / where).mkdir(exist_ok=True)
    if where != ".":
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.move(folder / name, folder / where / name)
    assert said(folder / "optimizer.pt", folder / where) is None


def test_an_adapter_of_the_same_step_elsewhere_is_the_own(run, tmp_path):
    shutil.copytree(run / "checkpoint-60", tmp_path / "weights")
    assert said(run / "checkpoint-60" / "optimizer.pt", tmp_path / "weights") is None


def test_a_state_that_lies_above_the_checkpoints_tells_by_its_count(run):
    shutil.copy(run / "checkpoint-60" / "optimizer.pt", run / "optimizer.pt")
    assert said(run / "optimizer.pt", run / "checkpoint-300")[0] == "note"
    assert said(run / "optimizer.pt", run / "checkpoint-60") is None


def test_updates_that_gradient_scaling_skipped_are_no_other_step(run):
    """The optimizer counted 60, the trainer 63; 300 is another step."""
    shutil.copy(run / "checkpoint-60" / "optimizer.pt", run / "optimizer.pt")
    log = run / "checkpoint-60" / "trainer_state.json"
    for step, told in ((63, False), (59, False), (70, True), (58, True)):
        log.write_text(f'{{"global_step": {step}}}')
        assert (said(run / "optimizer.pt", run / "checkpoint-60") is not None) == told
