"""Residuals of balance where L2 decay acts through the gradient, held against their definition, element by element of the group."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ostate.evidence.residual import Products, beside_decay, log_residual


def group(size: int) -> list[np.ndarray]:
    """One of each pair (g, -g) of signed permutations, the identity first."""
    found = []
    for order in itertools.permutations(range(size)):
        for signs in itertools.product((1.0, -1.0), repeat=size - 1):
            g = np.zeros((size, size))
            g[np.arange(size), order] = (1.0, *signs)
            found.append(g)
    return found


def products(seed: int, size: int) -> Products:
    """Two modules' numbers at random, decay an eighth of what the gradients leave."""
    rng = np.random.default_rng(seed)
    square = [rng.standard_normal((2, size, size)) for _ in range(7)]
    sums = [rng.random((2, size)) + 0.5 for _ in range(2)]
    return Products(*square[:5], *sums, square[5] / 8, square[6] / 8)


def left_over(one: np.ndarray, two: np.ndarray, directions: list[np.ndarray]) -> float:
    """|l - r| / (|l| + |r|) of what of either lies along none of the directions."""
    sides = [one.reshape(-1), two.reshape(-1)]
    if directions:
        span = np.stack([each.reshape(-1) for each in directions], 1)
        sides = [side - span @ np.linalg.lstsq(span, side, rcond=None)[0] for side in sides]
    return float(np.linalg.norm(sides[0] - sides[1]) / (np.linalg.norm(sides[0]) + np.linalg.norm(sides[1])))


def expected(parts: Products, module: int, *, zero: bool, other: bool) -> np.ndarray:
    size = parts.left.shape[1]
    plain, projected = [], []
    for g in [g for sign in (1, -1) for g in (sign * each for each in group(size))]:
        left, right = parts.left[module], parts.right[module]
        one = (left @ g.T if zero else left) - parts.zero_decay[module]
        two = (g @ right if other else right) - parts.other_decay[module]
        drifts = [(parts.zero_drift[module], zero), (np.diag(parts.zero_noise[module]), zero)]
        drifts += [(parts.other_drift[module], other), (np.diag(parts.other_noise[module]), other)]
        plain.append(left_over(one, two, []))
        projected.append(left_over(one, two, [g @ each @ g.T if turned else each for each, turned in drifts]))
    total = np.zeros(len(plain))
    for values in [plain, projected] if size > 2 else [plain]:
        logs = -np.log(values)
        total += (logs - logs.mean()) / logs.std()
    return total


@pytest.mark.parametrize(("zero", "other"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("size", [2, 3])
def test_what_decay_added_is_left_with_the_weights_and_drift_taken_out_of_what_remains(size, zero, other):
    parts = products(size, size)
    half = np.stack([each.reshape(-1) for each in group(size)])
    found = beside_decay(parts, half, zero=zero, other=other)
    for module in range(2):
        np.testing.assert_allclose(found[module], expected(parts, module, zero=zero, other=other), rtol=0.01, atol=0.01)


def test_drift_directions_that_are_one_another_are_taken_out_once():
    """Both factors' drifts the same matrix, both noises alike: the span has two directions, and nothing is divided by zero."""
    parts = products(5, 3)
    parts = parts._replace(other_drift=parts.zero_drift, other_noise=parts.zero_noise)
    half = np.stack([each.reshape(-1) for each in group(3)])
    found = beside_decay(parts, half, zero=True, other=True)
    np.testing.assert_allclose(found[0], expected(parts, 0, zero=True, other=True), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("cross", [1.0, 0.0])
def test_sides_as_small_as_nothing_are_no_better_than_unrelated(cross):
    """|l| = |r| = 1. Far above nothing equal ones leave the smallest residual that counts, unrelated ones .7; below nothing both leave as much."""
    one, both = np.ones(1), np.full(1, cross)
    far = np.exp(-log_residual(one, one, both, np.full(1, 1e-12)))[0]
    assert far == pytest.approx(1e-3 if cross else 2**-0.5, rel=0.01)
    assert np.exp(-log_residual(one, one, both, np.full(1, 1e4)))[0] >= 0.7
