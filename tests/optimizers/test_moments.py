"""The denominator from the state is the one the optimizer divided its last step by."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace

import adamw_bf16
import numpy as np
import pytest
import pytorch_optimizer
import schedulefree
import torch
from bitsandbytes import optim as bnb

from ostate.errors import ProbeError
from ostate.optimizers import OPTIMIZERS, step_of
from ostate.optimizers.moments import SECOND_MOMENTS, has_second_moment, outer, second_moment

from .live import Found, Live, read, run

OPT = torch.optim
Numerator = Callable[[Live, dict[str, np.ndarray], int], np.ndarray]


def gradient(live: Live, slots: dict[str, np.ndarray], index: int) -> np.ndarray:
    return live.grads[index].double().numpy()


def first_moment(live: Live, slots: dict[str, np.ndarray], index: int) -> np.ndarray:
    return slots["exp_avg" if "exp_avg" in slots else "m"].astype(np.float64).reshape(live.params[index].shape)


def two_averages(live: Live, slots: dict[str, np.ndarray], index: int) -> np.ndarray:
    group = live.optimizer.param_groups[0]
    return first_moment(live, slots, index) / (1 - group["betas"][0] ** 10) + group["alpha"] * slots["exp_avg_slow"]


def nesterov(live: Live, slots: dict[str, np.ndarray], index: int) -> np.ndarray:
    """NAdam's mix of moment and gradient (torch/optim/nadam.py, _single_tensor_nadam)."""
    group, state = live.optimizer.param_groups[0], live.optimizer.state[live.params[index]]
    beta1, decay, t = group["betas"][0], group["momentum_decay"], 10
    mu, following = (beta1 * (1.0 - 0.5 * 0.96 ** (step * decay)) for step in (t, t + 1))
    product = state["mu_product"].item()
    return gradient(live, slots, index) * (1 - mu) / (1 - product) + first_moment(live, slots, index) * following / (1 - product * following)


CASES: dict[str, tuple[str, Callable[..., torch.optim.Optimizer], Numerator]] = {
    "AdamW": ("adamw", lambda p: OPT.AdamW(p, weight_decay=0.0), first_moment),
    "AdamW with amsgrad": ("adamw", lambda p: OPT.AdamW(p, weight_decay=0.0, amsgrad=True, betas=(0.9, 0.5)), first_moment),
    "Adam, large eps": ("adam", lambda p: OPT.Adam(p, eps=1e-3), first_moment),
    "AdamW, fused, amsgrad": ("adamw", lambda p: OPT.AdamW(p, weight_decay=0.0, amsgrad=True, fused=True, betas=(0.9, 0.5)), first_moment),
    "NAdam": ("nadam", OPT.NAdam, nesterov),
    "RAdam, large eps": ("radam", lambda p: OPT.RAdam(p, eps=1e-3), first_moment),
    "Adamax": ("adamax", OPT.Adamax, first_moment),
    "Adagrad": ("adagrad", lambda p: OPT.Adagrad(p, eps=1e-4), gradient),
    "RMSprop": ("rmsprop", lambda p: OPT.RMSprop(p, eps=1e-4), gradient),
    "RMSprop, centered": ("rmsprop", lambda p: OPT.RMSprop(p, centered=True), gradient),
    "Adafactor of torch": ("adafactor_torch", OPT.Adafactor, gradient),
    "Adafactor of torch, large eps": ("adafactor_torch", lambda p: OPT.Adafactor(p, eps=(1e-3, 1e-3)), gradient),
    "bitsandbytes Adam": ("adam_bnb", lambda p: bnb.Adam(p, eps=1e-3), first_moment),
    "bitsandbytes RMSprop": ("rmsprop_bnb", lambda p: bnb.RMSprop(p, lr=1e-3), gradient),
    "bitsandbytes Adagrad": ("adagrad_bnb", lambda p: bnb.Adagrad(p, lr=1e-3), gradient),
    "bitsandbytes AdEMAMix": ("ademamix_bnb", lambda p: bnb.AdEMAMix(p, lr=1e-3, weight_decay=0.0), two_averages),
}


