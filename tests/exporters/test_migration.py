"""States for another set of parameters: every number kept stands under its new name, and what was made or dropped is said."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import ostate
from ostate import store
from ostate.errors import ExportError
from ostate.store import validating

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"


def moved(state, tmp_path, **export_options):
    """Export to the named format and load again: what was asked for must survive the trip."""
    done = ostate.export(state, "ostate", tmp_path / "moved.safetensors", **export_options)
    assert validating.validate(done.path, deep=True) == []
    return store.load(done.path), {finding.rule: finding for finding in done.findings}


def adapter_with(run, folder, change):
    """Copy the run's adapter and let `change` alter its tensors."""
    import shutil

    from safetensors.numpy import load_file, save_file

    folder.mkdir()
    shutil.copy(run.checkpoint / "adapter_config.json", folder)
    tensors = load_file(str(run.checkpoint / "adapter_model.safetensors"))
    save_file(change(tensors), str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    return str(folder)


def test_names_alone_choose_and_order(llama_state, tmp_path):
    wanted = list(reversed(list(llama_state.parameters)[:6]))
    (tmp_path / "names.json").write_text(json.dumps([wanted]))
    state, findings = moved(llama_state, tmp_path, wanted=str(tmp_path / "names.json"))
    assert list(state.groups[0].names) == wanted
    assert findings["migration-dropped"].text.startswith("162 parameters")
    assert set(state.source["migration"]["dropped"]) == set(llama_state.parameters) - set(wanted)
    for name in wanted:
        assert np.array_equal(state.tensor(name, "exp_avg_sq"), llama_state.tensor(name, "exp_avg_sq"))


def test_names_in_another_trainers_spelling_are_the_same_parameters(llama_state, tmp_path):
    """ai-toolkit's live names have `$$` for dots, `lora_down` for `lora_A`, and a component in front."""

    def live(name):
        module, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        return f"transformer$${module.replace('.', '$$')}.lora_{'down' if factor[0] == 'A' else 'up'}.weight"

    renamed = [("^base_model[.]model[.]", "diffusion_model.")]
    names = list(llama_state.parameters)
    state, _ = moved(llama_state, tmp_path, rename=renamed, wanted=[live(name) for name in reversed(names)])
    assert list(state.parameters) == [live(name) for name in reversed(names)]
    for name in (A, B):
        assert np.array_equal(state.tensor(live(name), "exp_avg_sq"), llama_state.tensor(name, "exp_avg_sq"))


def test_groups_can_be_given(llama_state, tmp_path):
    names = list(llama_state.parameters)
    state, _ = moved(llama_state, tmp_path, wanted=[names[5:], names[:5]])
    assert [len(group.names) for group in state.groups] == [163, 5]
    assert all(state.parameters[name].group == 1 for name in names[:5])


def test_modules_can_be_renamed(llama_state, tmp_path):
    state, findings = moved(llama_state, tmp_path, rename=[(r"self_attn\.(\w)_proj", r"attention.\1")])
    new = A.replace("self_attn.q_proj", "attention.q")
    assert np.array_equal(state.tensor(new, "exp_avg"), llama_state.tensor(A, "exp_avg"))
    assert findings["migration-kept"].text.startswith("168")
    with pytest.raises(ExportError, match="two parameters would be called"):
        moved(llama_state, tmp_path, rename=[(r"layers\.\d+", "layers.0")])
    with pytest.raises(ExportError, match="not a regular expression"):
        moved(llama_state, tmp_path, rename=[("(", "x")])


def test_a_larger_rank_keeps_what_was_learned_and_starts_the_rest_at_zero(llama_run, llama_state, tmp_path):
    def grow(tensors):
        return {key: np.concatenate([t, np.ones_like(t)], axis=0 if "lora_A" in key else 1) if "q_proj" in key else t for key, t in tensors.items()}

    folder = adapter_with(llama_run, tmp_path / "larger", grow)
    state, findings = moved(llama_state, tmp_path, wanted=folder)
    assert state.parameters[A].shape == (8, 32)
    assert np.array_equal(state.tensor(A, "exp_avg_sq")[:4], llama_state.tensor(A, "exp_avg_sq"))
    assert not state.tensor(A, "exp_avg_sq")[4:].any()
    assert np.array_equal(state.tensor(B, "exp_avg")[:, :4], llama_state.tensor(B, "exp_avg"))
    assert len(findings["migration-grown"].names) == 24


def test_a_smaller_rank_is_refused_unless_cut(llama_run, llama_state, tmp_path):
    def shrink(tensors):
        return {key: np.ascontiguousarray(t[:2] if "lora_A" in key else t[:, :2]) for key, t in tensors.items()}

    folder = adapter_with(llama_run, tmp_path / "smaller", shrink)
    with pytest.raises(ExportError, match="shrank") as error:
        moved(llama_state, tmp_path, wanted=folder)
    assert "--truncate" in error.value.fix
    state, findings = moved(llama_state, tmp_path, wanted=folder, truncate=True)
    assert np.array_equal(state.tensor(B, "exp_avg"), llama_state.tensor(B, "exp_avg")[:, :2])
    assert findings["migration-cut"].severity == "warning"


def test_another_shape_altogether_is_refused(llama_run, llama_state, tmp_path):
    folder = adapter_with(llama_run, tmp_path / "other", lambda tensors: {key: np.zeros((5, 5), np.float32) for key in tensors})
    with pytest.raises(ExportError, match="not the same parameter"):
        moved(llama_state, tmp_path, wanted=folder)


def smaller(state, tmp_path):
    """The state without its first two parameters, and the two as they were."""
    names = list(state.parameters)
    out = tmp_path / "smaller.safetensors"
    return ostate.export(state, "ostate", out, wanted=names[2:]).path, names[:2]


@pytest.mark.parametrize("new", ["zeros", "cold-step", "sibling", "absent"])
def test_new_parameters_start_as_asked(llama_run, llama_state, tmp_path, new):
    path, (first, second) = smaller(llama_state, tmp_path)
    state, findings = moved(path, tmp_path, wanted=llama_run.fresh(), new=new)
    if new == "absent":
        assert first not in state.parameters
        assert findings["migration-absent"].names == (first, second)
        return
    assert findings["migration-made"].names == (first, second)
    row = state.parameters[first]
    assert row.step == (0.0 if new == "zeros" else 12.0)
    assert not state.tensor(first, "exp_avg").any()
    nearest = first.replace("layers.0", "layers.1")
    wanted = llama_state.tensor(nearest, "exp_avg_sq").astype("f8").mean() if new == "sibling" else 0.0
    assert np.allclose(state.tensor(first, "exp_avg_sq"), wanted, rtol=1e-6, atol=0)
    assert list(state.groups[0].names) == list(llama_state.parameters)


def test_the_shape_of_something_new_is_never_guessed(llama_state, tmp_path):
    with pytest.raises(ExportError, match="shape of a new parameter") as error:
        moved(llama_state, tmp_path, wanted=[*llama_state.parameters, "lm_head.weight"])
    assert "--new absent" in error.value.fix
    state, findings = moved(llama_state, tmp_path, wanted=[*llama_state.parameters, "lm_head.weight"], new="absent")
    assert findings["migration-absent"].names == ("lm_head.weight",)
    assert len(state.parameters) == 168


def test_a_model_with_nothing_to_train_says_how_to_load_it(llama_state, tmp_path):
    import torch

    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ExportError, match="requires grad") as error:
        ostate.export(llama_state, "torch", None, wanted=frozen)
    assert "is_trainable=True" in error.value.fix


