"""Whatever modules and adapters are called: a live name that goes into a file comes back as itself, or there is an error. Never another name."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import ostate
from ostate.commands.record import names_of, record_names
from ostate.commands.repair import repair
from ostate.errors import OstateError
from ostate.ordering.keys import adapter_key, live_name
from ostate.probe import fill
from ostate.read.adapters import read_adapter

WORDS = ("module", "default", "lora_A", "lora_B", "weight", "a", "ab", "modules_to_save", "_orig_mod", "base_model", "model", "unet", "0")
ADAPTERS = ("default", "lora_A", "weight", "module", "a", "ab", "lay", "modules_to_save", "model")
QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Tree(nn.Module):
    """Modules within modules, and at the ends layers or bare parameters."""

    def __init__(self, shape: dict) -> None:
        super().__init__()
        for name, inside in shape.items():
            if inside == "parameter":
                self.register_parameter(name, nn.Parameter(torch.randn(2, 2)))
            else:
                self.add_module(name, nn.Linear(2, 2) if inside == "layer" else Tree(inside))


ENDS = st.sampled_from(["layer", "parameter"])
TREES = st.recursive(ENDS, lambda inner: st.dictionaries(st.sampled_from(WORDS), inner, min_size=1, max_size=3), max_leaves=8).filter(
    lambda shape: isinstance(shape, dict)
)


def stepped(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """Return an optimizer after a step, each parameter with moments of its own."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [optimizer.state[parameter]["exp_avg_sq"] for group in optimizer.param_groups for parameter in group["params"]]


def of_names(error: OstateError, *reasons: str) -> None:
    """Let a refusal pass that is about names; raise any other again."""
    if not any(reason in str(error) for reason in reasons):
        raise error


def without_wrappers(name: str) -> str:
    *modules, last = name.split(".")
    return ".".join([*(part for part in modules if part != "_orig_mod"), last])


