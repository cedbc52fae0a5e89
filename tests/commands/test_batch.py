"""Many checkpoints at once: each its own file, refusals stop nobody, a second run does nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import ostate
from ostate.cli import main
from ostate.commands import batch
from ostate.commands.options import passed_to
from ostate.errors import ReadError, StoreError
from tests import real

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path):
    for run, name in (("a", "llama_all_linear_12"), ("b", "opt_kvq"), ("c", "neg_wrong_run")):
        shutil.copytree(real.case(name).state.parent, tmp_path / "runs" / run / "checkpoint-5")
    return tmp_path / "runs"


def repaired(runs, *more):
    return CliRunner().invoke(main, ["repair", "--batch", str(runs / "*" / "checkpoint-*"), "-o", str(runs.parent / "named"), *more])


def test_every_checkpoint_gets_its_own_file_and_a_refusal_stops_nobody(runs):
    done = repaired(runs, "--jobs", "2")
    assert done.exit_code == 3
    assert sorted(os.listdir(runs.parent / "named")) == ["a--checkpoint-5.ostate.safetensors", "b--checkpoint-5.ostate.safetensors"]
    assert "fit no order of this adapter" in done.output
    truth = real.case("opt_kvq").with_state
    state = ostate.load(str(runs.parent / "named" / "b--checkpoint-5.ostate.safetensors"))
    assert {name: real.sha256(state.tensor(name, "exp_avg_sq")) for name in state.parameters} == {
        name: row["exp_avg_sq_sha256"] for name, row in truth.items()
    }


def test_what_was_written_from_the_same_bytes_is_not_written_again(runs):
    repaired(runs)
    out = runs.parent / "named" / "a--checkpoint-5.ostate.safetensors"
    before = out.stat().st_mtime_ns
    assert "already done" in repaired(runs).output
    assert out.stat().st_mtime_ns == before


def test_a_checkpoint_that_changed_since_is_written_again(runs):
    repaired(runs)
    other = real.case("opt_kvq").state.parent
    shutil.rmtree(runs / "a" / "checkpoint-5")
    shutil.copytree(other, runs / "a" / "checkpoint-5")
    repaired(runs)
    state = ostate.load(str(runs.parent / "named" / "a--checkpoint-5.ostate.safetensors"))
    assert set(state.parameters) == set(real.case("opt_kvq").with_state)


def test_a_half_written_output_is_replaced(runs):
    repaired(runs)
    out = runs.parent / "named" / "a--checkpoint-5.ostate.safetensors"
    out.write_bytes(out.read_bytes()[:100])
    repaired(runs)
    assert len(ostate.load(str(out)).parameters) == 168


def test_a_pattern_that_matches_nothing_says_so(tmp_path):
    with pytest.raises(ReadError, match="no checkpoint matches"):
        batch.targets(str(tmp_path / "nothing-*"), str(tmp_path))


def test_path_and_batch_together_are_a_usage_error(runs):
    assert repaired(runs, "--dry-run").exit_code == 2


def test_the_slurm_lines_of_the_readme_do_one_checkpoint_a_task_and_nothing_twice(runs):
    block = (ROOT / "README.md").read_text().split("```slurm\n")[1].split("```")[0]
    (runs.parent / "job.sh").write_text(block)
    shim = runs.parent / "bin" / "ostate"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/bash\nexec {sys.executable} -W ignore -m ostate "$@"\n')
    shim.chmod(0o755)

    def task(number):
        environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SLURM_ARRAY_TASK_ID": str(number)}
        return subprocess.run(["bash", "job.sh"], cwd=runs.parent, env=environment, capture_output=True, text=True)

    assert "already done" not in task(1).stdout
    assert "already done" not in task(2).stdout
    again = task(2)
    assert (again.returncode, "already done" in again.stdout) == (0, True), again.stderr
    assert sorted(path.relative_to(runs.parent).as_posix() for path in runs.parent.glob("named/**/*.safetensors")) == [
        "named/runs/a/checkpoint-5.ostate.safetensors",
        "named/runs/b/checkpoint-5.ostate.safetensors",
    ]


def test_a_second_run_asks_for_a_person_where_the_first_did(tmp_path):
    """It took every file with proven names for one that needs no look, whatever else was found in it."""
    checkpoint = tmp_path / "runs" / "a" / "checkpoint-5"
    shutil.copytree(real.case("llama_all_linear_12").state.parent, checkpoint)
    stored = torch.load(checkpoint / "optimizer.pt")
    stored["param_groups"][0]["eps"] = 0.0  # a warning: the update is infinite where v is zero
    torch.save(stored, checkpoint / "optimizer.pt")
    first, second = (batch.one(str(checkpoint), str(tmp_path / "out.safetensors"), batch.Options(), False) for _ in range(2))
    assert (first.verdict, first.done, first.settled) == ("verified", False, False)
    assert (second.verdict, second.done, second.settled) == ("verified", True, False)


@pytest.fixture
def done(tmp_path):
    """One checkpoint that a batch has named, and the file."""
    checkpoint, out = tmp_path / "checkpoint-5", tmp_path / "named.safetensors"
    shutil.copytree(real.case("llama_qv").state.parent, checkpoint)
    assert batch.one(str(checkpoint), str(out), batch.Options(), False).settled
    return checkpoint, out


@pytest.mark.parametrize(
    ("options", "how"),
    [({"adapter_name": "policy"}, {}), ({"names": "file"}, {}), ({"strict": True}, {}), ({}, {"keep_dtype": True}), ({}, {"sha256": True})],
)
def test_what_was_written_with_other_options_is_written_again(done, options, how):
    """The second run said `already done` of names that it was asked to write otherwise."""
    checkpoint, out = done
    asked = batch.Options(**options)
    first, second = (batch.one(str(checkpoint), str(out), asked, False, **how) for _ in range(2))
    assert (first.done, second.done) == (False, True)
    alone = out.with_name("alone.safetensors")
    ostate.repair(str(checkpoint), str(alone), **options, **how)
    assert out.read_bytes() == alone.read_bytes()


def test_an_order_file_is_known_by_what_it_holds(done):
    checkpoint, out = done
    order = out.with_name("order.txt")
    order.write_text("\n".join(ostate.load(str(out)).parameters))
    asked = batch.Options(order=str(order))
    assert [batch.one(str(checkpoint), str(out), asked, False).done for _ in range(2)] == [False, True]
    order.write_text("\n".join(reversed(order.read_text().split("\n"))))
    assert batch.one(str(checkpoint), str(out), asked, False).verdict == "refused"


def test_another_adapter_in_the_place_of_the_one_that_was_read_is_compared_again(done):
    """The state alone was looked at: it stayed `already done` beside another run's weights."""
    checkpoint, out = done
    weights = checkpoint / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4096:] = bytes(range(1, 63)) * 66 + bytes(4)
    weights.write_bytes(data)
    assert not batch.one(str(checkpoint), str(out), batch.Options(), False).done


