"""Each layout, read back by the consumer's own loading logic; the live optimizer is the truth."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch

import ostate
from ostate import read as formats
from ostate.commands.export import export
from ostate.errors import ExportError, StoreError
from ostate.exporters import EXPORTERS
from ostate.store import validating
from tests.records import replace

from .consumers import bergson_normalizers, dattri_optimizer, less_moments, ota_preconditioner, universal_moments


def same(live, found):
    assert set(live) == set(found)
    for name, tensor in live.items():
        assert torch.equal(tensor, torch.as_tensor(found[name])), name


def trainable(model):
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_torch_loads_it_and_takes_the_step_that_the_live_optimizer_takes(bias_run, bias_state, tmp_path):
    """Two groups, bit for bit: every parameter after one more step."""
    done = export(bias_state, "torch", tmp_path / "optimizer.pt")
    stored = torch.load(done.path, weights_only=True)
    live = copy.deepcopy(bias_run.optimizer.state_dict())  # loading shares tensors, and a step changes them
    assert [group["params"] for group in stored["param_groups"]] == [group["params"] for group in live["param_groups"]]
    assert stored["param_groups"][1]["param_names"] == [bias_run.names[p] for p in bias_run.optimizer.param_groups[1]["params"]]

    def stepped(state_dict):
        torch.manual_seed(1)
        parameters = [[torch.nn.Parameter(p.detach().clone()) for p in group["params"]] for group in bias_run.optimizer.param_groups]
        optimizer = torch.optim.AdamW([{"params": group} for group in parameters])
        optimizer.load_state_dict(state_dict)
        for group in parameters:
            for parameter in group:
                parameter.grad = torch.randn_like(parameter) * 1e-3
        optimizer.step()
        return [parameter.detach() for group in parameters for parameter in group]

    wanted, got = stepped(live), stepped(stored)
    assert all(torch.equal(a, b) for a, b in zip(wanted, got))
    first, second = (i for i in (0, 2))
    stored["state"][first], stored["state"][second] = stored["state"][second], stored["state"][first]
    assert not all(torch.equal(a, b) for a, b in zip(wanted, stepped(stored)))


@pytest.mark.parametrize("to", ["torch", "less", "accelerate", "dcp", "dattri"])
def test_what_is_read_back_is_the_same_state(bias_state, tmp_path, to):
    """Every name that the layout keeps, every number, every step, every setting."""
    done = export(bias_state, to, tmp_path / (EXPORTERS[to].file or "folder"))
    assert [finding for finding in done.findings if finding.severity != "note"] == []
    raw = formats.read(done.path)
    wanted = [name for group in bias_state.groups for name in group.names]
    assert len(raw.entries) == len(wanted)
    recorded = [entry.name for entry in raw.entries]
    if to == "dattri":
        recorded = json.loads((tmp_path / "folder" / "param_names.json").read_text())
    assert sorted(recorded) == sorted(wanted)
    for name, entry in zip(recorded, raw.entries):
        parameter = bias_state.parameters[name]
        assert entry.step == parameter.step
        for slot, values in parameter.slots.items():
            assert np.array_equal(entry.slots[slot].read(), values.read()), name
        for key in ("lr", "initial_lr", "betas", "eps", "weight_decay"):
            assert repr(raw.groups[entry.group].hyper[key]).strip("[()]") == repr(bias_state.hyper(name)[key]).strip("[()]")


@pytest.mark.parametrize("to", ["torch", "less", "accelerate", "dcp", "names", "deepspeed-universal"])
def test_exported_and_repaired_it_is_the_same_named_state(llama_run, llama_state, tmp_path, to):
    """Back through the front door: read, named by what the layout records, held against the adapter's numbers, written."""
    folder = tmp_path / "out"
    folder.mkdir()
    if to == "names":
        shutil.copy(llama_run.checkpoint / "optimizer.pt", folder)
    out = export(llama_state, to, folder / (EXPORTERS[to].file or "state"), adapter=str(llama_run.checkpoint)).path
    source = str(folder) if to == "names" else out
    options = {} if to != "deepspeed-universal" else {"base": str(llama_run.base)}
    repaired = ostate.repair(source, str(tmp_path / "again.safetensors"), adapter=str(llama_run.checkpoint), **options)
    assert repaired.ordering.verdict == "verified"
    found = ostate.diff(llama_state.path, str(tmp_path / "again.safetensors"))
    assert (found.only_a, found.only_b, found.shapes, found.slots, found.steps) == ((), (), (), (), ())
    assert found.matched_by == "name"
    assert all(gap.equal for gap in found.gaps)
    assert {key for key, *_ in found.hyper} <= {"initial_lr"}


def test_less_finds_both_moments_of_every_trainable_parameter(llama_run, llama_state, tmp_path):
    path = export(llama_state, "less", tmp_path / "optimizer.bin").path
    avg, avg_sq = less_moments(path, llama_run.fresh())
    order = [name for name, _ in trainable(llama_run.fresh())]
    assert torch.equal(avg, torch.cat([llama_run.live("exp_avg")[name].reshape(-1) for name in order]))
    assert torch.equal(avg_sq, torch.cat([llama_run.live("exp_avg_sq")[name].reshape(-1) for name in order]))


