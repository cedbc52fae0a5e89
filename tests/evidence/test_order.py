"""What rejected orders cost, and which positions stand by themselves: sums of chances against a millionth, written out."""

from __future__ import annotations

import math

import pytest

from ostate.core.family import Alternative, Exchangeable, Family
from ostate.evidence import combine, order
from ostate.evidence.gauge import Ranked
from ostate.evidence.looks import Place, Plain
from ostate.evidence.order import Weighed
from ostate.evidence.units import Unit


def weighed(*digits: float) -> list[Weighed]:
    return [Weighed(f"order {at}", value, frozenset({at})) for at, value in enumerate(digits)]


@pytest.mark.parametrize(
    ("digits", "tries", "open_orders"),
    [
        ((6.32, 6.32), 1, []),  # 4.8e-7 twice
        ((6.29, 6.29), 1, ["order 1"]),  # 5.1e-7 twice
        ((6.01,), 1, []),
        ((5.99,), 1, ["order 0"]),
        ((6.29,), 2, ["order 0"]),  # of two orders tried each has half a millionth
        ((6.32,), 2, []),
        ((6.1, 6.1, 9.0), 1, ["order 1"]),  # the surest first
    ],
)
def test_chances_of_the_rejected_orders_sum_to_a_millionth_at_most(digits, tries, open_orders):
    left, spent = order.rejected(weighed(*digits), tries=tries)
    assert [each.what for each in left] == open_orders
    assert spent == pytest.approx(sum(10**-value for at, value in enumerate(digits) if f"order {at}" not in open_orders))


def test_what_is_less_sure_than_an_open_order_is_open_too():
    left, _ = order.rejected(weighed(6.2, 6.15, 3.0))
    assert [each.digits for each in left] == [6.15, 3.0]


def test_positions_stand_by_themselves_while_their_chances_sum_to_a_millionth_at_most():
    assert order.within({0: 6.32, 1: 6.32, 2: 3.0}) == {0, 1}
    assert order.within({0: 6.29, 1: 6.29}) == {0}
    assert order.within({0: 5.99}) == frozenset()
    assert order.within({7: 9.0, 8: 9.0, 9: 6.1}) == {7, 8, 9}


class Looks:
    """Looks whose ranks are given by module and by what is asked."""

    def __init__(self, ranks: dict[tuple[int, str], tuple[Ranked, ...]], modules: tuple[Unit, ...] = ()) -> None:
        self.ranks, self.modules = ranks, modules

    def ranked(self, places, how):
        return [self.ranks.get((place.module, how), ()) for place in places]

    def starts(self, places):
        return list(range(len(self.modules)))

    def plain(self, places):
        return [Plain(0.05, 1.0, 1.0, True) for _ in places]

    def exchanged(self, place, own):
        raise AssertionError("asked of a pair whose factors are not each other's")


def test_a_factor_alone_says_no_more_than_its_whole_module():
    """Its own rank may be first while the module's is not, and the other way round: the smaller counts; a single number of its own may say more."""
    strong, weak = (Ranked(1, 384),) * 3, (Ranked(3, 8),)
    looks = Looks({(0, "whole"): weak, (0, "zero"): strong, (0, "other"): strong, (1, "whole"): strong, (1, "zero"): strong, (1, "other"): weak})
    found = order.alone([Place(0, 0, 1), Place(1, 2, 3)], looks, {0: 0.05, 3: 4.0, 9: 2.0})
    little, much = combine.digits(weak), combine.digits(strong)
    assert found == {0: pytest.approx(little), 1: pytest.approx(little), 2: pytest.approx(much), 3: 4.0, 9: 2.0}
    assert 0.05 < little < 1 < 7 < much


def test_a_factor_that_says_nothing_has_no_digits():
    looks = Looks({(0, how): (Ranked(8, 8),) for how in ("whole", "zero", "other")})
    assert order.alone([Place(0, 0, 1)], looks, {}) == {0: 0.0, 1: 0.0}


def test_of_ranks_and_single_numbers_the_better_counts_at_half_its_chance():
    ranked = [Ranked(1, 384)] * 2
    assert order._digits(ranked, []) == pytest.approx(2 * math.log10(384))
    assert order._digits([], [3.0, 3.0]) == pytest.approx(3.0)
    assert order._digits(ranked, [3.0]) == pytest.approx(2 * math.log10(384) - math.log10(2))
    assert order._digits([Ranked(8, 8)], [0.1]) == 0.0
    assert order._digits([], []) == 0.0


UNITS = tuple(Unit(f"{name}.", f"{name}.B", f"{name}.A", True, 1) for name in ("one", "two"))
INDEX = {"one.B": 0, "one.A": 0, "two.B": 1, "two.A": 1}
PLACES = [Place(0, 0, 1), Place(1, 2, 3)]


class Turned(Looks):
    """Looks at which nothing is ranked but a pair whose factors change places."""

    def exchanged(self, place, own):
        self.asked = (place.module, own)
        return (Ranked(1, 512),)


