"""Modules that stand apart: a gap in what siblings reach, not the thin end of it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ostate.evidence import apart
from ostate.evidence.apart import exchanged_in
from ostate.evidence.gauge import Ranked
from ostate.evidence.looks import Place, Plain
from ostate.evidence.misaligned import in_place, misaligned, random_factors_misaligned
from ostate.evidence.shares import is_tail
from ostate.evidence.units import Unit


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

    def read(self, places):
        pass

    def ranked(self, places, how):
        assert how == "whole"
        return [(Ranked(self.numbers.get((place.module, place.zero), (150, 0.7))[0], 384),) for place in places]

    def shapes(self, module):
        return (8, 4), (4, 8)

    def plain(self, places):
        return [Plain(self.numbers.get((place.module, place.zero), (150, 0.7))[1], 1.0, 1.0, True) for place in places]


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


class SignsAlone:
    """Looks early in a run: all but a few modules are told by their signs alone, of four blocks each, as `signs` gives their ranks."""

    def __init__(self, signs: dict[int, int], whole: dict[int, int] | None = None) -> None:
        self.signs, self.whole = signs, whole or {}

    def ranked(self, places, how):
        return [(Ranked(self.whole.get(place.module, 150), 384, 90, 192, self.signs.get(place.module, 1), 16),) * 4 for place in places]

    def shapes(self, module):
        return (8, 4), (4, 8)


def test_early_in_a_run_two_exchanged_modules_are_told_by_their_signs():
    places = [Place(module, 2 * module, 2 * module + 1) for module in range(40)]
    assert apart._by_gauge(places, SignsAlone({3: 9, 17: 11})) == {3, 17}
    assert apart._by_gauge(places, SignsAlone({})) == set()


def test_late_in_a_run_modules_whose_signs_run_backwards_stand_in_their_gauge():
    places = [Place(module, 2 * module, 2 * module + 1) for module in range(40)]
    assert apart._by_gauge(places, SignsAlone({3: 9, 17: 11}, {3: 2, 17: 1})) == set()


class Given:
    """Looks that are given: by (module, position of the zero factor, position of the other one, asked) -> rank; else by module; else first."""

    def __init__(self, ranks=None, *, size=384, plain=None, units=None, shapes=None):
        self.ranks, self.size, self.given, self.modules, self.sizes = ranks or {}, size, plain or {}, units or (), shapes or {}
        self.source = SimpleNamespace(start=None)

    def read(self, places):
        pass

    def ranked(self, places, how):
        keys = [((place.module, place.zero, place.other, how), (place.module, how), place.module) for place in places]
        return [(Ranked(next((self.ranks[key] for key in several if key in self.ranks), 1), self.size),) for several in keys]

    def shapes(self, module):
        return self.sizes.get(module, ((8, 4), (4, 8)))

    def plain(self, places):
        return [self.given.get(place.module, Plain(0.05, 1.0, 1.0, True)) for place in places]


def units(kinds: str, layers: int) -> tuple[Unit, ...]:
    stems = [f"layers.{layer}.{kind}." for layer in range(layers) for kind in kinds]
    return tuple(Unit(stem, stem + "B", stem + "A", True, 1) for stem in stems)


def places(count: int) -> list[Place]:
    return [Place(module, 2 * module, 2 * module + 1) for module in range(count)]


def test_moments_all_zero_are_untrained_and_no_others_business():
    """A module that nothing reached says nothing of its own gauge, and takes no part in what its siblings reach."""
    ranks = {3: 384}
    looks = Given(ranks, units=units("qv", 6), plain={3: Plain(math.nan, 0.0, 0.0, True)})
    assert apart.apart(places(12), looks) == ((), (3,))


def test_moments_without_a_weight_that_moved_are_damaged():
    looks = Given(units=units("qv", 6), plain={5: Plain(math.nan, 0.0, 1.0, True)})
    assert apart.apart(places(12), looks).against == (5,)
    looks = Given(units=units("qv", 6), plain={5: Plain(math.nan, 1.0, 0.0, True)})
    assert apart.apart(places(12), looks).against == (5,)
    looks = Given(units=units("qv", 6), plain={5: Plain(0.05, 1.0, 1.0, False)})
    assert apart.apart(places(12), looks).against == (5,)


def test_where_most_moments_have_no_weight_that_moved_nothing_was_updated_yet():
    looks = Given(units=units("qv", 6), plain={module: Plain(0.05, 0.0, 1.0, True) for module in range(5)})
    assert apart.apart(places(12), looks).against == ()


class Along(Given):
    """Looks that say how far a zero factor lies along the update at a place, by (module, position of the zero factor)."""

    def plain(self, places):
        return [Plain(0.8, 1.0, 1.0, True, self.given.get((place.module, place.zero), 0.5)) for place in places]


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [(0.4, 0.4, True), (0.5, 0.2, True), (0.29, 0.29, False), (0.7, 0.1, False), (0.1, 0.7, False), (math.nan, 0.7, False)],
)
def test_of_an_exchanged_pair_both_zero_factors_lie_further_along_the_others_update(first, second, told):
    """Few gauges, and no balance yet: where it stands each lies along nothing, at the other's place it moved along that update."""
    ranks: dict[object, int] = {(3, "whole"): 60, (9, "whole"): 60, (3, 18, 19, "whole"): 20, (9, 6, 7, "whole"): 20}
    looks = Along(ranks, size=100, units=units("qv", 6), plain={(3, 6): 0.0, (9, 18): 0.0, (3, 18): first, (9, 6): second})
    assert exchanged_in(places(12), looks) == ({3, 9} if told else set())


