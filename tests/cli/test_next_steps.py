"""What a command says of the next step: the risk, the command, the option, the file that is wanted in place of the one that was passed."""

from __future__ import annotations

import json
import shutil

import jsonschema
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import ostate
from ostate.cli import main
from ostate.errors import ProbeError, ReadError, StoreError
from ostate.probe.measure.loading import load_model
from ostate.report import verdict_text
from ostate.report.blocks import Line, Table
from ostate.report.rich_text import rendered
from ostate.store.validating import schema
from tests.documents import changed
from tests.real import case
from tests.schemas import closed

LLAMA = case("llama_qv")


def run(*arguments, **more):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **more)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    out = tmp_path_factory.mktemp("named") / "lora.ostate.safetensors"
    ostate.repair(str(LLAMA.state), str(out), adapter=str(LLAMA.adapter), base=str(LLAMA.base))
    return out


def test_inspect_ends_with_what_would_go_wrong_and_the_next_command():
    *_, risk, command = run("inspect", LLAMA.state, "--adapter", LLAMA.adapter).output.strip().splitlines()
    assert risk.startswith("without names torch loads by position")
    assert command == f"next: ostate repair {LLAMA.state} --adapter {LLAMA.adapter} -o optimizer.ostate.safetensors"


def test_a_path_with_a_space_is_quoted_in_the_next_command(tmp_path):
    shutil.copy(LLAMA.state, tmp_path / "my state.pt")
    assert run("inspect", tmp_path / "my state.pt").output.strip().endswith(f"'{tmp_path}/my state.pt' -o 'my state'.ostate.safetensors")


def test_the_next_command_of_a_named_file_is_verify(named):
    assert f"next: ostate verify {named} --adapter DIR" in run("inspect", named).output


def test_verify_of_a_state_that_is_proven_in_part_lists_what_is_not(tmp_path):
    bias = case("bias_all")
    done = run("verify", bias.state, "--adapter", bias.adapter)
    assert done.exit_code == 1
    assert "WARNING: 24 names come from AutoModelForCausalLM" in done.stdout
    assert "\n  which: base_model.model." in done.stdout
    out = tmp_path / "bias.ostate.safetensors"
    ostate.repair(bias.state, out, adapter=bias.adapter, base=bias.base)
    again = run("verify", out, "--adapter", bias.adapter)
    assert again.exit_code == 1
    assert " names come from this file only; the tensor values prove the others" in again.stdout


def test_an_adapter_of_the_same_shapes_is_not_called_good():
    done = run("inspect", LLAMA.state, "--adapter", LLAMA.adapter, color=True, env={"FORCE_COLOR": "1", "COLUMNS": "200"})
    (line,) = [line for line in done.output.splitlines() if "match a tensor by shape" in line]
    assert "\x1b[32m" not in line
    assert "shapes only: `ostate verify` compares the tensor values" in done.output


