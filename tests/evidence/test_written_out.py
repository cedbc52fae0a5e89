"""Small functions of the statistics against sums written out, where a changed sign, number or bound would go unseen elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ostate.core.naming import Adapter
from ostate.core.state import Entry, Group, RawState
from ostate.evidence import look as look_module
from ostate.evidence import looks, significance, statistics
from ostate.evidence.look import FactorProducts, Shared, Source, look
from ostate.evidence.looks import Looks, Place
from ostate.evidence.units import Unit
from tests.evidence.test_significance import Candidates, level, started
from tests.records import ArraySlot


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def state_of(slots: dict[str, tuple[int, dict[str, np.ndarray]]], *, optimizer: str = "adam", hyper: tuple[dict, ...] = ({},)) -> Source:
    """A state and an adapter of these keys: (group, `w` and the moments)."""
    plain = {"betas": (0.9, 0.99), "eps": 1e-8}
    names = {"m": "exp_avg", "v": "exp_avg_sq", "p0": "p0"}
    entries = tuple(
        Entry(at, at, group, {names[name]: ArraySlot(each) for name, each in given.items() if name in names}, 7.0, shape=given["w"].shape)
        for at, (group, given) in enumerate(slots.values())
    )
    members = [tuple(entry.position for entry in entries if entry.group == group) for group in range(len(hyper))]
    groups = tuple(Group(group, own, plain | each) for group, (own, each) in enumerate(zip(members, hyper)))
    adapter = Adapter(path="", file="", kind="peft", tensors={key: ArraySlot(given["w"]) for key, (_, given) in slots.items()})
    return Source(RawState("", "torch", (), groups, entries, optimizer), adapter)


def numbers(rng: np.random.Generator, *shape: int) -> dict[str, np.ndarray]:
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name in ("w", "m")}
    return drawn | {"v": rng.uniform(0.01, 2.0, shape).astype(np.float32)}


def test_the_spread_of_a_cosine_of_single_numbers_is_that_of_independent_signs(rng):
    moved, u = rng.standard_normal(7), rng.standard_normal((3, 7))
    cosine, spread = statistics.displacement_elementwise(moved, u)
    for row in range(3):
        size = np.linalg.norm(moved) * np.linalg.norm(u[row])
        assert cosine[row] == pytest.approx(-sum(moved * u[row]) / size)
        assert spread[row] == pytest.approx(np.linalg.norm(moved * u[row]) / size)


@pytest.mark.parametrize("experts", [1, 2, 3])
def test_experts_have_every_so_many_columns_of_the_zero_factor_and_a_run_of_the_others(experts, rng):
    rows = rng.standard_normal((5, 2 * experts))
    zero, other = statistics.zero_blocks(rows, experts), statistics.other_blocks(rows, experts)
    for expert in range(experts):
        np.testing.assert_array_equal(zero[expert], rows[:, expert::experts])
        np.testing.assert_array_equal(other[expert], rows[:, 2 * expert : 2 * expert + 2])


def test_balance_of_nothing_is_neither_here_nor_there():
    """Sides of zeros: no residual and no sum to hold it against; said to be as far apart as can be, and a number."""
    assert statistics.balance(np.zeros((1, 4)), np.zeros((1, 4)))[0] == 0


def test_balance_of_one_side_beside_many_of_more_axes_is_that_of_each(rng):
    one, many = rng.standard_normal((3, 4)), rng.standard_normal((2, 3, 4))
    found = statistics.balance(one, many)
    assert found.shape == (2, 3)
    for at in np.ndindex(2, 3):
        left, right = one[at[1]], many[at]
        assert found[at] == pytest.approx(-np.log(np.linalg.norm(left - right) / (np.linalg.norm(left) + np.linalg.norm(right))), rel=1e-4)
    np.testing.assert_array_equal(statistics.balance(many, one), statistics.balance(one, many))
    drift = rng.standard_normal((2, 3, 1, 4))
    for at in np.ndindex(2, 3):
        expected = statistics.balance(one[at[1]][None], many[at][None], drift[at][None])[0]
        assert statistics.balance(one, many, drift)[at] == pytest.approx(expected)


@pytest.mark.parametrize(("room", "kept"), [(2 * 4 * 6 * 5, [True, True]), (2 * 4 * 6 * 5 - 1, [True, False]), (4 * 6 * 5 - 1, [False, False])])
def test_matrices_are_shared_until_their_bytes_are_used_up(room, kept, monkeypatch):
    """Float32, six rows of five: 120 bytes each."""
    monkeypatch.setattr(look_module, "SHARED", room)
    shared = Shared()
    readers = [SimpleNamespace(finite=True, take=lambda count, out: out) for _ in kept]
    assert [shared.of(at, reader, 6, 5) is not reader for at, reader in enumerate(readers)] == kept


def test_a_tensor_whose_indices_but_the_last_are_latent_dimensions_is_read_so(rng):
    """GraLoRA's B (k, r / k, n): each of the k r / k rows is one."""
    given = numbers(rng, 2, 3, 5)
    found = look(state_of({"0.B": (0, given)}), Unit("0.", "0.B", "", False, 1, tall=(False, False), group="signs", folded=True), "0.B", 0)
    w, m = (given[name].reshape(6, 5).astype(np.float64) for name in "wm")
    np.testing.assert_allclose(found.first[0], w @ m.T, rtol=2e-5, atol=1e-5)


