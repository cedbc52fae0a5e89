"""What fitted odds may say: names within a budget, contradictions, suspects; each limit written out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ostate.core.state import Entry, Group, RawState
from ostate.evidence import judge
from ostate.evidence.judge import Odds, weigh
from tests.records import ArraySlot


def state(count: int) -> RawState:
    """Positions with state, and a last one without."""
    slots = {"exp_avg": ArraySlot(np.zeros((2, 2), np.float32))}
    entries = (*(Entry(at, at, 0, slots, 5.0) for at in range(count)), Entry(count, count, 0))
    return RawState("", "torch", (), (Group(0, tuple(range(count + 1))),), entries)


def weighed(wrong: dict[int, float], claimed=None, *, believed=frozenset(range(9)), overthrown=None):
    match = {f"key{position}": position for position in wrong}
    return weigh(Odds(wrong=wrong), match, state(len(wrong)), believed=believed, overthrown=overthrown or {}, claimed=claimed)


def test_names_are_given_while_their_odds_sum_to_a_millionth_at_most():
    assert weighed({0: 4.9e-7, 1: 4.9e-7}).proven == {0, 1}
    assert weighed({0: 6e-7, 1: 4.9e-7}).proven == {1}
    assert weighed({0: 1.1e-6}).proven == frozenset()
    assert weighed({0: 1.1e-6}).verdict == "silent"
    assert weighed({0: 1e-9, 1: 2e-6, 2: 1e-8}).proven == {0, 2}
    assert weighed({0: 1e-9, 1: 2e-6, 2: 1e-8}).undecided == (1,)


def test_only_believed_positions_are_named():
    assert weighed({0: 1e-12, 1: 1e-12}, believed={1}).proven == {1}


def test_a_key_whose_odds_of_being_wrong_are_even_is_in_no_order():
    found = weighed({0: 1.5, 1: 0.99, 2: 1e-12})
    assert found.order == (None, "key1", "key2", None)


@pytest.mark.parametrize(("odds", "contradicted"), [(2e-8, True), (4e-8, False)])
def test_a_claim_is_overthrown_below_the_odds_that_the_class_asks_for(odds, contradicted):
    found = weighed({0: odds, 1: 1e-12}, ("key1", "key0", None), overthrown={0: 3e-8})
    assert found.contradictions == (((0, "key1", "key0"),) if contradicted else ())
    assert found.verdict == ("contradicted" if contradicted else "silent")


def test_where_nothing_may_overthrow_a_claim_another_order_is_suspect_only():
    found = weighed({0: 1e-12, 1: 2e-3}, ("key1", "key0", None))
    assert found.contradictions == ()
    assert found.apart == (0,)
    assert found.proven == frozenset()


def test_a_position_whose_name_agrees_is_not_suspect():
    assert weighed({0: 1e-12, 1: 1e-12}, ("key0", "key1", None)).apart == ()


def pairs(*, rank: int, modules: int):
    positions = tuple(range(2 * modules))
    return SimpleNamespace(rank=rank, modules=(None,) * modules, zero_positions=positions[::2], other_positions=positions[1::2])


@pytest.mark.parametrize(("rank", "modules", "both", "named"), [(4, 4, False, True), (4, 3, False, False), (4, 3, True, True), (3, 9, True, False)])
def test_fitted_tails_name_classes_of_four_from_rank_four_or_where_two_tests_agree(rank, modules, both, named):
    tables = SimpleNamespace(pairs=(pairs(rank=rank, modules=modules),), unpaired=())
    assert judge._believed(tables, both=both) == (set(range(2 * modules)) if named else set())


def test_a_search_pays_for_every_position_that_a_factor_could_have_gone_to():
    tables = SimpleNamespace(pairs=(pairs(rank=4, modules=5), pairs(rank=3, modules=5)), unpaired=(SimpleNamespace(positions=(20, 21)),))
    found = judge._overthrown(tables)
    assert found == {**dict.fromkeys(range(10), pytest.approx(2e-7)), 20: pytest.approx(5e-7), 21: pytest.approx(5e-7)}
    assert judge._overthrown(SimpleNamespace(pairs=(pairs(rank=4, modules=3),), unpaired=())) == {}


def odds_of(table: list[list[float]], match: dict[str, int], *, complete: bool = True) -> Odds:
    """Odds of keys (rows) at positions (columns) of one shape."""
    values, shape, odds = np.array(table), (2, 2), Odds()
    keys, positions = tuple(f"key{row}" for row in range(len(values))), tuple(range(values.shape[1]))
    tables = SimpleNamespace(keys_of_shape={shape: keys}, positions_of_shape={shape: positions})
    judge._odds_of_shape(odds, tables, SimpleNamespace(by_shape={shape: values}), shape, match, complete=complete)
    return odds


def test_a_key_without_a_position_may_have_been_the_one():
    """Position 0 is key0's or key1's, which then lies nowhere: e^(5 - 10) against it."""
    assert odds_of([[10.0], [5.0]], {"key0": 0}).wrong[0] == pytest.approx(math.exp(-5), rel=0.02)


def test_a_position_without_a_key_may_have_been_the_one():
    assert odds_of([[10.0, 4.0]], {"key0": 0}).wrong[0] == pytest.approx(math.exp(-6), rel=0.02)


def test_an_exchange_of_two_counts_with_both_their_scores():
    found = odds_of([[10.0, 3.0], [2.0, 8.0]], {"key0": 0, "key1": 1})
    assert found.wrong[0] == pytest.approx(math.exp(3 + 2 - 10 - 8), rel=0.02)
    assert found.rival == {0: "key1", 1: "key0"}
    assert found.score == {0: 10.0, 1: 8.0}


def test_numbers_that_speak_against_their_own_place_name_nothing():
    assert odds_of([[-3.5, -50.0], [-50.0, 8.0]], {"key0": 0, "key1": 1}).wrong[0] == math.inf
    assert odds_of([[-2.5, -50.0], [-50.0, 8.0]], {"key0": 0, "key1": 1}).wrong[0] < 1e-6


def test_numbers_that_say_nothing_name_the_only_key_of_their_shape_where_every_shape_is_complete():
    assert odds_of([[0.0]], {"key0": 0}).wrong[0] == 0
    assert odds_of([[0.0]], {"key0": 0}, complete=False).wrong[0] == math.inf
    assert odds_of([[0.0, -50.0], [-50.0, 8.0]], {"key0": 0, "key1": 1}).wrong[0] == math.inf


def test_a_pair_named_by_balance_alone_pays_for_every_pair_of_positions():
    pair = SimpleNamespace(
        modules=(SimpleNamespace(zero="B", other="A"),) * 2, zero_positions=(0, 1, 2), other_positions=(3, 4, 5, 6, 7), zero_at={0: 0, 1: 1, 2: 2}
    )
    found = judge._elsewhere(SimpleNamespace(displaced=False), pair, [0, 1], {"B": 0, "A": 3}, None, {"A": 1e-4})
    assert found == pytest.approx([15e-4, 15e-4])
    assert judge._elsewhere(SimpleNamespace(displaced=False), pair, [0], {"B": 0, "A": 3}, None, {}) == pytest.approx([1.0])


def test_of_tensors_outside_pairs_each_place_that_one_could_have_gone_to_is_paid_for():
    one, two = (SimpleNamespace(pairs=(), unpaired=[SimpleNamespace(positions=positions)]) for positions in ((4,), (4, 7)))
    assert judge._overthrown(one) == {4: pytest.approx(1e-6)}
    assert judge._overthrown(two) == {4: pytest.approx(5e-7), 7: pytest.approx(5e-7)}


def test_displacement_is_no_test_where_no_start_is_known():
    pair = SimpleNamespace(zero_positions=())
    assert judge._levels(SimpleNamespace(pairs=[pair], displaced=False, balanced=False, unpaired=()), None, {}) == {}


def test_keys_without_a_place_speak_against_the_place_that_they_would_fit():
    """Two keys are placed and two are free, one of which would fit the second place e^15 times worse than what stands there."""
    table = np.array([[20.0, -30.0], [-30.0, 20.0], [-30.0, 5.0], [-30.0, -30.0]])
    tables = SimpleNamespace(keys_of_shape={"s": ["a", "b", "c", "d"]}, positions_of_shape={"s": [0, 1]})
    odds = Odds()
    judge._odds_of_shape(odds, tables, SimpleNamespace(by_shape={"s": table}), "s", {"a": 0, "b": 1}, complete=True)
    assert odds.wrong[0] < 1e-15
    assert odds.wrong[1] == pytest.approx(math.exp(-15), rel=0.05)
