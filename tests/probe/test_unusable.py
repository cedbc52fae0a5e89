"""What cannot be computed with is refused by name: no traceback of torch's, and no number that looks like an answer."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import ostate
from ostate.errors import OstateError, ProbeError
from ostate.probe import AdamPreconditioner, GradientMean, Guards, delta_h1, eval_mode, fill, filled, lora_adamw
from tests.records import ArraySlot, replace

from .training import batch, edited, trainables

NAN, INF = math.nan, math.inf


@pytest.fixture
def name(state):
    return next(name for name in state.parameters if name.endswith("q_proj.lora_A.default.weight"))


def ones(model, **changes):
    return {name: torch.ones(p.shape, **changes) for name, p in trainables(model)}


def array(values, dtype=np.float32):
    return ArraySlot(np.asarray(values, dtype=dtype))


def replaced(model, name, **changes):
    """Put another parameter of the same numbers in the place of one, as merging, resizing and moving do."""
    module = model.get_submodule(name.removesuffix(".weight"))
    module.weight = torch.nn.Parameter(module.weight.detach().clone().to(**changes))


GRADIENTS = {
    "complex": lambda shape: torch.ones(shape, dtype=torch.complex64),
    "whole numbers": lambda shape: torch.full(shape, 3),
    "truth values": lambda shape: torch.ones(shape, dtype=torch.bool),
    "float8": lambda shape: torch.ones(shape).to(torch.float8_e5m2),
    "sparse": lambda shape: torch.ones(shape).to_sparse(),
    "sparse rows": lambda shape: torch.ones(shape).to_sparse_csr(),
    "quantised": lambda shape: torch.quantize_per_tensor(torch.ones(shape), 1.0, 0, torch.qint8),
    "nested": lambda shape: torch.nested.nested_tensor([torch.ones(shape[1:])] * shape[0]),
    "meta": lambda shape: torch.ones(shape, device="meta"),
    "another shape": lambda shape: torch.ones(shape).T,
    "no batch": lambda shape: torch.tensor(1.0),
    "an array": np.ones,
    "nothing": lambda shape: None,
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_gradient_of_another_kind_is_refused_wherever_it_comes_in(model, state, name, kind):
    pre = AdamPreconditioner(state, model=model)
    bad = GRADIENTS[kind](tuple(state.parameters[name].shape))
    among = {**ones(model), name: bad}
    for use in (lambda: pre.apply(name, bad), lambda: pre.apply_all(among), lambda: pre.apply_all({name: bad}), lambda: pre.dot(among, ones(model))):
        with pytest.raises(ProbeError, match="gradient"):
            use()
    for x, y in ((among, ones(model)), (ones(model), among)):
        with pytest.raises(ProbeError, match="gradient"):
            delta_h1(x, y, 1e-3, pre)


def test_a_batch_one_gradient_twice_and_a_place_that_does_not_fit_are_refused(model, state, name):
    pre = AdamPreconditioner(state, model=model)
    (flat,) = pre.layout.flatten(ones(model))
    with pytest.raises(ProbeError, match="not a batch"):
        delta_h1(flat.expand(3, -1), flat.expand(3, -1), 1e-3, pre)
    twice = {**ones(model), f"module.{name}": torch.full(state.parameters[name].shape, 5.0)}
    with pytest.raises(ProbeError, match="belong to one parameter"):
        pre.dot(twice, ones(model))
    done = pre.apply_all(twice)  # each by itself: nothing is added up
    assert all(torch.equal(done[key], pre.apply(name, twice[key])) for key in (f"module.{name}", name))
    for out in (torch.zeros(3), flat.to(torch.int64), flat.to("meta"), "x"):
        with pytest.raises(ProbeError, match="out is"):
            pre.apply_all(flat, out=out)
    for other in ("x", 5, None, flat.to(torch.int64), [flat, flat]):
        with pytest.raises(ProbeError):
            pre.apply_all(other)
    half = pre.apply_all(flat * 1e3, out=torch.empty_like(flat, dtype=torch.float16))
    assert torch.isfinite(half).all()


@pytest.mark.parametrize("eta", [0, NAN, INF, "x", None, True, 10**400, [1e-3]], ids=repr)
def test_a_learning_rate_that_is_none_is_refused(model, state, eta):
    pre = AdamPreconditioner(state, model=model)
    with pytest.raises(ProbeError, match="eta is"):
        delta_h1(ones(model), ones(model), eta, pre)
    assert type(delta_h1(ones(model), ones(model), torch.tensor(1e-3), pre).value) is float


MOMENTS = {
    "transposed": lambda shape: array(np.full(shape[::-1], 1e-6)),
    "flat": lambda shape: array(np.full(math.prod(shape), 1e-6)),
    "too small": lambda shape: array(np.ones((3, 3))),
    "one number": lambda shape: array(1.0),
    "none at all": lambda shape: array(np.ones(0)),
    "whole numbers": lambda shape: array(np.full(shape, 200), np.uint8),
    "truth values": lambda shape: array(np.ones(shape), bool),
    "complex": lambda shape: array(np.ones(shape), np.complex64),
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_a_moment_of_another_shape_or_kind_is_never_taken_for_numbers(model, state, name, kind):
    """A transposed one has as many elements: read in another order it would give a preconditioner of other elements."""
    odd = edited(state, name, slots={"exp_avg_sq": MOMENTS[kind](tuple(state.parameters[name].shape))})
    for use in (lambda: lora_adamw(model, odd), lambda: AdamPreconditioner(odd, model=model), lambda: AdamPreconditioner(odd)):
        with pytest.raises(ProbeError, match="the moment h") as told:
            use()
        assert name in str(told.value)


RATES = [
    *({"betas": betas} for betas in (5, "ab", (0.9,), (), ("a", "b"), (0.9, 1.0), (0.9, -1), (NAN, NAN), [(1,), (2,)])),
    *({"eps": eps} for eps in (NAN, INF, -1.0, "x", (1e-8, 1e-8), True)),
]


@pytest.mark.parametrize("odd", RATES, ids=repr)
def test_rates_out_of_range_are_refused_from_a_state_and_from_a_live_optimizer(model, state, odd):
    wrong = replace(state, groups=tuple(replace(group, hyper={**state.groups[0].hyper, **odd}) for group in state.groups))
    optimizer = lora_adamw(model, state)
    for group in optimizer.param_groups:
        group.update(odd)
    plain = torch.optim.AdamW([p for _, p in trainables(model)])
    for use in (
        lambda: AdamPreconditioner(wrong, model=model), lambda: lora_adamw(model, wrong), lambda: fill(plain, model, wrong),
        lambda: AdamPreconditioner(optimizer),
    ):  # fmt: skip
        with pytest.raises(ProbeError, match=r"betas must be|eps must be|keeps no second moment"):
            use()


@pytest.mark.parametrize("odd", [{"lr": NAN}, {"lr": "x"}, {"lr": -1}, {"lr": [1]}, {"weight_decay": NAN}, {"weight_decay": "x"}], ids=repr)
def test_an_optimizer_is_not_made_with_a_rate_that_is_no_number(model, state, odd):
    wrong = replace(state, groups=tuple(replace(group, hyper={**group.hyper, **odd}) for group in state.groups))
    with pytest.raises(ProbeError, match="must be a finite number from 0"):
        lora_adamw(model, wrong)
    with pytest.raises(ProbeError, match="lr must be a finite number"):
        lora_adamw(model, state, lr=NAN)


@pytest.mark.parametrize("options", [{"bogus": 1}, {"fused": True, "foreach": True}], ids=repr)
def test_options_that_torch_refuses_are_refused_in_words(model, state, options):
    with pytest.raises(ProbeError, match="refuses the options"):
        lora_adamw(model, state, **options)


@pytest.mark.parametrize("changes", [{"group": 7}, {"group": -1}, {"step": "five"}, {"step": NAN}, {"step": INF}], ids=repr)
def test_an_entry_of_no_group_or_without_a_count_of_updates_is_refused(model, state, name, changes):
    """Group -1 would be the last one: other betas, silently."""
    for use in (lora_adamw, lambda m, s: AdamPreconditioner(s, model=m), lambda m, s: fill(torch.optim.AdamW(m.parameters()), m, s)):
        with pytest.raises(ProbeError, match=r"the entry is of group|which is no count"):
            use(model, edited(state, name, **changes))


def test_less_than_one_update_corrects_nothing_and_is_said(model, state, name):
    pre = AdamPreconditioner(edited(state, name, step=0.5), model=model)
    assert [(finding.rule, finding.names) for finding in pre.findings] == [("step-missing", (name,))]


LIVE = {
    "meta": lambda v: v.to("meta"), "sparse": lambda v: v.to_sparse(), "complex": lambda v: v.to(torch.complex64), "flat": lambda v: v.reshape(-1),
    "whole numbers": lambda v: v.to(torch.int64),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIVE)
def test_a_live_moment_of_another_kind_is_refused_by_its_parameters_name(model, state, name, kind, tmp_path):
    optimizer = lora_adamw(model, state)
    entry = optimizer.state[dict(trainables(model))[name]]
    entry["exp_avg_sq"] = LIVE[kind](entry["exp_avg_sq"])
    for use in (lambda: AdamPreconditioner(optimizer), lambda: ostate.save(optimizer, model, tmp_path / "a.safetensors")):
        with pytest.raises(ProbeError) as told:
            use()
        assert name in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["x", [5], torch.tensor(1j), torch.tensor(5.0, device="meta")], ids=str)
def test_a_live_step_that_is_no_count_is_refused(model, state, name, step, tmp_path):
    optimizer = lora_adamw(model, state)
    optimizer.state[dict(trainables(model))[name]]["step"] = step
    for use in (lambda: AdamPreconditioner(optimizer), lambda: ostate.save(optimizer, model, tmp_path / "a.safetensors")):
        with pytest.raises(ProbeError, match="no count"):
            use()


@pytest.mark.parametrize(
    ("key", "value"), [(5, torch.ones(3)), ("old_dirs", [torch.ones(3)]), ("exp_avg", np.ones((4, 32)))], ids=["a number", "a list", "an array"]
)
def test_numbers_that_the_named_format_has_no_place_for_are_not_left_out_silently(model, state, name, key, value, tmp_path):
    optimizer = lora_adamw(model, state)
    optimizer.state[dict(trainables(model))[name]][key] = value
    with pytest.raises(ProbeError, match=r"no text|no place"):
        ostate.save(optimizer, model, tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [torch.tensor([0.1, 0.2]), torch.tensor(0.1, device="meta"), np.ones(3)], ids=str)
def test_a_hyperparameter_of_several_numbers_is_refused_and_one_of_numpy_is_its_number(model, state, value, tmp_path):
    optimizer = lora_adamw(model, state)
    optimizer.param_groups[0]["lr"] = np.float32(0.5)
    assert ostate.load(ostate.save(optimizer, model, tmp_path / "a.safetensors")).groups[0].hyper["lr"] == 0.5
    optimizer.param_groups[0]["lr"] = value
    endless: list = []
    endless.append(endless)
    for odd in (value, endless):
        optimizer.param_groups[0]["extra"] = odd
        with pytest.raises(ProbeError, match="group 0"):
            ostate.save(optimizer, model, tmp_path / "a.safetensors", force=True)


def test_amsgrad_without_its_maximum_is_refused_and_not_replaced_by_the_plain_moment(model, state):
    wrong = replace(state, groups=tuple(replace(group, hyper={**group.hyper, "amsgrad": True}) for group in state.groups))
    optimizer = lora_adamw(model, state)
    for group in optimizer.param_groups:
        group["amsgrad"] = True
    for use in (lambda: AdamPreconditioner(wrong, model=model), lambda: AdamPreconditioner(optimizer)):
        with pytest.raises(ProbeError, match="no max_exp_avg_sq"):
            use()


def test_a_model_without_its_weights_loses_no_moments(model, state, name):
    replaced(model, name, device="meta")
    for use in (lora_adamw, lambda m, s: AdamPreconditioner(s, model=m), lambda m, s: fill(torch.optim.AdamW(m.parameters()), m, s, hyper=False)):
        with pytest.raises(ProbeError, match="lies on the meta device"):
            use(model, state)
    with pytest.raises(ProbeError, match="lies on the meta device"):
        GradientMean(model)
    assert AdamPreconditioner(state, model=model, device="cpu").stats()["coverage"] == 1.0  # the names are all that it takes of the model


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_parameters_without_real_numbers_are_refused(model, state, name, dtype):
    replaced(model, name, dtype=dtype)
    for use in (lora_adamw, lambda m, s: AdamPreconditioner(s, model=m)):
        with pytest.raises(ProbeError, match="the parameter is of torch"):
            use(model, state)


def test_a_parameter_replaced_after_filling_is_said_wherever_it_would_be_left_out(model, state, name):
    optimizer = lora_adamw(model, state)
    pre, mean = AdamPreconditioner(optimizer), GradientMean(model)
    replaced(model, name)
    with pytest.raises(ProbeError, match="1 parameters were replaced"):
        AdamPreconditioner(optimizer, model=model)
    model(**batch(1)).loss.backward()
    with pytest.raises(ProbeError, match="replaced since this mean was begun"):
        mean.add()
    with pytest.raises(ProbeError, match="are not the model's"):
        pre.apply_all(model)


def test_parameters_taken_out_of_the_optimizer_end_the_preconditioner_in_words(model, state):
    optimizer = lora_adamw(model, state)
    pre = AdamPreconditioner(optimizer)
    optimizer.param_groups[0]["params"].reverse()
    with pytest.raises(ProbeError, match="no longer those"):
        pre.refresh()
    optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(ProbeError, match="other parameters since"):
        pre.refresh()
    optimizer.param_groups[0]["param_names"] = ["a"]
    with pytest.raises(ProbeError, match="other param_names"):
        AdamPreconditioner(optimizer)


def test_a_parameter_that_the_optimizer_holds_twice_has_no_position(model, state, tmp_path):
    optimizer = lora_adamw(model, state)
    optimizer.param_groups[0]["params"].append(optimizer.param_groups[0]["params"][0])
    uses = (AdamPreconditioner, lambda o: fill(o, model, state), lambda o: ostate.save(o, model, tmp_path / "a.safetensors"))
    for use in uses:
        with pytest.raises(ProbeError, match="twice"):
            use(optimizer)


@pytest.mark.parametrize("weight", [0, -1, NAN, INF, "x", None, True, [1]], ids=repr)
def test_a_weight_that_is_none_is_refused_and_a_tensor_of_one_number_is_its_number(model, weight):
    mean = GradientMean(model)
    model(**batch(1)).loss.backward()
    with pytest.raises(ProbeError, match="the weight must be"):
        mean.add(weight)
    mean.add(torch.tensor(2.0))
    assert mean.weight == 2.0


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float16, torch.float8_e5m2], ids=str)
def test_gradients_are_not_summed_in_what_cannot_hold_them(model, dtype):
    with pytest.raises(ProbeError, match="summed in float64 or float32"):
        GradientMean(model, dtype=dtype)


def test_a_gradient_that_would_be_spread_over_a_parameter_of_another_shape_is_refused(model, name):
    mean = GradientMean(model)
    parameter = dict(trainables(model))[name]
    parameter.data = parameter.data[:1]
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ProbeError, match="replaced since"):
        mean.add()


GUARDS = [
    {"relative_cap": "x"}, {"relative_cap": True}, {"max_scale": NAN}, {"identity_if_coverage_below": "x"}, {"identity_if_coverage_below": NAN},
    {"smallest_denominator": NAN}, {"unknown": "x"}, {"zero_elements": "x"}, {"cold_is_bad": "no"}, {"infinite_is_bad": None}, {"fallback": "no"},
]  # fmt: skip


@pytest.mark.parametrize("odd", GUARDS, ids=repr)
def test_a_choice_that_is_none_is_refused(odd):
    with pytest.raises(ProbeError, match=next(iter(odd))):
        Guards(**odd)


@pytest.mark.parametrize("step", [NAN, INF, -4], ids=str)
def test_a_checkpoint_step_that_is_no_count_is_refused(state, step):
    with pytest.raises(ProbeError, match="checkpoint_step must be"):
        AdamPreconditioner(state, checkpoint_step=step)


@pytest.mark.parametrize("device", ["nope", [1], "meta", "cuda:77"], ids=str)
def test_a_device_that_is_none_is_refused(state, device):
    with pytest.raises(ProbeError, match=r"the device|meta device"):
        AdamPreconditioner(state, device=device)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, s: fill(None, m, s), lambda m, s: fill("x", m, s), lambda m, s: fill(m, m, s), lambda m, s: AdamPreconditioner(s, model="x"),
        lambda m, s: GradientMean("x"), lambda m, s: eval_mode("x").__enter__(), lambda m, s: delta_h1({}, {}, 1e-3, None),
        lambda m, s: ostate.record_names(None, m, "x"), lambda m, s: ostate.record_names(m, torch.optim.SGD(m.parameters()), "x"),
        lambda m, s: fill(torch.optim.SGD(m.parameters()), m, s), lambda m, s: ostate.record_names(torch.optim.SGD(m.parameters()), m, "a\0b"),
    ],
    ids=range(11),
)  # fmt: skip
def test_an_argument_in_anothers_place_is_refused_in_words(model, state, call):
    with pytest.raises(OstateError):
        call(model, state)


def test_an_optimizer_without_parameters_is_refused(model, state):
    optimizer = torch.optim.AdamW([p for _, p in trainables(model)])
    optimizer.param_groups[0]["params"] = []
    with pytest.raises(ProbeError, match="holds no parameter"):
        fill(optimizer, model, state)


def test_what_is_sound_goes_on_as_before(model, state, name):
    optimizer = lora_adamw(model, state)
    assert filled(optimizer).coverage == 1.0
    pre = AdamPreconditioner(copy.deepcopy(state), model=model)
    want = torch.ones(3, *state.parameters[name].shape) * pre.apply(name, torch.ones(state.parameters[name].shape))
    assert torch.equal(pre.apply(name, torch.ones(3, *state.parameters[name].shape)), want)
    assert pre.apply(name, torch.ones(0, *state.parameters[name].shape)).shape == (0, *state.parameters[name].shape)
