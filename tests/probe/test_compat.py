"""The calls of the program that this project began with: an imitation of its call sites, held to the library's numbers."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from ostate.errors import ProbeError
from ostate.probe import AdamPreconditioner, Guards, delta_h1, lora_adamw
from ostate.probe.compat import AdamPreconditioner as Compat

from .test_preconditioner import gradients
from .training import trainables

CONFIG = {"importance": {"checkpoint_step": 20, "identity_preconditioner_if_coverage_below": 0.5, "is_mode": "snis"}, "model": {"path": "x"}}


class Components:
    """Call sites in the other program's way: a preconditioner of its own, a loop over the optimizer's parameters, gradient before parameter."""

    def __init__(self, optimizer, config, logger):
        self.preconditioner = Compat(optimizer=optimizer, config=config, logger=logger)
        self.optimizer = optimizer

    def preconditioned(self, gradient_of):
        out = {}
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                g32 = gradient_of[p].to(torch.float32)
                out[p] = self.preconditioner.apply_preconditioner(g32, p)
        return out

    def delta_h1(self, xbar, ybar, eta):
        done = self.preconditioned(ybar)
        bars_dot = sum(float((xbar[p].double() * done[p].double()).sum()) for p in done)
        return eta * bars_dot


@pytest.fixture
def probed(run):
    model = copy.deepcopy(run[0])
    optimizer = lora_adamw(model, run[2])
    by_name = dict(trainables(model))
    x, y = ({by_name[name]: g for name, g in gradients(model, seed).items()} for seed in (1, 2))
    return model, optimizer, x, y


def test_the_other_programs_loop_gives_the_librarys_delta_h1(probed):
    _, optimizer, x, y = probed
    components = Components(optimizer, CONFIG, logging.getLogger("components"))
    pre = AdamPreconditioner(optimizer)
    want = delta_h1(x, y, 1e-5, pre)
    assert components.delta_h1(x, y, 1e-5) == pytest.approx(want.value, rel=1e-6)
    done = components.preconditioned(y)
    assert all(torch.equal(done[p], pre.apply(p, y[p])) for p in y)


def test_the_loop_that_looks_into_its_optimizer_and_writes_back_into_grad(probed):
    """delta_entropy_approx.py, as it stands: an attribute that it asks for and does not find would leave raw gradients behind, without an error."""
    _, optimizer, _, y = probed
    adam_preconditioner = Compat(optimizer=optimizer, config={"true_delta_h": {"enabled": True}}, logger=logging.getLogger("approx"))
    want = AdamPreconditioner(optimizer)
    for p, given in y.items():
        p.grad = given.clone()
        state = adam_preconditioner.optimizer.state.get(p, {})
        assert state.get("exp_avg_sq").max().item() > 0
        g32 = p.grad.to(torch.float32)
        gtilde = adam_preconditioner.apply_preconditioner(g32, p)
        p.grad.copy_(gtilde)
        assert torch.equal(p.grad, want.apply(p, given))
    assert (adam_preconditioner.eps, adam_preconditioner.beta2) == (optimizer.param_groups[0]["eps"], optimizer.param_groups[0]["betas"][1])


def test_a_list_of_pairs_keeps_its_order_and_its_gaps(probed):
    _, optimizer, _, y = probed
    pre = Compat(optimizer, CONFIG, logging.getLogger("components"))
    pairs = [(p, None if at % 3 == 0 else g) for at, (p, g) in enumerate(y.items())]
    done = pre.apply_preconditioner_to_params(pairs)
    assert len(done) == len(pairs)
    for (p, g), out in zip(pairs, done):
        assert out is None if g is None else torch.equal(out, pre.apply(p, g))
    assert pre.apply_preconditioner_to_params([]) == []
    assert pre.apply_preconditioner_to_params(pairs[:1]) == [None]


def test_its_statistics_are_those_of_the_moments_and_of_the_guarded_scale(probed):
    _, optimizer, _, _ = probed
    pre = Compat(optimizer, config=CONFIG, logger=None)
    found = pre.get_preconditioner_stats()
    v = torch.cat([state["exp_avg_sq"].reshape(-1) for state in optimizer.state.values()]).double()
    assert (found["num_params"], found["v_min"], found["v_max"]) == (28, float(v.min()), float(v.max()))
    assert (found["v_mean"], found["v_std"]) == pytest.approx((float(v.mean()), float(v.std())), rel=1e-12)
    assert found["preconditioner_max"] == pytest.approx(found["max_scale_applied"], rel=1e-6)
    assert found["preconditioner_min"] < found["median_scale"] < found["preconditioner_max"]
    assert (found["eps"], found["beta2"]) == (optimizer.param_groups[0]["eps"], optimizer.param_groups[0]["betas"][1])
    assert found["coverage"] == 1.0


def test_update_and_validate_see_what_became_of_the_state(probed, caplog):
    _, optimizer, _, y = probed
    pre = Compat(optimizer, CONFIG, logging.getLogger("components"))
    assert pre.validate_preconditioner() is True
    parameter = next(iter(y))
    before = pre.apply_preconditioner(y[parameter], parameter)
    optimizer.state[parameter]["exp_avg_sq"].mul_(4.0)
    pre.update_second_moments()
    torch.testing.assert_close(pre.apply_preconditioner(y[parameter], parameter) * 2, before, rtol=1e-2, atol=0)
    optimizer.state[parameter]["exp_avg_sq"][0, 0] = float("nan")
    pre.update_second_moments()
    assert pre.validate_preconditioner() is False
    assert "has a second moment that is not finite" in caplog.text


def test_the_configuration_reaches_the_guards_and_what_is_none_is_refused(run):
    model = copy.deepcopy(run[0])
    few = copy.deepcopy(run[2])
    optimizer = lora_adamw(model, few)
    for state in list(optimizer.state.values())[:12]:
        del state["exp_avg_sq"]
        state["step"] = None
    assert Compat(optimizer, {}, None).validate_preconditioner() is False
    assert Compat(optimizer, {}).diagonal.all_identity
    lenient = Compat(optimizer, CONFIG)
    assert not lenient.diagonal.all_identity
    assert set(lenient.diagonal.step) == {20.0}
    assert Compat(optimizer, CONFIG, guards=Guards.seed()).guards.max_scale == 1e3
    for wrong, message in (
        ([], "config must be a mapping"),
        ({"importance": {"checkpoint_step": "many"}}, "must be a number"),
        ({"importance": 3}, "no mapping"),
    ):
        with pytest.raises(ProbeError, match=message):
            Compat(optimizer, wrong)
    with pytest.raises(ProbeError, match=r"logger must be a logging\.Logger"):
        Compat(optimizer, CONFIG, {})
