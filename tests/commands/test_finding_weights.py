"""LoRA files of any name: beside the state, one folder down, one to the side."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import peft
import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from ostate.commands.repair import repair, verify
from ostate.errors import OstateError, ReadError
from ostate.read import read
from ostate.read.weights import candidates
from tests import trained
from tests.commands.test_choosing import live, lora, steps, tuned


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder with optimizer.pt and the weights at steps 4, 8 and 12, live names) of one run of 12 steps."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(5)
    model = peft.get_peft_model(trained.llama(6), lora())
    optimizer = tuned(model)
    for step in (4, 8, 12):
        steps(model, optimizer, 4, seed=step)
        save_file(peft.get_peft_model_state_dict(model), folder / f"{step}.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder, live(optimizer, model)


LAYOUTS = {  # where the state lies, and where the weights of steps 4, 8 and 12 lie; the last is the state's own
    "diffusers": ("checkpoint-12/optimizer.bin", {12: "checkpoint-12/pytorch_lora_weights.safetensors"}),
    "ai-toolkit": ("job/optimizer.pt", {4: "job/job_000000004.safetensors", 8: "job/job_000000008.safetensors", 12: "job/job_000000012.safetensors"}),
    "ai-toolkit at its end": ("job/optimizer.pt", {4: "job/job_000000004.safetensors", 12: "job/job.safetensors"}),
    "OneTrainer": ("backup/optimizer/optimizer.pt", {12: "backup/lora/lora.safetensors"}),
    "OneTrainer, an average beside it": ("backup/optimizer/optimizer.pt", {8: "backup/ema/ema.safetensors", 12: "backup/lora/lora.safetensors"}),
    "ai-toolkit, an average beside it": ("job/optimizer.pt", {8: "job/job_ema_000000012.safetensors", 12: "job/job_000000012.safetensors"}),
    "kohya": ("mine-state/optimizer.bin", {12: "mine.safetensors"}),
    "kohya by epochs": ("mine-000002-state/optimizer.bin", {4: "mine-000001.safetensors", 12: "mine-000002.safetensors"}),
    "epochs": ("state/optimizer.pt", {4: "epoch1/adapter_model.safetensors", 12: "epoch2/adapter_model.safetensors"}),
    "any name, one folder down": ("state/optimizer.pt", {12: "state/out/whatever.safetensors"}),
}


def laid(run: Path, root: Path, layout: str) -> tuple[Path, str]:
    state, weights = LAYOUTS[layout]
    for place, source in [(state, "optimizer.pt"), *((place, f"{step}.safetensors") for step, place in weights.items())]:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / source, root / place)
    return root / state, weights[12]


def assert_right(done, live_names: list[str]) -> None:
    """What is named is named right; how much the numbers alone can name is another test's matter."""
    named = {parameter.position: name for name, parameter in done.named.parameters.items()}
    assert named
    assert named.items() <= dict(enumerate(live_names)).items()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_by_their_keys_and_name_the_state(layout: str, run, tmp_path: Path):
    state, weights = laid(run[0], tmp_path, layout)
    for path in (state, state.parent):
        done = repair(str(path))
        assert_right(done, run[1])
        assert done.named.adapter["file"] == os.path.basename(weights)
    assert candidates(read(str(state))).adapters[0].file == str(tmp_path / weights)


@pytest.mark.parametrize("place", ["lora.pt", "out/lora_12.pth"])
def test_the_lora_pt_of_loralib_is_found_by_its_keys(place: str, run, tmp_path: Path):
    """loralib's `lora_state_dict` (loralib/utils.py): plain parameters `lora_A` and `lora_B`, under the model's own names."""
    weights = {
        key.removeprefix("base_model.model.").removesuffix(".weight"): value for key, value in sorted(load_file(run[0] / "12.safetensors").items())
    }
    (tmp_path / place).parent.mkdir(exist_ok=True)
    torch.save(weights, tmp_path / place)
    torch.save({"last_epoch": 3, "_step_count": 4}, tmp_path / "lora_scheduler.pt")
    shutil.copy(run[0] / "optimizer.pt", tmp_path)
    done = repair(str(tmp_path))
    assert_right(done, [name.removeprefix("base_model.model.").replace(".default.weight", "") for name in run[1]])
    assert done.named.adapter["file"] == os.path.basename(place)


