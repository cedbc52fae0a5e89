"""The tests on the numbers, one by one, and whether their odds mean what they say."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from ostate.evidence import statistics
from ostate.evidence.likelihood import TRUST, DensityPair, Fit, fit, log_ratio
from ostate.evidence.permutation_odds import odds_against
from ostate.evidence.profiles import enough_rows, likeness


def test_balance_is_exact_for_gradients_of_a_product(rng):
    """For any loss of W = B A: B^T dL/dB = B^T G A^T = dL/dA A^T."""
    A, B, G = rng.standard_normal((4, 30)), rng.standard_normal((20, 4)), rng.standard_normal((20, 30))
    left, right = B.T @ (G @ A.T), (B.T @ G) @ A.T
    value = statistics.balance(left.reshape(1, -1), right.reshape(1, -1))
    assert value[0] == pytest.approx(-np.log(statistics.FLOOR), rel=0.1)


def test_what_lies_along_the_drift_does_not_count(rng):
    drift = rng.standard_normal((1, 4, 64))
    left = rng.standard_normal((1, 64))
    right = left + 5 * drift.sum(1)
    assert statistics.balance(left, right, drift)[0] > 8
    assert statistics.balance(left, right, drift[:, :2], drift[:, 2:])[0] > 8
    assert statistics.balance(left, right)[0] < 1


def test_unrelated_products_leave_a_residual_of_about_seven_tenths(rng):
    left, right = rng.standard_normal((2, 500, 64))
    assert np.exp(-statistics.balance(left, right)).mean() == pytest.approx(2**-0.5, abs=0.02)


@pytest.mark.parametrize("shared", [False, True], ids=["rows unrelated", "rows shared"])
def test_the_null_of_displacement_holds_even_when_modules_share_their_rows(rng, shared):
    """Modules that write to one residual stream have output gradients in common; only the random A tells them apart."""
    rows = rng.standard_normal(41)
    make = [np.sign(np.outer(rows if shared else rng.standard_normal(41), rng.standard_normal(4))).T for _ in range(80)]
    products = np.einsum("kan,pbn->kpab", make[:40], make[40:])
    squares = (products**2).sum(axis=(2, 3))
    cosine, spread = statistics.displacement(np.einsum("kprr->kp", products), squares, np.full(40, 164**0.5), np.full(40, 164**0.5), rank=4)
    assert (cosine / spread).std() == pytest.approx(1, abs=0.1)
    assert (cosine.std() > 0.3) == shared


def test_blocks_of_experts_follow_peft_s_layout(rng):
    """lora_A has expert e in rows e * r + k, lora_B in columns k * experts + e (ParamWrapper.get_delta_weight)."""
    experts, r = 3, 2
    A, B, G = rng.standard_normal((experts, r, 7)), rng.standard_normal((5, r, experts)), rng.standard_normal((experts, 5, 7))
    dA = np.einsum("ore,eoi->eri", B, G).reshape(experts * r, 7)
    dB = np.einsum("eoi,eri->ore", G, A).reshape(5, r * experts)
    left = statistics.zero_blocks(B.reshape(5, -1), experts).transpose(0, 2, 1) @ statistics.zero_blocks(dB.reshape(5, -1), experts)
    right = statistics.other_blocks(dA.reshape(-1, 7).T, experts).transpose(0, 2, 1) @ statistics.other_blocks(A.reshape(-1, 7).T, experts)
    assert np.allclose(left, right)


def test_profiles_of_unrelated_rows_are_normal(rng):
    values = likeness(np.exp(rng.standard_normal((60, 200))), np.exp(rng.standard_normal((60, 200))))
    assert values.std() == pytest.approx(1, abs=0.1)


def test_one_number_never_outweighs_its_trust():
    density = DensityPair(Fit(0, 1), Fit(8, 1))
    assert np.abs(log_ratio(np.array([-1e6, 0, 8, 1e6]), density)).max() <= -np.log(TRUST) + 1e-9


def test_laws_that_do_not_differ_say_nothing():
    assert not log_ratio(np.linspace(-9, 9, 7), DensityPair(Fit(0, 1), Fit(0.5, 1))).any()


def test_a_fitted_tail_is_not_lighter_than_the_normal_s(rng):
    found = fit(rng.standard_normal(20000), floor=0.1)
    beyond = np.array([3.0, 4.0, 5.0])
    ratio = log_ratio(beyond, DensityPair(found, Fit(9.0, 1.0)))
    normal = -0.5 * (beyond - 9) ** 2 + 0.5 * beyond**2
    assert (ratio <= np.maximum(normal, 0) + 12).all()
    assert 1.5 < found.rate < 3


def test_a_null_that_is_wide_below_keeps_what_its_upper_tail_tells(rng):
    """Balance of wide factors: two kinds of unrelated pairs, one far down, and no value near a normal's 95 % quantile."""
    values = np.concatenate([rng.normal(0.35, 0.02, 4000), rng.normal(0.0, 0.02, 3600)])
    found = fit(values, floor=0.1)
    assert values.max() < found.loc + 1.64 * found.scale
    assert found.start == pytest.approx(np.quantile(values, 0.95))
    assert found.rate == pytest.approx(2.5 / found.scale)
    assert (found.beyond(values) >= 0.05 * (values <= found.start)).all()
    beyond = np.linspace(0.38, 0.45, 8)
    assert (found.beyond(beyond) >= (values[None] >= beyond[:, None]).mean(axis=1)).all()