def test_of_dimensions_that_begin_in_equal_pairs_weights_of_which_the_state_keeps_a_part_say_nothing(rng):
    """Prodigy with slice_p keeps every second number: of a pair one is there and the other is not."""
    given = numbers(rng, 9, 4)
    unit = Unit("0.", "0.B", "", False, 1, tall=(True, False), group="signs", halved=True)
    part = given | {"p0": given["w"].reshape(-1)[::2].copy()}
    assert look(state_of({"0.B": (0, part)}, hyper=({"slice_p": 2},)), unit, "0.B", 0).stored is None
    whole = given | {"p0": given["w"].copy()}
    assert look(state_of({"0.B": (0, whole)}), unit, "0.B", 0).stored is not None


@pytest.mark.parametrize("decayed", ["zero", "other"])
def test_decay_of_one_factor_alone_is_taken_from_its_side_alone(decayed, rng):
    """Two groups, one with weight_decay inside the gradient (torch's Adam): the other side stands as it is."""
    zero, other = numbers(rng, 9, 3), numbers(rng, 3, 8)
    hyper = ({"weight_decay": 0.5 if decayed == "zero" else 0.0}, {"weight_decay": 0.5 if decayed == "other" else 0.0})
    source = state_of({"0.B": (0, zero), "0.A": (1, other)}, hyper=hyper)
    found = Looks(source, [Unit("0.", "0.B", "0.A", False, 1)])
    parts = found._products(Place(0, 0, 1), 3, "whole")
    share = 0.5 * (1 - 0.9**7.0)
    w, a = zero["w"].astype(np.float64), other["w"].astype(np.float64)
    np.testing.assert_allclose(parts.zero_decay[0], share * w.T @ w if decayed == "zero" else np.zeros((3, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts.other_decay[0], share * a @ a.T if decayed == "other" else np.zeros((3, 3)), rtol=1e-4, atol=1e-6)
    (ranked,) = found.ranked([Place(0, 0, 1)], "whole")
    assert [each.size for each in ranked] == [48]


def test_a_pair_with_one_factor_in_place_cannot_have_been_exchanged_within_itself(rng):
    found = Looks(state_of({"0.B": (0, numbers(rng, 5, 5)), "0.A": (0, numbers(rng, 5, 5))}), [Unit("0.", "0.B", "0.A", False, 1)])
    assert found.exchanged(Place(0, 0, None), (True, True)) == found.exchanged(Place(0, None, 1), (True, True)) == ()
    assert found.exchanged(Place(0, 0, 1), (True, True))


@pytest.mark.parametrize(("rank", "projected"), [(2, False), (3, True), (4, True)])
def test_what_drift_adds_is_taken_out_of_a_residual_from_rank_three_on(rank, projected, rng):
    """Of rank two the four directions are all that there is."""
    side, drift, other_drift = rng.standard_normal((3, 1, rank, rank))
    noise, nothing = np.ones((1, rank)), np.zeros((1, rank, rank))
    rest = dict.fromkeys(FactorProducts._fields, 0.0) | {"update": nothing, "decay": None, "stored": None, "noise": noise, "finite": True}
    zero = FactorProducts(**rest | {"first": side + 2 * drift, "drift": drift})
    other = FactorProducts(**rest | {"first": side.transpose(0, 2, 1), "drift": other_drift})
    (found,) = looks._residuals([(zero, other)])
    plain = np.linalg.norm(2 * drift) / (np.linalg.norm(side + 2 * drift) + np.linalg.norm(side))
    assert found == pytest.approx(0.0 if projected else plain, abs=1e-9)


def test_a_sum_stands_above_chance_from_five_deviations_on():
    """Tables of one number each: sixteen draws, whose mean and spread are known."""
    drawn = lambda noise: [noise.standard_normal((1, 1))]  # noqa: E731
    noise = np.random.default_rng(4)
    sums = np.array([float(noise.standard_normal((1, 1))[0, 0]) for _ in range(16)])
    at = lambda deviations: significance._above(float(sums.mean() + deviations * sums.std()), drawn, seed=4)[0]  # noqa: E731
    assert [at(4.9), at(5.1), at(5.9), at(10.1)] == [False, True, True, True]


def test_tensors_without_others_of_their_shape_are_held_against_draws_of_spread_one():
    """One tensor alone: its ratio must stand above five spreads of sixteen draws that are normal."""
    tables, _ = started(0.0)
    (each,) = tables.unpaired
    noise = np.random.default_rng(2)
    sums = np.array([float(noise.standard_normal((1, 1))[0, 0]) for _ in range(16)])
    for deviations, significant in ((4.9, False), (5.1, True)):
        each.keys, each.positions, each.known, each.spread = ("0.bias",), (10,), (True,), np.ones((1, 1))
        each.cosine = np.full((1, 1), sums.mean() + deviations * sums.std())
        assert significance.start_level(tables, {"0.bias": 10}).significant == significant


def test_tensors_whose_others_show_little_noise_are_held_against_draws_of_spread_one():
    """Six ratios of 3 add up to 18; the best six of thirty-six normal draws to 7 or 8, of draws of spread two to twice as much, and more."""
    assert significance.start_level(*started(3.0, noise=0.2)).significant
    assert not significance.start_level(*started(1.2, noise=0.2)).significant


@pytest.mark.parametrize(("own", "significant"), [(0.97, True), (0.905, False)])
def test_balance_is_held_against_values_drawn_as_often_as_each_was_seen(own, significant):
    """380 unmatched values from 0 to .95: of as many draws the best twenty have .9 each and five deviations more are .92."""
    candidates = Candidates(own, modules=20)
    candidates.values[~np.eye(20, dtype=bool)] = np.arange(380) / 380 * 0.95
    assert level(candidates).significant == significant