@pytest.mark.parametrize("option", ["base", "model", "previous"])
def test_what_lies_at_a_path_among_the_options_is_compared_not_its_name(done, tmp_path, option):
    """Another base model in a folder of the same name was `already done`."""
    checkpoint, _ = done
    places = [tmp_path / run / "given" for run in ("a", "b")]
    source = real.case("llama_qv").base if option == "base" else checkpoint
    for place in places:
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("optimizer.pt"))
    changed = places[1] / ("config.json" if option == "base" else "adapter_model.safetensors")
    one, other = (batch.Options(**{option: str(place)}) for place in places)
    known = passed_to(one)
    assert passed_to(other) == known
    assert str(tmp_path) not in str(known)
    data = bytearray(changed.read_bytes())
    data[-2] ^= 1 if option != "base" else ord("\n") ^ ord(" ")
    changed.write_bytes(data)
    assert passed_to(other)["options"] == known["options"]
    assert passed_to(other)["option_files"] != known["option_files"]


def test_another_base_model_in_a_folder_of_the_same_name_is_asked_again(done, tmp_path):
    checkpoint, out = done
    places = [tmp_path / run / "base" for run in ("a", "b")]
    for place in places:
        shutil.copytree(real.case("llama_qv").base, place)
    config = places[1] / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 1.0}))
    asked = [batch.one(str(checkpoint), str(out), batch.Options(base=str(place)), False).done for place in (*places[:1] * 2, *places[1:] * 2)]
    assert asked == [False, True, False, True]


def test_a_file_of_somebody_elses_is_not_replaced_without_force(done):
    checkpoint, out = done
    out.write_text("notes")
    refused = batch.one(str(checkpoint), str(out), batch.Options(), False)
    assert (refused.verdict, refused.reason, out.read_text()) == ("refused", "the output exists already", "notes")
    assert batch.one(str(checkpoint), str(out), batch.Options(), True).settled


def test_a_batch_writes_into_a_folder(done):
    checkpoint, out = done
    with pytest.raises(StoreError, match="the output is a file"):
        batch.targets(str(checkpoint), str(out))