@pytest.mark.parametrize(
    ("other", "moved", "own"),
    [
        (("one.A", "one.B", "two.B", "two.A"), {0, 1}, (True, True)),
        (("one.A", None, "two.B", "two.A"), {0, 1}, (True, False)),  # lora_A has another tensor's, outside all modules
        ((None, "one.B", "two.B", "two.A"), {0, 1}, (False, True)),
    ],
)
def test_two_factors_that_change_places_are_looked_at_turned(other, moved, own):
    looks = Turned({}, UNITS)
    assert order.against(other, moved, PLACES, INDEX, looks, {}) == pytest.approx(math.log10(512))
    assert looks.asked == (0, own)


def test_two_factors_one_of_which_has_another_modules_moments_are_not_looked_at_turned():
    """lora_A has lora_B's moments, and lora_B another module's: that module's gauge is another one."""
    looks = Looks({(0, "whole"): (Ranked(1, 384),), (1, "whole"): (Ranked(1, 384),)}, UNITS)
    order.against(("one.A", "two.B", "one.B", "two.A"), {0, 1, 2}, PLACES, INDEX, looks, {})


def test_a_pair_half_of_whose_moments_are_its_own_other_factors_is_asked_for_that_half():
    """lora_B has lora_A's moments, lora_A another module's, whose own are of a tensor outside: both modules speak, the first turned."""
    looks = Turned({(1, "other"): (Ranked(1, 8),)}, UNITS)
    assert order.against(("one.A", "two.A", "two.B", None), {0, 1, 3}, PLACES, INDEX, looks, {}) == pytest.approx(math.log10(512 * 8))
    assert looks.asked == (0, (True, False))


NEURONS = Unit("layers.0.mlp.", "layers.0.mlp.down.B", "layers.0.mlp.down.A", True, 1, group="neurons")
NEAR, FAR = "layers.0.mlp.gate.A", "layers.1.mlp.down.A"


@pytest.mark.parametrize(
    ("kind", "origins", "asked"),
    [
        ("whole", {"zero": FAR, "other": NEAR}, ("zero", [7])),  # the gate has these neurons' order: lora_A's moments tell nothing
        ("whole", {"zero": NEAR, "other": FAR}, (None, [])),
        ("whole", {"other": NEAR}, (None, [])),
        ("whole", {"other": FAR}, ("whole", [7])),
        ("other", {"other": FAR}, ("other", [7])),
        ("whole", {"zero": FAR, "other": FAR}, ("whole", [7, 7])),
        ("whole", {"zero": None, "other": NEAR}, ("zero", [None])),
    ],
)
def test_of_neurons_that_another_layer_of_their_block_lends_moments_to_only_the_rest_is_asked(kind, origins, asked):
    assert order._of_neurons(kind, NEURONS, origins, {FAR: 7, NEAR: 8}) == asked


def test_a_position_without_a_key_is_moved_where_another_order_names_it_otherwise():
    names, keys = ("norm.one", "norm.two", "one.B"), (None, None, "one.B")
    other = Alternative("norms exchanged", keys, ("norm.two", "norm.one", "one.B"))
    same = Alternative("the same again", keys, names)
    found = order.weigh_all(keys, names, Family((other, same), ()), Looks({}, ()), {}, range(3))
    assert [(each.what, each.moved, each.digits) for each in found[1:]] == [("norms exchanged", frozenset({0, 1}), 0.0)]


class Unbalanced(Looks):
    """Looks at pairs whose balance has these ranks and residuals."""

    def plain(self, places):
        return [Plain(0.7, 1.0, 1.0, True) for _ in places]


@pytest.mark.parametrize(("rank", "digits", "missed"), [(48, 2.3, True), (40, 2.8, False)])
def test_balance_of_all_modules_is_missed_below_two_and_a_half_digits(rank, digits, missed):
    """Two modules of four blocks of 384, factors that look unrelated."""
    ranked = (Ranked(rank, 384),) * 4
    found = order._one_factor(PLACES, Unbalanced({(module, "other"): ranked for module in range(2)}, UNITS))
    assert combine.digits(ranked * 2) == pytest.approx(digits, abs=0.1)
    assert [each.moved for each in found] == [frozenset({1, 3})] * missed


def test_one_factor_in_its_own_modules_other_place_says_nothing():
    """lora_B alone is said to be lora_A, and lora_A stays: no gauge tells."""
    assert order.against(("one.A", "one.A", "two.B", "two.A"), {0}, PLACES, INDEX, Looks({}, UNITS), {}) == 0


@pytest.mark.parametrize(
    ("zero", "other", "moved", "asked"),
    [
        (0, 1, {0, 1}, "whole"),
        (0, 1, {0}, "zero"),
        (0, 1, {1}, "other"),
        (0, 1, {5}, None),
        (0, None, {0}, "whole"),
        (0, None, {5}, None),
        (None, 1, {1}, "whole"),
        (None, 1, {5}, None),
    ],
)
def test_of_a_module_that_part_is_asked_which_moves(zero, other, moved, asked):
    assert order._kind(Place(0, zero, other), moved) == asked


