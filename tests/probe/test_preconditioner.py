"""AdamPreconditioner: equal to torch where torch is right, guarded where the state is not."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.seed_loop import seed_apply
from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Group
from ostate.errors import ProbeError
from ostate.probe import AdamPreconditioner, Guards, adam_preconditioner, lora_adamw
from tests.records import ArraySlot, replace

from .training import batch, edited, named_state, slot, tiny_lora, train, trainables


def one(v, *, m=None, step=10.0, betas=(0.9, 0.999), eps=1e-8, **slots) -> NamedState:
    """A named state of one parameter `w`."""
    v = np.asarray(v, dtype=np.float32)
    m = np.zeros_like(v) if m is None else np.asarray(m, dtype=np.float32)
    entry = NamedParameter(name="w", shape=v.shape, group=0, slots={"exp_avg": ArraySlot(m), "exp_avg_sq": ArraySlot(v), **slots}, step=step)
    group = Group(index=0, positions=(0,), names=("w",), hyper={"lr": 1e-3, "betas": betas, "eps": eps, "weight_decay": 0.0})
    return NamedState(optimizer="adamw", optimizer_class="torch.optim.AdamW", groups=(group,), parameters={"w": entry})


def gradients(model, seed=999):
    model.zero_grad()
    model(**batch(seed)).loss.backward()
    out = {name: p.grad.clone() for name, p in trainables(model)}
    model.zero_grad()
    return out


FLAGS = [
    {"foreach": False},
    {"foreach": True},
    {"fused": True},
    {"foreach": False, "amsgrad": True},
    {"foreach": False, "betas": (0.5, 0.9), "eps": 1e-4},
    {"foreach": False, "maximize": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_m_hat_times_p_times_eta_is_the_step_that_torch_just_took(flags):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(33, 7))
    optimizer = torch.optim.AdamW([parameter], lr=0.125, weight_decay=0.0, **flags)
    for _ in range(30):
        parameter.grad = torch.randn(33, 7) * 1e-3
        parameter.data.zero_()
        optimizer.step()
    state = optimizer.state[parameter]
    beta1 = optimizer.param_groups[0]["betas"][0]
    m_hat = state["exp_avg"].double() / (1 - beta1**30)
    got = -0.125 * AdamPreconditioner(optimizer, precision="float64").apply(parameter, m_hat)
    torch.testing.assert_close(parameter.double(), got, rtol=1e-6, atol=0)


def test_next_step_is_what_torch_would_do_with_this_gradient(run):
    model, optimizer = copy.deepcopy((run[0], run[1]))
    g = gradients(model)
    pre = AdamPreconditioner(optimizer, form="next_step", model=model)
    for group in optimizer.param_groups:
        group.update(weight_decay=0.0, lr=0.5)
    before = {name: p.detach().clone() for name, p in trainables(model)}
    updates = {name: pre.apply(name, gradient) for name, gradient in g.items()}
    for name, p in trainables(model):
        p.data.zero_()
        p.grad = g[name]
    optimizer.step()
    assert len(before) == 28
    for name, p in trainables(model):
        # An element whose two terms of m nearly cancel keeps torch's float32 rounding of each.
        torch.testing.assert_close(-0.5 * updates[name], p.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_next_step_from_a_first_step_and_with_zero_moments(amsgrad):
    parameter = torch.nn.Parameter(torch.zeros(5))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, weight_decay=0.0, amsgrad=amsgrad)
    parameter.grad = torch.tensor([0.0, 0.0, 1e-3, -2.0, 0.0])
    optimizer.step()
    g = torch.tensor([0.0, 1e-6, 1e-3, 1.0, 1e-20])
    update = AdamPreconditioner(optimizer, form="next_step").apply(parameter, g)
    parameter.data.zero_()
    parameter.grad = g
    optimizer.step()
    torch.testing.assert_close(-update, parameter.detach(), rtol=1e-6, atol=0)


def test_less_form_is_less_own_formula():
    rng = np.random.default_rng(0)
    m, v, g = rng.normal(size=50) * 1e-7, rng.uniform(1e-15, 1e-13, size=50), rng.normal(size=50) * 1e-7
    state = one(v, m=m, step=375)
    got = AdamPreconditioner(state, form="less").apply("w", torch.tensor(g)).numpy()
    m32, v32 = np.float32(m).astype(float), np.float32(v).astype(float)
    want = (0.9 * m32 + 0.1 * g) / np.sqrt(0.999 * v32 + 0.001 * g * g + 1e-8)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    # eps inside the root drowns a LoRA's v: the form is the averaged gradient times a constant.
    np.testing.assert_allclose(got, want.mean() / (0.9 * m32 + 0.1 * g).mean() * (0.9 * m32 + 0.1 * g), rtol=1e-4)


def test_the_seeds_guards_give_the_seeds_numbers(run):
    model, optimizer = copy.deepcopy((run[0], run[1]))
    names = [name for name, _ in trainables(model)]
    by_name = dict(trainables(model))
    del optimizer.state[by_name[names[0]]]["exp_avg_sq"]
    optimizer.state[by_name[names[1]]]["exp_avg_sq"].zero_()
    optimizer.state[by_name[names[2]]]["exp_avg_sq"][0, 0] = float("nan")
    optimizer.state[by_name[names[3]]]["exp_avg_sq"][0, 0] = -1.0
    optimizer.state[by_name[names[4]]]["exp_avg_sq"].fill_(1e-13)
    optimizer.state[by_name[names[5]]]["exp_avg_sq"][0, 0] = float("inf")
    pre = AdamPreconditioner(optimizer, None, 20, model=model, guards=Guards.seed())
    for name, g in gradients(model).items():
        torch.testing.assert_close(pre.apply_preconditioner(by_name[name], g), seed_apply(optimizer, by_name[name], g, 20), rtol=1e-6, atol=0)
    unrelated = torch.randn(3)
    assert pre.apply(torch.nn.Parameter(torch.zeros(3)), unrelated) is unrelated


def test_a_fixed_cap_turns_a_healthy_lora_preconditioner_into_a_constant_and_says_so(caplog):
    v = np.exp(np.random.default_rng(1).normal(np.log(1e-13), 1.5, size=2000))
    g = torch.tensor(np.random.default_rng(2).normal(size=2000)).float()
    fixed, relative = AdamPreconditioner(one(v, step=375), guards=Guards(relative_cap=None, max_scale=1e3)), AdamPreconditioner(one(v, step=375))
    assert torch.equal(fixed.apply("w", g), g * 1e3)
    assert fixed.stats()["clamped_share"] == 1.0
    assert "the cap 1e+03 clips 100.0% of all elements" in caplog.text
    assert relative.stats()["clamped"] == 0
    assert relative.findings == ()


def test_the_relative_cap_is_a_thousand_medians():
    v = np.full(1001, 1e-10)
    v[:3] = 1e-24
    pre = AdamPreconditioner(one(v, step=1e6, eps=0.0))
    assert pre.diagonal.median == pytest.approx(1e5, rel=1e-6)
    assert pre.scale[0].max().item() == pytest.approx(1e8, rel=1e-6)
    stats = pre.stats()
    assert (stats["clamped"], stats["max_scale_applied"]) == (3, pytest.approx(1e8, rel=1e-6))
    assert stats["max_scale"] == pytest.approx(1e12, rel=1e-3)


def test_the_median_is_exact_and_quantiles_are_near_whatever_the_size():
    for seed, n in [(0, 1), (1, 2), (2, 9), (3, 10_001)]:
        v = np.exp(np.random.default_rng(seed).normal(-20, 3, size=n)).astype(np.float32)
        pre = AdamPreconditioner(one(v, eps=0.0), guards=Guards(relative_cap=None))
        scale = pre.scale[0]
        assert pre.diagonal.median == scale.median().item()
        assert pre.diagonal.largest == scale.max().item()
        exact = scale.kthvalue(max(int(np.ceil(0.99 * n - 1e-6)), 1)).values.item()
        assert exact * (1 - 1 / 128) <= pre.diagonal.quantiles[0.99] <= exact


CORRUPTIONS = {
    "missing": {"exp_avg_sq": None},
    "cold": {"exp_avg_sq": lambda v: v * 0},
    "negative": {"exp_avg_sq": lambda v: -v},
    "not finite": {"exp_avg_sq": lambda v: np.where(np.arange(v.size).reshape(v.shape) == 1, np.nan, v)},
}


@pytest.mark.parametrize("fallback", ["identity", "zero", "raise"])
@pytest.mark.parametrize("why", CORRUPTIONS)
def test_a_second_moment_that_cannot_be_trusted_falls_back_as_asked(model, state, why, fallback, caplog):
    name = list(state.parameters)[3]
    change = CORRUPTIONS[why]["exp_avg_sq"]
    value = None if change is None else ArraySlot(np.asarray(change(state.tensor(name, "exp_avg_sq")), np.float32))
    broken = edited(state, name, slots={"exp_avg_sq": value})
    guards = Guards(fallback=fallback)
    if fallback == "raise":
        with pytest.raises(ProbeError, match=f"1 of 28 parameters .* cannot be trusted \\({why}\\)") as error:
            AdamPreconditioner(broken, model=model, guards=guards)
        assert name in error.value.where
        return
    pre = AdamPreconditioner(broken, model=model, guards=guards)
    g = gradients(model)
    out = pre.apply_all(g)
    assert torch.equal(out[name], g[name] * (1.0 if fallback == "identity" else 0.0))
    assert all(torch.isfinite(value).all() for value in out.values())
    assert f"1 of 28 parameters have a second moment that is {why}" in caplog.text
    stats = pre.stats()
    assert stats["identity"] == 1
    assert stats["worst"][name]["why"] == why
    assert stats["coverage"] == (27 / 28 if why == "missing" else 1.0)


def test_poor_coverage_leaves_every_gradient_as_it_is_and_says_so_once(model, state, caplog):
    few = replace(state, parameters=dict(list(state.parameters.items())[:20]))
    pre = AdamPreconditioner(few, model=model)
    g = gradients(model)
    out = pre.apply_all(g)
    assert all(torch.equal(out[name], g[name]) for name in g)
    assert caplog.text.count("gradients are not preconditioned") == 1
    pre.refresh()
    assert caplog.text.count("gradients are not preconditioned") == 1
    lenient = AdamPreconditioner(few, model=model, guards=Guards(identity_if_coverage_below=0.5))
    assert not torch.equal(lenient.apply_all(g)[pre.names[-1]], g[pre.names[-1]]) or pre.names[-1] not in few.parameters


@pytest.mark.parametrize(("fallback", "kept"), [("identity", 1.0), ("zero", 0.0)])
def test_single_elements_without_information_are_counted_not_blown_up(fallback, kept):
    pre = AdamPreconditioner(one([1e-6, 0.0, 4e-6], step=1e5), guards=Guards(fallback=fallback))
    assert pre.apply("w", torch.ones(3))[1] == kept
    assert pre.stats()["zero"] == 1
    assert [f.rule for f in pre.findings] == ["zero-elements"]


def test_the_checkpoint_step_fills_in_and_its_absence_is_a_finding(caplog):
    v = [1e-6, 2e-6]
    known, given, none = (AdamPreconditioner(one(v, step=s), checkpoint_step=c) for s, c in [(50, None), (None, 50), (None, None)])
    assert torch.equal(known.scale[0], given.scale[0])
    assert "1 of 1 parameters have no step" in caplog.text
    assert none.stats()["coverage_step"] == 0.0
    torch.testing.assert_close(none.scale[0].double(), 1 / (torch.tensor(v).double().sqrt() + 1e-8))


def test_a_state_stays_float32_whatever_the_parameters_are(run):
    model = copy.deepcopy(run[0]).to(torch.bfloat16)
    pre = AdamPreconditioner(run[2], model=model)
    full = AdamPreconditioner(run[2], model=run[0])
    assert torch.equal(pre.scale[0], full.scale[0])
    name, p = trainables(model)[0]
    out = pre.apply(p, torch.ones_like(p))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, full.apply(name, torch.ones(p.shape)).to(torch.bfloat16))


def test_float16_gradients_are_held_at_the_edge_and_counted(caplog):
    pre = AdamPreconditioner(one([1e-12, 1e-12, 1.0], step=1e6))
    out = pre.apply("w", torch.ones(3, dtype=torch.float16))
    assert out[0] == 65504
    assert out[2] == 1
    assert pre.stats()["overflowed"] == 2
    assert "do not fit float16" in caplog.text


def test_it_follows_the_optimizer_when_it_steps_and_when_it_loads(run):
    model, optimizer = copy.deepcopy((run[0], run[1]))
    pre = AdamPreconditioner(optimizer, model=model)
    before = pre.scale[0].clone()
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 1)
    moved = pre.scale[0].clone()
    assert not torch.equal(before, moved)
    assert torch.equal(moved, AdamPreconditioner(optimizer, model=model).scale[0])
    optimizer.load_state_dict(saved)
    assert torch.equal(pre.scale[0], before)


def test_after_a_step_the_live_moments_count_and_no_longer_the_files(run, state):
    model = copy.deepcopy(run[0])
    optimizer = lora_adamw(model, state)
    pre = AdamPreconditioner(optimizer)
    assert torch.equal(pre.scale[0], AdamPreconditioner(run[1], model=run[0]).scale[0])
    train(model, optimizer, 1)
    assert pre.diagonal.step == (21.0,) * 28


def test_an_edit_by_hand_is_seen_after_a_refresh(model, state):
    optimizer = lora_adamw(model, state)
    pre = AdamPreconditioner(optimizer)
    for entry in optimizer.state.values():
        entry["exp_avg_sq"].zero_()
    pre.refresh()
    assert pre.stats()["identity"] == 28


def test_eight_bit_moments_are_decoded_not_taken_for_numbers():
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    p, q = torch.nn.Parameter(torch.zeros(64, 64)), torch.nn.Parameter(torch.zeros(64, 64))
    eight, full = bnb.optim.AdamW8bit([p], lr=1e-3, min_8bit_size=16), torch.optim.AdamW([q], lr=1e-3)
    for _ in range(10):
        p.grad = torch.randn(64, 64) * 1e-3
        q.grad = p.grad.clone()
        eight.step()
        full.step()
    assert eight.state[p]["state2"].dtype == torch.uint8
    a, b = AdamPreconditioner(eight).scale[0], AdamPreconditioner(full).scale[0]
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.95
    assert float((a / b).median()) == pytest.approx(1.0, abs=0.1)


def test_flat_gradients_batches_and_dicts_agree(model, state):
    pre = AdamPreconditioner(state, model=model)
    g = gradients(model)
    by_name = pre.apply_all(g)
    (flat,) = pre.layout.flatten(g)
    done = pre.apply_all(flat)
    assert torch.equal(pre.layout.flatten(by_name)[0], done)
    pair = torch.stack([flat, 2 * flat])
    assert torch.equal(pre.apply_all(pair)[0], done)
    assert torch.equal(pre.apply_all(flat, out=flat), done)
    name = pre.names[0]
    assert torch.equal(pre.apply_all({name: g[name]})[name], by_name[name])
    assert torch.equal(pre.apply(name, torch.stack([g[name]] * 3))[2], by_name[name])


def test_autograd_accumulates_straight_into_the_flat_buffer(model, state):
    pre = AdamPreconditioner(state, model=model)
    want = pre.layout.flatten(gradients(model))[0]
    flats = pre.layout.zeros()
    pre.layout.attach(flats)
    model(**batch(999)).loss.backward()
    assert torch.equal(flats[0], want)
    model(**batch(999)).loss.backward()
    torch.testing.assert_close(flats[0], 2 * want)


@pytest.mark.parametrize("form", ["frozen", "next_step", "less"])
def test_dot_is_the_dot_with_the_preconditioned_gradient(model, state, form):
    pre = AdamPreconditioner(state, model=model, form=form, precision="float64")
    x, g = gradients(model, 1), gradients(model, 2)
    want = sum(float((x[name].double() * pre.apply(name, g[name].double())).sum()) for name in x)
    assert pre.dot(x, g) == pytest.approx(want, rel=1e-12)


def test_what_does_not_fit_is_refused_by_name(model, state):
    pre = AdamPreconditioner(state, model=model)
    g = gradients(model)
    name = next(iter(g))
    with pytest.raises(ProbeError, match="the gradient has shape"):
        pre.apply(name, g[name].T[:2])
    with pytest.raises(ProbeError, match="'other' is not one of the 28 parameters"):
        pre.apply("other", g[name])
    with pytest.raises(ProbeError, match="gradients lack 1 of 28"):
        pre.layout.flatten({key: value for key, value in g.items() if key != name})
    with pytest.raises(ProbeError, match="one gradient on each side"):
        pre.dot(pre.layout.flatten(g)[0].expand(2, -1), g)


def test_names_for_an_optimizer_that_knows_none_are_refused_with_how_to_give_them(model):
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    by_name = gradients(model)
    with pytest.raises(ProbeError, match=r"AdamPreconditioner\(optimizer, model=model\)"):
        AdamPreconditioner(optimizer).apply_all(by_name)
    assert AdamPreconditioner(optimizer, model=model).apply_all(by_name).keys() == by_name.keys()


def test_the_pure_function_refuses_what_looks_like_a_number():
    v = torch.tensor([1e-6])
    for bad in (v.to(torch.uint8), v.to(torch.float16), -v, v * float("nan")):
        with pytest.raises(ProbeError):
            adam_preconditioner(bad, step=1, beta2=0.999, eps=1e-8)
    with pytest.raises(ProbeError, match="step must be at least 1"):
        adam_preconditioner(v, step=0, beta2=0.999, eps=1e-8)


QUIET = logging.getLogger("quiet")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False

shapes = st.sampled_from([(1,), (7,), (3, 5), (2, 3, 4), (0,), ()])
magnitudes = st.sampled_from([0.0, 1e-45, 1e-40, 1e-30, 1e-13, 1.0, 1e20, 1e30])


@settings(deadline=None, max_examples=150)
@given(
    shape=shapes,
    values=st.lists(magnitudes, min_size=24, max_size=24),
    step=st.one_of(st.none(), st.integers(0, 10**6)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    fallback=st.sampled_from(["identity", "zero"]),
    eps=st.sampled_from([0.0, 1e-15, 1e-8]),
    precision=st.sampled_from(["float32", "float64"]),
    cap=st.sampled_from([{}, {"relative_cap": None, "max_scale": 1e3}]),
)
def test_no_second_moment_makes_inf_or_nan_or_breaks_the_cap(shape, values, step, dtype, fallback, eps, precision, cap):
    v = np.array(values[: int(np.prod(shape))], dtype=np.float32).reshape(shape)
    pre = AdamPreconditioner(one(v, step=step, eps=eps), guards=Guards(fallback=fallback, **cap), precision=precision, logger=QUIET)
    scale = pre.scale[0]
    assert torch.isfinite(scale).all()
    assert (scale >= 0).all()
    limit = max(pre.diagonal.cap * (1 + 1e-6), 1.0)
    assert (scale <= limit).all()
    out = pre.apply("w", torch.ones(shape, dtype=dtype))
    assert out.dtype == dtype
    assert out.shape == torch.Size(shape)
    assert torch.isfinite(out).all()
    flat = v.reshape(-1).astype(np.float64)
    sound = flat > 0
    if sound.any() and not pre.diagonal.is_identity(0):
        want = 1 / (np.sqrt(flat[sound] / (1 - 0.999**step if step else 1.0)) + eps)
        np.testing.assert_allclose(scale.double().numpy()[sound], np.minimum(want, pre.diagonal.cap), rtol=2e-7)


@settings(deadline=None, max_examples=60)
@given(g=st.floats(-(2.0**50), 2.0**50, width=32), m=st.floats(-(2.0**33), 2.0**33, width=32), v=magnitudes, step=st.integers(0, 10**6))
def test_the_next_step_is_always_finite(g, m, v, step):
    pre = AdamPreconditioner(one([v, 1.0], m=[m, 0.0], step=step), form="next_step", logger=QUIET)
    assert torch.isfinite(pre.apply("w", torch.tensor([g, 1.0], dtype=torch.float64))).all()


def test_a_model_with_zero_b_has_cold_a_after_one_step():
    """Of a fresh LoRA, the first step gives A no gradient: its v is exactly zero, and 1/eps must not happen."""
    model = tiny_lora(3)
    optimizer = torch.optim.AdamW([p for _, p in trainables(model)], lr=1e-3)
    train(model, optimizer, 1)
    pre = AdamPreconditioner(named_state(model, optimizer), model=model)
    assert {row.bad for row in pre.diagonal.rows if "lora_A" in row.name} == {"cold"}
    assert {row.bad for row in pre.diagonal.rows if "lora_B" in row.name} == {""}
    assert pre.stats()["max_scale_applied"] < 1e7


def test_summary_is_a_table_that_prints(model, state):
    from rich.console import Console

    console = Console(width=120, record=True)
    console.print(AdamPreconditioner(state, model=model).summary())
    text = console.export_text()
    assert "coverage 100.0%" in text
    assert "lora_A" in text


def test_stats_are_plain_numbers(model, state):
    stats = AdamPreconditioner(state, model=model).get_stats()
    flat = {key: value for key, value in stats.items() if not isinstance(value, dict)}
    assert all(type(value) in (int, float) for value in flat.values())
    assert {"coverage", "coverage_step", "max_scale", "min_denom", "median_scale", "zero", "tiny", "clamped", "identity"} <= set(flat)


def test_a_nameless_optimizer_is_named_by_position():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([p])
    p.grad = torch.ones(2)
    optimizer.step()
    assert AdamPreconditioner(optimizer).names == ("position 0",)
    assert slot([1.0]).shape == (1,)