def held(found: Found, live: Live, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the slots of a parameter, read, and its denominator."""
    slots = {name: slot.read() for name, slot in found.slots[index].items()}
    step = step_of(OPTIMIZERS[found.optimizer], found.scalars[index].get("step"), found.hyper)
    moment = second_moment(found.optimizer, slots, found.hyper, step=step, shape=tuple(live.params[index].shape))
    assert moment.v.dtype == np.float64
    return slots, np.sqrt(moment.v / moment.correction) + moment.eps


def assert_proportional(moved: np.ndarray, predicted: np.ndarray, tolerance: float) -> None:
    """One factor, for the whole tensor, joins them."""
    factor = float((moved * predicted).sum() / (predicted * predicted).sum())
    assert factor != 0
    assert np.abs(moved - factor * predicted).max() < tolerance * np.abs(moved).max()


@pytest.mark.parametrize("name", CASES)
def test_the_last_step_is_the_numerator_over_the_denominator_of_the_state(name, tmp_path):
    row, make, numerator = CASES[name]
    live = run(lambda params: make(zeroed(params)), steps=10)
    found = read(live.optimizer.state_dict(), tmp_path)
    assert found.optimizer == row
    for index in range(len(live.params)):
        slots, denominator = held(found, live, index)
        assert_proportional(live.moved(index).numpy(), numerator(live, slots, index) / denominator, 2e-3)


def zeroed(params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Small weights, so that a step is not lost in their rounding."""
    for param in params:
        param.data.mul_(1e-3)
    return params


@pytest.mark.parametrize("make", [schedulefree.AdamWScheduleFree, schedulefree.RAdamScheduleFree], ids=lambda make: make.__name__)
def test_schedule_free_divides_its_gradient_by_it(make, tmp_path):
    live = run(lambda params: make(zeroed(params), eps=1e-4), steps=9)
    earlier = [live.optimizer.state[param]["z"].clone() for param in live.params]
    for param, grad in zip(live.params, live.grads):
        param.grad = grad.clone()
    live.optimizer.step()
    found = read(live.optimizer.state_dict(), tmp_path)
    assert step_of(OPTIMIZERS[found.optimizer], None, found.hyper) == 10
    for index, param in enumerate(live.params):
        _, denominator = held(found, live, index)
        moved = (live.optimizer.state[param]["z"] - earlier[index]).double().numpy()
        assert_proportional(moved, live.grads[index].double().numpy() / denominator, 2e-3)


def test_transformers_adafactor_divides_by_the_rebuilt_second_moment(tmp_path):
    from transformers.optimization import Adafactor

    live = run(lambda params: Adafactor(zeroed(params), lr=1e-3, relative_step=False, scale_parameter=False), steps=10)
    found = read(live.optimizer.state_dict(), tmp_path)
    assert found.optimizer == "adafactor"
    for index, param in enumerate(live.params):
        slots, denominator = held(found, live, index)
        assert_proportional(live.moved(index).numpy(), live.grads[index].double().numpy() / denominator, 2e-3)
        if param.dim() == 2:
            approximate = Adafactor._approx_sq_grad(
                torch.from_numpy(slots["exp_avg_sq_row"].copy()), torch.from_numpy(slots["exp_avg_sq_col"].copy())
            )
            assert np.allclose(1 / denominator, approximate.numpy(), rtol=1e-5)


OTHERS: dict[str, tuple[str, str, Callable[..., torch.optim.Optimizer], Numerator]] = {
    "optimi.StableAdamW": ("optimi", "stable_adamw", lambda m, p: m.StableAdamW(p, lr=1e-3, weight_decay=0.0), first_moment),
    "optimi.AdamW": ("optimi", "stable_adamw", lambda m, p: m.AdamW(p, lr=1e-3, weight_decay=0.0, eps=1e-4), first_moment),
    "optimi.Ranger": ("optimi", "ranger_optimi", lambda m, p: m.Ranger(p, lr=1e-3, eps=1e-4), first_moment),
    "pytorch_optimizer.AdamP": ("pytorch_optimizer", "adamp", lambda m, p: m.AdamP(p, lr=1e-3, eps=1e-3, delta=0.0), first_moment),
    "pytorch_optimizer.Lamb": ("pytorch_optimizer", "lamb", lambda m, p: m.Lamb(p, lr=1e-3, eps=1e-4), first_moment),
    "pytorch_optimizer.AdaBelief": ("pytorch_optimizer", "adabelief", lambda m, p: m.AdaBelief(p, lr=1e-3, eps=1e-4), first_moment),
    "pytorch_optimizer.DAdaptAdam": ("pytorch_optimizer", "dadapt_adam", lambda m, p: m.DAdaptAdam(p, lr=1.0, eps=1e-4), first_moment),
    "dadaptation.DAdaptAdam": ("dadaptation", "dadapt_adam", lambda m, p: m.DAdaptAdam(p, lr=1.0, eps=1e-4, d0=1e-2), first_moment),
    "pytorch_optimizer.AdEMAMix": ("pytorch_optimizer", "ademamix", lambda m, p: m.AdEMAMix(p, lr=1e-3), two_averages),
}


@pytest.mark.parametrize("name", OTHERS)
def test_optimizers_of_other_libraries_divide_by_it_where_they_are_installed(name, tmp_path):
    package, row, make, numerator = OTHERS[name]
    module = pytest.importorskip(package)
    live = run(lambda params: make(module, zeroed(params)), steps=10)
    found = read(live.optimizer.state_dict(), tmp_path)
    assert found.optimizer == row
    for index in range(len(live.params)):
        slots, denominator = held(found, live, index)
        assert_proportional(live.moved(index).numpy(), numerator(live, slots, index) / denominator, 2e-3)


def test_adam_mini_divides_by_its_block_means_where_it_is_installed(tmp_path):
    module = importlib.import_module(pytest.importorskip("adam_mini").__name__)
    live = run(
        lambda params: module.Adam_mini([("q_proj.weight", params[0]), ("mlp.weight", params[1]), ("norm.weight", params[2]), ("bias", params[3])],
                                        lr=1e-3, dim=64, n_heads=4, verbose=False),
        steps=10, shapes=((64, 64), (32, 64), (16,), (7,)),
    )  # fmt: skip
    found = read(live.optimizer.state_dict(), tmp_path)
    assert found.optimizer == "adam_mini"
    for index in range(4):
        slots, denominator = held(found, live, index)
        assert_proportional(live.moved(index).numpy(), first_moment(live, slots, index) / denominator, 5e-3)


def test_came_divides_its_gradient_by_it_where_it_is_installed(tmp_path):
    module = pytest.importorskip("came_pytorch")
    live = run(lambda params: module.CAME(zeroed(params), lr=1e-3), steps=9)
    earlier = [live.optimizer.state[param]["exp_avg"].double().clone() for param in live.params]
    for param, grad in zip(live.params, live.grads):
        param.grad = grad.clone()
    live.optimizer.step()
    found = read(live.optimizer.state_dict(), tmp_path)
    assert found.optimizer == "came"
    for index in range(len(live.params)):
        slots, denominator = held(found, live, index)
        added = slots["exp_avg"] - 0.9 * earlier[index].numpy()
        assert_proportional(added, live.grads[index].double().numpy() / denominator, 2e-3)


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_adopt_divides_the_next_gradient_by_it_without_any_correction(eps, tmp_path):
    """The correction of Adam would make the scale of a young state 18 times too small."""
    live = run(lambda params: pytorch_optimizer.ADOPT(zeroed(params), eps=eps, clip_lambda=None), steps=9)
    found = read(live.optimizer.state_dict(), tmp_path)
    denominators = [held(replace(found, optimizer="adopt"), live, index)[1] for index in range(len(live.params))]
    before = [live.optimizer.state[param]["exp_avg"].double().clone() for param in live.params]
    for param, grad in zip(live.params, live.grads):
        param.grad = grad.clone()
    live.optimizer.step()
    for index, param in enumerate(live.params):
        added = (live.optimizer.state[param]["exp_avg"].double() - 0.9 * before[index]) / 0.1
        assert np.allclose(added.numpy(), live.grads[index].double().numpy() / denominators[index], rtol=1e-3, atol=1e-4)
    assert found.optimizer == ("adopt" if eps == 1e-6 else "adam_like")


def test_adamw_bf16_adds_eps_before_its_correction(tmp_path):
    params = [torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))]
    optimizer = adamw_bf16.AdamWBF16(params, lr=1e-3, eps=1e-3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        shifted = params[0].detach().double() + (optimizer.state[params[0]]["shift"].double() if optimizer.state else 0.0)
        params[0].grad = (torch.randn(64, 64, generator=generator) * 1e-3).bfloat16()
        optimizer.step()
    found = read(optimizer.state_dict(), tmp_path)
    assert found.optimizer == "adamw_bf16"
    slots, denominator = held(found, Live(optimizer, params, [], []), 0)
    moved = (params[0].detach().double() + optimizer.state[params[0]]["shift"].double() - shifted).numpy()
    assert_proportional(moved, slots["exp_avg"] / denominator, 0.05)


def test_a_sparse_adam_corrects_after_adding_eps(tmp_path):
    table = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = OPT.SparseAdam([table], eps=1e-3)
    for _ in range(5):
        before = table.detach().clone()
        table.grad = (torch.rand(6, 4) * 1e-3).to_sparse()
        optimizer.step()
    found = read(optimizer.state_dict(), tmp_path)
    live = Live(optimizer, [table], [before], [])
    slots, denominator = held(found, live, 0)
    assert_proportional(live.moved(0).numpy(), slots["exp_avg"] / denominator, 2e-3)


def test_the_old_transformers_adamw_corrects_only_where_asked():
    v, hyper = {"exp_avg_sq": np.full((2,), 4.0, np.float32)}, {"betas": (0.9, 0.99), "eps": 1e-6}
    plain = second_moment("adamw_hf", v, {**hyper, "correct_bias": False}, step=3, shape=(2,))
    assert (plain.correction, plain.eps) == (1.0, 1e-6)
    corrected = second_moment("adamw_hf", v, {**hyper, "correct_bias": True}, step=3, shape=(2,))
    assert corrected.correction == pytest.approx(1 - 0.99**3)
    assert corrected.eps == pytest.approx(1e-6 / math.sqrt(1 - 0.99**3))


def test_the_largest_v_of_amsgrad_is_taken_not_the_last():
    slots = {"exp_avg_sq": np.ones(3, np.float32), "max_exp_avg_sq": np.full(3, 9.0, np.float32)}
    moment = second_moment("adamw", slots, {"betas": (0.9, 0.999), "eps": 1e-8}, step=1, shape=(3,))
    assert np.allclose(np.sqrt(moment.v / moment.correction), 3 / math.sqrt(0.001))


def test_a_factored_second_moment_of_nothing_is_zero_not_nan():
    assert np.array_equal(outer(np.zeros(3), np.zeros(2)), np.zeros((3, 2)))


def test_a_factored_second_moment_keeps_its_row_and_column_means():
    rng = np.random.default_rng(0)
    v = rng.random((4, 5, 6))
    rebuilt = outer(v.mean(-1), v.mean(-2))
    assert rebuilt.shape == (4, 5, 6)
    assert np.allclose(rebuilt.mean(-1), v.mean(-1))
    assert np.allclose(rebuilt.mean(-2), v.mean(-2))


@pytest.mark.parametrize("row", [name for name, spec in OPTIMIZERS.items() if not has_second_moment(spec)])
def test_an_optimizer_without_a_usable_second_moment_says_why(row):
    with pytest.raises(ProbeError) as refusal:
        second_moment(row, {"exp_avg_sq": np.ones(3, np.float32)}, {"betas": (0.9, 0.999), "eps": 1e-8}, step=5, shape=(3,))
    assert SECOND_MOMENTS[OPTIMIZERS[row].moment].why_not in refusal.value.what


@pytest.mark.parametrize(
    ("hyper", "step", "message"),
    [
        ({"eps": 1e-8}, 5, "does not say beta2"),
        ({"betas": (0.9, 0.999)}, 5, "does not say eps"),
        ({"betas": (0.9, 0.999), "eps": 1e-8}, None, "how many steps"),
        ({"betas": (0.9, 0.999), "eps": 1e-8}, 0, "no update was taken yet"),
    ],
)
def test_what_the_formula_lacks_is_named(hyper, step, message):
    with pytest.raises(ProbeError, match=message):
        second_moment("adamw", {"exp_avg_sq": np.ones(3, np.float32)}, hyper, step=step, shape=(3,))


@pytest.mark.parametrize("row", ["radam", "radam_schedulefree"])
def test_radam_is_refused_while_it_does_not_divide(row):
    slots, hyper = {"exp_avg_sq": np.ones(3, np.float32)}, {"betas": (0.9, 0.999), "eps": 1e-8}
    with pytest.raises(ProbeError, match="at step 4 RAdam"):
        second_moment(row, slots, hyper, step=4, shape=(3,))
    assert second_moment(row, slots, hyper, step=6, shape=(3,)).v.shape == (3,)


def test_the_step_is_taken_from_where_the_optimizer_keeps_it():
    assert step_of(OPTIMIZERS["adamw"], 7.0, {"step": 3}) == 7.0
    assert step_of(OPTIMIZERS["adamw_schedulefree"], None, {"k": 12}) == 12.0
    assert step_of(OPTIMIZERS["stable_adamw"], None, {"step": 12}) == 12.0
    assert step_of(OPTIMIZERS["adam_like"], None, {"step": 5}) == 5.0
    assert step_of(OPTIMIZERS["adam_like"], 4.0, {"step": 5}) == 4.0
    assert step_of(OPTIMIZERS["fused_adam"], None, {"step": 0}) is None
    assert step_of(OPTIMIZERS["sgd"], None, {}) is None
