"""A layout of positions holds each position of the source: also of parameters that no gradient ever reached, and never one too few."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import ostate
from ostate import read as formats
from ostate import store
from ostate.commands.export import export
from ostate.core.naming import Ordering
from ostate.errors import ExportError
from ostate.exporters import EXPORTERS
from ostate.ordering.join import as_raw, named_state
from ostate.probe import fill
from ostate.store import validating
from tests.records import replace

POSITIONAL = ("torch", "accelerate", "names", "dattri", "dcp-positions")
IDLE = ("towers.0.weight", "last.bias")


class Towers(nn.Module):
    """Two towers, of which the first is never used, and a head whose bias nothing asks for."""

    def __init__(self):
        super().__init__()
        self.towers = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
        self.first = nn.Linear(4, 3)
        self.last = nn.Linear(3, 4)

    def forward(self, x):
        return self.first(self.towers[1](x)) @ self.last.weight.T


def trained(make):
    """Return the model and its optimizer in two groups, stepped three times."""
    torch.manual_seed(0)
    model = Towers()
    rows = list(model.named_parameters())
    biases = [p for name, p in rows if name.endswith("bias")]
    groups = [{"params": [p for name, p in rows if not name.endswith("bias")]}, {"params": biases, "weight_decay": 0.0}]
    optimizer = make(groups)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def adamw(groups):
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)


def flat(groups):
    return [name for group in groups for name in group]


def names_of(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def repaired(folder, model, optimizer):
    """Save, and repair by the live optimizer's own order."""
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "order.json").write_text(json.dumps(names_of(model, optimizer)))
    done = ostate.repair(str(folder / "optimizer.pt"), str(folder / "s.ostate.safetensors"), order=str(folder / "order.json"))
    return store.load(done.out[0])


@pytest.fixture
def run(tmp_path):
    model, optimizer = trained(adamw)
    return model, optimizer, repaired(tmp_path, model, optimizer)


def test_the_file_keeps_the_names_that_no_gradient_reached(run):
    model, optimizer, state = run
    assert [list(group.names) for group in state.groups] == names_of(model, optimizer)
    assert (state.without_state, state.positions, state.unnamed) == (IDLE, 6, 0)
    assert len(state.parameters) == 4
    assert validating.validate(state.path, deep=True) == []


@pytest.mark.parametrize("to", ["torch", "accelerate", "dattri"])
def test_the_way_back_is_the_live_optimizer_position_by_position(run, tmp_path, to):
    model, optimizer, state = run
    path = export(state, to, tmp_path / "out").path
    stored = torch.load(tmp_path / "out" / "optimizer.pt" if to == "dattri" else path, weights_only=True)
    live = copy.deepcopy(optimizer.state_dict())
    assert [group["params"] for group in stored["param_groups"]] == [group["params"] for group in live["param_groups"]]
    assert set(stored["state"]) == set(live["state"])
    for position, entry in live["state"].items():
        assert all(torch.equal(entry[slot], stored["state"][position][slot]) for slot in entry)
    if to == "dattri":
        assert json.loads((tmp_path / "out" / "param_names.json").read_text()) == flat(names_of(model, optimizer))
    again = adamw([{"params": [torch.zeros_like(p) for p in group["params"]]} for group in optimizer.param_groups])
    again.load_state_dict(stored)


def test_a_list_of_names_lists_every_position(run, tmp_path):
    model, optimizer, state = run
    assert json.loads((tmp_path / export(state, "names", tmp_path / "names.json").path).read_text()) == names_of(model, optimizer)


def test_a_named_state_is_positions_again_with_those_without_state_in_their_place(run):
    model, optimizer, state = run
    raw = as_raw(state)
    assert [entry.name for entry in raw.entries] == flat(names_of(model, optimizer))
    assert [entry.has_state for entry in raw.entries] == [name not in IDLE for name in flat(names_of(model, optimizer))]
    assert raw.groups[1].positions == (4, 5)


def test_several_files_hold_the_names_in_one_order(run, tmp_path):
    model, optimizer, state = run
    done = store.write(state, tmp_path / "cut.ostate.safetensors", max_shard_bytes=200)
    assert len(done.files) > 3
    assert validating.validate(done.path, deep=True) == []
    assert [list(group.names) for group in store.load(done.path).groups] == names_of(model, optimizer)


def test_a_live_optimizer_is_saved_with_all_its_names(run, tmp_path):
    model, optimizer, _ = run
    state = store.load(ostate.save(optimizer, model, tmp_path / "live.ostate.safetensors"))
    assert [list(group.names) for group in state.groups] == names_of(model, optimizer)
    assert (state.without_state, state.unnamed) == (IDLE, 0)


