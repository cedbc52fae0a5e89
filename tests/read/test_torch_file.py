"""Every form in which one file holds an optimizer's state, written by the library that writes it."""

from __future__ import annotations

import argparse
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ostate import read as formats
from ostate.errors import ReadError, UnknownFormat
from tests.read.archives import Call, Global, Tensor, saved, state_of


def stepped(optimizer: torch.optim.Optimizer, steps: int = 2) -> torch.optim.Optimizer:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))


def adamw(net: torch.nn.Module | None = None, **more) -> torch.optim.Optimizer:
    return stepped(torch.optim.AdamW((net or model()).parameters(), lr=1e-3, **more))


def holds(raw, optimizer: torch.optim.Optimizer, slot: str = "exp_avg_sq") -> bool:
    """True when `raw` has, position by position, what the live optimizer has."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(parameters) != len(raw.entries):
        return False
    return all(
        entry.slots[slot].read().tobytes() == optimizer.state[parameter][slot].numpy().tobytes()
        and entry.step == float(optimizer.state[parameter]["step"])
        and entry.shape == tuple(parameter.shape)
        for entry, parameter in zip(raw.entries, parameters)
    )


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_plain_state_dict(tmp_path, new):
    optimizer = adamw()
    torch.save(optimizer.state_dict(), tmp_path / "any.name", _use_new_zipfile_serialization=new)
    raw = formats.read(str(tmp_path / "any.name"))
    assert holds(raw, optimizer)
    assert raw.recorded is None
    assert raw.groups[0].hyper["betas"] == [0.9, 0.999]
    assert "params" not in raw.groups[0].hyper


@pytest.mark.parametrize(
    ("bundle", "step"),
    [
        (lambda state, net: {"model": net, "optimizer": state, "iteration": 7}, 7),
        (lambda state, net: {"run": {"inner": [{"optimizer_state_dict": state}]}, "model_state_dict": net, "global_step": 9}, 9),
        (lambda state, net: {"state": state, "net": {"weights": net}}, None),
        (lambda state, net: [state], None),
        (lambda state, net: {"args": argparse.Namespace(lr=1.0, deep={"a": 1}), "optimizer": state, "model": net, "best": np.float64(0.5)}, None),
        (lambda state, net: argparse.Namespace(optimizer=state, model=net), None),
    ],
)
def test_a_state_in_a_bundle_is_found_by_what_it_is(tmp_path, bundle, step):
    net = model()
    optimizer = adamw(net)
    torch.save(bundle(optimizer.state_dict(), net.state_dict()), tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert holds(raw, optimizer)
    assert raw.facts.get("global_step") == step


def test_what_else_lies_in_a_bundle_does_not_matter(tmp_path):
    import datetime

    from transformers import TrainingArguments

    optimizer = adamw()
    torch.save(
        {
            "args": TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[]),
            "when": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
            "version": torch.__version__,
            "sparse": torch.eye(3).to_sparse(),
            "random": [np.random.get_state(), torch.get_rng_state()],
            "words": np.array(["a", "bc"]),
            "word": np.str_("abc"),
            "metrics": {"train": {"sum": torch.tensor(3.0), "exp_avg": 0.5}},
            "optimizer": optimizer.state_dict(),
        },
        tmp_path / "x.pt",
    )
    assert holds(formats.read(str(tmp_path / "x.pt")), optimizer)


def test_the_weights_of_a_bundle_are_there_by_name(tmp_path):
    net = model()
    optimizer = adamw(net)
    torch.save({"epoch": 3, "state_dict": net.state_dict(), "ema": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert list(raw.weights) == list(net.state_dict())
    assert raw.weights["1.weight"].read().tolist() == net[1].weight.tolist()


def test_two_states_in_a_file_are_listed_and_one_can_be_chosen(tmp_path):
    first, second = adamw(), adamw(torch.nn.Linear(5, 6))
    torch.save({"generator": first.state_dict(), "discriminator": {"opt": second.state_dict()}}, tmp_path / "x.pt")
    with pytest.raises(UnknownFormat, match=r"0: generator \(4 entries\); 1: discriminator\.opt \(2 entries\)") as caught:
        formats.read(str(tmp_path / "x.pt"))
    assert "--optimizer" in caught.value.fix
    assert holds(formats.read(str(tmp_path / "x.pt"), optimizer=0), first)
    assert holds(formats.read(str(tmp_path / "x.pt"), optimizer=1), second)
    with pytest.raises(UnknownFormat, match="no optimizer 2"):
        formats.read(str(tmp_path / "x.pt"), optimizer=2)
    for name in ("discriminator.opt", "discriminator", "opt"):
        assert holds(formats.read(str(tmp_path / "x.pt"), optimizer=name), second)
    with pytest.raises(UnknownFormat, match=r"no optimizer is called 'critic'; available: 0: generator"):
        formats.read(str(tmp_path / "x.pt"), optimizer="critic")


def test_of_several_states_in_a_folder_one_is_chosen_by_a_word_of_its_path(tmp_path):
    first, second = adamw(), adamw(torch.nn.Linear(5, 6))
    for name, optimizer in (("actor", first), ("critic", second)):
        (tmp_path / name).mkdir()
        torch.save(optimizer.state_dict(), tmp_path / name / "optimizer.pt")
    assert holds(formats.read(str(tmp_path), optimizer="critic"), second)
    with pytest.raises(UnknownFormat, match="2 states in this folder"):
        formats.read(str(tmp_path), optimizer="optimizer")


def test_param_names_give_each_position_its_name(tmp_path):
    net = model()
    optimizer = stepped(torch.optim.AdamW([{"params": list(net[1].named_parameters("module"))}, {"params": list(net[0].named_parameters("x"))}]))
    torch.save(optimizer.state_dict(), tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert holds(raw, optimizer)
    assert raw.recorded == "param_names"
    assert [entry.name for entry in raw.entries] == ["module.weight", "module.bias", "x.weight", "x.bias"]
    assert raw.groups[1].names == ("x.weight", "x.bias")


def test_param_names_that_do_not_go_with_their_group_are_refused(tmp_path):
    state = adamw().state_dict()
    state["param_groups"][0]["param_names"] = ["a", "b"]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ReadError, match="4 parameters and 2 param_names"):
        formats.read(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("groups", [True, False])
def test_a_state_keyed_by_name_with_and_without_its_groups(tmp_path, groups):
    net = model()
    optimizer = adamw(net)
    plain = optimizer.state_dict()
    names = [f"_orig_mod.{name}" for name, _ in net.named_parameters()]
    state = {"state": {name: plain["state"][index] for index, name in enumerate(names)}}
    if groups:
        state["param_groups"] = [{**plain["param_groups"][0], "params": names}]
    torch.save(state, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert holds(raw, optimizer)
    assert raw.recorded == "name-keyed"
    assert [entry.name for entry in raw.entries] == names
    assert ("lr" in raw.groups[0].hyper) == groups


@pytest.mark.parametrize(
    "laid",
    [
        lambda names, state: {slot: {name: state[at][slot] for at, name in enumerate(names)} for slot in ("exp_avg", "exp_avg_sq")} | {"step": 3},
        lambda names, state: {f"{name}.{slot}": state[at][slot] for at, name in enumerate(names) for slot in ("step", "exp_avg", "exp_avg_sq")},
    ],
    ids=["slots first", "dotted"],
)
def test_a_state_by_slot_or_by_dotted_names_is_read_by_name(tmp_path, laid):
    net = model()
    optimizer = adamw(net)
    names = [name for name, _ in net.named_parameters()]
    step = float(optimizer.state_dict()["state"][0]["step"])
    made = laid(names, optimizer.state_dict()["state"])
    torch.save({"moments": made | ({"step": step} if "step" in made else {}), "model": net.state_dict()}, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert holds(raw, optimizer)
    assert [entry.name for entry in raw.entries] == names


@pytest.mark.parametrize("groups", [True, False], ids=["with groups", "without"])
def test_positions_that_became_text_are_numbers_again_and_no_names(tmp_path, groups):
    net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(7)))
    optimizer = adamw(net)
    state = optimizer.state_dict()
    made = {"state": {str(at): state["state"][at] for at in sorted(state["state"], key=str)}, "param_groups": state["param_groups"]}
    torch.save(made if groups else {"state": made["state"]}, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert raw.recorded is None
    assert holds(raw, optimizer)


def test_weights_in_a_tuple_beside_the_state_are_found(tmp_path):
    net = model()
    optimizer = adamw(net)
    torch.save((3, net.state_dict(), optimizer.state_dict()), tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert holds(raw, optimizer)
    assert list(raw.weights) == list(net.state_dict())


def test_a_param_name_in_each_entry_is_its_name(tmp_path):
    state = adamw().state_dict()
    for index, entry in state["state"].items():
        entry["param_name"] = f"p{index}"
    torch.save(state, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert raw.recorded == "param_name"
    assert [entry.name for entry in raw.entries] == ["p0", "p1", "p2", "p3"]
    assert "param_name" not in raw.entries[0].scalars


def test_zero_redundancy_optimizer_after_it_is_consolidated(tmp_path):
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        optimizer = ZeroRedundancyOptimizer(model().parameters(), torch.optim.AdamW, lr=1e-3)
        stepped(optimizer)
        optimizer.consolidate_state_dict(to=0)
        torch.save(optimizer.state_dict(), tmp_path / "x.pt")
        live = SimpleNamespace(param_groups=optimizer.param_groups, state=optimizer.optim.state)
        assert holds(formats.read(str(tmp_path / "x.pt")), live)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("flatten", [True, False])
def test_torchs_own_name_keyed_state_dict_nested_and_flattened(tmp_path, flatten):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    net = model()
    optimizer = stepped(torch.optim.AdamW([{"params": net[0].parameters(), "lr": 1e-2}, {"params": net[1].parameters()}]))
    torch.save(get_optimizer_state_dict(net, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flatten)), tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert holds(raw, optimizer)
    assert [entry.name for entry in raw.entries] == [name for name, _ in net.named_parameters()]
    assert [group.hyper["lr"] for group in raw.groups] == [1e-2, 1e-3]


def test_dcp_to_torch_save_gives_the_same_state(tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net = model()
    optimizer = adamw(net)
    dcp.save({"model": net.state_dict(), "optim": get_optimizer_state_dict(net, optimizer)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert holds(raw, optimizer)
    assert list(raw.weights) == list(net.state_dict())


def test_lightning_with_two_optimizers(tmp_path):
    import lightning

    class Two(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.a.parameters(), lr=1e-3), torch.optim.AdamW(self.b.parameters(), lr=1e-2)

        def training_step(self, batch, _):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.b(self.a(batch)).square().mean().backward()
                optimizer.step()

    module = Two()
    trainer = lightning.Trainer(
        max_steps=6, logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, accelerator="cpu"
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(6, 4), batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(UnknownFormat, match=r"0: optimizer_states\[0\] \(2 entries\)"):
        formats.read(str(tmp_path))
    for index, optimizer in enumerate(trainer.optimizers):
        raw = formats.read(str(tmp_path), optimizer=index)
        assert holds(raw, optimizer)
        assert raw.layout == "lightning"
        assert list(raw.weights) == list(module.state_dict())
        assert "global_step" not in raw.facts  # Lightning counts the steps of both
        assert raw.facts["lightning_version"] == lightning.__version__


def test_accelerate_with_two_optimizers_is_chosen_by_number(tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    nets = [torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)]
    prepared = accelerator.prepare(*nets, *(torch.optim.AdamW(net.parameters()) for net in nets))
    optimizers = [stepped(one.optimizer) for one in prepared[2:]]
    accelerator.save_state(str(tmp_path))
    with pytest.raises(UnknownFormat, match=r"2 optimizer states are here \(0: optimizer\.bin; 1: optimizer_1\.bin\)"):
        formats.read(str(tmp_path))
    for index, optimizer in enumerate(optimizers):
        assert holds(formats.read(str(tmp_path), optimizer=index), optimizer)
    assert holds(formats.read(str(tmp_path), state="optimizer_1.bin"), optimizers[1])


def test_peft_lora_fa_is_read_by_the_names_its_groups_keep(tmp_path):
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_lorafa_optimizer

    net = get_peft_model(model(), LoraConfig(r=2, target_modules=["0", "1"]))
    optimizer = create_lorafa_optimizer(net, r=2, lora_alpha=4, lr=1e-2)
    for _ in range(2):
        net(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(optimizer.state_dict(), tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    with_state = {entry.name: entry for entry in raw.entries if entry.has_state}
    assert set(with_state) == {name for name, _ in net.named_parameters() if "lora_B" in name}
    for name, entry in with_state.items():
        live = optimizer.state[name[: name.find("lora")] + "lora"]
        assert entry.slots["exp_avg_sq"].read().tolist() == live["exp_avg_sq_B"].tolist()
        assert entry.shape == tuple(net.get_parameter(name).shape)
        assert entry.step == live["step"] == 2


def test_a_pickled_optimizer_object_is_its_state_and_its_weights(tmp_path):
    net = model()
    optimizer = adamw(net)
    torch.save(optimizer, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert holds(raw, optimizer)
    assert [raw.master[index].read().tolist() for index in range(4)] == [parameter.tolist() for parameter in net.parameters()]


def grok(parameters: list[torch.nn.Parameter], with_state: int) -> dict:
    """Return what GrokAdamW 0.1.2's state_dict gives: state within the group, by parameter, for those that ever had a gradient."""
    entry = {
        parameter: {"step": 3, "exp_avg": parameter.data * 2, "exp_avg_sq": parameter.data**2, "grok_ema": parameter.data} for parameter in parameters
    }
    return {"state": {}, "param_groups": [{"lr": 1e-3, "params": list(range(len(parameters))), "state": dict(list(entry.items())[:with_state])}]}


