"""lora_adamw and fill: by name, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from ostate.core.naming import Ordering
from ostate.errors import ProbeError
from ostate.probe import AdamPreconditioner, Guards, fill, filled, lora_adamw
from tests.records import replace

from .training import batch, edited, named_state, slot, tiny_lora, train, trainables


def stepped(model, optimizer, device="cpu"):
    optimizer.zero_grad()
    model.train()
    model(**{key: value.to(device) for key, value in batch(999).items()}).loss.backward()
    optimizer.step()
    return {name: p.detach().clone() for name, p in trainables(model)}


def test_one_step_equals_the_step_of_the_original_optimizer_bit_for_bit(run):
    original, optimizer = copy.deepcopy((run[0], run[1]))
    model = copy.deepcopy(run[0])
    mine = lora_adamw(model, run[2], foreach=False)
    assert filled(mine).coverage == filled(mine).coverage_step == 1.0
    want, got = stepped(original, optimizer), stepped(model, mine)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_two_swapped_entries_of_one_shape_take_another_step(run, state):
    first, second = [n for n, p in state.parameters.items() if n.endswith("q_proj.lora_A.default.weight")]
    swapped = dict(state.parameters)
    swapped[first], swapped[second] = replace(swapped[second], name=first), replace(swapped[first], name=second)
    a, b = copy.deepcopy(run[0]), copy.deepcopy(run[0])
    want = stepped(a, lora_adamw(a, state, foreach=False))
    got = stepped(b, lora_adamw(b, replace(state, parameters=swapped), foreach=False))
    assert [name for name in want if not torch.equal(want[name], got[name])] == [first, second]


def test_the_groups_of_the_file_come_back_with_their_hyperparameters(model, state):
    optimizer = lora_adamw(model, state)
    b, a = optimizer.param_groups
    assert (b["betas"], b["weight_decay"], b["eps"]) == ((0.8, 0.99), 0.1, 1e-8)
    assert (a["betas"], a["eps"], a["lr"]) == ((0.9, 0.999), 1e-7, 1e-2)
    assert all("lora_B" in name for name in b["param_names"])
    assert lora_adamw(model, state, lr=3e-4).param_groups[0]["lr"] == 3e-4


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": False, "foreach": False}], ids=str)
def test_every_kernel_of_adamw_steps_from_the_filled_state(run, options):
    a, b = copy.deepcopy(run[0]), copy.deepcopy(run[0])
    want, got = stepped(a, lora_adamw(a, run[2], foreach=False)), stepped(b, lora_adamw(b, run[2], **options))
    assert all(torch.allclose(want[name], got[name], rtol=1e-6, atol=1e-9) for name in want)


def test_another_adapter_name_and_wrappers_on_either_side_do_not_matter(state):
    model = tiny_lora(adapter="policy")
    wrapped = torch.nn.ModuleDict({"module": torch.nn.ModuleDict({"_orig_mod": model})})
    optimizer = lora_adamw(wrapped, state)
    assert filled(optimizer).coverage == 1.0
    assert filled(optimizer).entries["base_model.model.model.layers.1.mlp.up_proj.lora_B.policy.weight"] == (
        "base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight"
    )


def renamed(state, change):
    return replace(state, parameters={change(name): replace(entry, name=change(name)) for name, entry in state.parameters.items()})


def test_a_state_named_without_pefts_prefix_fills_the_peft_model_and_one_with_it_the_model_inside(model, state):
    bare = renamed(state, lambda name: name.removeprefix("base_model.model."))
    for live, named in ((model, bare), (model.base_model.model, state), (model.base_model.model, bare)):
        optimizer = lora_adamw(live, named)
        assert filled(optimizer).coverage == 1.0
        for parameter, name in filled(optimizer).names.items():
            entry = filled(optimizer).entries[name]
            assert name.removeprefix("base_model.model.") == entry.removeprefix("base_model.model.")
            assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], torch.from_numpy(named.tensor(entry, "exp_avg_sq").copy()))


def test_a_component_in_the_states_names_is_no_hindrance(model, state):
    inside = model.base_model.model
    named = renamed(state, lambda name: name.replace("base_model.model.", "transformer."))
    assert filled(lora_adamw(inside, named)).coverage == 1.0


def test_names_that_fit_the_model_in_two_ways_are_refused(model, state):
    bare = renamed(state, lambda name: name.removeprefix("base_model.model."))
    both = torch.nn.ModuleDict({"unet": model.base_model.model, "base_model": torch.nn.ModuleDict({"model": copy.deepcopy(model.base_model.model)})})
    with pytest.raises(ProbeError, match="fit the model in 2 ways"):
        lora_adamw(both, bare)


def test_an_adapters_name_is_not_found_where_a_module_is_called_like_a_container():
    class Odd(torch.nn.Module):
        def __init__(self, last):
            super().__init__()
            self.lora_A = torch.nn.Module()
            self.lora_A.register_parameter(last, torch.nn.Parameter(torch.ones(2)))

    trained = Odd("weight")
    optimizer = torch.optim.AdamW(trained.parameters())
    trained.lora_A.weight.grad = torch.ones(2)
    optimizer.step()
    state = named_state(trained, optimizer)
    with pytest.raises(ProbeError, match="does not have"):
        lora_adamw(Odd("bias"), state)


def test_with_two_adapters_each_takes_its_own_entries(model, state):
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    optimizer = lora_adamw(model, state)
    report = filled(optimizer)
    assert set(report.entries) == set(state.parameters)
    assert all(".second." in name for name in report.missing)
    assert report.coverage == 0.5


def test_missing_entries_lower_the_coverage_and_strict_refuses(model, state, caplog):
    some = dict(list(state.parameters.items())[: len(state.parameters) // 2])
    half = replace(state, parameters=some)
    optimizer = lora_adamw(model, half)
    assert filled(optimizer).coverage == 0.5
    assert "exp_avg_sq covers 14 of 28 parameters (50.0%)" in caplog.text
    with pytest.raises(ProbeError, match="14 of 28 parameters have no entry"):
        lora_adamw(model, half, strict=True)


def test_an_entry_of_another_shape_is_refused(model, state):
    name = next(iter(state.parameters))
    with pytest.raises(ProbeError, match=r"the state's entry has shape \(3, 4\), the parameter"):
        lora_adamw(model, edited(state, name, shape=(3, 4)))


def test_an_entry_of_no_parameter_is_refused(model, state):
    entry = replace(next(iter(state.parameters.values())), name="base_model.model.other.lora_A.default.weight")
    with pytest.raises(ProbeError, match="a parameter that the model does not have"):
        lora_adamw(model, replace(state, parameters={**state.parameters, entry.name: entry}))


def test_a_model_without_trainables_is_told_to_load_trainable(model, state):
    model.requires_grad_(False)
    with pytest.raises(ProbeError) as error:
        lora_adamw(model, state)
    assert "is_trainable=True" in error.value.fix


def test_a_state_without_second_moments_is_refused(model, state):
    bare = {n: replace(p, slots={"exp_avg_sq_row": slot([1.0])}) for n, p in state.parameters.items()}
    with pytest.raises(ProbeError, match=r"no exp_avg_sq .*adafactor; slots: \['exp_avg_sq_row'\]"):
        lora_adamw(model, replace(state, optimizer="adafactor", parameters=bare))


@pytest.mark.parametrize("use", [lora_adamw, lambda model, state: AdamPreconditioner(state, model=model)], ids=["lora_adamw", "AdamPreconditioner"])
def test_an_optimizer_that_was_only_assumed_is_asked_about(use, model, state):
    with pytest.raises(ProbeError, match="not known by name: its moments are taken for Adam's") as error:
        use(model, replace(state, optimizer="adam_like"))
    assert "--as adamw" in error.value.fix
    use(model, replace(state, optimizer="adamw"))


def test_a_second_moment_that_adamw_would_use_in_another_way_is_refused(model, state):
    """ADOPT divides by sqrt(v), AdamW by sqrt(v / (1 - beta2^t)): filled in, each step would be scaled by another number."""
    adopt = replace(state, optimizer="adopt")
    with pytest.raises(ProbeError, match="not used as AdamW uses its own"):
        lora_adamw(model, adopt)
    with pytest.raises(ProbeError, match="not used as AdamW uses its own"):
        fill(torch.optim.AdamW(p for _, p in trainables(model)), model, adopt)
    name = next(iter(state.parameters))
    gradient = torch.ones(state.parameters[name].shape)
    scaled = AdamPreconditioner(adopt, model=model, guards=Guards(relative_cap=None)).apply(name, gradient)
    v = torch.from_numpy(state.tensor(name, "exp_avg_sq").copy()).double()
    assert torch.allclose(scaled.double(), 1 / v.clamp_min(state.hyper(name)["eps"] ** 2).sqrt(), rtol=1e-5)


def test_frozen_entries_are_left_aside_and_said(model, state):
    for name, p in trainables(model):
        if "lora_A" in name:
            p.requires_grad_(False)
    report = filled(lora_adamw(model, state))
    assert report.coverage == 1.0
    assert [f.rule for f in report.findings] == ["entries-unused"]
    assert len(report.findings[0].names) == 14


def test_a_file_that_lacks_a_hyperparameter_asks_for_it(model, state):
    groups = tuple(replace(g, hyper={k: v for k, v in g.hyper.items() if k != "eps"}) for g in state.groups)
    lacking = replace(state, groups=groups)
    with pytest.raises(ProbeError, match="does not say eps"):
        lora_adamw(model, lacking)
    assert lora_adamw(model, lacking, eps=1e-6).param_groups[0]["eps"] == 1e-6
    with pytest.raises(ProbeError, match=r"eps=0\.001 contradicts the state's 1e-08"):
        lora_adamw(model, state, eps=1e-3)


def test_half_precision_parameters_keep_float32_moments_in_the_preconditioner(run, state):
    model = copy.deepcopy(run[0]).to(torch.float16)
    small = {n: replace(p, slots={**p.slots, "exp_avg_sq": slot(p.slots["exp_avg_sq"].values * 1e-9)}) for n, p in state.parameters.items()}
    optimizer = lora_adamw(model, replace(state, parameters=small))
    assert {"moments-underflow"} <= {f.rule for f in filled(optimizer).findings}
    p = trainables(model)[0][1]
    entry = optimizer.state[p]
    assert entry["exp_avg_sq"].dtype == torch.float16
    assert (entry["exp_avg_sq"] == 0).all()
    pre = AdamPreconditioner(optimizer)
    assert pre.stats()["zero"] == 0
    assert pre.stats()["identity"] == 0


def test_fill_gives_a_foreign_optimizer_its_state_and_hyperparameters(run, state):
    original, theirs = copy.deepcopy((run[0], run[1]))
    model = copy.deepcopy(run[0])
    parameters = trainables(model)
    groups = [[p for n, p in parameters if "lora_B" in n], [p for n, p in parameters if "lora_A" in n]]
    optimizer = torch.optim.AdamW([{"params": g} for g in groups], lr=1e-2, foreach=False)
    report = fill(optimizer, model, state)
    assert report.coverage == 1.0
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    want, got = stepped(original, theirs), stepped(model, optimizer)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_fill_refuses_one_group_over_two_settings_and_leaves_them_on_request(model, state, caplog):
    optimizer = torch.optim.AdamW([p for _, p in trainables(model)], lr=1e-2)
    with pytest.raises(ProbeError, match="several values of betas"):
        fill(optimizer, model, state)
    report = fill(optimizer, model, state, hyper=False)
    assert {f.rule for f in report.findings} == {"hyperparameters-differ"}
    assert "the preconditioner will not be the training's" in caplog.text


def test_an_optimizer_over_all_parameters_is_filled_by_name_too(model, state):
    """The misuse of the seed's report: base weights first, LoRA anywhere; names do not care."""
    for p in model.parameters():
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    report = fill(optimizer, model, state, hyper=False)
    assert report.coverage < 0.9
    assert set(report.entries) == set(state.parameters)


