"""The best assignment, held against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ostate.evidence.assignment import assign, at_most


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (20, 20), (40, 60), (60, 40), (3, 50), (50, 3), (1, 7)])
@pytest.mark.parametrize("lean", [0.0, 1.0, 3.0], ids=["noise", "some order", "order"])
def test_the_assignment_is_as_good_as_scipy_s(shape, lean):
    rng = np.random.default_rng(0)
    for _ in range(40):
        table = rng.standard_normal(shape)
        table[np.arange(min(shape)), rng.permutation(min(shape))] += lean
        rows, columns = assign(table)
        assert len(set(rows)) == len(set(columns)) == min(shape)
        assert list(rows) == sorted(rows)
        best = table[linear_sum_assignment(-table)].sum()
        assert table[rows, columns].sum() == pytest.approx(best)
        assert at_most(table) >= best - 1e-9


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("shape", [(9, 9), (9, 12)])
def test_what_is_no_number_is_given_to_nobody_who_can_do_without(odd, shape):
    table = np.random.default_rng(2).standard_normal(shape)
    table[np.arange(9), np.arange(9)] += 2
    table[3, 5:], table[4:7, 3] = odd, odd
    rows, columns = assign(table)
    assert sorted(set(columns)) == sorted(columns)
    assert np.isfinite(table[rows, columns]).all()
    assert len(assign(np.full(shape, odd))[0]) == 9


def test_keys_that_are_held_stay_where_they_are():
    table = np.random.default_rng(1).standard_normal((9, 9))
    table[4], table[4, 7] = -1e6, 1e6
    rows, columns = assign(table)
    assert columns[list(rows).index(4)] == 7
    assert table[rows, columns].sum() == pytest.approx(table[linear_sum_assignment(-table)].sum())


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_nothing_is_assigned_where_nothing_is(shape):
    rows, columns = assign(np.zeros(shape))
    assert len(rows) == len(columns) == 0
    assert at_most(np.zeros(shape)) == 0


@pytest.mark.parametrize("make", [
    pytest.param(lambda rng: rng.standard_normal((150, 150)) + 3 * rng.standard_normal((1, 150)), id="all rows want the same columns"),
    pytest.param(lambda rng: rng.standard_normal((150, 3)) @ rng.standard_normal((3, 150)), id="every row is like every other"),
    pytest.param(lambda rng: np.round(2 * rng.standard_normal((150, 150))), id="ties"),
])  # fmt: skip
def test_a_table_in_which_most_rows_collide_is_settled_as_well_as_by_scipy(make):
    table = make(np.random.default_rng(3))
    assert len(set(table.argmax(axis=1))) < 110
    rows, columns = assign(table)
    assert sorted(columns) == list(range(150))
    assert table[rows, columns].sum() == pytest.approx(table[linear_sum_assignment(-table)].sum())