def test_an_adapter_with_new_modules_and_no_base_says_what_is_needed(llama_run, llama_state, tmp_path):
    def extend(tensors):
        return {**tensors, "base_model.model.model.layers.0.new.lora_A.weight": np.ones((4, 32), np.float32)}

    folder = adapter_with(llama_run, tmp_path / "extended", extend)
    with pytest.raises(ExportError, match="order of 1 new parameters is not known") as error:
        ostate.export(llama_state, "torch", None, wanted=folder)
    assert "--base" in error.value.fix


def test_settings_follow_their_names(bias_state, tmp_path):
    """Every name keeps its own weight decay when the groups are made anew from the same settings."""
    names = [name for group in bias_state.groups for name in group.names]
    decays = [name for name in names if bias_state.hyper(name)["weight_decay"]]
    rest = [name for name in names if not bias_state.hyper(name)["weight_decay"]]
    state, findings = moved(bias_state, tmp_path, wanted=[rest, decays])
    assert "migration-groups" not in findings
    assert {name: state.hyper(name)["weight_decay"] for name in names} == {name: bias_state.hyper(name)["weight_decay"] for name in names}


@pytest.mark.parametrize("new", ["zeros", "cold-step", "sibling"])
def test_a_slot_that_holds_weights_is_never_made_of_zeros(llama_run, llama_state, tmp_path, new):
    """schedule-free's z is the parameter itself: zeros in it would pull the weights to zero."""
    kept = {name: replace(p, slots={"z": p.slots["exp_avg"], "exp_avg_sq": p.slots["exp_avg_sq"]}) for name, p in llama_state.parameters.items()}
    fewer = replace(llama_state, optimizer="adamw_schedulefree", parameters={name: p for name, p in kept.items() if name != A})
    with pytest.raises(ExportError, match="its z would hold the parameter's own weights") as error:
        moved(fewer, tmp_path, wanted=llama_run.fresh(), new=new)
    assert error.value.fix == "pass --new absent"


