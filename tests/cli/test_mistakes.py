"""Mistakes that people make at a first try, and the next step that each message names."""

from __future__ import annotations

import json
import shutil

import jsonschema
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import ostate
from ostate.cli import main
from ostate.errors import Ambiguous, ExportError, OrderingError, ProbeError, ProbeTypeError, StoreError
from ostate.probe import fill, filled, lora_adamw
from ostate.probe.measure.protocol import read_records
from ostate.store.validating import schema
from tests.real import case
from tests.schemas import closed

LLAMA, OTHER = case("llama_qv"), case("long_opt_step2")
SAME_SAVE = "pass the adapter that was saved with this state"


def run(*arguments, **more):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **more)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    out = tmp_path_factory.mktemp("named") / "lora.ostate.safetensors"
    ostate.repair(LLAMA.state, out, adapter=LLAMA.adapter, base=LLAMA.base)
    return out


@pytest.mark.parametrize("command", [["repair", "--dry-run"], ["verify"], ["names"]])
def test_another_models_adapter_is_called_one(command, named):
    done = run(command[0], LLAMA.state, "--adapter", OTHER.adapter, *command[1:])
    assert done.exit_code == 3
    assert done.stderr.startswith("Error: the adapter is of another model: none of its 88 tensors")
    assert SAME_SAVE in done.stderr


def test_another_models_adapter_is_refused_for_a_named_file_and_its_report(named, tmp_path):
    for command in (["verify", named], ["report", named, "-o", tmp_path / "page.html"]):
        done = run(*command, "--adapter", OTHER.adapter)
        assert (done.exit_code, "the adapter is of another model" in done.stderr) == (3, True)
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_a_named_file_refuses_the_adapter_of_another_run(named, tmp_path):
    torch.manual_seed(1)
    save_file({key: torch.randn_like(values) for key, values in load_file(LLAMA.adapter).items()}, tmp_path / "adapter_model.safetensors")
    done = run("report", named, "--adapter", tmp_path, "-o", tmp_path / "page.html")
    assert done.exit_code in (0, 3)
    if done.exit_code == 0:  # a tiny model's numbers may say nothing
        assert ostate.verify(named, adapter=tmp_path).verdict == "unverified"


def test_an_adapter_that_holds_a_part_of_the_state_is_named_first_among_the_reasons(tmp_path):
    tensors = load_file(LLAMA.adapter)
    save_file({key: tensors[key] for key in sorted(tensors)[:2]}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(Ambiguous) as refused:
        ostate.repair(LLAMA.state, adapter=tmp_path)
    assert refused.value.why[0].startswith("the adapter has no tensor of the right shape for ")
    assert refused.value.fix.startswith(SAME_SAVE)


def test_an_adapter_in_the_bases_place_is_called_one():
    folder = LLAMA.adapter.parent
    assert (folder / "adapter_config.json").exists()
    assert not (folder / "config.json").exists()
    with pytest.raises(OrderingError, match="this is an adapter, not a base model"):
        ostate.repair(LLAMA.state, adapter=LLAMA.adapter, base=folder)


def test_verify_without_an_adapter_says_how_to_check_and_does_not_offer_the_state_itself(named, tmp_path):
    alone = tmp_path / "alone" / "lora.ostate.safetensors"
    alone.parent.mkdir()
    shutil.copy(named, alone)
    done = run("verify", alone)
    assert done.exit_code == 1
    assert "to check them: pass --adapter DIR (the adapter saved at the same step)" in done.output
    assert "weight files nearby" not in done.output


def test_repair_mentions_a_named_state_in_the_same_folder_and_writes_the_same_bytes(named, tmp_path):
    shutil.copytree(LLAMA.state.parent, tmp_path / "run", ignore=shutil.ignore_patterns("*.meta.json"))
    state = tmp_path / "run" / LLAMA.state.name
    for out in ("a", "b"):
        done = run("repair", state, "--adapter", LLAMA.adapter, "--base", LLAMA.base, "-o", tmp_path / f"{out}.ostate.safetensors")
        assert ("a named state lies in the same folder" in done.output) == (out == "b")
        shutil.copy(named, tmp_path / "run" / "optimizer.ostate.safetensors")
    assert (tmp_path / "a.ostate.safetensors").read_bytes() == (tmp_path / "b.ostate.safetensors").read_bytes()


def test_repair_does_not_mention_its_own_output(tmp_path):
    shutil.copy(LLAMA.state, tmp_path / "optimizer.pt")
    arguments = ["repair", tmp_path / "optimizer.pt", "--adapter", LLAMA.adapter, "--base", LLAMA.base, "-o", tmp_path / "x.ostate.safetensors"]
    assert run(*arguments).exit_code in (0, 1)
    assert "a named state lies" not in run(*arguments, "--force").output


def test_the_base_model_for_an_adapter_is_not_exported_as_a_state_of_zeros(named, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("model.embed_tokens.weight\nlm_head.weight\n")
    with pytest.raises(ExportError, match="none of the parameters asked for is in the state"):
        ostate.export(named, "ostate", tmp_path / "x.ostate.safetensors", wanted=str(names), new="absent")
    assert run("diff", named, "--for", names).stdout.count("ostate export") == 0


def test_a_torch_name_is_refused_from_python_too(tmp_path):
    with pytest.raises(StoreError, match="repair writes a safetensors file"):
        ostate.repair(LLAMA.state, tmp_path / "x.pt", adapter=LLAMA.adapter)


def test_a_base_of_the_local_cache_is_found_by_its_name_from_python(cached_llama):
    assert ostate.repair(LLAMA.state, adapter=LLAMA.adapter, base=cached_llama).ordering.source == "skeleton"
    with pytest.raises(OrderingError, match=r"org/name of a model in the local Hugging Face cache"):
        ostate.repair(LLAMA.state, adapter=LLAMA.adapter, base="tiny/other")


@pytest.mark.parametrize(
    "arguments", [["inspect", "--json"], ["inspect", "x", "--jsno", "--json"], ["repair", str(LLAMA.state), "--json"]], ids=" ".join
)
def test_a_mistake_on_the_command_line_is_a_document_under_json(arguments):
    done = run(*arguments)
    document = json.loads(done.stdout)
    jsonschema.validate(document, closed(schema("error-v1")))
    assert (done.exit_code, document["exit_code"], document["error"]) == (2, 2, "UsageError")


def test_a_mistake_on_the_command_line_prints_nothing_to_stdout_otherwise():
    assert run("inspect", "x", "--jsno").stdout == ""


def test_help_as_a_command_is_answered():
    assert "ostate repair --help" in run("help", "repair").stderr


def test_a_report_is_a_page_and_replaces_nothing_unasked(named, tmp_path):
    assert run("report", named, "-o", tmp_path / "x.pdf").exit_code == 2
    (tmp_path / "x.html").write_text("mine")
    done = run("report", named, "-o", tmp_path / "x.html")
    assert (done.exit_code, "--force" in done.stderr, (tmp_path / "x.html").read_text()) == (3, True, "mine")


def test_validate_says_which_file_of_a_folder_it_read(named):
    assert f"read        {named}" in run("validate", named.parent).output
    assert "read " not in run("validate", named).output.partition("\n")[2]


def test_a_folder_without_a_named_state_says_so(tmp_path):
    with pytest.raises(StoreError, match="no named state in this folder"):
        ostate.load(tmp_path)


def test_a_name_that_is_not_there_is_answered_with_the_one_that_is_meant(named):
    state = ostate.load(named)
    name = next(iter(state))
    for asked in (name.replace(".default", ""), name.removeprefix("base_model.model.")):
        with pytest.raises(KeyError, match=f"did you mean '{name}'"):
            state[asked]
    with pytest.raises(KeyError, match="it has exp_avg, exp_avg_sq"):
        state.tensor(name, "exp_avg_square")


def test_a_path_in_the_states_place_is_told_to_be_loaded():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ProbeTypeError, match=r"the state must be a named state, not a str\n.*\n.*ostate\.load\(path\)"):
        lora_adamw(model, "lora.ostate.safetensors")
    with pytest.raises(ProbeTypeError, match="the state must be a named state, not a Linear"):
        fill(torch.optim.AdamW(model.parameters()), None, model)
    with pytest.raises(ProbeTypeError, match="an optimizer and its model are expected, not a Linear and a AdamW"):
        ostate.save(model, torch.optim.AdamW(model.parameters()), "x")


def test_an_optimizer_that_never_stepped_is_saved_after_its_first_step(tmp_path):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ProbeError, match=r"save after the first optimizer\.step\(\)"):
        ostate.save(torch.optim.AdamW(model.parameters()), model, tmp_path / "x.ostate.safetensors")


