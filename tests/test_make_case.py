"""A case is made by one call with a live optimizer and its model, and stands beside the cases that lie in the repository."""

from __future__ import annotations

import pytest
import torch

from ostate.commands.repair import names, repair
from ostate.read import read
from tests import real, truth
from tests.cases.make_case import make_case
from tests.trained import llama, train


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    run = train(root / "trained", lambda: llama(layers=12), steps=6, lora={"target_modules": ["q_proj", "v_proj", "down_proj"]})
    make_case(root / "cases" / "one-process", "llama_down", run.optimizer, run.model, note="MLP and attention")
    return real.case("llama_down", root / "cases")


def test_every_number_is_the_live_optimizers(made):
    raw = read(str(made.state))
    assert [row["index"] for row in made.truth] == [entry.position for entry in raw.entries]
    for entry, row in zip(raw.entries, made.truth):
        assert {slot: real.sha256(value.read()) for slot, value in entry.slots.items()} == truth.slots_of(row)
        assert (entry.step, list(entry.shape), entry.group) == (row["step"], row["shape"], row["group"])
        assert raw.groups[entry.group].hyper["weight_decay"] == row["weight_decay"]


def test_its_names_are_proven_and_the_live_models(made):
    found, proven = names(str(made.state.parent))
    assert proven
    assert {position: name for position, name, _ in found} == {row["index"]: row["name"] for row in made.truth}


def test_the_base_model_beside_it_is_found(made):
    assert made.base is not None
    done = repair(str(made.state.parent), base=str(made.base))
    assert done.ordering.verdict == "verified"
    assert done.ordering.source == "skeleton"


def test_a_model_of_ones_own_is_saved_with_what_was_trained(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    make_case(tmp_path / "one-process", "net", optimizer, net)
    case = real.case("net", tmp_path)
    assert [truth.slots_of(row).keys() for row in case.truth] == [set(), set(), {"momentum_buffer"}, {"momentum_buffer"}]
    assert [(row["index"], row["name"]) for row in case.truth] == [(0, "0.weight"), (1, "0.bias"), (2, "1.weight"), (3, "1.bias")]
    with pytest.raises(FileExistsError):
        make_case(tmp_path / "one-process", "net", optimizer, net)


def test_a_case_of_another_layout_is_the_folder_that_was_written(tmp_path):
    def write(folder, optimizer):
        torch.save(optimizer.state_dict(), folder / "state.pt")
        (folder / "index.json").write_text("{}")

    net = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    make_case(tmp_path / "one-process", "other", optimizer, net, write=write)
    case = real.case("other", tmp_path)
    assert sorted(file.name for file in case.state.iterdir()) == ["index.json", "model.safetensors", "state.pt"]
    assert len(case.with_state) == 2


def test_every_case_has_the_one_form_of_truth():
    for kind in ("one-process", "long", "distributed"):
        for name in real.names(kind):
            for row in real.case(name).truth:
                assert {"name", "shape"} <= row.keys(), name
                assert not truth.slots_of(row) or {"step", "betas", "eps"} <= row.keys(), name
