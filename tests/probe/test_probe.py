"""The probe itself: gradients, delta-H1 and its verdict, and the experiment that all this is for."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from benchmarks.seed_loop import seed_apply
from ostate.errors import ProbeError
from ostate.probe import AdamPreconditioner, GradientMean, Guards, delta_h1, eval_mode, importance_weights, lora_adamw
from tests.records import ArraySlot, replace

from .training import batch, edited, tiny_lora, trainables


def mean_gradient(model, seeds, entropy=False):
    total = GradientMean(model)
    with eval_mode(model):
        for seed in seeds:
            out = model(**batch(seed))
            logp = out.logits.log_softmax(-1)
            loss = -(logp.exp() * logp).sum(-1).mean() if entropy else -out.loss
            loss.backward()
            total.add()
    return total.mean()


@pytest.fixture(scope="module")
def bars(run):
    model = copy.deepcopy(run[0])
    return mean_gradient(model, (1, 2), entropy=True), mean_gradient(model, (3, 4))


def by_position(model, state):
    """The misuse: AdamW over all parameters, the LoRA state put at positions 0, 1, 2 … of that list."""
    for p in model.parameters():
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    parameters = list(model.parameters())
    for at, entry in enumerate(state.parameters.values()):
        optimizer.state[parameters[at]] = {"step": torch.tensor(entry.step), "exp_avg_sq": torch.from_numpy(entry.slots["exp_avg_sq"].values.copy())}
    return optimizer


def test_by_position_the_product_explodes_and_by_name_it_stays_at_the_states_own_scale(run, bars):
    xbar, ybar = bars
    model = copy.deepcopy(run[0])
    names = dict(trainables(model))
    right = delta_h1(xbar, ybar, 1e-5, AdamPreconditioner(run[2], model=model))
    misused = by_position(copy.deepcopy(run[0]), run[2])
    live = dict(zip(names, (p for n, p in run[0].named_parameters() if n in names)))
    wrong = 0.0
    members = {n: p for g in misused.param_groups for p, n in zip(g["params"], [n for n, _ in run[0].named_parameters()])}
    for name in live:
        v = misused.state.get(members[name], {}).get("exp_avg_sq")
        root = torch.zeros(()) if v is None or v.shape != ybar[name].shape else v.double().sqrt()
        wrong += float((xbar[name] * ybar[name] / (root + 1e-8)).sum())
    assert abs(wrong) > 1e4 * abs(right.bars_dot)
    assert right.verdict == "healthy"
    assert 1 / 30 < right.mass_ratio / right.plausible_ratio < 30
    assert right.findings == ()
    assert right.value == pytest.approx(1e-5 * right.bars_dot)


def test_the_verdict_catches_the_explosion_when_no_guard_stands_in_its_way(run, bars):
    model = copy.deepcopy(run[0])
    state = run[2]
    for name in list(state.parameters)[:20]:
        v = state.tensor(name, "exp_avg_sq")
        state = edited(state, name, slots={"exp_avg_sq": ArraySlot(v * 1e-20)})
    result = delta_h1(*bars, 1e-5, AdamPreconditioner(state, model=model, guards=Guards(relative_cap=None)))
    fixed = delta_h1(*bars, 1e-5, AdamPreconditioner(state, model=model, guards=replace(Guards(relative_cap=None), healthy_ratio=1e3)))
    assert result.mass_ratio > 1e5
    assert result.verdict == "suspect"
    assert fixed.verdict == "suspect"
    assert fixed.findings[0].rule == "ratio-implausible"


@pytest.mark.parametrize("guards", [Guards(), Guards(fallback="zero"), Guards.seed()], ids=["default", "zero", "seed"])
@pytest.mark.parametrize("what", ["v zeroed", "v missing", "steps missing", "swapped", "NaN", "inf", "negative", "half missing"])
def test_guards_keep_it_finite_in_every_corruption(run, bars, what, guards):
    state, names = run[2], list(run[2].parameters)
    model = copy.deepcopy(run[0])
    for at, name in enumerate(names):
        v = state.tensor(name, "exp_avg_sq").copy()
        if what == "v zeroed":
            state = edited(state, name, slots={"exp_avg_sq": ArraySlot(v * 0)})
        elif what == "v missing" or (what == "half missing" and at % 2):
            state = edited(state, name, slots={"exp_avg_sq": None})
        elif what == "steps missing":
            state = edited(state, name, step=None)
        elif what in ("NaN", "inf", "negative") and at == 5:
            v.flat[0] = {"NaN": math.nan, "inf": math.inf, "negative": -1.0}[what]
            state = edited(state, name, slots={"exp_avg_sq": ArraySlot(v)})
    if what == "swapped":
        first, second = [n for n in names if n.endswith("q_proj.lora_A.default.weight")]
        a, b = state.parameters[first], state.parameters[second]
        state = replace(state, parameters={**state.parameters, first: replace(b, name=first), second: replace(a, name=second)})
    pre = AdamPreconditioner(state, model=model, guards=guards)
    result = delta_h1(*bars, 1e-5, pre)
    clean = delta_h1(*bars, 1e-5, AdamPreconditioner(run[2], model=model, guards=guards))
    assert math.isfinite(result.value)
    assert abs(result.bars_dot) < 100 * abs(clean.bars_dot)
    if what in ("v missing", "half missing"):
        assert result.verdict == "identity"
        assert result.bars_dot == pytest.approx(result.bars_dot_identity, rel=1e-12)


def test_shares_by_bucket_add_up_and_a_vanishing_bucket_is_said(run, bars):
    model = copy.deepcopy(run[0])
    state = run[2]
    for name in state.parameters:
        if "mlp" in name:
            state = edited(state, name, slots={"exp_avg_sq": ArraySlot(state.tensor(name, "exp_avg_sq") * 0)})
    result = delta_h1(*bars, 1e-5, AdamPreconditioner(state, model=model))
    assert sum(result.shares.values()) == pytest.approx(1.0)
    assert sum(result.raw_shares.values()) == pytest.approx(1.0)
    assert result.raw_shares["identity"] > 0.1
    assert "identity-vanishes" in {f.rule for f in result.findings}
    capped = delta_h1(*bars, 1e-5, AdamPreconditioner(run[2], model=model, guards=Guards(relative_cap=None, max_scale=10.0)))
    assert capped.shares["clamped"] > 0.99
    assert capped.cosine == pytest.approx(1.0)


def test_the_numbers_are_those_of_the_plain_sums(run, bars):
    xbar, ybar = bars
    pre = AdamPreconditioner(run[2], model=run[0], precision="float64")
    result = delta_h1(xbar, ybar, 2.0, pre)
    flat = lambda g: torch.cat([v.reshape(-1) for v in g.values()])  # noqa: E731
    x, y, p = flat(xbar), flat(ybar), flat({name: pre.apply(name, g) for name, g in ybar.items()})
    assert result.bars_dot == pytest.approx(float(x @ p), rel=1e-12)
    assert result.bars_dot == pytest.approx(pre.dot(xbar, ybar), rel=1e-12)
    assert result.bars_dot_identity == pytest.approx(float(x @ y), rel=1e-12)
    assert result.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(y, p, dim=0)), rel=1e-9)


def test_next_step_predicts_the_change_that_a_real_small_step_makes(run, bars):
    """First order: entropy after a real AdamW step of size eta, minus before, is delta-H1."""
    xbar, ybar = bars
    model = copy.deepcopy(run[0])
    eta = 2e-4
    optimizer = lora_adamw(model, run[2], lr=eta)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    pre = AdamPreconditioner(optimizer, form="next_step")
    descent = {name: -g for name, g in ybar.items()}
    result = delta_h1(xbar, descent, eta, pre)

    def entropy():
        with eval_mode(model), torch.no_grad():
            logps = [model(**batch(seed)).logits.double().log_softmax(-1) for seed in (1, 2)]
        return float(sum(-(logp.exp() * logp).sum(-1).mean() for logp in logps) / 2)

    updates = pre.apply_all(descent)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, p in trainables(model):
                p.copy_(run[0].get_parameter(name) - sign * eta * updates[name])
        sides.append(entropy())
    assert (sides[0] - sides[1]) / 2 == pytest.approx(-result.value, rel=2e-2)


def test_eta_zero_and_broken_gradients_are_refused(run, bars):
    xbar, ybar = bars
    pre = AdamPreconditioner(run[2], model=run[0])
    with pytest.raises(ProbeError, match=r"eta is 0\.0"):
        delta_h1(xbar, ybar, 0.0, pre)
    name = next(iter(ybar))
    broken = {**ybar, name: ybar[name] * math.nan}
    with pytest.raises(ProbeError, match="not finite in 1 parameters") as error:
        delta_h1(xbar, broken, 1e-5, pre)
    assert name in error.value.where


def test_a_product_without_terms_is_called_empty(run, bars):
    nothing = {name: torch.zeros_like(g) for name, g in bars[0].items()}
    assert delta_h1(nothing, bars[1], 1e-5, AdamPreconditioner(run[2], model=run[0])).verdict == "empty"


def test_the_seed_loop_and_its_guards_agree_on_delta_h1(run, bars):
    xbar, ybar = bars
    model = copy.deepcopy(run[0])
    optimizer = lora_adamw(model, run[2])
    want = sum(float((xbar[name] * seed_apply(optimizer, p, ybar[name])).sum()) for name, p in trainables(model))
    got = delta_h1(xbar, ybar, 1.0, AdamPreconditioner(optimizer, guards=Guards.seed()))
    assert got.value == pytest.approx(want, rel=1e-6)


def test_eval_mode_restores_each_module_also_after_an_exception():
    model = tiny_lora(dropout=0.5)
    model.train()
    frozen_norm = model.base_model.model.model.norm
    frozen_norm.eval()
    before = {name: module.training for name, module in model.named_modules()}

    def interrupted():
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        interrupted()
    assert {name: module.training for name, module in model.named_modules()} == before
    with eval_mode(model):
        a, b = (model(**batch(0)).loss for _ in range(2))
    assert torch.equal(a, b)


def test_a_module_that_refuses_eval_is_named():
    class Stubborn(torch.nn.Dropout):
        def train(self, mode=True):
            self.training = True
            return self

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Stubborn())
    with pytest.raises(ProbeError, match="1 modules stay in training mode") as error, eval_mode(model):
        pass
    assert error.value.where == "1"


def test_the_mean_gradient_is_weighted_ordered_and_exact(run):
    model = copy.deepcopy(run[0])
    total = GradientMean(model)
    want = {}
    for seed, weight in [(1, 1.0), (2, 3.0)]:
        model.zero_grad()
        model(**batch(seed)).loss.backward()
        for name, p in trainables(model):
            want[name] = want.get(name, 0) + weight * p.grad.double() / 4
        total.add(weight)
    mean = total.mean()
    assert list(mean) == [name for name, _ in trainables(model)]
    for name in want:
        torch.testing.assert_close(mean[name], want[name], rtol=1e-13, atol=0)
    assert all(p.grad is None for _, p in trainables(model))


def test_the_mean_gradient_refuses_what_would_spoil_it(run):
    model = copy.deepcopy(run[0])
    total = GradientMean(model)
    with pytest.raises(ProbeError, match="call backward"):
        total.add()
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    frozen.grad = torch.ones_like(frozen)
    with pytest.raises(ProbeError, match="1 frozen parameters have gradients"):
        total.add()
    frozen.grad = None
    name, p = trainables(model)[0]
    p.grad = torch.full_like(p, math.nan)
    total.add()
    with pytest.raises(ProbeError, match="mean gradient of 1 parameters is not finite") as error:
        total.mean()
    assert name in error.value.where
    assert len(total.unused) == 27
    with pytest.raises(ProbeError, match="of a kind that this probe does not cover"):
        GradientMean(model, only=lambda name: "lora_A" in name)


class TestImportanceWeights:
    """Section E: truncated sampling is refused unless the kept mass is known."""

    def test_weights_are_the_normalised_ratios_with_their_effective_size(self):
        new, old = torch.tensor([-10.0, -20.0, -30.0]), torch.tensor([-10.5, -20.0, -29.0])
        found = importance_weights(new, old, top_p=1.0, top_k=None, temperature=1.0)
        want = torch.softmax(torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64), 0)
        torch.testing.assert_close(found.weights, want)
        assert found.ess == pytest.approx(1 / float((want**2).sum()))
        assert found.log_ratio_range == (-1.0, 0.5)

    def test_truncation_without_the_kept_mass_is_refused_with_the_reason(self):
        for sampler in ({"top_p": 0.9, "top_k": None}, {"top_p": 1.0, "top_k": 50}):
            with pytest.raises(ProbeError, match="does not cancel under self-normalisation"):
                importance_weights(torch.zeros(2), torch.zeros(2), temperature=1.0, **sampler)

    def test_the_kept_mass_gives_back_the_estimate_of_a_real_truncated_sampler(self):
        """Two tokens each from four, top_p .9: exact expectation of f under p_new restricted to what is kept, over all sequences."""
        p_old = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
        second = torch.tensor([[0.7, 0.25, 0.04, 0.01], [0.4, 0.3, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01], [0.25] * 4], dtype=torch.float64)
        p_new = torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64)
        kept = [[0, 1, 2], {0: [0, 1], 1: [0, 1, 2], 2: [0]}]
        rows = []
        for a in kept[0]:
            for b in kept[1][a]:
                masses = (0.95, float(second[a][kept[1][a]].sum()))
                q = p_old[a] / masses[0] * second[a][b] / masses[1]
                rows.append((float(q), math.log(p_old[a] * second[a][b]), math.log(p_new[a] * second[a][b]), masses, float(a + 10 * b)))
        # Each sequence stands in the batch as often as the sampler draws it: 20 000 draws, by largest remainder.
        counts = [round(20_000 * row[0]) for row in rows]
        spread = lambda index: torch.tensor([row[index] for row, count in zip(rows, counts) for _ in range(count)], dtype=torch.float64)  # noqa: E731
        f = spread(4)
        truth = sum(math.exp(row[2]) * row[4] for row in rows) / sum(math.exp(row[2]) for row in rows)
        good = importance_weights(spread(2), spread(1), top_p=0.9, top_k=None, temperature=1.0, kept_mass=spread(3))
        naive = importance_weights(spread(2), spread(1), top_p=1.0, top_k=None, temperature=1.0)
        assert float((good.weights * f).sum()) == pytest.approx(truth, rel=1e-3)
        assert abs(float((naive.weights * f).sum()) - truth) > 0.01 * abs(truth)

    def test_another_temperature_is_refused_unless_logp_old_has_it(self):
        with pytest.raises(ProbeError, match=r"sampled at temperature 0\.7"):
            importance_weights(torch.zeros(2), torch.zeros(2), top_p=1.0, top_k=0, temperature=0.7)
        importance_weights(torch.zeros(2), torch.zeros(2), top_p=1.0, top_k=0, temperature=0.7, logp_old_temperature=0.7)

    def test_clipping_and_few_effective_samples_are_said(self):
        new = torch.zeros(100)
        new[0] = 50.0
        found = importance_weights(new, torch.zeros(100), top_p=1.0, top_k=None, temperature=1.0, clip=2.0)
        assert found.clipped == 1
        assert found.ess_unclipped == pytest.approx(1.0)
        assert found.ess > 50
        free = importance_weights(new, torch.zeros(100), top_p=1.0, top_k=None, temperature=1.0)
        assert [f.rule for f in free.findings] == ["few-effective-samples"]

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"logp_new": torch.zeros(2, 3)}, "one log-probability per sequence"),
            ({"logp_new": torch.tensor([0.0, -math.inf])}, "a log ratio is not finite"),
            ({"top_p": 0.9, "kept_mass": torch.tensor([0.5, 1.5])}, r"kept_mass must lie in \(0, 1\]"),
            ({"top_p": 0.9, "kept_mass": torch.ones(3)}, "kept_mass has shape"),
            ({"top_p": 1.2}, "no sampler has"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, kwargs, message):
        call = {"logp_new": torch.zeros(2), "logp_old": torch.zeros(2), "top_p": 1.0, "top_k": None, "temperature": 1.0} | kwargs
        with pytest.raises(ProbeError, match=message):
            importance_weights(call.pop("logp_new"), call.pop("logp_old"), **call)