@pytest.mark.parametrize(("size", "told"), [(48, True), (47, False)])
def test_from_forty_eight_gauges_on_one_that_looks_like_any_other_says_something_by_itself(size, told):
    """Rank 3: 2^3 3! = 48."""
    ranks: dict[object, int] = {(3, "whole"): size, (9, "whole"): size, (3, 18, 19, "whole"): 1}
    assert apart.apart(places(20), Given(ranks, size=size, units=units("qv", 10))).against == ((3, 9) if told else ())


@pytest.mark.parametrize(
    ("there", "back", "told"), [(384, 384, False), (1, 384, True), (2, 384, False), (19, 19, True), (19, 20, False), (20, 19, False)]
)
@pytest.mark.parametrize("how", ["whole", "zero", "other"])
def test_of_weak_modules_those_that_fit_each_others_place_may_have_been_exchanged(how, there, back, told):
    """Of 384 gauges the first, or among the 19 first at either's place. Another shape's place is not tried, nor that of a strong module."""
    at = {"whole": ((3, 18, 19), (9, 6, 7)), "zero": ((3, 18, 7), (9, 6, 19)), "other": ((3, 6, 19), (9, 18, 7))}[how]
    ranks: dict[object, int] = {(3, how): 250, (9, how): 250, (*at[0], how): there, (*at[1], how): back}
    assert apart.fit_elsewhere({3, 9}, places(20), Given(ranks, units=units("qv", 10))) == ({3, 9} if told else set())
    assert apart.fit_elsewhere({3}, places(20), Given(ranks, units=units("qv", 10))) == ({3} if told else set())
    apart_by_shape = Given(ranks, units=units("qv", 10), shapes={3: ((9, 4), (4, 8))})
    assert apart.fit_elsewhere({3, 9}, places(20), apart_by_shape) == set()
    assert apart.fit_elsewhere({3}, places(20), Given(ranks | {(9, how): 1}, units=units("qv", 10))) == set()


class FourBlocks(Given):
    """The same of modules of four blocks, alike."""

    def ranked(self, places, how):
        return [each * 4 for each in super().ranked(places, how)]


@pytest.mark.parametrize(("rank", "told"), [(45, False), (150, True)])
def test_one_module_beside_others_that_say_all_they_can_is_let_off_where_it_says_that_it_is_its_own(rank, told):
    """Four ranks of 45 among 384: another run's moments have them once in 30. There is none that it may have been exchanged with."""
    looks = FourBlocks({3: rank}, units=units("qv", 10), plain={3: Plain(0.7, 1.0, 1.0, True)})
    assert apart.apart(places(20), looks).against == ((3,) if told else ())