def test_a_refusal_under_json_is_a_document_that_the_schema_describes(tmp_path):
    (tmp_path / "optimizer.pt").write_text("not a torch file")
    done = run("inspect", tmp_path / "optimizer.pt", "--json")
    document = json.loads(done.stdout)
    jsonschema.validate(document, closed(schema("error-v1")))
    assert (done.exit_code, document["error"]) == (3, "UnknownFormat")
    assert done.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    "command",
    [["validate"], ["probe", "--model", LLAMA.base, "--adapter", LLAMA.adapter.parent, "--data", __file__], ["export", "--to", "less", "-o", "x"]],
)
def test_a_raw_checkpoint_is_told_to_be_repaired_first(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(command[0], LLAMA.state, *command[1:])
    assert done.exit_code == 3
    assert "Error: a raw checkpoint" in done.stderr
    assert f"fix: run `ostate repair {LLAMA.state} -o" in done.stderr


def test_a_raw_checkpoint_folder_is_told_to_be_repaired_first():
    with pytest.raises(StoreError, match="raw checkpoint"):
        ostate.load(LLAMA.state.parent)


def test_a_base_model_in_the_adapters_place_is_called_one(tmp_path):
    with pytest.raises(ReadError, match="this is a base model's folder, not an adapter"):
        ostate.verify(str(LLAMA.state), adapter=str(LLAMA.base))
    save_file({f"model.layers.{i}.self_attn.q_proj.weight": torch.zeros(16, 16) for i in range(4)}, tmp_path / "model.safetensors")
    with pytest.raises(ReadError, match="this is a full model, not the adapter"):
        ostate.verify(str(LLAMA.state), adapter=str(tmp_path))


def test_repair_writes_no_safetensors_under_a_torch_name(tmp_path):
    done = run("repair", LLAMA.state, "-o", tmp_path / "x.pt")
    assert done.exit_code == 3
    assert "ostate export FILE --to torch" in done.stderr


def test_a_named_state_beside_the_state_is_mentioned(named, tmp_path):
    shutil.copy(LLAMA.state, tmp_path / "optimizer.pt")
    assert "named-state-beside" not in {finding.rule for finding in ostate.inspect(str(tmp_path)).findings}
    shutil.copy(named, tmp_path / "optimizer.ostate.safetensors")
    (said,) = [finding for finding in ostate.inspect(str(tmp_path)).findings if finding.rule == "named-state-beside"]
    assert str(tmp_path / "optimizer.ostate.safetensors") in said.text


def test_a_command_with_a_slip_is_answered_with_the_one_that_was_meant():
    done = run("inspct", LLAMA.state)
    assert (done.exit_code, "Did you mean 'inspect'?" in done.stderr) == (2, True)


def test_an_option_with_a_slip_is_answered_with_the_one_that_was_meant():
    done = run("inspect", LLAMA.state, "--adaptr", "x")
    assert (done.exit_code, "--adapter" in done.stderr) == (2, True)


def test_several_files_are_validated_one_after_another_and_the_worst_code_wins(named, tmp_path):
    bad = tmp_path / "bad.ostate.safetensors"
    bad.write_bytes(named.read_bytes()[:-4])
    done = run("validate", named, bad, named)
    assert done.exit_code == 3
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("sound", "not sound"))] == ["sound", "not", "sound"]


def test_several_states_are_inspected_and_one_that_cannot_be_read_stops_none(named, tmp_path):
    (tmp_path / "optimizer.pt").write_text("not a torch file")
    done = run("inspect", LLAMA.state, tmp_path / "optimizer.pt", named)
    assert done.exit_code == 3
    assert done.stdout.count("  layout ") == 2


def test_a_model_of_the_local_cache_is_found_by_its_name(cached_llama):
    done = run("repair", LLAMA.state, "--adapter", LLAMA.adapter, "--base", cached_llama, "--dry-run")
    assert done.exit_code == 1, done.output
    assert "from the rebuilt model" in done.output
    refused = run("repair", LLAMA.state, "--base", "tiny/other", "--dry-run")
    assert refused.exit_code == 2
    assert "nor a model in the local Hugging Face cache" in refused.stderr


def test_an_adapter_in_the_models_place_is_called_one():
    with pytest.raises(ProbeError, match="this is an adapter, not a model"):
        load_model(str(LLAMA.adapter.parent), str(LLAMA.adapter.parent))


def test_a_command_to_copy_is_never_wrapped():
    said = rendered([Line(f"next: ostate repair {'x' * 90} -o y.safetensors", "command")], width=60, colour=False)
    assert len(said.strip().splitlines()) == 1


def test_a_wide_tables_names_are_folded_by_the_prefix_they_share():
    names = [f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.default.weight" for i in range(3)]
    table = Table(("name", "position", "score"), tuple((name, str(i), "40.2") for i, name in enumerate(names)))
    wide = rendered([table], width=120, colour=False)
    narrow = rendered([table], width=80, colour=False)
    assert names[0] in wide
    assert "… stands for base_model.model.model.layers." in narrow
    assert max(len(line.rstrip()) for line in narrow.splitlines()) <= 80
    assert "…2.self_attn.q_proj.lora_A.default.weight" in narrow


def test_a_long_refusal_keeps_its_indent_on_a_narrow_terminal():
    done = run("inspect", __file__, env={"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "44"})
    _, *rest = done.stderr.rstrip().splitlines()
    assert all(line.startswith(("  at:  ", "  fix: ", "  -    ", "       ")) for line in rest)
    assert any(line.startswith("       ") for line in rest)


def test_the_weakest_pairs_are_shown_by_their_live_names():
    document = changed("verify", "ordering.weakest.0.parameter", "layers.0.q_proj.lora_A.default.weight")
    document["ordering"]["weakest"][0]["name"] = "layers.0.q_proj.lora_A.weight"
    said = "\n".join(verdict_text.lines(document))
    assert "layers.0.q_proj.lora_A.default.weight" in said
    assert "layers.0.q_proj.lora_A.weight" not in said
