"""Why a resume refuses, by name; and the command that is printed does mend it."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
import torch
from click.testing import CliRunner

import ostate
from ostate import store
from ostate.cli import main
from ostate.commands.resume import as_document, compare_for
from tests.documents import faults


@pytest.fixture
def named(llama_run, tmp_path, monkeypatch):
    """A named state in a folder of its own, where commands are run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(llama_run.checkpoint, tmp_path / "runs" / "checkpoint-12")
    return ostate.repair("runs/checkpoint-12", "lora.ostate.safetensors").out[0]


def adapted(run, **options):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options})
    return get_peft_model(AutoModelForCausalLM.from_pretrained(run.base), made)


def saved(model, folder):
    """Save as PEFT does, and return the optimizer that Trainer makes for it, with the names of its positions."""
    from transformers import Trainer, TrainingArguments

    model.save_pretrained(folder)
    optimizer = Trainer(model=model, args=TrainingArguments(output_dir="trainer", report_to=[], use_cpu=True)).create_optimizer()
    names = {p: name for name, p in model.named_parameters()}
    return optimizer, [names[p] for group in optimizer.param_groups for p in group["params"]]


def printed(*arguments):
    """Return the exit code, the text and the JSON document of one diff; the two are of one mind."""
    text = CliRunner().invoke(main, ["diff", *arguments], catch_exceptions=False)
    document = json.loads(CliRunner().invoke(main, ["diff", *arguments, "--json"], catch_exceptions=False).stdout)
    assert faults(document) == []
    assert text.exit_code == (0 if document["same"] else 1)
    assert document["command"] in text.stdout
    return text.stdout, document


def carried_out(document):
    """Run the printed command and return what it wrote."""
    for line in document["command"].split(" && "):
        done = CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)
        assert done.exit_code in (0, 1), done.output
    return torch.load("optimizer.pt", weights_only=True)


def loaded(stored, optimizer, order, state, renamed=None):
    """Load into the real optimizer: what is kept by name is each parameter's own."""
    optimizer.load_state_dict(stored)
    kept = 0
    for name, parameter in zip(order, [p for group in optimizer.param_groups for p in group["params"]]):
        own = (renamed or {}).get(name, name)
        entry = optimizer.state.get(parameter, {})
        if own in state.parameters and entry and tuple(entry["exp_avg"].shape) == state.parameters[own].shape:
            assert torch.equal(entry["exp_avg"], torch.as_tensor(state.tensor(own, "exp_avg")))
            kept += 1
    return kept


def test_the_same_parameters_need_nothing(llama_run, named):
    text, document = printed(named, "--for", "runs/checkpoint-12")
    assert (document["same"], document["moved"]) == (True, [])
    assert "loads as it is" in text
    assert document["by_position"] == "torch loads it, each parameter where it belongs"