def test_a_residual_far_from_its_siblings_is_suspect_unless_all_gauges_say_otherwise():
    """Factors look unrelated at .7 where the others balance to .05; a module whose moments stand first of all gauges is damaged nowhere."""
    far = {4: Plain(0.7, 1.0, 1.0, True)}
    assert apart.apart(places(12), Given({4: 200, 7: 150, (7, 8, 9, "whole"): 1}, units=units("qv", 6), plain=far)).against == (4, 7)
    assert apart.apart(places(12), Given(units=units("qv", 6), plain=far)).against == ()
    near = {4: Plain(0.45, 1.0, 1.0, True)}
    assert apart._by_residual(places(12), [near.get(at, Plain(0.05, 1.0, 1.0, True)).residual for at in range(12)]) == set()


def test_a_residual_is_compared_with_what_its_siblings_spread():
    """Siblings that spread over .01 to .3 say little of .55; siblings at .05 say much."""
    spread = [0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.29, 0.3]
    assert apart._by_residual(places(12), [*spread, 0.55]) == set()
    assert apart._by_residual(places(12), [0.05] * 11 + [0.55]) == {11}


@pytest.mark.parametrize(("layers", "fits", "told"), [(8, 1, True), (8, 384, False), (1, 1, False), (2, 1, True)])
def test_kinds_whose_factors_fit_each_others_places_in_every_layer_are_exchanged(layers, fits, told):
    """lora_B of q and v fit no better than by chance where they stand, and first of all gauges in each other's place."""
    ranks: dict[object, int] = {(module, "zero"): 150 for module in range(2 * layers)}
    for layer in range(layers):
        q, v = 2 * layer, 2 * layer + 1
        ranks[q, 2 * v, 2 * q + 1, "zero"] = ranks[v, 2 * q, 2 * v + 1, "zero"] = fits
    found = apart.factors_exchanged(places(2 * layers), Given(ranks, units=units("qv", layers)), "zero")
    assert found == (set(range(2 * layers)) if told else set())


def test_of_kinds_exchanged_more_pairs_ask_for_more_digits():
    """One layer of rank 3 in two ways: 3.4 digits are enough for one pair of kinds, not for three of them."""
    ranks: dict[object, int] = {(module, "zero"): 1000 for module in range(3)}
    ranks[0, 2, 1, "zero"] = ranks[1, 0, 3, "zero"] = 1
    assert apart.factors_exchanged(places(2), Given(ranks, size=2500, units=units("qv", 1)), "zero") == {0, 1}
    assert apart.factors_exchanged(places(3), Given(ranks, size=2500, units=units("qvo", 1)), "zero") == set()


def vectors(kinds: str, layers: int) -> tuple[Unit, ...]:
    stems = [f"layers.{layer}.{kind}." for layer in range(layers) for kind in kinds]
    return tuple(Unit(stem, stem + "vector", "", False, 1, balanced=False) for stem in stems)


@pytest.mark.parametrize(("rank", "members", "told"), [(35000, 3, True), (35000, 2, False), (30000, 3, True), (20000, 3, False)])
def test_of_three_tensors_one_that_says_next_to_nothing_is_suspect_where_the_middle_one_says_very_much(rank, members, told):
    """Sizes of 65,536: 4.8 digits for those that are first; .27 and .34 digits for the others, .5 is the limit."""
    found = apart._singles([Place(at, at, None) for at in range(members)], Given({1: rank}, size=65536, units=vectors("v", members)))
    assert found == ({1} if told else set())


def test_a_factor_that_fits_by_chance_where_both_say_little_is_suspect():
    """lora_B of one module stands in no gauge of its own, and both factors together in a middling one, where all siblings stand first."""
    both: dict[object, int] = {(module, "whole"): 60 for module in (4, 7)}
    for how, there in (("zero", (4, 14, 9)), ("other", (4, 8, 15))):
        alone: dict[object, int] = {(module, how): 300 for module in (4, 7)} | {(*there, how): 1}
        assert apart.apart(places(24), Given(alone | both, units=units("qv", 12))).against == (4, 7)
        assert apart.apart(places(24), Given(alone, units=units("qv", 12))).against == ()


