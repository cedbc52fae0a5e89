"""The bound on a row's chance of being matched wrongly, against the weight of every permutation written out."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from ostate.evidence.permutation_odds import _components, odds_against


def exact(scores: np.ndarray) -> np.ndarray:
    """Return the share of all permutations' weight that moves each row."""
    n = len(scores)
    orders = np.array(list(permutations(range(n))))
    values = scores[np.arange(n), orders].sum(axis=1)
    weights = np.exp(values - values.max())
    return np.array([weights[orders[:, row] != row].sum() for row in range(n)]) / weights.sum()


def table(rng: np.random.Generator) -> np.ndarray:
    """Return scores whose diagonal is good, in part: some rows alike, some pairs close, links strong and weak."""
    n = int(rng.integers(2, 8))
    scores = rng.standard_normal((n, n)) * rng.uniform(0.5, 6) + np.eye(n) * rng.uniform(0, 15)
    block = int(rng.integers(0, n + 1))
    if block > 1:
        scores[:block, :block] = rng.uniform(5, 15) + rng.standard_normal((block, block)) * rng.choice([0, 1e-3, 1, 4])
    return scores


@pytest.mark.parametrize("seed", range(4))
def test_no_bound_is_below_the_truth(seed):
    rng = np.random.default_rng(seed)
    told = 0
    for _ in range(150):
        scores = table(rng)
        odds, truth = odds_against(scores), exact(scores)
        told += int(np.isfinite(odds).sum())
        assert (odds >= truth * (1 - 1e-9) - 1e-14).all(), (scores, odds, truth)
    assert told > 150


@pytest.mark.parametrize("block", [2, 3, 4, 5, 6])
def test_rows_that_cannot_be_told_apart_are_infinite_and_the_rest_is_bounded_closely(block):
    n = 7
    scores = np.full((n, n), -9.0)
    np.fill_diagonal(scores, 9.0)
    scores[:block, :block] = 9.0
    odds, truth = odds_against(scores), exact(scores)
    assert np.isinf(odds[:block]).all()
    assert (truth[block:] <= odds[block:]).all()
    assert (odds[block:] <= 10 * truth[block:]).all()


def test_two_blocks_that_lead_to_each_other_are_no_less_than_the_truth():
    rng = np.random.default_rng(5)
    for _ in range(100):
        scores = rng.uniform(-12, -2, (7, 7))
        scores[:3, :3], scores[3:6, 3:6] = 8 + rng.standard_normal((3, 3)), 8 + rng.standard_normal((3, 3))
        np.fill_diagonal(scores, 10.0)
        odds, truth = odds_against(scores), exact(scores)
        assert (odds >= truth * (1 - 1e-9)).all()
        assert np.isfinite(odds[6])


def test_two_hundred_rows_alike_leave_the_others_their_names():
    scores = np.full((240, 240), -20.0)
    np.fill_diagonal(scores, 20.0)
    scores[:200, :200] = 20.0
    odds = odds_against(scores)
    assert np.isinf(odds[:200]).all()
    assert (odds[200:] < 1e-10).all()


def test_the_better_order_elsewhere_is_infinite():
    assert np.isinf(odds_against(np.array([[0.0, 500.0], [-499.0, 0.0]]))).all()
    assert np.isinf(odds_against(np.array([[0.0, 500.0], [0.0, 0.0]]))).all()


def test_nothing_against_an_order_of_one():
    assert odds_against(np.array([[3.0]])).tolist() == [0.0]
    assert odds_against(np.zeros((0, 0))).tolist() == []


def test_scores_that_overflow_tell_no_row_from_another():
    """Weights near the end of their range times zero: infinity, not a refusal by the library."""
    scores = np.full((8, 8), 700.0)
    np.fill_diagonal(scores, -700.0)
    scores[:4, 4:] = -60.0
    assert np.isinf(odds_against(scores)).all()


@pytest.mark.parametrize("links", [0.0, 0.02, 0.05, 0.2, 1.0])
def test_rows_that_reach_one_another_are_found_as_scipy_finds_them(links):
    rng = np.random.default_rng(5)
    for n in (1, 2, 7, 40):
        linked = rng.random((n, n)) < links
        count, label = connected_components(linked, directed=True, connection="strong")
        parts = _components(linked)
        assert len(parts) == count
        assert sorted(row for part in parts for row in part) == list(range(n))
        assert all(len(set(label[part])) == 1 for part in parts)


def test_one_long_way_takes_no_recursion():
    circle = np.roll(np.eye(3000, dtype=bool), 1, axis=1)
    assert [len(part) for part in _components(circle)] == [3000]
    circle[-1, 0] = False
    assert len(_components(circle)) == 3000
