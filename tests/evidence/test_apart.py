"""Modules that stand apart: a gap in what siblings reach, not the thin end of it."""

from __future__ import annotations

import numpy as np
import pytest

from ostate.evidence.apart import is_tail


@pytest.mark.parametrize("exchanged", [1, 2, 4])
@pytest.mark.parametrize("others", [[1.0] * 38, [1.0] * 20 + [0.97] * 10 + [0.9] * 5 + [0.8] * 2 + [0.7]])
def test_two_names_exchanged_by_hand_are_no_tail(others, exchanged):
    assert not is_tail(np.array(others + [0.2] * exchanged))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.1, 0.15, 0.2])
def test_the_thin_end_of_many_modules_is_one(noise, seed):
    """Shares of 5,000 modules that fall short by an exponential amount: tens of them below a half."""
    rng = np.random.default_rng(seed)
    shares = 1 - np.where(rng.random(5000) < 0.2, np.minimum(rng.exponential(noise, 5000), 1), 0)
    assert (shares < 0.5).sum() > 1
    assert is_tail(shares)


def test_a_hundred_exchanged_among_many_noisy_ones_are_no_tail():
    rng = np.random.default_rng(0)
    shares = 1 - np.where(rng.random(5000) < 0.2, np.minimum(rng.exponential(0.1, 5000), 1), 0)
    shares[:200] = rng.uniform(0, 0.4, 200)
    assert not is_tail(shares)


def test_where_nothing_is_low_there_is_nothing_to_explain():
    assert is_tail(np.ones(300))