def test_a_slot_that_holds_weights_does_not_grow(llama_run, llama_state, tmp_path):
    kept = {name: replace(p, slots={"z": p.slots["exp_avg"], "exp_avg_sq": p.slots["exp_avg_sq"]}) for name, p in llama_state.parameters.items()}
    wider = adapter_with(llama_run, tmp_path / "wider", lambda tensors: {key: np.pad(value, ((0, 1), (0, 0))) for key, value in tensors.items()})
    with pytest.raises(ExportError, match="its z holds weights"):
        moved(replace(llama_state, parameters=kept), tmp_path, wanted=wider)


def trainers_groups(model, folder):
    """The names by group of the optimizer that the real Trainer makes."""
    from transformers import Trainer, TrainingArguments

    optimizer = Trainer(model=model, args=TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, weight_decay=0.1)).create_optimizer()
    names = {p: name for name, p in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def with_norms(run, **more):
    """The run's model with its norms trained too, and perhaps its head."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    saved = ["norm", "input_layernorm", *more.get("saved", ())]
    options = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=saved, task_type="CAUSAL_LM")
    return get_peft_model(AutoModelForCausalLM.from_pretrained(run.base), options)


@pytest.mark.parametrize("new", ["zeros", "absent"])
def test_new_norms_go_where_trainer_puts_them_without_being_told(llama_run, llama_state, tmp_path, new):
    model = with_norms(llama_run, saved=["lm_head"])
    groups = trainers_groups(model, tmp_path)
    done = ostate.export(llama_state, "names", tmp_path / "names.json", wanted=model, new=new)
    assert json.loads((tmp_path / "names.json").read_text()) == groups
    placed = next(finding for finding in done.findings if finding.rule == "migration-placed")
    assert (placed.severity, "1 in group 0, 25 in group 1" in placed.text) == ("note", True), placed.text
    assert done.state.groups[1].hyper["weight_decay"] == 0
    names = [name for group in groups for name in group]
    flat = ostate.export(llama_state, "names", None, wanted=names, new="absent").state
    assert [list(group.names) for group in flat.groups] == groups, "a list of names is placed alike"
    kept = ostate.export(llama_state, "names", None, wanted=model, new=new, groups="file").state
    assert [len(group.names) for group in kept.groups] == [len(names), 0]


def test_where_no_trainer_made_the_groups_a_parameter_without_neighbours_is_named(llama_run, llama_state, tmp_path):
    names = list(llama_state.parameters)
    by_hand = ostate.export(llama_state, "ostate", tmp_path / "hand.safetensors", wanted=[[n for n in names if f"lora_{x}" in n] for x in "AB"]).path
    grown = [name for name in names if "lora_" in name]
    extra = [A.replace("layers.0.", "layers.77."), "base_model.model.lm_head.modules_to_save.default.weight"]
    done = ostate.export(by_hand, "torch", None, wanted=[*grown, *extra, B.replace("layers.0.", "layers.77.")], new="absent")
    assert extra[0] in done.state.groups[0].names
    assert B.replace("layers.0.", "layers.77.") in done.state.groups[1].names
    placed = next(finding for finding in done.findings if finding.rule == "migration-placed")
    assert (placed.severity, placed.names) == ("warning", (extra[1],))
    assert "--groups trainer" in placed.fix