def test_bitsandbytes_32_bit_is_filled_and_8_bit_refused(run, state):
    bnb = pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(run[0])
    parameters = [p for n, p in trainables(model) if "lora_A" in n]
    only_a = replace(state, parameters={n: p for n, p in state.parameters.items() if "lora_A" in n})
    optimizer = bnb.optim.AdamW(parameters, lr=1e-2, eps=1e-7)
    report = fill(optimizer, model, only_a)
    assert report.coverage == 1.0
    name = report.names[parameters[0]]
    assert optimizer.state[parameters[0]]["step"] == 20
    assert torch.equal(optimizer.state[parameters[0]]["state2"], torch.from_numpy(state.tensor(name, "exp_avg_sq")))
    assert torch.equal(AdamPreconditioner(optimizer).scale[0], AdamPreconditioner(only_a).scale[0])
    eight = bnb.optim.AdamW8bit(parameters, lr=1e-2, eps=1e-7, min_8bit_size=16)
    with pytest.raises(ProbeError, match="8-bit codes"):
        fill(eight, model, only_a)


def test_an_optimizer_of_another_family_is_refused(model, state):
    with pytest.raises(ProbeError, match=r"torch\.optim\.sgd\.SGD keeps its state"):
        fill(torch.optim.SGD([p for _, p in trainables(model)], lr=0.1), model, state, hyper=False)