def test_grokadamws_state_within_the_group_is_read_by_position(tmp_path):
    parameters = list(model().parameters())
    torch.save(grok(parameters, 4), tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert [entry.step for entry in raw.entries] == [3] * 4
    assert all(
        entry.slots["exp_avg"].read().tobytes() == (parameter * 2).detach().numpy().tobytes() for entry, parameter in zip(raw.entries, parameters)
    )
    assert raw.master[2].read().tolist() == parameters[2].tolist()
    torch.save(grok(parameters, 3), tmp_path / "x.pt")
    with pytest.raises(ReadError, match="keeps 3 entries by parameter object for 4 parameters"):
        formats.read(str(tmp_path / "x.pt"))


def test_an_optimizer_over_frozen_parameters_keeps_their_positions(tmp_path):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters())
    net[1].weight.grad = torch.ones_like(net[1].weight)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert [entry.has_state for entry in raw.entries] == [False, False, True, False]
    assert raw.entries[2].key == 2


def test_an_optimizer_that_never_stepped_has_groups_and_no_state(tmp_path):
    torch.save(torch.optim.AdamW(model().parameters()).state_dict(), tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert [entry.has_state for entry in raw.entries] == [False] * 4


@pytest.mark.parametrize(
    "step", [2, 2.0, np.int64(2), np.float32(2), torch.tensor(2), torch.tensor([2.0]), torch.tensor(2.0, dtype=torch.float64), np.array(2)]
)
def test_a_step_of_any_kind_is_a_number(tmp_path, step):
    state = adamw().state_dict()
    state["state"][0]["step"] = step
    torch.save(state, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert [entry.step for entry in raw.entries] == [2.0] * 4
    assert type(raw.entries[0].step) is float


def test_steps_that_differ_are_told_apart_by_their_checksums(tmp_path):
    state = adamw().state_dict()
    steps = [3.0, 700001.0, 3.0, 16777216.0]
    for index, step in enumerate(steps):
        state["state"][index]["step"] = torch.tensor(step)
    torch.save(state, tmp_path / "x.pt")
    assert [entry.step for entry in formats.read(str(tmp_path / "x.pt")).entries] == steps


@pytest.mark.parametrize("value", [np.float64(0.25), np.float32(0.25), torch.tensor(0.25), torch.tensor([0.25]), np.array([0.25])])
def test_a_learning_rate_of_any_kind_is_a_number(tmp_path, value):
    state = adamw().state_dict()
    state["param_groups"][0]["lr"] = value
    torch.save(state, tmp_path / "x.pt")
    assert formats.read(str(tmp_path / "x.pt")).groups[0].hyper["lr"] == 0.25


@pytest.mark.parametrize(
    ("key", "value"), [("lr", math.nan), ("eps", math.inf), ("weight_decay", "a lot"), ("betas", (0.9, 2.0)), ("betas", "high"), ("lr", True)]
)
def test_a_hyperparameter_that_is_no_number_is_kept_and_found(tmp_path, key, value):
    state = adamw().state_dict()
    state["param_groups"][0][key] = value
    torch.save(state, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    (finding,) = raw.findings
    assert (finding.rule, finding.severity) == ("hyperparameter-not-a-number", "error")
    assert key in finding.text
    assert finding.fix


@pytest.mark.parametrize("step", [math.nan, -1.0, math.inf, "two"])
def test_a_step_that_counts_nothing_is_none_and_found(tmp_path, step):
    state = adamw().state_dict()
    state["state"][1]["step"] = torch.tensor(step) if isinstance(step, float) else step
    torch.save(state, tmp_path / "x.pt")
    raw = formats.read(str(tmp_path / "x.pt"))
    assert [entry.step for entry in raw.entries] == [2.0, None, 2.0, 2.0]
    assert [finding.rule for finding in raw.findings] == ["step-not-a-number"]
    assert raw.findings[0].names == ("position 1",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"state": {0: {"exp_avg": 1.0}, 5: {}}, "param_groups": [{"params": [0]}]}, "1 entries of the state belong to no group: 5"),
        ({"state": {0: {}}, "param_groups": [{"params": [0, 1, 0]}]}, "parameter 0 is in the groups twice"),
        ({"state": {0: {}}, "param_groups": [{"params": [0]}, {"lr": 1.0}]}, "group 1 does not list its parameters"),
        ({"state": {0: {}}, "param_groups": [{"params": [0.5]}]}, "neither a number nor a name"),
        ({"state": {0: [1]}, "param_groups": [{"params": [0]}]}, "the entry of 0 is a list"),
        ({"state": {0: {}}, "param_groups": ["x"]}, "not a list of groups"),
        ({"model": {"a": Tensor("0", (1,))}}, r"this is a model.s weights .1 tensors., no optimizer state"),
        ({"epoch": 3}, "no optimizer state in this file"),
        ([], "an empty list"),
    ],
)
def test_a_state_that_contradicts_itself_is_refused_with_the_reason(tmp_path, value, text):
    saved(tmp_path / "x.pt", value, {"0": b"\0" * 4})
    with pytest.raises(ReadError, match=text) as caught:
        formats.read(str(tmp_path / "x.pt"))
    assert "x.pt" in caught.value.where
    assert caught.value.fix


