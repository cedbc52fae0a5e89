"""The null of the gauge tests is exact: over a group each rank is taken once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ostate.evidence.gauge import Ranked, blocks_of, other, whole, zero
from ostate.evidence.permuted import balanced
from ostate.evidence.residual import Products
from tests.evidence.turned import anything, repeated, signed_permutations, turn

TESTS = {"whole": whole, "zero": zero, "other": other}
SIZES = {1: 2, 2: 8, 3: 48, 4: 384, 5: 3840}


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("kind", TESTS)
@pytest.mark.parametrize("decay", [False, True])
def test_over_all_gauges_of_the_moments_every_rank_is_taken_once(kind, rank, decay):
    """Also where L2 decay, which is the weights' and does not turn with the moments, is most of what the moments hold."""
    group = signed_permutations(rank)[:: 60 if rank == 5 else 1]
    products = repeated(anything(1, rank, np.random.default_rng(rank), decay=decay), len(group))
    found = [one for (one,) in TESTS[kind](turn(products, group, kind))]
    assert {one.size for one in found} == {SIZES[rank]}
    ranks = sorted(one.rank for one in found)
    if rank == 5:
        assert len(set(ranks)) == len(ranks)
    elif (kind, rank) in (("zero", 1), *([("whole", 1)] * decay)):
        assert ranks in ([1, 2], [2, 2])  # displacement and balance are one sign each: where they differ, they tie
    else:
        assert ranks == list(range(1, SIZES[rank] + 1))


@pytest.mark.parametrize("rank", [4, 8])
def test_over_all_signs_every_rank_is_taken_once(rank):
    group = signed_permutations(rank, signs_only=True)
    products = repeated(anything(1, rank, np.random.default_rng(7)), len(group))
    ranks = sorted(one.rank for (one,) in whole(turn(products, group, "whole"), signs_only=True))
    assert ranks == list(range(1, 2**rank + 1))


@pytest.mark.parametrize("kind", TESTS)
def test_the_ranks_of_two_blocks_take_each_pair_of_values_once(kind):
    """r = 6: blocks of 4 and 2. The gauge of all six dimensions is x c: for whatever c, all x give all pairs."""
    rng = np.random.default_rng(3)
    coset = signed_permutations(1)[0] * np.eye(6)[rng.permutation(6)] * rng.choice([-1, 1], 6)
    fours, twos = signed_permutations(4)[::8], signed_permutations(2)
    group = np.zeros((len(fours), len(twos), 6, 6))
    group[:, :, :4, :4], group[:, :, 4:, 4:] = fours[:, None], twos[None]
    gauges = group.reshape(-1, 6, 6) @ coset
    products = repeated(anything(1, 6, rng), len(gauges))
    found = TESTS[kind](turn(products, gauges, kind))
    pairs = {(one.rank, two.rank) for one, two in found}
    assert len(pairs) == len(fours) * len(twos)  # no pair twice
    assert pairs == set(itertools.product({one for one, _ in pairs}, range(1, 9)))


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", TESTS)
def test_a_name_of_the_latent_dimensions_changes_no_rank(kind, rank):
    """Both the weights' and the moments' dimensions renamed alike, within blocks: the module is the same."""
    rng = np.random.default_rng(rank)
    products = anything(20, rank, rng)
    name = np.zeros((rank, rank))
    for block in blocks_of(rank):
        group = signed_permutations(block.stop - block.start)
        name[block, block] = group[rng.integers(len(group))]
    moments = turn(turn(products, name, "whole"), np.eye(rank), "whole")
    d, left, right, *rest = moments
    renamed = Products(name @ d, name @ left, right @ name.T, *rest)
    if kind != "whole":  # both factors' drifts are turned above, the weights' dimensions too
        assert TESTS[kind](renamed) == TESTS[kind](products)
    assert whole(renamed) == whole(products)