def test_a_module_of_which_one_factor_is_in_place_is_compared_too():
    there = [place._replace(other=None) if place.module in (3, 9) else place for place in places(20)]
    assert apart.apart(there, Given({3: 384, 9: 384, (3, 18, None, "whole"): 1}, units=units("qv", 10))).against == (3, 9)
    nowhere = [place._replace(zero=None, other=None) if place.module in (3, 9) else place for place in places(20)]
    assert apart.apart(nowhere, Given({3: 384, 9: 384}, units=units("qv", 10))).against == ()


def test_two_tensors_that_fit_each_others_place_far_better_are_suspect():
    """Digits of 3.4 there and .5 to 1.5 here; of a tensor that does as well as its siblings nothing is asked."""
    ranks: dict[object, int] = {0: 300, 1: 300, (0, 2, None, "zero"): 1, (1, 0, None, "zero"): 1}
    three = [Place(at, 2 * at, None) for at in range(3)]
    assert apart._singles(three, Given(ranks, size=2500, units=vectors("v", 3))) == {0, 1}
    assert apart._singles(three, Given(ranks | {(0, 2, None, "zero"): 100, (1, 0, None, "zero"): 100}, size=2500, units=vectors("v", 3))) == set()
    assert apart._singles(three[:2], Given(ranks, size=2500, units=vectors("v", 2))) == set()
    assert apart._singles(three, Given({0: 5, 1: 5, (0, 2, None, "zero"): 1, (1, 0, None, "zero"): 1}, size=40, units=vectors("v", 3))) == set()


def test_a_module_whose_zero_factor_has_no_place_is_not_damaged_for_want_of_its_weights():
    there = [place._replace(zero=None) if place.module == 5 else place for place in places(12)]
    looks = Given(units=units("qv", 6), plain={5: Plain(math.nan, 0.0, 1.0, True)})
    assert apart.apart(there, looks).against == ()


@pytest.mark.parametrize(("kinds", "told"), [(3, True), (2, False)])
def test_from_three_modules_on_a_kind_is_looked_at_as_one(kinds, told):
    """q fits by chance in three layers, where v stands first of all: whether its own modules are few or not."""
    weak, there = [2 * layer for layer in range(kinds)], places(2 * kinds)

    def found(rank: int, size: int) -> set[int]:
        looks = Given(dict.fromkeys(weak, rank), size=size, units=units("qv", kinds))
        return apart._kinds_at_random(there, dict.fromkeys(there, 0.05), looks)

    assert found(150, 384) == found(20, 48) == (set(weak) if told else set())
    assert found(4, 8) == set()  # rank 2: from six on


@pytest.mark.parametrize(("cosine", "balance", "told"), [(0.36, 1, False), (0.34, 1, True), (0.9, 150, True), (math.nan, 1, True)])
def test_a_kind_that_moved_along_its_updates_and_balances_stands_in_its_own_moments(cosine, balance, told):
    """Gauges of q say little of each module; its updates and the balance of all of them say that no other layers' moments stand there."""
    plain = {2 * layer: Plain(0.6, 1.0, 1.0, True, cosine) for layer in range(3)}
    ranks: dict[object, int] = {(2 * layer, how): rank for layer in range(3) for how, rank in (("whole", 60), ("other", balance))}
    found = apart._kinds_at_random(places(6), dict.fromkeys(places(6), 0.6), Given(ranks, units=units("qv", 3), plain=plain))
    assert found == ({0, 2, 4} if told else set())


def aside(*, cosine: float, residual: float, rank: int = 60, siblings: float = 0.6) -> set[int]:
    """Return what is found of twelve modules of which the fifth has these numbers."""
    plain = {module: Plain(0.1, 1.0, 1.0, True, siblings) for module in range(12)} | {4: Plain(residual, 1.0, 1.0, True, cosine)}
    return misaligned(places(12), Given({(4, "whole"): rank}, units=units("qv", 6), plain=plain))