def test_one_processs_piece_of_a_tensor_is_refused(tmp_path):
    inner = Tensor("0", (2, 3))
    kind, function = Global("torch.distributed.tensor.DTensor"), Global("torch._utils._rebuild_wrapper_subclass")
    outer = (kind, Global("torch.float32"), (4, 3), (3, 1), 0, None, None, False)
    wrapper = Call("torch._tensor._rebuild_from_type_v2", function, kind, outer, {"_local_tensor": inner, "_spec": None})
    saved(tmp_path / "x.pt", state_of(wrapper), {"0": b"\0" * 24})
    with pytest.raises(ReadError, match=r"one process's piece, \(2, 3\), of a tensor of shape \(4, 3\)") as caught:
        formats.read(str(tmp_path / "x.pt"))
    assert "all ranks" in caught.value.fix


SIDECARS = [
    [["a", "b"], ["c", "d"]],
    {"param_name_groups": [["a", "b"], ["c", "d"]]},
    {"format": "ostate-names", "version": 1, "groups": [["a", "b"], ["c", "d"]]},
]


def two_groups() -> torch.optim.Optimizer:
    net = model()
    return stepped(torch.optim.AdamW([{"params": net[0].parameters()}, {"params": net[1].parameters()}]))


@pytest.mark.parametrize("names", SIDECARS)
def test_a_names_file_beside_the_state_gives_the_names(tmp_path, names):
    torch.save(two_groups().state_dict(), tmp_path / "optimizer.pt")
    (tmp_path / "optimizer_param_names.json").write_text(json.dumps(names))
    for path in (tmp_path, tmp_path / "optimizer.pt"):
        raw = formats.read(str(path))
        assert raw.recorded == "optimizer_param_names.json"
        assert [entry.name for entry in raw.entries] == ["a", "b", "c", "d"]
        assert [group.names for group in raw.groups] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[["a"], ["b", "c", "d"]]', r"names \[1, 3\] parameters by group, the state has \[2, 2\]"),
        ('[["a", "b"]]', r"names \[2\]"),
        ("{}", "no list of names"),
        ("[1]", "no list of names"),
        ("nonsense", "no list of names: Expecting value"),
        ("[" * 100_000, "lists within lists"),
        ('[["a", "a"], ["b", "c"]]', "a name twice"),
        ('{"format": "ostate-names", "version": 9, "groups": []}', "version 9"),
    ],
)
def test_a_names_file_that_does_not_fit_is_an_error_that_says_so(tmp_path, text, what):
    torch.save(two_groups().state_dict(), tmp_path / "optimizer.pt")
    (tmp_path / "optimizer_param_names.json").write_text(text)
    with pytest.raises(ReadError, match=what) as caught:
        formats.read(str(tmp_path))
    assert caught.value.fix