def test_what_is_zero_or_not_finite_tells_nothing():
    products = anything(5, 4, np.random.default_rng(0))
    for part in products[:7]:
        part[0] = 0
    products.displacement[1], products.left[1] = np.nan, np.inf
    products.displacement[2], products.right[2] = 0, 0
    for test in (whole, zero):
        found = test(products)
        assert found[:3] == [(Ranked(1, 1),)] * 3
        assert all(one.size == 384 for (one,) in found[3:])
    assert other(products)[1] == (Ranked(1, 1),)


def test_equal_fits_count_against_the_identity():
    """Two latent dimensions that cannot be told apart: the identity shares its place with their exchange."""
    d = np.array([[[1.0, 0.5], [0.5, 1.0]]])
    d[0, 0, 1] = d[0, 1, 0] = 1.0
    nothing = np.zeros((1, 2, 2))
    assert whole(Products(d, nothing, nothing, nothing, nothing, np.zeros((1, 2)), np.zeros((1, 2)))) == [(Ranked(2, 8, sign_rank=1, sign_size=4),)]


def test_true_moments_stand_first():
    """L = R but for a little, D positive on its diagonal: what training leaves."""
    rng = np.random.default_rng(1)
    noise = anything(50, 8, rng)
    signal = rng.standard_normal((50, 8, 8))
    products = noise._replace(displacement=5 * np.eye(8) + 0.3 * noise.displacement, left=signal, right=signal + 0.05 * noise.right)
    for test in TESTS.values():
        assert sum((one.rank, one.size) == (1, 384) for ranks in test(products) for one in ranks) >= 98
        assert sum(one.balance_rank == 1 for ranks in test(products) for one in ranks) >= (0 if test is other else 98)


def test_displacement_that_points_backwards_takes_nothing_from_balance():
    """Late in a run: balance holds exactly, and displacement says the opposite sign. Balance cannot tell g from -g: 192 values of 384 elements."""
    rng = np.random.default_rng(2)
    signal = rng.standard_normal((20, 4, 4))
    products = anything(20, 4, rng)._replace(displacement=np.tile(-np.eye(4), (20, 1, 1)), left=signal, right=signal)
    for (one,) in whole(products):
        assert one.rank > 1
        assert (one.balance_rank, one.balance_size) == (1, 192)
    for (one,) in zero(products):
        assert (one.balance_rank, one.balance_size) == (1, 384)


@pytest.mark.parametrize("rank", [4, 8])
def test_signs_are_told_where_latent_dimensions_look_alike_and_balance_lags(rank):
    """Early in a run: gradients of few directions, so that D is as large beside its diagonal, and L and R are opposite."""
    rng = np.random.default_rng(4)
    noise = anything(40, rank, rng)
    d = np.abs(noise.displacement) + 0.5
    products = noise._replace(displacement=d * np.sign(rng.standard_normal(d.shape)) * (1 - np.eye(rank)) + d * np.eye(rank), right=-noise.left)
    found = [one for ranks in whole(products) for one in ranks]
    assert {(one.sign_rank, one.sign_size) for one in found} == {(1, 16)}
    assert np.median([one.rank for one in found]) > 1


def test_ranks_among_the_signs_are_those_of_every_choice_of_signs():
    products = anything(30, 4, np.random.default_rng(5))
    choices = np.array(list(itertools.product((1, -1), repeat=4)))
    for (one,), d in zip(whole(products), products.displacement):
        along = choices @ np.diag(d)
        assert (one.sign_rank, one.sign_size) == ((along >= np.trace(d) - 1e-9).sum(), 16)


def test_starts_in_a_fixed_order_are_asked_by_signs_too():
    products = anything(10, 4, np.random.default_rng(6))
    for (one,), d in zip(whole(products, signs_only=True), products.displacement):
        assert one.size == one.sign_size == 16
        assert (one.sign_rank == 1) == (np.diag(d) > 0).all()


def test_where_one_of_the_two_says_nothing_the_other_is_asked_alone():
    products = anything(3, 4, np.random.default_rng(3))
    nothing = np.zeros((3, 4, 4))
    for (one,) in whole(products._replace(displacement=nothing)):
        assert (one.size, one.balance_size) == (192, 0)
    for (one,) in whole(products._replace(left=nothing)):
        assert (one.size, one.balance_size) == (384, 0)
    for (one,) in other(products):
        assert (one.size, one.balance_size) == (384, 0)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e150])