def test_bergson_finds_a_normalizer_for_every_lora_matrix(llama_run, llama_state, tmp_path):
    done = export(llama_state, "bergson", tmp_path / "optimizer.pt")
    assert [finding.rule for finding in done.findings] == ["export-slots-lost"]
    found = bergson_normalizers(done.path, llama_run.fresh())
    live = {name.removesuffix(".weight").removeprefix("base_model."): v for name, v in llama_run.live("exp_avg_sq").items()}
    same(live, found)


def test_bergson_can_have_v_freed_from_its_bias(llama_run, llama_state, tmp_path):
    done = export(llama_state, "bergson", tmp_path / "optimizer.pt", v_hat=True)
    found = bergson_normalizers(done.path, llama_run.fresh())
    name, v = next(iter(llama_run.live("exp_avg_sq").items()))
    step = llama_state.parameters[name].step
    wanted = v.double() / (1 - 0.999**step)
    assert torch.allclose(found[name.removesuffix(".weight").removeprefix("base_model.")].double(), wanted, rtol=1e-6)


def test_dattri_rebuilds_the_optimizer_over_a_live_model(llama_run, llama_state, tmp_path):
    path = export(llama_state, "dattri", tmp_path / "state").path
    model = llama_run.fresh()
    optimizer = dattri_optimizer(model, path)
    found = {name: optimizer.state[p]["exp_avg_sq"] for name, p in trainable(model)}
    same(llama_run.live("exp_avg_sq"), found)
    assert {float(optimizer.state[p]["step"]) for _, p in trainable(model)} == {12.0}


def test_ota_finds_v_by_weight_name(llama_run, llama_state, tmp_path):
    done = export(llama_state, "ota", tmp_path / "exp_avg_sq.safetensors")
    assert {"export-slots-lost", "export-lora"} <= {finding.rule for finding in done.findings}
    for name, v in llama_run.live("exp_avg_sq").items():
        assert torch.equal(ota_preconditioner(done.path, name.replace(".default", ""), v.shape), v)


def test_names_are_read_as_a_sidecar_of_the_unnamed_file(llama_run, llama_state, tmp_path):
    shutil.copy(llama_run.checkpoint / "optimizer.pt", tmp_path / "optimizer.pt")
    export(llama_state, "names", tmp_path)
    assert json.loads((tmp_path / "optimizer_param_names.json").read_text())[0][0] == next(iter(llama_state.parameters))
    raw = formats.read(str(tmp_path / "optimizer.pt"))
    assert [entry.name for entry in raw.entries] == list(llama_state.parameters) or raw.recorded is None


def test_universal_folders_hold_weights_moments_and_step(llama_run, llama_state, tmp_path):
    with pytest.raises(ExportError, match="stores the weights"):
        export(llama_state, "deepspeed-universal", tmp_path / "universal")
    assert list(tmp_path.iterdir()) == []
    path = export(llama_state, "deepspeed-universal", tmp_path / "universal", adapter=str(llama_run.checkpoint)).path
    found = universal_moments(path)
    for slot in ("exp_avg", "exp_avg_sq"):
        same(llama_run.live(slot), {name: row[slot] for name, row in found.items()})
    weights = {name: p.detach() for p, name in llama_run.names.items()}
    same(weights, {name: row["fp32"] for name, row in found.items()})
    assert {float(row["step"]) for row in found.values()} == {12.0}


def test_the_live_model_gives_the_order(bias_run, bias_state, tmp_path):
    """One group in the model's own order, from a state with two."""
    model = bias_run.fresh()
    done = export(bias_state, "torch", tmp_path / "optimizer.pt", wanted=model, groups="one")
    assert "migration-groups" in {finding.rule for finding in done.findings}
    optimizer = torch.optim.AdamW([p for _, p in trainable(model)])
    optimizer.load_state_dict(torch.load(done.path, weights_only=True))
    same(bias_run.live("exp_avg_sq"), {name: optimizer.state[p]["exp_avg_sq"] for name, p in trainable(model)})


def test_trainers_two_groups_are_made_from_one(bias_run, bias_state, tmp_path):
    one = export(bias_state, "ostate", tmp_path / "one.safetensors", groups="one").path
    done = export(one, "torch", tmp_path / "optimizer.pt", wanted=bias_run.fresh(), groups="trainer")
    stored = torch.load(done.path, weights_only=True)["param_groups"]
    live = bias_run.optimizer.param_groups
    assert [group["param_names"] for group in stored] == [[bias_run.names[p] for p in group["params"]] for group in live]


def test_an_unproven_state_says_so_when_it_leaves(llama_state, tmp_path):
    doubtful = replace(llama_state, ordering=replace(llama_state.ordering, verdict="unverified"))
    done = export(doubtful, "torch", tmp_path / "optimizer.pt")
    assert [finding.rule for finding in done.findings] == ["export-unproven"]
    with pytest.raises(ExportError, match="unverified"):
        export(doubtful, "torch", tmp_path / "other.pt", strict=True)