def test_names_in_the_state_itself_outrank_a_names_file(tmp_path):
    net = model()
    torch.save(stepped(torch.optim.AdamW(net.named_parameters())).state_dict(), tmp_path / "optimizer.pt")
    (tmp_path / "optimizer_param_names.json").write_text('[["a", "b", "c", "d"]]')
    raw = formats.read(str(tmp_path))
    assert raw.recorded == "param_names"
    assert raw.entries[0].name == "0.weight"


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("a sparse tensor", lambda moment: moment.to_sparse()),
        ("a sparse tensor", lambda moment: moment.to_sparse_csr()),
        ("a tensor on the meta device", lambda moment: moment.to("meta")),
        ("a quantised tensor", lambda moment: torch.quantize_per_tensor(moment, 0.1, 0, torch.qint8)),
    ],
    ids=["sparse", "csr", "meta", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_one_moment_without_plain_numbers_is_refused_and_not_left_out(tmp_path, kind, made):
    state = adamw().state_dict()
    state["state"][2]["exp_avg_sq"] = made(state["state"][2]["exp_avg_sq"])
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(ReadError, match=f"exp_avg_sq is {kind}") as error:
        formats.read(str(tmp_path / "optimizer.pt"))
    assert "entry 2" in str(error.value)
    assert error.value.fix