def test_a_module_that_neither_moved_along_its_updates_nor_balances_is_another_runs():
    assert aside(cosine=0.1, residual=0.6) == {4}
    assert aside(cosine=0.26, residual=0.6) == set()  # along its update, as far as it goes
    assert aside(cosine=0.1, residual=0.44) == set()  # it balances, as far as it goes
    assert aside(cosine=0.1, residual=0.6, rank=1) == set()  # first of all gauges
    assert aside(cosine=0.1, residual=0.6, siblings=0.34) == set()  # late in a run none lies along its last update


def test_where_one_is_another_runs_lesser_signs_are_enough_for_the_next():
    plain = {module: Plain(0.1, 1.0, 1.0, True, 0.6) for module in range(12)} | {7: Plain(0.35, 1.0, 1.0, True, 0.28)}
    given = Given({(4, "whole"): 60}, units=units("qv", 6), plain=plain)
    assert misaligned(places(12), given) == set()
    given.given[4] = Plain(0.6, 1.0, 1.0, True, 0.1)
    assert misaligned(places(12), given) == {4, 7}


@pytest.mark.parametrize(("count", "told"), [(3, {1}), (2, set())])
def test_three_modules_of_a_kind_are_enough_to_be_compared(count, told):
    """One run trained layers 1, 8 and 9, the other of its seed 0, 8 and 9: the first module's moments are another's."""
    plain = {module: Plain(0.1, 1.0, 1.0, True, 0.8) for module in range(count)} | {1: Plain(0.6, 1.0, 1.0, True, 0.0)}
    assert misaligned(places(count), Given({(1, "whole"): 60}, units=units("v", count), plain=plain)) == told


def test_of_kinds_of_which_none_lies_along_its_updates_nothing_is_asked():
    """q's gradients are noise: late in a run none of its modules lies along the last one, where v's do."""
    plain = {module: Plain(0.1, 1.0, 1.0, True, 0.1 if module % 2 == 0 else 0.7) for module in range(12)} | {4: Plain(0.6, 1.0, 1.0, True, 0.0)}
    assert misaligned(places(12), Given({(4, "whole"): 60}, units=units("qv", 6), plain=plain)) == set()


@pytest.mark.parametrize(("cosine", "drawn", "told"), [(0.8, 3.6, True), (0.8, 3.4, False), (0.6, 3.6, False), (math.nan, 3.6, False)])
def test_a_module_both_of_whose_factors_went_the_way_of_their_moments_is_in_place(cosine, drawn, told):
    """Late gauges or few directions: one that lies less along its updates than its siblings is not let off, nor one whose lora_A does not."""
    plain = {module: Plain(0.1, 1.0, 1.0, True, 0.8, 5.0) for module in range(12)} | {4: Plain(0.7, 1.0, 1.0, True, cosine, drawn)}
    weak: dict[object, int] = {(4, how): 150 for how in ("whole", "zero", "other")}
    looks = Given(weak, units=units("qv", 6), plain=plain)
    assert in_place({4}, places(12), looks) == ({4} if told else set())
    assert apart.apart(places(12), looks).against == (() if told else (4,))


@pytest.mark.parametrize(("cosine", "told"), [(0.41, True), (0.39, False)])
def test_a_zero_factor_went_its_own_way_from_a_cosine_that_no_other_modules_moments_reach(cosine, told):
    """Siblings of .42: where all lie along their updates but loosely, what is asked of one is not relative to them alone."""
    plain = {module: Plain(0.1, 1.0, 1.0, True, 0.42, 5.0) for module in range(12)} | {4: Plain(0.7, 1.0, 1.0, True, cosine, 5.0)}
    weak: dict[object, int] = {(4, how): 150 for how in ("whole", "zero", "other")}
    assert in_place({4}, places(12), Given(weak, units=units("qv", 6), plain=plain)) == ({4} if told else set())


