"""`ostate export` and `ostate diff`: what they print, and how they leave."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from safetensors.torch import save_file

import ostate
from ostate import store
from ostate.cli import main
from ostate.cli.export import LAYOUTS
from ostate.errors import ExportError, ReadError
from ostate.exporters import EXPORTERS
from ostate.exporters.made_slots import ConstantSlot
from ostate.store.validating import schema
from tests import real
from tests.records import replace
from tests.schemas import closed


def run(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def document(*arguments):
    done = run(*arguments, "--json")
    rows = json.loads(done.stdout)
    Draft202012Validator(closed(schema(rows["document"].removeprefix("ostate-") + "-v1"))).validate(rows)
    return done.exit_code, rows


def test_the_command_knows_every_layout():
    assert set(LAYOUTS) == {*EXPORTERS, "ostate"}


def test_export_writes_and_leaves_with_0(llama_state, tmp_path):
    code, rows = document("export", llama_state.path, "--to", "torch", "-o", tmp_path / "optimizer.pt")
    assert (code, rows["parameters"], rows["migration"], rows["findings"]) == (0, 168, None, [])
    assert (tmp_path / "optimizer.pt").exists()
    assert run("export", llama_state.path, "--to", "torch", "-o", tmp_path / "optimizer.pt").exit_code == 3


def test_export_says_what_is_lost_and_leaves_with_1(llama_state, tmp_path):
    done = run("export", llama_state.path, "--to", "ota", "-o", tmp_path / "v.safetensors")
    assert done.exit_code == 1
    assert done.stdout.index("cannot store exp_avg") < done.stdout.index("wrote")
    assert run("export", llama_state.path, "--to", "ota", "--strict", "-o", tmp_path / "w.safetensors").exit_code == 3


def test_a_dry_run_writes_nothing(llama_state, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(list(llama_state.parameters)[:10]))
    code, rows = document("export", llama_state.path, "--to", "torch", "--for", names, "--dry-run")
    assert (code, rows["out"], len(rows["migration"]["kept"]), len(rows["migration"]["dropped"])) == (0, None, 10, 158)
    assert run("export", llama_state.path, "--to", "torch").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["names.txt"]


def test_a_dry_run_refuses_what_the_real_one_would(llama_run, llama_state, tmp_path):
    """What a layout cannot hold is known before a byte is written."""
    tensors = {name: p.slots["exp_avg"] for name, p in llama_state.parameters.items()}
    momentum = {name: replace(p, slots={"exp_avg": tensors[name]}) for name, p in llama_state.parameters.items()}
    lion = replace(llama_state, optimizer="lion", parameters=momentum)
    stepless = replace(llama_state, parameters={name: replace(p, step=None) for name, p in llama_state.parameters.items()})
    some = tmp_path / "some.safetensors"
    save_file({"base_model.model.lm_head.weight": torch.zeros(96, 32)}, str(some))
    for state, to, more, what in (
        (lion, "torch", {"taken_as": "adamw_torch"}, "cannot be continued by torch's AdamW"),
        (lion, "accelerate", {"taken_as": "adamw_torch"}, "cannot be continued by torch's AdamW"),
        (lion, "less", {}, "LESS needs exp_avg and exp_avg_sq"),
        (lion, "ota", {}, "holds no exp_avg_sq"),
        (stepless, "bergson", {"v_hat": True}, "the bias cannot be taken out"),
        (stepless, "ota", {"v_hat": True}, "the bias cannot be taken out"),
        (llama_state, "deepspeed-universal", {}, "and there are none"),
        (llama_state, "deepspeed-universal", {"adapter": str(some)}, "--adapter has none of 168 parameters"),
        (stepless, "deepspeed-universal", {"adapter": str(llama_run.checkpoint)}, "needs exp_avg, exp_avg_sq and a step"),
    ):
        for out in (None, tmp_path / "out"):
            with pytest.raises(ExportError, match=what):
                ostate.export(state, to, out, **more)
    assert [path.name for path in tmp_path.iterdir()] == ["some.safetensors"]


def test_a_rename_that_is_none_is_a_usage_error(llama_state):
    assert run("export", llama_state.path, "--to", "torch", "--rename", "layers", "--dry-run").exit_code == 2
    assert run("export", llama_state.path, "--to", "torch", "--rename", "(=x", "--dry-run").exit_code == 3


def test_a_state_is_the_same_as_itself_in_every_layout(bias_run, bias_state, tmp_path):
    checkpoint = bias_run.checkpoint / "optimizer.pt"
    for to in ("torch", "less", "dcp"):
        out = ostate.export(bias_state, to, tmp_path / to).path
        code, rows = document("diff", bias_state.path, out)
        assert (code, rows["same"], rows["matched"], rows["matched_by"]) == (0, True, len(bias_state.parameters), "name")
        assert rows["compared"] == rows["equal"] == 2 * len(bias_state.parameters)
    code, rows = document("diff", bias_state.path, checkpoint)
    assert (code, rows["matched_by"]) == (0, "position")
    assert "the same" in run("diff", checkpoint, bias_state.path).stdout


def test_what_differs_is_told_the_widest_first(llama_state, tmp_path):
    first, second, third, *_ = llama_state.parameters
    changed = dict(llama_state.parameters)
    v = changed[first].slots["exp_avg_sq"].read()
    changed[first] = replace(changed[first], slots={**changed[first].slots, "exp_avg_sq": _Numbers(v * 4)})
    m = changed[second].slots["exp_avg"].read()
    changed[second] = replace(changed[second], slots={**changed[second].slots, "exp_avg": _Numbers(-m)})
    changed[third] = replace(changed[third], step=11.0)
    groups = tuple(replace(group, hyper={**group.hyper, "eps": 1e-6, "fused": True}) for group in llama_state.groups)
    other = store.write(replace(llama_state, parameters=changed, groups=groups), tmp_path / "b.safetensors").path
    code, rows = document("diff", llama_state.path, other)
    assert code == 1
    assert [(row["name"], row["slot"]) for row in rows["values"]] == [(first, "exp_avg_sq"), (second, "exp_avg")]
    assert [row["relative"] for row in rows["values"]] == pytest.approx([3.0, 2.0], rel=1e-6)
    assert [row["cosine"] for row in rows["values"]] == pytest.approx([1.0, -1.0], rel=1e-6)
    assert rows["steps"] == [{"name": third, "a": 12.0, "b": 11.0}]
    assert rows["hyper"] == [{"key": "eps", "a": 1e-8, "b": 1e-6, "parameters": 168}]
    assert rows["equal"] == rows["compared"] - 2
    assert (rows["cold_a"], rows["cold_b"]) == (False, False)
    assert first in run("diff", llama_state.path, other).stdout


def test_a_cold_copy_is_called_cold(llama_state, tmp_path):
    cold = {name: replace(p, slots={slot: ConstantSlot(s.shape) for slot, s in p.slots.items()}) for name, p in llama_state.parameters.items()}
    other = store.write(replace(llama_state, parameters=cold), tmp_path / "cold.safetensors").path
    code, rows = document("diff", llama_state.path, other)
    assert (code, rows["cold_a"], rows["cold_b"]) == (1, False, True)
    assert {row["relative"] for row in rows["values"]} == {1.0}
    assert {row["cosine"] for row in rows["values"]} == {"nan"}
    assert "B is cold" in run("diff", llama_state.path, other).stdout


def test_two_steps_of_one_run_differ_in_step_and_numbers_alone():
    a, b = (str(real.case(f"long_opt_step{step}").state) for step in (60, 300))
    found = ostate.diff(a, b)
    assert found.matched_by == "position"
    assert (found.only_a, found.only_b, found.shapes) == ((), (), ())
    assert {(x, y) for _, x, y in found.steps} == {(60.0, 300.0)}
    assert {key for key, *_ in found.hyper} == {"lr"}
    assert not any(gap.equal for gap in found.gaps)
    assert all(math.isfinite(gap.cosine) for gap in found.gaps)
    assert ostate.diff(a, b, values=False).gaps == ()


def test_names_without_positions_cannot_be_matched_to_positions(llama_run, llama_state, tmp_path):
    moved = ostate.export(llama_state, "ostate", tmp_path / "moved.safetensors", groups="one").path
    with pytest.raises(ReadError, match="do not say where they stood"):
        ostate.diff(moved, str(llama_run.checkpoint / "optimizer.pt"))


class _Numbers:
    """Numbers in memory, as a slot."""

    encoding, dtype = "plain", "F32"

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)
        self.shape = self.values.shape

    def read(self):
        return self.values

    def chunks(self, elements=1 << 18):
        yield self.values.reshape(-1)