def test_a_component_one_folder_down_is_found(run, tmp_path: Path):
    (tmp_path / "unet").mkdir()
    save_file({"conv_in.weight": torch.ones(2, 2)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    shutil.copy(run[0] / "optimizer.pt", tmp_path)
    (found,) = candidates(read(str(tmp_path / "optimizer.pt"))).adapters
    assert (found.kind, list(found.tensors)) == ("model", ["conv_in.weight"])


def test_an_adapter_to_the_side_is_taken_where_the_numbers_prove_it(run, tmp_path: Path):
    for folder, source in (("mine", "optimizer.pt"), ("other", "12.safetensors")):
        (tmp_path / folder).mkdir()
        shutil.copy(run[0] / source, tmp_path / folder)
    done = repair(str(tmp_path / "mine"))
    assert_right(done, run[1])
    (said,) = [finding for finding in done.findings if finding.rule in {"adapter-beside", "adapter-chosen"}]  # one note, not one of each
    assert str(tmp_path / "other" / "12.safetensors") in said.text


def test_an_adapter_of_another_run_to_the_side_names_nothing_and_is_listed(run, tmp_path: Path):
    for folder in ("mine", "other"):
        (tmp_path / folder).mkdir()
    shutil.copy(run[0] / "optimizer.pt", tmp_path / "mine")
    torch.manual_seed(99)
    save_file({key: torch.randn_like(values) for key, values in load_file(run[0] / "12.safetensors").items()}, tmp_path / "other" / "x.safetensors")
    with pytest.raises(OstateError) as error:
        repair(str(tmp_path / "mine"))
    assert "x.safetensors" in str(error.value)


def test_weights_that_fit_nothing_are_listed_where_no_adapter_was_found(run, tmp_path: Path):
    folder = tmp_path / "alone" / "job"
    folder.mkdir(parents=True)
    shutil.copy(run[0] / "optimizer.pt", folder)
    for name in "abcd":
        save_file({f"{name}.x": torch.ones(2)}, folder / f"{name}.safetensors")
    with pytest.raises(OstateError, match=r"weight files nearby: .*a\.safetensors.*d\.safetensors"):
        repair(str(folder))


def test_a_folder_of_several_saves_may_be_given(run, tmp_path: Path):
    shutil.copy(run[0] / "optimizer.pt", tmp_path)
    (tmp_path / "saves").mkdir()
    for step in (4, 8, 12):
        shutil.copy(run[0] / f"{step}.safetensors", tmp_path / "saves" / f"job_{step:09}.safetensors")
    done = repair(str(tmp_path / "optimizer.pt"), adapter=str(tmp_path / "saves"))
    assert done.named.adapter["file"] == "job_000000012.safetensors"
    assert_right(done, run[1])


def test_of_saves_of_one_run_the_newest_that_the_numbers_prove_whole_is_read(run, tmp_path: Path):
    """The newest may be of another step, or half of it rewritten: what it proves less is no reason to leave positions out."""
    shutil.copy(run[0] / "optimizer.pt", tmp_path)
    weights = load_file(run[0] / "12.safetensors")
    spoiled = {key: torch.randn_like(value) if ".0." in key else value for key, value in weights.items()}
    save_file(spoiled, tmp_path / "job_000000090.safetensors")
    save_file(weights, tmp_path / "job_000000080.safetensors")
    done = repair(str(tmp_path))
    assert done.named.adapter["file"] == "job_000000080.safetensors"
    assert list(done.ordering.names) == run[1]


@pytest.fixture(scope="module")
def without_adapter_file(tmp_path_factory):
    """(checkpoint in Accelerate's sharded folders, checkpoint in one bundle, live names): a LoRA whose weights no adapter file holds."""
    torch.manual_seed(0)
    model = peft.get_peft_model(trained.llama(6), lora())
    optimizer = tuned(model)
    steps(model, optimizer, 12)
    folder = tmp_path_factory.mktemp("sharded")
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder / "checkpoint" / "optimizer_0")
    dcp.save({"model": get_peft_model_state_dict(model)}, checkpoint_id=folder / "checkpoint" / "pytorch_model_fsdp_0")
    (folder / "lightning").mkdir()
    bundle = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 12, "pytorch-lightning_version": "2.5"}
    torch.save(bundle, folder / "lightning" / "last.ckpt")
    return folder, [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("place", ["checkpoint", "checkpoint/pytorch_model_fsdp_0", "lightning"])
def test_a_checkpoint_that_holds_the_weights_itself_may_be_passed_in_an_adapters_place(without_adapter_file, place, tmp_path):
    folder, names = without_adapter_file
    out = str(tmp_path / "lora.ostate.safetensors")
    done = repair(str(folder / place.partition("/")[0]), out, adapter=str(folder / place))
    assert (list(done.named.parameters), done.ordering.verdict) == (names, "verified")
    assert verify(out, adapter=str(folder / place)).verdict == "verified"


def test_a_checkpoint_without_weights_is_no_adapter(without_adapter_file):
    folder, _ = without_adapter_file
    with pytest.raises(ReadError, match="no adapter in this folder"):
        repair(str(folder / "checkpoint"), adapter=str(folder))


def test_buffers_alone_beside_a_state_are_no_weights_of_it(run, tmp_path):
    """DeepSpeed's stage 3 keeps a critic's running mean in the model's file, and its weights in none: the adapter to the side is looked for."""
    folder, names = run
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    for place in ("checkpoint", "final"):
        (tmp_path / place).mkdir()
    torch.save({"optimizer": state, "model": {"mean": torch.zeros(1), "std": torch.ones(1)}}, tmp_path / "checkpoint" / "bundle.pt")
    shutil.copy(folder / "12.safetensors", tmp_path / "final" / "12.safetensors")
    found = candidates(read(str(tmp_path / "checkpoint")))
    assert [Path(adapter.file).name for adapter in found.adapters] == ["12.safetensors"]
    assert found.on_trial
    done = repair(str(tmp_path / "checkpoint"))
    assert_right(done, names)
    assert len(done.named.parameters) == len(names)
