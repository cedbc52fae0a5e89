"""Modules that stand apart: a gap in what siblings reach, not the thin end of it."""

from __future__ import annotations

import numpy as np
import pytest

from ostate.evidence import apart
from ostate.evidence.apart import exchanged_in, is_tail
from ostate.evidence.gauge import Ranked
from ostate.evidence.looks import Place, Plain


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


def test_the_thin_end_of_a_small_file_is_one_too():
    """Sixteen modules of each of three kinds, one of them half trained: no gap between what the weak and the others reach."""
    shares = np.array([1.0] * 24 + [0.94, 0.9, 0.88, 0.8, 0.74, 0.7, 0.66, 0.6, 0.55, 0.52, 0.47, 0.4])
    assert is_tail(shares)


class Known:
    """Looks whose ranks and residuals are given: (module, position of the zero factor) -> rank among 384, residual."""

    def __init__(self, numbers: dict[tuple[int, int], tuple[int, float]]) -> None:
        self.numbers = numbers

    def ranked(self, places, how):
        assert how == "whole"
        return [(Ranked(self.numbers.get((place.module, place.zero), (150, 0.7))[0], 384),) for place in places]

    def shapes(self, module):
        return (8, 4), (4, 8)

    def plain(self, place):
        return Plain(self.numbers.get((place.module, place.zero), (150, 0.7))[1], 1.0, 1.0, True)


PLACES = [Place(module, 2 * module, 2 * module + 1) for module in range(6)]
WEAK = {(module, 2 * module): (120 + module, 0.7) for module in range(6)}


def test_of_the_weak_those_that_fit_each_others_places_are_exchanged():
    """Modules 0 to 5 are weak where they stand; 1 and 4 fit each other's place, and balance holds there."""
    assert exchanged_in(PLACES, Known(WEAK | {(1, 8): (1, 0.2), (4, 2): (1, 0.3)})) == {1, 4}


def test_one_of_three_that_went_round_fits_the_place_it_came_from():
    assert exchanged_in(PLACES, Known(WEAK | {(1, 8): (1, 0.01), (4, 6): (1, 0.02), (3, 2): (1, 0.03)})) == {1, 3, 4}


@pytest.mark.parametrize("beside", [{(1, 8): (20, 0.2), (4, 2): (20, 0.2)}, {(1, 8): (1, 0.5), (4, 2): (1, 0.3)}, {(1, 8): (1, 0.2)}])
def test_weak_modules_that_fit_nowhere_else_are_not_exchanged(beside):
    """A rank of twenty, or balance as bad as here, or one of the two alone."""
    assert exchanged_in(PLACES, Known(WEAK | beside)) == set()


def test_a_module_that_stands_first_at_its_own_place_is_not_tried_elsewhere():
    strong = {(module, 2 * module): (1, 0.01) for module in range(6)}
    assert exchanged_in(PLACES, Known(strong | {(1, 8): (1, 0.0), (4, 2): (1, 0.0)})) == set()


class Early:
    """Looks early in a run: all but a few modules are told by their signs alone, of four blocks each, as `signs` gives their ranks."""

    def __init__(self, signs: dict[int, int], whole: dict[int, int] | None = None) -> None:
        self.signs, self.whole = signs, whole or {}

    def ranked(self, places, how):
        return [(Ranked(self.whole.get(place.module, 150), 384, 90, 192, self.signs.get(place.module, 1), 16),) * 4 for place in places]

    def shapes(self, module):
        return (8, 4), (4, 8)


def test_early_in_a_run_two_exchanged_modules_are_told_by_their_signs():
    places = [Place(module, 2 * module, 2 * module + 1) for module in range(40)]
    assert apart._by_gauge(places, Early({3: 9, 17: 11})) == {3, 17}
    assert apart._by_gauge(places, Early({})) == set()


def test_late_in_a_run_modules_whose_signs_run_backwards_stand_in_their_gauge():
    places = [Place(module, 2 * module, 2 * module + 1) for module in range(40)]
    assert apart._by_gauge(places, Early({3: 9, 17: 11}, {3: 2, 17: 1})) == set()