def test_the_odds_are_never_below_the_share_of_permutations_that_move_a_row(rng):
    for _ in range(200):
        n = int(rng.integers(2, 6))
        scores = rng.standard_normal((n, n)) * 3 + np.eye(n) * rng.uniform(2, 12)
        weights = {order: float(np.exp(sum(scores[i, order[i]] for i in range(n)))) for order in permutations(range(n))}
        exact = np.array([sum(w for order, w in weights.items() if order[i] != i) for i in range(n)]) / sum(weights.values())
        if exact.max() < 0.05:
            assert (odds_against(scores) >= exact * (1 - 1e-6) - 1e-12).all()


def test_two_rows_alike_are_undecided_and_do_not_drag_the_others(rng):
    scores = np.full((6, 6), -9.0)
    np.fill_diagonal(scores, 9.0)
    scores[:2, :2] = 9.0
    odds = odds_against(scores)
    assert np.isinf(odds[:2]).all()
    assert (odds[2:] < 1e-10).all()


@pytest.mark.parametrize(("distance", "claimed"), [(3.5, 1e-2), (5.0, 1e-3), (6.5, 1e-4)])
def test_names_called_wrong_once_in_a_hundred_to_ten_thousand_are_wrong_no_more_often(rng, distance, claimed):
    """Worlds where the truth is known: 12 modules, one statistic, its two densities fitted to the best order as the program does."""
    from scipy.optimize import linear_sum_assignment

    wrong, believed = 0, 0
    for _ in range(400):
        table = rng.standard_normal((12, 12)) + distance * np.eye(12)
        rows, columns = linear_sum_assignment(-table)
        on = np.zeros_like(table, bool)
        on[rows, columns] = True
        density = DensityPair(fit(table[~on], floor=0.1), fit(table[on], floor=0.4, trim=True))
        odds = odds_against(log_ratio(table[:, columns], density))
        sure = odds <= claimed
        believed += int(sure.sum())
        wrong += int((columns != np.arange(12))[sure].sum())
    assert believed > 100
    assert wrong <= 3 * claimed * believed + 1


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_likeness_of_profiles_is_fishers_z_of_their_logarithms(rng, count):
    """Row by row and pair by pair; from three profiles on what they have in common is taken out first."""
    vectors, factors = np.exp(rng.standard_normal((count, 40))), np.exp(rng.standard_normal((count, 40)))

    def logs(values):
        found = np.log(values + 1e-3 * np.median(values, axis=1)[:, None])
        found = found - found.mean(axis=1)[:, None]
        return found - found.mean(axis=0) if count > 2 else found

    one, two = logs(vectors), logs(factors)
    written = [[np.arctanh((a @ b) / np.sqrt((a @ a) * (b @ b))) * np.sqrt(37) for b in two] for a in one]
    np.testing.assert_allclose(likeness(vectors, factors), written, rtol=1e-6)


def test_profiles_that_are_one_another_are_alike_and_no_more_than_numbers_say(rng):
    values = np.exp(rng.standard_normal((4, 40)))
    found = likeness(values, values)
    np.testing.assert_allclose(np.diag(found), np.arctanh(0.9999) * np.sqrt(37))
    assert (np.abs(found[~np.eye(4, dtype=bool)]) < 8).all()
    assert np.isfinite(likeness(np.zeros((4, 40)), values)).all()


def test_eight_rows_make_a_profile():
    assert enough_rows(8)
    assert not enough_rows(7)
