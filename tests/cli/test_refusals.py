"""Bad input: exit 3 (2 for a path that is not there), one message with what, where and fix, no traceback, no file left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from ostate.store import load
from tests import real


def ostate(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a person would."""
    return subprocess.run([sys.executable, "-m", "ostate", *map(str, arguments)], capture_output=True, text=True, check=False)


def no_torch_file(folder):
    (folder / "optimizer.pt").write_text("not a torch file")
    return folder / "optimizer.pt", real.case("llama_qv").adapter


def no_optimizer(folder):
    shutil.copytree(real.case("llama_qv").base, folder / "base")
    return folder / "base", real.case("llama_qv").adapter


BAD = {
    "wrong run": lambda folder: (real.case("neg_wrong_run").state, real.case("neg_wrong_run").adapter),
    "truncated": lambda folder: (real.case("neg_truncated").state, real.case("neg_truncated").adapter),
    "no optimizer in the folder": no_optimizer,
    "no torch file": no_torch_file,
    "adapter of another shape": lambda folder: (real.case("llama_qv").state, real.case("long_opt_step2").adapter),
    "adapter that is a model's config": lambda folder: (real.case("llama_qv").state, real.case("llama_qv").base / "config.json"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_refused_in_one_message(name, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    state, adapter = BAD[name](tmp_path / "in")
    done = ostate("repair", state, "--adapter", adapter, "-o", tmp_path / "out" / "named.safetensors")
    assert done.returncode == 3, done.stderr
    said = done.stderr.strip().splitlines()
    assert said[0].startswith("Error: ")
    assert any(line.startswith("  at: ") for line in said)
    assert any(line.startswith("  fix: ") for line in said)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("command", [["repair", "-o", "x"], ["inspect"], ["verify"], ["validate"], ["names"]])
def test_a_path_that_is_not_there_is_a_usage_error(command, tmp_path):
    done = ostate(command[0], tmp_path / "nothing.pt", *command[1:])
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["inspect", str(real.case("llama_all_linear_12").state)], ["repair", "--help"], ["--help"], ["names", "--help"]], ids=" ".join
)
def test_the_fast_commands_import_neither_torch_nor_numpy(arguments):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "ostate", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "click" in imported
    assert not imported & {"torch", "numpy", "peft", "transformers", "scipy", "rich", "jsonschema"}


def test_a_whole_tensor_that_the_configuration_does_not_explain_gets_no_name(tmp_path):
    """The numbers prove which tensor it is, but not whether it lives under `modules_to_save`: only the configuration tells that."""
    case = real.case("vit_classifier")
    folder = tmp_path / "checkpoint"
    shutil.copytree(case.state.parent, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    out = tmp_path / "named.safetensors"
    done = ostate("repair", folder, "-o", out)
    assert done.returncode == 1, done.stderr
    names = set(load(out).parameters)
    assert names < {row["name"] for row in case.truth}
    assert len(names) == 12
    assert not any("classifier" in name for name in names)
