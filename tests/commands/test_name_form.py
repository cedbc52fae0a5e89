"""The form of the names that a person asks for: the live model's, the file's own keys, or PeftModel's."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import ostate
from ostate.cli import main
from ostate.commands.repair import repair, verify
from ostate.probe import lora_adamw
from tests import trained
from tests.commands.test_choosing import live, lora, steps, tuned


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """(folder without PEFT's card, live model, optimizer) of a run: whether `base_model.model.` is live is told by nothing."""
    torch.manual_seed(11)
    model = peft.get_peft_model(trained.llama(4), lora())
    optimizer = tuned(model)
    steps(model, optimizer, 12)
    folder = tmp_path_factory.mktemp("copied")
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()
    config = folder / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"inference_mode": true', '"inference_mode": false').replace('"auto_mapping": {', '"was_mapping": {')
    )
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder, model, optimizer


def test_the_files_own_keys_are_names_of_which_nothing_is_assumed(copied, tmp_path):
    folder, model, optimizer = copied
    assert repair(str(folder)).ordering.assumed
    done = repair(str(folder), str(tmp_path / "out.safetensors"), names="file")
    assert set(done.named.parameters) == set(load_file(folder / "adapter_model.safetensors"))
    assert [name.replace(".default", "") for name in live(optimizer, model)] == list(done.named.parameters)
    assert (done.ordering.assumed, done.ordering.verdict) == ((), "verified")
    assert verify(str(tmp_path / "out.safetensors"), adapter=str(folder)).verdict == "verified"


def test_a_state_under_the_files_keys_fills_the_live_model(copied, tmp_path):
    folder, model, optimizer = copied
    repair(str(folder), str(tmp_path / "out.safetensors"), names="file")
    made = lora_adamw(model, ostate.load(str(tmp_path / "out.safetensors")), lr=1e-3)
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        assert torch.equal(made.state[parameter]["exp_avg_sq"], optimizer.state[parameter]["exp_avg_sq"])


def test_peft_names_are_those_of_peft_model_whatever_the_checkpoints_weights_are_called(copied, tmp_path: Path):
    folder, model, optimizer = copied
    done = repair(str(folder), names="peft")
    assert list(done.named.parameters) == live(optimizer, model)
    assert not any("prefix" in one for one in done.ordering.assumed)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", "unet.base_model.model."])
def test_peft_names_of_a_file_for_comfyui_or_a_pipeline_are_peft_models_too(prefix: str, copied, tmp_path: Path):
    """diffusion-pipe puts ComfyUI's prefix in place of PeftModel's, a pipeline's save_lora_weights its component's, before PeftModel's own
    names where it is handed those (diffusers' train_lcm_distill_lora_*)."""
    folder, model, optimizer = copied
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({key.replace("base_model.model.", prefix): value for key, value in weights.items()}, tmp_path / "pytorch_lora_weights.safetensors")
    shutil.copy(folder / "optimizer.pt", tmp_path)
    done = repair(str(tmp_path), names="peft")
    assert list(done.named.parameters) == live(optimizer, model)
    assert any(f"in place of {prefix}" in one for one in done.ordering.assumed) is (len(prefix) < 20)


def test_the_command_line_chooses_the_form(copied, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(copied[0], folder)
    shown = CliRunner().invoke(main, ["names", str(folder), "--names", "file"])
    assert {line.split("\t")[1] for line in shown.stdout.splitlines() if "\t" in line} == set(load_file(folder / "adapter_model.safetensors"))
    refused = CliRunner().invoke(main, ["names", str(folder), "--names", "kohya"])
    assert refused.exit_code == 2