@pytest.mark.parametrize(
    ("drawn", "residual", "rank", "siblings", "told"),
    [(0.9, 0.6, 60, 4.1, True), (1.1, 0.6, 60, 4.1, False), (0.9, 0.49, 60, 4.1, False), (0.9, 0.6, 15, 4.1, False), (0.9, 0.6, 60, 3.9, False)],
)
def test_a_random_factor_that_neither_lies_along_its_update_nor_balances_is_another_runs(drawn, residual, rank, siblings, told):
    plain = {module: Plain(0.1, 1.0, 1.0, True, 0.8, siblings) for module in range(12)} | {4: Plain(residual, 1.0, 1.0, True, 0.8, drawn)}
    found = random_factors_misaligned(places(12), Given({(4, "other"): rank}, units=units("qv", 6), plain=plain))
    assert found == ({4} if told else set())


@pytest.mark.parametrize(("zero", "other", "told"), [(1, 1, True), (2, 1, False), (1, 2, False)])
def test_a_module_is_in_place_where_each_factor_has_the_digits_by_itself(zero, other, told):
    """Twelve modules ask for 4.1 digits: the first of 20,000 gauges has 4.3, the second 4.0."""
    ranks: dict[object, int] = {(4, "zero"): zero, (4, "other"): other}
    assert in_place({4}, places(12), Given(ranks, size=20_000, units=units("qv", 6))) == ({4} if told else set())


@pytest.mark.parametrize(
    ("rank", "cosine", "residual", "told"), [(60, 0.1, 0.7, True), (1, 0.1, 0.7, False), (60, 0.4, 0.7, False), (60, 0.1, 0.4, False)]
)
def test_a_file_in_which_no_module_did_either_is_another_runs_throughout(rank, cosine, residual, told):
    plain = {module: Plain(residual, 1.0, 1.0, True, cosine) for module in range(12)}
    found = misaligned(places(12), Given(dict.fromkeys(range(12), rank), units=units("qv", 6), plain=plain))
    assert found == (set(range(12)) if told else set())


@pytest.mark.parametrize(("layers", "told"), [(3, True), (2, False)])
def test_from_three_modules_on_a_kinds_other_factors_are_missed_where_they_look_unrelated(layers, told):
    residuals = {place: 0.7 if place.module % 2 == 0 else 0.05 for place in places(2 * layers)}
    looks = Given({(2 * layer, "other"): 300 for layer in range(layers)}, units=units("qv", layers))
    expected = {2 * layer for layer in range(layers)} if told else set()
    assert apart._kinds_unbalanced(places(2 * layers), residuals, looks) == expected
    assert apart.kinds_unrelated(places(2 * layers), residuals, looks) == expected


def test_a_kind_that_has_many_digits_but_looks_unrelated_is_none_that_balances():
    """q is missed only beside a kind that balances: v has digits and a residual of .5."""
    looks = Given({(2 * layer, "other"): 300 for layer in range(6)}, units=units("qv", 6))
    for middle, told in ((0.05, True), (0.5, False)):
        residuals = {place: 0.7 if place.module % 2 == 0 else middle for place in places(12)}
        assert bool(apart.kinds_unrelated(places(12), residuals, looks)) == told


def test_a_kind_is_missed_where_its_balance_may_have_five_digits():
    """Of three modules of 48 gauges each; of three of 46 it may not. v's balance is first everywhere."""
    for size, told in ((48, True), (46, False)):
        residuals = {place: 0.7 if place.module % 2 == 0 else 0.05 for place in places(6)}
        looks = Given({(2 * layer, "other"): size for layer in range(3)}, size=size, units=units("qv", 3))
        assert bool(apart.kinds_unrelated(places(6), residuals, looks)) == told


def test_of_ten_modules_half_may_say_less_and_of_eleven_two():
    weak = dict.fromkeys(range(4), 300)
    assert apart._by_gauge(places(10), Given(weak, units=units("q", 10))) == set(weak)
    assert apart._by_gauge(places(11), Given(weak, units=units("q", 11))) == set()
    assert apart._by_gauge(places(11), Given({0: 300, 1: 300}, units=units("q", 11))) == {0, 1}