@pytest.mark.parametrize("line", ["hello", '{"prompt": "a"}', "[1]", ""])
def test_data_that_is_none_shows_what_a_line_looks_like(line, tmp_path):
    (tmp_path / "probe.jsonl").write_text(f"{line}\n")
    with pytest.raises(ProbeError, match='"input_ids": '):
        read_records(str(tmp_path / "probe.jsonl"), None)


def test_the_face_suggests_the_function_that_was_meant():
    with pytest.raises(AttributeError) as missing:
        ostate.laod  # noqa: B018
    assert (missing.value.name, missing.value.obj) == ("laod", ostate)


def test_an_adapter_whose_file_holds_what_was_computed_from_the_trained_is_not_called_another_models(tmp_path):
    """p-tuning trains a network and saves what it gives: no shape is alike."""
    save_file({"prompt_embeddings": torch.ones(7, 5)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "P_TUNING"}')
    with pytest.raises(OrderingError):
        ostate.repair(LLAMA.state, adapter=tmp_path)


def test_after_a_module_was_removed_the_advice_of_fill_works(tmp_path):
    from peft import LoraConfig, get_peft_model

    from tests.trained import llama

    def adapter(*modules):
        torch.manual_seed(0)
        return get_peft_model(llama(2), LoraConfig(r=4, target_modules=list(modules), task_type="CAUSAL_LM"))

    model, less = adapter("q_proj", "v_proj"), adapter("q_proj")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(3, 90, (2, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    state, smaller = tmp_path / "state.ostate.safetensors", tmp_path / "new.ostate.safetensors"
    ostate.save(optimizer, model, state)
    less.save_pretrained(tmp_path / "less")
    with pytest.raises(ProbeError, match="if modules were removed since, make a state for the new adapter") as refused:
        lora_adamw(less, ostate.load(state))
    words = refused.value.fix.partition("`ostate ")[2].partition("`")[0].split()
    given = {"STATE": state, "ADAPTER": tmp_path / "less", "new.ostate.safetensors": smaller}
    assert run(*(given.get(word, word) for word in words)).exit_code in (0, 1)
    found = filled(lora_adamw(less, ostate.load(smaller)))
    assert found is not None
    assert found.coverage == 1.0