def test_files_of_several_processes_are_put_together_in_the_order_of_positions(run, tmp_path):
    """Each process writes the parameters that fell to it; the first one also the names without state."""
    model, optimizer, state = run
    own = [[name for at, name in enumerate(state.parameters) if at % 2 == rank] for rank in (0, 1)]
    files = []
    for rank, names in enumerate(own):
        listed = {*names, *(IDLE if rank == 0 else ())}
        groups = tuple(group._replace(names=tuple(name for name in group.names if name in listed)) for group in state.groups)
        part = replace(state, groups=groups, parameters={name: state.parameters[name] for name in names})
        files.append(store.write(part, store.shard_path(tmp_path / "live.safetensors", rank + 1, 2), shard=(rank + 1, 2)).path)
    whole = store.load(store.write_index(tmp_path / "live.safetensors", files))
    assert [list(group.names) for group in whole.groups] == names_of(model, optimizer)


@pytest.mark.parametrize("to", POSITIONAL)
def test_a_position_without_a_name_is_never_passed_over(run, tmp_path, to):
    model, optimizer, _ = run
    raw = formats.read(str(tmp_path / "optimizer.pt"))
    names = flat(names_of(model, optimizer))
    lost = tuple(None if position in (1, 5) else name for position, name in enumerate(names))
    partial = named_state(raw, Ordering(names=lost, keys=(None,) * 6, source="content", verdict="partial"))
    path = store.write(partial, tmp_path / "partial.safetensors").path
    with pytest.raises(ExportError, match="2 of 6 positions are missing") as error:
        export(path, to, None)
    assert "--for" in error.value.fix
    old = replace(store.load(path), source={"layout": "torch", "files": ()})  # as older files are: the last one is not missed
    with pytest.raises(ExportError, match="1 of 5 positions is missing"):
        export(old, to, None)
    done = export(path, to, tmp_path / "whole", wanted=names_of(model, optimizer), new="absent")
    assert [finding.rule for finding in done.findings if finding.severity == "error"] == []
    assert [list(group.names) for group in done.state.groups] == names_of(model, optimizer)
    assert [f.rule for f in export(path, "bergson", None).findings if "positions" in f.rule] == ["export-positions-missing"]


def test_every_layout_that_counts_positions_says_so():
    assert {name for name, exporter in EXPORTERS.items() if exporter.positional} == set(POSITIONAL)


def test_sgd_without_momentum_keeps_its_groups(tmp_path):
    model, optimizer = trained(lambda groups: torch.optim.SGD(groups, lr=0.1))
    state = repaired(tmp_path, model, optimizer)
    assert (len(state.parameters), len(state.without_state)) == (0, 6)
    assert validating.validate(state.path, deep=True) == []
    stored = torch.load(export(state, "torch", tmp_path / "back.pt").path, weights_only=True)
    assert [group["params"] for group in stored["param_groups"]] == [[0, 1, 2, 3], [4, 5]]
    assert [group["weight_decay"] for group in stored["param_groups"]] == [0, 0.0]
    torch.optim.SGD([{"params": group["params"]} for group in optimizer.param_groups]).load_state_dict(stored)


def test_renamed_and_regrouped_they_stay_without_state(run, tmp_path):
    model, optimizer, state = run
    moved = export(state, "torch", tmp_path / "renamed.pt", rename=[("^last", "final")]).state
    assert moved.without_state == ("towers.0.weight", "final.bias")
    assert [len(group.names) for group in moved.groups] == [4, 2]
    one = export(state, "torch", tmp_path / "one.pt", groups="one")
    assert [len(group["params"]) for group in torch.load(one.path)["param_groups"]] == [6]
    assert one.state.without_state == ("towers.0.weight", "last.bias")
    live = export(state, "torch", tmp_path / "live.pt", wanted=model).state
    assert not live.without_state, "a live model tells their shapes: they get what --new says"
    assert [list(group.names) for group in live.groups] == names_of(model, optimizer), "and stay in their groups"


def test_who_asks_for_moments_of_all_is_told(run, tmp_path):
    _, _, state = run
    assert [(f.rule, f.names) for f in export(state, "less", None).findings if f.severity != "note" and f.rule != "export-unproven"] == [
        ("export-without-state", IDLE)
    ]
    with pytest.raises(ExportError, match="2 have none"):
        export(state, "deepspeed-universal", tmp_path / "universal")


def test_a_probe_counts_them_as_not_covered(run):
    model, optimizer, state = run
    fresh = adamw([{"params": list(group["params"])} for group in optimizer.param_groups])
    filled = fill(fresh, model, state)
    assert filled.coverage == pytest.approx(4 / 6)