def test_units_do_not_matter(scale):
    products = anything(10, 4, np.random.default_rng(5))
    scaled = Products(*(part * scale for part in products[:7]))
    assert whole(scaled) == whole(products)


def slow_statistic(products: Products, group: np.ndarray, kind: str) -> np.ndarray:
    """Return the statistic of one module for every g, each written out."""
    columns: list[list[float]] = [[], [], []]
    for g in group:
        d, left, right, *drifts = (part[0] for part in turn(products, g, kind)[:7])
        columns[0].append(0.0 if kind == "other" else float(np.trace(d)))
        spans = np.array([one if one.ndim == 2 else np.diag(one) for one in drifts]).reshape(4, -1).T
        sides = np.array([left.ravel(), right.ravel()]).T
        for column, span in zip(columns[1:], (spans[:, :0], spans)):
            l, r = (sides - span @ np.linalg.lstsq(span, sides, rcond=None)[0]).T  # noqa: E741
            column.append(-np.log(np.linalg.norm(l - r) / (np.linalg.norm(l) + np.linalg.norm(r))))
    kept = np.array(columns if len(products.left[0]) > 2 else columns[:2])
    return ((kept - kept.mean(axis=1, keepdims=True)) / (kept.std(axis=1, keepdims=True) + 1e-300)).sum(axis=0)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("kind", TESTS)
def test_the_statistic_is_displacement_and_balance_without_and_with_the_drift(kind, rank):
    """Written out for each g, with least squares in place of inner products."""
    group = signed_permutations(rank)
    identity = int(np.argmax((group == np.eye(rank)).all(axis=(1, 2))))
    for seed in range(10):
        products = anything(1, rank, np.random.default_rng(seed))
        values = slow_statistic(products, group, kind)
        ((found,),) = TESTS[kind](products)
        close = np.abs(values - values[identity]) < 1e-3  # the floors move a value by less
        assert (values > values[identity]).sum() - close.sum() < found.rank <= (values >= values[identity]).sum() + close.sum()


@pytest.mark.parametrize("kind", ["whole", "zero", "other"])
def test_over_all_orders_of_four_neurons_every_rank_is_taken_once_beside_decay(kind):
    """A neuron's own decay stays with the weights where the moments are put in another order, or change their signs."""
    rng = np.random.default_rng(5)
    size = 8 if kind == "other" else 4
    products = anything(1, size, rng, decay=True)
    group = signed_permutations(8, signs_only=True) if kind == "other" else np.eye(4)[np.array(list(itertools.permutations(range(4))))]
    found = [one.rank for (one,) in balanced(turn(repeated(products, len(group)), group, kind), kind)]
    assert sorted(found) == list(range(1, len(group) + 1))


def test_over_all_signs_of_one_factors_moments_the_rank_of_how_nearly_the_sides_lie_along_one_line_is_taken_once_by_each_pair():
    """g and -g have one value: of 16 signs of four dimensions eight."""
    group = signed_permutations(4, signs_only=True)
    found = [one for (one,) in other(turn(repeated(anything(1, 4, np.random.default_rng(5)), len(group)), group, "other"))]
    assert {one.sign_size for one in found} == {8}
    assert sorted(one.sign_rank for one in found) == sorted([*range(1, 9)] * 2)


def test_the_other_factors_signs_show_where_the_last_batch_went_against_those_before_it():
    """All gradients have one direction, and its sign changes: L and R are one matrix, times numbers of two signs, and balance has them last."""
    rng = np.random.default_rng(2)
    signs, along = rng.choice([-1.0, 1.0], (20, 4, 1)), rng.standard_normal((20, 1, 4))
    products = anything(20, 4, rng)._replace(left=signs * along, right=-0.1 * signs * along)
    found = [one for (one,) in other(products)]
    assert all(one.sign_rank == 1 and one.sign_size == 8 for one in found)
    assert np.mean([one.rank / one.size for one in found]) > 0.5