def test_amsgrad_takes_the_largest_second_moment(run):
    model = copy.deepcopy(run[0])
    optimizer = torch.optim.AdamW([p for _, p in trainables(model)], lr=1e-2, amsgrad=True, foreach=False)
    train(model, optimizer, 5)
    state = named_state(model, optimizer)
    twin = copy.deepcopy(model)
    mine = lora_adamw(twin, state, foreach=False)
    assert mine.param_groups[0]["amsgrad"]
    want, got = stepped(model, optimizer), stepped(twin, mine)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_what_was_assumed_of_the_names_is_said_with_whether_this_model_has_them(model, state):
    ordering = Ordering(names=(), keys=(), source="skeleton", verdict="verified", assumed=("the adapter is called `default`",))
    guessed = replace(state, ordering=ordering)
    (said,) = [finding for finding in filled(lora_adamw(model, guessed, lr=1e-3)).findings if finding.rule == "name-assumed"]
    assert "the adapter is called `default`" in said.text
    assert "exactly these names" in said.text
    other = {name: name.replace(".default.", ".other.") for name in state.parameters}
    renamed = replace(guessed, parameters={other[name]: replace(p, name=other[name]) for name, p in state.parameters.items()})
    renamed = replace(renamed, groups=tuple(replace(g, names=tuple(other[name] for name in g.names)) for g in state.groups))
    (said,) = [finding for finding in filled(lora_adamw(model, renamed, lr=1e-3)).findings if finding.rule == "name-assumed"]
    assert "spelled otherwise" in said.text
    assert len(said.names) == len(state.parameters)