def test_an_added_target_module_is_named_and_mended(llama_run, named):
    optimizer, order = saved(
        adapted(llama_run, target_modules=["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]), "new"
    )
    _, document = printed(named, "--for", "new", "--base", str(llama_run.base))
    state = store.load(named)
    assert {row["name"] for row in document["adds"]} == set(order) - set(state.parameters)
    assert document["lacks"] == []
    assert "doesn't match the size" in document["by_position"]
    assert loaded(carried_out(document), optimizer, order, state) == len(state.parameters)


def test_fewer_modules_are_named(llama_run, named):
    optimizer, order = saved(adapted(llama_run), "new")
    _, document = printed(named, "--for", "new")
    state = store.load(named)
    assert set(document["lacks"]) == set(state.parameters) - set(order)
    assert loaded(carried_out(document), optimizer, order, state) == len(order)


@pytest.mark.parametrize(("rank", "flag"), [(8, ""), (2, "--truncate")])
def test_another_rank_is_named_and_mended(llama_run, named, rank, flag):
    modules = json.loads((llama_run.checkpoint / "adapter_config.json").read_text())["target_modules"]
    optimizer, order = saved(adapted(llama_run, r=rank, target_modules=modules), "new")
    _, document = printed(named, "--for", "new", "--base", str(llama_run.base))
    assert {row["name"] for row in document["reshaped"]} == set(order)
    assert flag in document["command"]
    assert "without an error" in document["by_position"]
    loaded(carried_out(document), optimizer, order, store.load(named))


@pytest.mark.parametrize("rank", [8, 2])
def test_a_changed_rank_is_seen_in_a_list_that_has_shapes_and_its_lack_is_said(llama_run, named, rank):
    """The recipe's own way: the new run writes its names and shapes before it resumes."""
    modules = json.loads((llama_run.checkpoint / "adapter_config.json").read_text())["target_modules"]
    model = adapted(llama_run, r=rank, target_modules=modules)
    shapes = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    with open("names.json", "w") as file:
        json.dump(list(shapes), file)
    text, document = printed(named, "--for", "names.json")
    assert document["same"]
    assert [row["rule"] for row in document["findings"]] == ["for-shapes-unknown"]
    assert "names without shapes" in text
    with open("names.json", "w") as file:
        json.dump({"param_names": list(shapes), "shapes": shapes}, file)
    _, document = printed(named, "--for", "names.json")
    assert {row["name"] for row in document["reshaped"]} == set(shapes)
    assert document["findings"] == []
    live = dict(model.named_parameters())
    stored = carried_out(document)
    optimizer = torch.optim.AdamW([live[name] for name in shapes])
    optimizer.load_state_dict({**stored, "param_groups": [{**stored["param_groups"][0], "params": list(range(len(shapes)))}]})
    state = store.load(named)
    for name in shapes:
        kept = tuple(slice(0, min(sizes)) for sizes in zip(live[name].shape, state.parameters[name].shape))
        ours, theirs = optimizer.state[live[name]]["exp_avg_sq"], torch.as_tensor(state.tensor(name, "exp_avg_sq"))
        assert ours.shape == live[name].shape
        assert torch.equal(ours[kept], theirs[kept])


def test_another_order_is_told_from_others_before_it(named):
    names = list(store.load(named).parameters)
    with open("names.json", "w") as file:
        json.dump([names[1], names[0], *names[2:]], file)
    text, document = printed(named, "--for", "names.json")
    assert [(row["name"], row["state"], row["to_come"]) for row in document["moved"]] == [(names[1], 1, 0), (names[0], 0, 1)]
    assert "2 in another order" in text
    assert carried_out(document)["param_groups"][0]["param_names"][:2] == [names[1], names[0]]
    with open("names.json", "w") as file:
        json.dump(names[1:], file)
    text, document = printed(named, "--for", "names.json")
    assert len(document["moved"]) == len(names) - 1
    assert "another order" not in text


def test_a_list_with_names_that_have_no_shape_gets_no_entry_for_them(named):
    with open("names.json", "w") as file:
        json.dump([*store.load(named).parameters, "lm_head.weight"], file)
    _, document = printed(named, "--for", "names.json")
    assert "--new absent" in document["command"]
    assert carried_out(document)["param_groups"][0]["param_names"][-1] == "lm_head.weight"


def test_a_checkpoint_without_names_is_named_first(llama_run, named):
    _, document = printed("runs/checkpoint-12", "--for", "runs/checkpoint-12")
    assert document["same"]
    with open("names.json", "w") as file:
        json.dump(list(store.load(named).parameters)[4:], file)
    shutil.move(named, "elsewhere.safetensors")
    _, document = printed("runs/checkpoint-12", "--for", "names.json")
    assert document["command"].startswith("ostate repair runs/checkpoint-12 -o lora.ostate.safetensors && ostate export ")
    carried_out(document)


def test_what_no_command_mends_says_so(llama_run, named):
    model = llama_run.fresh()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.zeros(5, 5)
    found = compare_for(named, model)
    assert (found.same, found.command) == (False, "")
    assert "no export makes this state fit" in found.findings[0].text
    assert faults(as_document(found)) == []


def test_a_live_model_is_asked_in_code(llama_run, named):
    assert compare_for(named, llama_run.fresh()).same
    frozen = llama_run.fresh()
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "lora_B" in name)
    found = compare_for(named, frozen)
    assert {name for name in found.lacks if "lora_B" in name} == set()
    assert len(found.lacks) == len(store.load(named).parameters) // 2


def test_the_two_ways_of_diff_are_not_mixed(named):
    for arguments in ([named], [named, named, "--for", "runs/checkpoint-12"], [named, named, "--base", "x"]):
        assert CliRunner().invoke(main, ["diff", *arguments]).exit_code == 2