def test_only_moved_positions_count_and_each_by_the_part_that_moves():
    """Two modules exchange lora_B: the ranks of zero factors count, of one of the two; that of the whole would say too much."""
    looks = Looks({(module, how): (Ranked(1, size),) for module in range(2) for how, size in (("zero", 8), ("whole", 384), ("other", 48))}, UNITS)
    assert order.against(("two.B", "one.A", "one.B", "two.A"), {0, 2}, PLACES, INDEX, looks, {}) == pytest.approx(math.log10(8))
    assert order.against(("two.B", "two.A", "one.B", "one.A"), {0, 1, 2, 3}, PLACES, INDEX, looks, {}) == pytest.approx(math.log10(384))


KEYS = ("layers.0.one.B", "layers.0.two.B", "layers.1.one.B", "layers.1.two.B")


@pytest.mark.parametrize(("other", "digits"), [((1, 0, 3, 2), 0.0), ((2, 3, 0, 1), 4.0)])
def test_signs_that_a_layer_shares_say_nothing_against_an_exchange_within_it(other, digits):
    keys = tuple(KEYS[at] for at in other)
    family = Family((Alternative("exchanged", keys, keys),), ())
    _, found = order.weigh_all(KEYS, KEYS, family, Looks({}, ()), dict.fromkeys(range(4), 4.0), range(4), frozenset(range(4)))
    assert (found.digits, found.moved) == (pytest.approx(digits), frozenset(range(4)))
    _, found = order.weigh_all(KEYS, KEYS, family, Looks({}, ()), dict.fromkeys(range(4), 4.0), range(4))
    assert found.digits == pytest.approx(4.0)


def test_a_module_of_which_one_factor_is_in_place_speaks_against_names_at_random():
    looks = Looks({(module, "whole"): (Ranked(1, 384),) * 2 for module in range(2)}, UNITS)
    places = [Place(0, 0, None), Place(1, None, 3)]
    assert len(order._everything(places, looks)) == 4
    assert order._everything([Place(0, None, None), Place(1, None, None)], looks) == []


def test_the_exchange_of_kinds_names_every_position_of_theirs_and_no_other():
    units = tuple(Unit(f"{kind}.", f"{kind}.B", f"{kind}.A", True, 1) for kind in ("q", "v", "o"))
    looks = Looks({(module, "whole"): (Ranked(1, 384),) * 4 for module in range(3)}, units)
    index = {f"{kind}.{factor}": at for at, kind in enumerate("qvo") for factor in "AB"}
    places = [Place(0, 0, 1), Place(1, 2, None), Place(2, 4, 5)]
    group = Exchangeable(("q_proj", "v_proj"), ((("q.B", "q.A", "q.magnitude"),), (("v.B", "v.A", "v.magnitude"),)))
    at = {"q.B": 0, "q.A": 1, "v.B": 2, "o.B": 4, "o.A": 5, "q.magnitude": 6, "v.magnitude": 7}
    (found,) = order._exchanged(group, places, index, looks, at)
    assert found.moved == {0, 1, 2, 6, 7}
    assert found.digits == pytest.approx(4 * math.log10(384) - math.log10(2))
    assert found.what == "q_proj and v_proj exchanged in every layer"


@pytest.mark.parametrize("kinds", ["kqv", "kqvopr"])
def test_kinds_that_nothing_is_asked_of_stay_open_among_themselves_and_hold_no_other_open(kinds):
    """BOFT and AdaLoRA: the first tensors of q and k have no test, and the exchange of both was taken for none at all."""
    told = kinds[2:]
    units = tuple(Unit(f"{kind}.", f"{kind}.s", "", False, 1) for kind in told)
    looks = Looks({(module, "whole"): (Ranked(1, 384),) * 6 for module in range(len(told))}, units)
    places = [Place(module, 2 * module + 1, None) for module in range(len(told))]
    keys = tuple(((f"{kind}.R", f"{kind}.s"),) for kind in kinds)
    at = {key: position for position, key in enumerate(key for kind in (*told, "k", "q") for key in (f"{kind}.R", f"{kind}.s"))}
    one, other = order._exchanged(Exchangeable(tuple(kinds), keys), places, {f"{kind}.s": i for i, kind in enumerate(told)}, looks, at)
    assert one.moved == frozenset(range(2 * len(kinds)))
    assert one.what == "k and v exchanged in every layer"  # the weakest exchange that says anything: one silent kind and one that is not
    assert one.digits > 10
    assert (other.what, other.digits, other.moved) == ("k and q exchanged in every layer", 0.0, frozenset(range(2 * len(told), 2 * len(kinds))))


def test_a_family_of_nothing_leaves_only_names_at_random():
    looks = Looks({(0, "whole"): (Ranked(1, 384),) * 3, (1, "whole"): (Ranked(1, 384),) * 3}, UNITS)
    keys = ("one.B", "one.A", "two.B", "two.A")
    found = order.weigh_all(keys, keys, Family((), ()), looks, {}, range(4))
    assert [(each.what, each.moved) for each in found] == [("another run's state, or names at random", frozenset(range(4)))]
    assert found[0].digits == pytest.approx(6 * math.log10(384))