def true_names(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    """The names as torch gives them; `module.` in front is a wrapper's when nothing lies outside of it."""
    every = {id(parameter): without_wrappers(name) for name, parameter in model.named_parameters()}
    while all(name.startswith("module.") for name in every.values()):
        every = {key: name.removeprefix("module.") for key, name in every.items()}
    return [every[id(parameter)] for parameter in parameters]


def trained(shape, data):
    """Return a model, some of its parameters, an optimizer that stepped them, and their true names."""
    model = Tree(shape)
    some = data.draw(st.lists(st.sampled_from(list(model.parameters())), min_size=1, unique_by=id))
    return model, some, stepped(some), true_names(model, some)


@QUICK
@given(TREES, st.data())
def test_a_live_state_that_is_saved_gives_every_parameter_its_own_moments_back(shape, data):
    model, some, optimizer, names = trained(shape, data)
    with tempfile.TemporaryDirectory() as folder:
        try:
            state = ostate.load(ostate.save(optimizer, model, f"{folder}/named.safetensors"))
        except OstateError as error:
            of_names(error, "two parameters are called")
            return
        assert set(state.parameters) == set(names)
        for name, own in zip(names, moments(optimizer)):
            assert torch.equal(torch.from_numpy(state.tensor(name, "exp_avg_sq").copy()), own)
        again = torch.optim.AdamW(some, lr=1e-3)
        report = fill(again, model, state)
        assert report.coverage == 1
        assert all(torch.equal(one, other) for one, other in zip(moments(again), moments(optimizer)))


@QUICK
@given(TREES, st.data())
def test_recorded_names_are_the_models_own_and_repair_takes_them_as_they_are(shape, data):
    model, _, optimizer, names = trained(shape, data)
    with tempfile.TemporaryDirectory() as above:
        folder = f"{above}/run/checkpoint-1"
        Path(folder).mkdir(parents=True)
        try:
            assert names_of(optimizer, model) == [names]
            record_names(optimizer, model, folder)
        except OstateError as error:
            of_names(error, "two parameters are called", "every name begins with")
            return
        torch.save(optimizer.state_dict(), f"{folder}/optimizer.pt")
        found = repair(f"{folder}/optimizer.pt", evidence=False).named
        assert list(found.parameters) == names


@QUICK
@given(TREES, st.sampled_from(ADAPTERS), st.booleans(), st.data())
def test_an_adapters_live_names_come_back_from_the_keys_that_peft_wrote(shape, adapter_name, bias, data):
    base = Tree(shape)
    layers = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    assume(layers)
    targets = data.draw(st.lists(st.sampled_from(layers), min_size=1, unique=True))
    try:
        config = peft.LoraConfig(r=2, target_modules=targets, bias="all" if bias else "none")
        model = peft.get_peft_model(copy.deepcopy(base), config, adapter_name=adapter_name)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # names that PEFT itself cannot take
        assume(False)
    some = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assume(some)
    optimizer = stepped(some)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model.save_pretrained(folder)
        except (ValueError, KeyError, RuntimeError):
            assume(False)
        home = folder if adapter_name == "default" else f"{folder}/{adapter_name}"
        adapter = read_adapter(home, name=adapter_name)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        for name in names:
            key = adapter_key(name, adapter)
            if key is not None and f".{adapter_name}." in f"{name}.":
                assert live_name(key, adapter) == without_wrappers(name)
        try:
            record_names(optimizer, model, folder)
            torch.save(optimizer.state_dict(), f"{folder}/optimizer.pt")
            found = repair(f"{folder}/optimizer.pt", adapter=home, adapter_name=adapter_name, evidence=False).named
        except OstateError as error:
            of_names(error, "two parameters are called", "the one key")
            return
        assert list(found.parameters) == true_names(model, some)


@pytest.mark.parametrize("name", ["my.adapter", ""])
def test_a_name_that_no_adapter_can_have_is_refused(name: str, tmp_path: Path):
    with pytest.raises(OstateError, match="no adapter is called"):
        read_adapter(str(tmp_path), name=name)


def test_a_submodule_called_module_keeps_its_name_and_its_moments(tmp_path: Path):
    model = Tree({"x": {"module": {"weight": "parameter"}, "weight": "parameter"}})
    optimizer = stepped(list(model.parameters()))
    state = ostate.load(ostate.save(optimizer, model, tmp_path / "named.safetensors"))
    assert set(state.parameters) == {"x.module.weight", "x.weight"}


def test_two_parameters_that_end_under_one_name_are_refused_by_save_and_by_names_of(tmp_path: Path):
    model = Tree({"x": {"_orig_mod": {"weight": "parameter"}, "weight": "parameter"}})
    optimizer = stepped(list(model.parameters()))
    with pytest.raises(OstateError, match=r"two parameters are called 'x\.weight'"):
        ostate.save(optimizer, model, tmp_path / "named.safetensors")
    with pytest.raises(OstateError, match=r"two parameters are called 'x\.weight'"):
        names_of(optimizer, model)
    assert list(tmp_path.iterdir()) == []


def test_two_parameters_that_end_under_one_name_are_refused_by_diff_by_export_and_by_fill(tmp_path: Path):
    plain, twins = Tree({"x": {"weight": "parameter", "a": "parameter"}}), Tree({"x": {"_orig_mod": {"weight": "parameter"}, "weight": "parameter"}})
    state = ostate.load(ostate.save(stepped(list(plain.parameters())), plain, tmp_path / "named.safetensors"))
    by_name = torch.optim.AdamW([("x.weight", twins.x.weight), ("x._orig_mod.weight", twins.x._orig_mod.weight)])
    for parameter in twins.parameters():
        parameter.grad = torch.randn_like(parameter)
    by_name.step()
    torch.save(by_name.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(OstateError, match=r"two positions are called 'x\.weight'"):
        ostate.diff(str(tmp_path / "optimizer.pt"), str(tmp_path / "named.safetensors"))
    for wanted in (["x.weight", "x._orig_mod.weight"], twins):
        with pytest.raises(OstateError, match=r"two parameters are called 'x\.weight'"):
            ostate.export(state, "torch", tmp_path / "out.pt", wanted=wanted)
    with pytest.raises(OstateError, match=r"two parameters are called 'x\.weight'"):
        fill(torch.optim.AdamW(twins.parameters()), twins, state)


def test_names_that_begin_with_module_are_exported_as_the_state_has_them(tmp_path: Path):
    model = Tree({"module": {"weight": "parameter"}, "frozen": "parameter"})
    optimizer = stepped([model.module.weight])
    state = ostate.load(ostate.save(optimizer, model, tmp_path / "named.safetensors"))
    for number, wanted in enumerate((None, ["module.weight"])):
        done = ostate.export(state, "ostate", tmp_path / f"{number}.safetensors", wanted=wanted, groups="one")
        assert list(ostate.load(done.path).parameters) == ["module.weight"]


def test_names_that_all_begin_with_module_are_not_recorded_beside_others_that_do_not(tmp_path: Path):
    model = Tree({"module": {"weight": "parameter"}, "frozen": "parameter"})
    optimizer = stepped([model.module.weight])
    assert names_of(optimizer, model) == [["module.weight"]]
    with pytest.raises(OstateError, match=r"every name begins with 'module\.'"):
        record_names(optimizer, model, tmp_path)


def test_recorded_names_keep_the_module_that_the_weights_have_too(tmp_path: Path):
    model = Tree({"module": {"weight": "parameter"}, "frozen": "parameter"})
    optimizer = stepped([model.module.weight])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "names.txt").write_text("module.weight\n")
    found = repair(str(tmp_path / "optimizer.pt"), adapter=str(tmp_path / "weights.pt"), order=str(tmp_path / "names.txt"), evidence=False)
    assert list(found.named.parameters) == ["module.weight"]


def test_recorded_names_under_a_wrappers_module_are_read_without_it(tmp_path: Path):
    model = Tree({"weight": "parameter", "a": "parameter"})
    optimizer = stepped(list(model.parameters()))
    folder = tmp_path / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "optimizer_param_names.json").write_text(json.dumps([["module.weight", "module.a"]]))
    assert list(repair(str(folder / "optimizer.pt"), evidence=False).named.parameters) == ["weight", "a"]
