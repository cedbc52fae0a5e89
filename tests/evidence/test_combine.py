"""E-values have mean 1 under the uniform null; bounds over orders are compared with every order written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ostate.evidence.combine import digits, exact_digits, log_evalues, log_mean, permutations_bound
from ostate.evidence.gauge import Ranked


@pytest.mark.parametrize("size", [2, 8, 384, 3840])
def test_every_e_value_has_mean_one_over_the_ranks(size):
    values = np.array([10.0 ** log_evalues([Ranked(rank, size)]) for rank in range(1, size + 1)])
    np.testing.assert_allclose(values.mean(axis=0), 1.0, rtol=1e-9)


def test_an_e_value_falls_with_the_rank_as_four_powers_do():
    """Any powers would be sound; these are the ones that the digits of docs/evidence.md were made with."""
    powers = [math.log10(8 / sum(k**-x for k in range(1, 9))) - x * math.log10(2) for x in (1, 2, 3)]
    assert log_evalues([Ranked(2, 8)]).tolist() == pytest.approx([*powers, -math.inf])
    assert log_evalues([Ranked(1, 8)])[3] == pytest.approx(math.log10(8))
    assert log_evalues([Ranked(1, 1)]).tolist() == [0, 0, 0, 0]  # one order alone says nothing


def test_ties_counted_up_only_lower_it():
    """Ranks of two elements that tie are both the larger one."""
    values = np.array([10.0 ** log_evalues([Ranked(rank, 8)]) for rank in (2, 2, 3, 5, 5, 6, 7, 8)])
    assert (values.mean(axis=0) < 1).all()


def test_digits_are_no_more_than_chance_allows():
    """Every outcome of three modules at rank 2 written out: the share with d digits or more is at most 10^-d."""
    found = sorted((digits([Ranked(rank, 8) for rank in ranks]) for ranks in itertools.product(range(1, 9), repeat=3)), reverse=True)
    for place, value in enumerate(found, 1):
        if value > 0:
            assert place / len(found) <= 10**-value * (1 + 1e-9)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (2,) * 9, (48, 8, 2), (384, 8)])
def test_exact_digits_are_the_share_of_all_outcomes_that_are_as_good(sizes):
    """The statistic is a sum of ln rank in sixteenths, here added up over every outcome."""
    outcomes = list(itertools.product(*(range(1, size + 1) for size in sizes)))
    sums = np.array([sum(round(16 * math.log(rank)) for rank in ranks) for ranks in outcomes])
    for at in np.random.default_rng(0).choice(len(outcomes), 40):
        found = exact_digits(list(zip(outcomes[at], sizes)))
        assert 10**-found == pytest.approx((sums <= sums[at]).mean())


def test_digits_of_many_first_ranks_are_all_there_is():
    assert exact_digits([(1, 2)] * 60) == pytest.approx(60 * math.log10(2))
    assert exact_digits([(1, 3840)] * 200) == pytest.approx(200 * math.log10(3840))
    assert digits([Ranked(1, 2)] * 64) == pytest.approx(64 * math.log10(2))
    assert 65 * math.log10(2) - 1 < digits([Ranked(1, 2)] * 65) < 65 * math.log10(2)


def test_many_ranks_are_no_more_than_chance_allows():
    """70 signs: the number that agree is binomial; whatever it is, the digits stay below its own."""
    for wrong in range(30):
        ranked = [Ranked(1, 2)] * (70 - wrong) + [Ranked(2, 2)] * wrong
        chance = sum(math.comb(70, k) for k in range(wrong + 1)) / 2**70
        assert digits(ranked) <= -math.log10(chance) + 1e-9


def test_of_two_ways_of_ranking_the_better_counts_at_half_the_chance():
    """Every outcome of two modules at rank 2: (rank, rank of the pair) as an element and its opposite have them."""
    elements = [Ranked(rank, 8, pair, 4) for rank, pair in zip((1, 5, 2, 6, 3, 7, 4, 8), (1, 1, 2, 2, 3, 3, 4, 4))]
    found = sorted((digits(pair) for pair in itertools.product(elements, repeat=2)), reverse=True)
    for place, value in enumerate(found, 1):
        if value > 0:
            assert place / len(found) <= 10**-value * (1 + 1e-9)
    late = [Ranked(5, 8, 1, 4)] * 16
    assert digits(late) == pytest.approx(16 * math.log10(4) - math.log10(2))
    assert digits([Ranked(5, 8)] * 16) < 2
    assert log_mean(log_evalues([Ranked(5, 8, 1, 4)] * 100)) == pytest.approx(100 * math.log10(4) - math.log10(8))


def test_signs_alone_count_at_ten_times_their_chance():
    """Early in a run: nothing but the signs is told, of seven blocks each."""
    early = [Ranked(200, 384, 150, 192, 1, 16)] * 7
    assert digits(early) == pytest.approx(7 * math.log10(16) - 1)
    assert digits([Ranked(1, 384, 1, 192, 1, 16)] * 7) == pytest.approx(7 * math.log10(384) + math.log10(0.45))
    assert log_mean(log_evalues([Ranked(200, 384, 150, 192, 1, 16)] * 100)) == pytest.approx(100 * math.log10(16) - 1 - math.log10(4))


def test_the_chances_of_all_ways_together_are_no_more_than_one():
    """Every outcome of one block of rank 2 by three ways that know of each other: no more of them reach a number of digits than may."""
    elements = [Ranked(rank, 8, 1 + (rank - 1) // 2, 4, 1 + (rank - 1) % 4, 4) for rank in range(1, 9)]
    found = sorted((digits(pair) for pair in itertools.product(elements, repeat=3)), reverse=True)
    for place, value in enumerate(found, 1):
        if value > 0:
            assert place / len(found) <= 10**-value * (1 + 1e-9)


def test_digits_of_nothing_are_none():
    assert digits([]) == 0
    assert digits([Ranked(384, 384)] * 5) == 0
    assert digits([Ranked(1, 1)] * 5) == 0


def test_one_wrong_module_among_many_does_not_take_everything():
    assert digits([Ranked(1, 384)] * 10) > 24
    assert digits([Ranked(1, 384)] * 10 + [Ranked(200, 384)]) > 15


def moved_but_the_first(order: tuple[int, ...]) -> set[int]:
    """Return the kinds that a permutation moves, less the first of each cycle."""
    left, kept = set(range(len(order))), set()
    while left:
        first = kind = min(left)
        left.discard(first)
        while (kind := order[kind]) != first:
            kept.add(kind)
            left.discard(kind)
    return kept


@pytest.mark.parametrize("kinds", range(1, 8))
def test_the_sum_over_all_orders_of_kinds_is_what_they_add_up_to(kinds):
    values = np.random.default_rng(kinds).uniform(0.5, 8, kinds)
    weights = 10.0**-values
    identity = tuple(range(kinds))
    total = sum(math.prod(weights[sorted(moved_but_the_first(order))]) for order in itertools.permutations(range(kinds)) if order != identity)
    found = permutations_bound(list(values))
    assert found == (-math.inf if kinds == 1 else pytest.approx(min(0.0, math.log10(total)), rel=1e-9))


@pytest.mark.parametrize("mute", [1, 2, 3])
def test_orders_that_move_a_kind_of_which_something_is_asked_are_summed_beside_all_of_the_others(mute):
    weights = np.concatenate([np.ones(mute), [1e-7, 1e-8, 1e-6]])
    orders = [order for order in itertools.permutations(range(mute + 3)) if order[mute:] != tuple(range(mute, mute + 3))]
    total = sum(math.prod(weights[sorted(moved_but_the_first(order))]) for order in orders)
    assert permutations_bound([7.0, 8.0, 6.0], mute=mute) == pytest.approx(math.log10(total), rel=1e-6)


def test_kinds_that_nothing_speaks_for_bound_nothing():
    assert permutations_bound([0.0, 0.0, 0.0]) == 0.0
    assert permutations_bound([-400.0, -400.0]) == 0.0
    assert permutations_bound([30.0]) == -math.inf


def test_the_mean_is_that_of_the_values_not_of_their_digits():
    assert log_mean(np.array([2.0, 0.0, -math.inf, -math.inf])) == pytest.approx(math.log10(101 / 4))


def test_ranks_that_say_nothing_have_no_digits_however_many():
    assert digits([Ranked(192, 384)] * 200) == 0
    assert digits([Ranked(2, 2), Ranked(1, 2)] * 50) == 0


def test_few_ranks_by_three_ways_count_exactly_at_the_share_of_each():
    """One module of rank 2, first by balance of four and by signs of four, third of eight in all: 10^-d = .25 / .45."""
    assert digits([Ranked(3, 8, 1, 4, 1, 4)]) == pytest.approx(math.log10(4) + math.log10(0.45))


def test_a_group_of_any_size_is_weighed_without_going_through_its_elements():
    size = 100_000  # by steps of 16 a factor e, and in sums, as if each rank were looked at
    ranks = np.arange(1, size + 1, dtype=float)
    scores = np.round(16 * np.log(ranks))
    for rank in (1, 3, 500, 70_000):
        assert exact_digits([(rank, size)]) == pytest.approx(-math.log10((scores <= round(16 * math.log(rank))).mean()), rel=1e-9)
    first = 10.0 ** log_evalues([Ranked(1, size)])
    for value, exponent in zip(first, (1, 2, 3)):
        assert 0.999 < value * (ranks**-exponent).mean() <= 1 + 1e-12
    assert digits([Ranked(1, 10**12)]) == pytest.approx(12, abs=0.1)