def test_what_a_layout_cannot_hold_is_said_first(bias_state, tmp_path):
    amsgrad = {name: replace(p, slots={**p.slots, "max_exp_avg_sq": p.slots["exp_avg_sq"]}) for name, p in bias_state.parameters.items()}
    groups = (bias_state.groups[0], replace(bias_state.groups[1], hyper={**bias_state.groups[1].hyper, "eps": 1e-6}))
    packed = {name: replace(p, decoded_from="bitsandbytes-8bit") for name, p in amsgrad.items()}
    odd = replace(bias_state, parameters=packed, groups=groups)
    done = export(odd, "bergson", None)
    texts = {finding.rule: finding.text for finding in done.findings}
    assert texts["export-slots-lost"] == "bergson cannot store exp_avg, max_exp_avg_sq"
    assert "eps" in texts["export-groups-lost"]
    assert "bitsandbytes-8bit" in texts["export-packing-lost"]
    assert done.path == ""
    with pytest.raises(ExportError, match="cannot store"):
        export(odd, "bergson", tmp_path / "optimizer.pt", strict=True)
    assert "export-hyper-lost" in {finding.rule for finding in export(odd, "less", None).findings}
    assert {finding.rule for finding in export(odd, "torch", None).findings} == {"export-requantised"}
    assert {finding.rule for finding in export(odd, "torch", None, taken_as="adamw_torch").findings} == {"export-packing-lost"}


@pytest.mark.parametrize("to", EXPORTERS)
def test_nothing_is_overwritten_unasked_and_nothing_half_is_left(llama_run, llama_state, tmp_path, to):
    name = EXPORTERS[to].file or "folder"
    adapter = str(llama_run.checkpoint)
    (tmp_path / name).mkdir() if EXPORTERS[to].file is None else (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises((StoreError, ExportError), match="exists already"):
        export(llama_state, to, tmp_path / name, adapter=adapter)
    assert sorted(tmp_path.iterdir()) == before
    export(llama_state, to, tmp_path / name, adapter=adapter, force=True)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_of_the_state_itself_is_never_the_output(llama_state):
    with pytest.raises(StoreError, match="one of the inputs"):
        export(llama_state, "torch", llama_state.path, force=True)
    assert validating.validate(llama_state.path, deep=True) == []


def test_an_unknown_layout_lists_those_that_are_known(llama_state):
    with pytest.raises(ExportError, match="no layout is called 'orbax'") as error:
        export(llama_state, "orbax", None)
    assert "deepspeed-universal" in error.value.fix


def test_ota_can_have_v_freed_from_its_bias(llama_run, llama_state, tmp_path):
    done = export(llama_state, "ota", tmp_path / "exp_avg_sq.safetensors", v_hat=True)
    assert "export-v-hat" in {finding.rule for finding in done.findings}
    for name, v in llama_run.live("exp_avg_sq").items():
        wanted = v.double() / (1 - 0.999 ** llama_state.parameters[name].step)
        assert torch.allclose(ota_preconditioner(done.path, name.replace(".default", ""), v.shape).double(), wanted, rtol=1e-6)


@pytest.mark.parametrize("to", ["torch", "less", "dattri", "names", "dcp", "accelerate", "deepspeed-universal", "ostate"])
def test_v_freed_from_its_bias_is_refused_where_it_would_be_freed_again_or_means_nothing(llama_state, tmp_path, to):
    with pytest.raises(ExportError, match=f"{to} takes v as the optimizer keeps it"):
        export(llama_state, to, tmp_path / "out", v_hat=True)
    assert list(tmp_path.iterdir()) == []


def test_torch_s_file_can_have_its_names_beside_it_for_who_passes_over_param_names(llama_run, llama_state, tmp_path):
    path = export(llama_state, "torch", tmp_path, names=True).path
    assert sorted(file.name for file in tmp_path.iterdir()) == ["optimizer.pt", "optimizer_param_names.json"]
    stored = torch.load(path, weights_only=True)
    assert [group["param_names"] for group in stored["param_groups"]] == json.loads((tmp_path / "optimizer_param_names.json").read_text())
    for group in stored["param_groups"]:
        del group["param_names"]
    torch.save(stored, path)
    assert [entry.name for entry in formats.read(str(tmp_path)).entries] == list(llama_state.names)


def test_both_files_are_written_or_none(llama_state, tmp_path):
    (tmp_path / "optimizer_param_names.json").write_text("[]")
    with pytest.raises(StoreError, match="exists already"):
        export(llama_state, "torch", tmp_path / "optimizer.pt", names=True)
    assert [file.name for file in tmp_path.iterdir()] == ["optimizer_param_names.json"]
    export(llama_state, "torch", tmp_path / "optimizer.pt", names=True, force=True)
    assert json.loads((tmp_path / "optimizer_param_names.json").read_text()) != []
    with pytest.raises(ExportError, match="has the names in it"):
        export(llama_state, "less", tmp_path / "optimizer.bin", names=True)