def test_one_middling_gauge_says_nothing_and_two_of_one_shape_do():
    """A share of two fifths: 35 of 384. Below a quarter one is suspect by itself."""
    assert apart._by_gauge(places(20), Given({3: 35}, units=units("q", 20))) == set()
    assert apart._by_gauge(places(20), Given({3: 35, 9: 35}, units=units("q", 20))) == {3, 9}
    assert apart._by_gauge(places(20), Given({3: 35, 9: 35}, units=units("q", 20), shapes={9: ((8, 4), (4, 16))})) == set()
    assert apart._by_gauge(places(20), Given({3: 300}, units=units("q", 20))) == {3}


@pytest.mark.parametrize(("far", "told"), [(0.56, True), (0.54, False)])
def test_residuals_of_three_modules_are_compared_and_four_spreads_are_far(far, told):
    """Siblings at .3, all alike: what lies .6 above their logarithm stands apart, which is .547."""
    assert apart._by_residual(places(4), [0.3, 0.3, 0.3, far]) == ({3} if told else set())
    assert apart._by_residual(places(3), [0.05, 0.05, 0.6]) == {2}
    assert apart._by_residual(places(2), [0.05, 0.6]) == set()


def test_a_tensor_with_two_digits_at_its_own_place_is_not_tried_elsewhere():
    """Of tensors whose siblings have three: two is more than all but one in thirty at random reach."""
    weak = {0: 655, 1: 655, 2: 66, 3: 66, 4: 66, (0, 2, None, "zero"): 1, (1, 0, None, "zero"): 1}
    five = [Place(at, 2 * at, None) for at in range(5)]
    assert apart._singles(five, Given(weak, size=65536, units=vectors("v", 5))) == set()
    assert apart._singles(five, Given(weak | {0: 3000, 1: 3000}, size=65536, units=vectors("v", 5))) == {0, 1}


def test_tensors_of_forty_eight_gauges_on_are_looked_at():
    for size, told in ((48, {0, 1}), (47, set())):
        ranks = {0: size, 1: size, (0, 2, None, "zero"): 1, (1, 0, None, "zero"): 1}
        assert apart._singles([Place(at, 2 * at, None) for at in range(3)], Given(ranks, size=size, units=vectors("v", 3))) == told


def test_three_siblings_are_enough_to_say_that_most_are_strong():
    assert apart._most_are_strong([(Ranked(1, 384),)] * 3)
    assert not apart._most_are_strong([(Ranked(1, 384),)] * 2)
    assert not apart._most_are_strong([(Ranked(1, 384),), (Ranked(300, 384),), (Ranked(300, 384),)])


def test_the_end_of_a_run_that_turned_about_is_no_other_runs():
    """Of sixteen modules of a kind three lie along nothing and do not balance; six more are on their way there."""
    plain = {module: Plain(0.1, 1.0, 1.0, True, 0.6, 5.0) for module in range(16)}
    plain |= {module: Plain(0.6, 1.0, 1.0, True, 0.1, 0.0) for module in (0, 1, 2)}
    looks = Given(dict.fromkeys((0, 1, 2), 60), units=units("q", 16), plain=plain)
    assert misaligned(places(16), looks) == {0, 1, 2}
    for on_their_way in (range(3, 8), range(3, 9)):
        plain |= {module: Plain(0.3, 1.0, 1.0, True, 0.35, 1.9) for module in on_their_way}
        assert misaligned(places(16), looks) == (set() if len(on_their_way) > 5 else {0, 1, 2})


def test_a_kind_whose_random_factors_have_digits_together_is_not_missed():
    """Rank 60 of 384 in each of 32 layers: little of each, and five digits of all of them."""
    residuals = {place: 0.7 if place.module % 2 == 0 else 0.05 for place in places(64)}
    for rank, told in ((60, False), (300, True)):
        looks = Given({(2 * layer, "other"): rank for layer in range(32)}, units=units("qv", 32))
        assert bool(apart._kinds_unbalanced(places(64), residuals, looks)) == told
