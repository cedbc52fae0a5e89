"""Orders of whole kinds: of each cycle one kind is left out, whichever says least, and the choice is paid for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostate.evidence import combine, order
from ostate.evidence.gauge import Ranked


def test_of_two_kinds_exchanged_the_one_that_says_more_counts_at_twice_its_chance():
    weak, strong = [Ranked(4, 8)] * 8, [Ranked(1, 8)] * 8
    alone = combine.digits(strong)
    assert -order._enumerated([weak, strong]) == pytest.approx(alone - math.log10(2))
    assert -order._enumerated([strong, weak]) == pytest.approx(alone - math.log10(2))


def test_chances_of_random_kinds_are_no_smaller_than_they_are():
    """Under an exchange of two kinds of two modules each, all ranks are uniform: the digits against it come up no more often than they say."""
    rng = np.random.default_rng(0)
    draws = rng.integers(1, 9, (4000, 4))
    found = np.sort([-order._enumerated([[Ranked(a, 8), Ranked(b, 8)], [Ranked(c, 8), Ranked(d, 8)]]) for a, b, c, d in draws.tolist()])[::-1]
    for place, value in enumerate(found, 1):
        if value > 0 and place >= 40:
            assert place / len(found) <= 10**-value * 1.3


@pytest.mark.parametrize("kinds", [2, 3, 4])
def test_every_order_but_the_claimed_one_is_counted(kinds):
    """Nothing speaks: each order has the chance of 1."""
    assert order._enumerated([[]] * kinds) == -math.inf  # nothing is asked of any of them: left open elsewhere
    assert order._enumerated([[Ranked(8, 8)]] * kinds) == pytest.approx(math.log10(math.factorial(kinds) - 1))
