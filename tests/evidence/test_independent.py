"""Every gauge of a few modules written out: the ranks of those that are kept take every combination of values equally often."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from ostate.evidence.gauge import other, whole, zero
from ostate.evidence.independent import independent
from ostate.evidence.residual import Products
from tests.evidence.turned import signed_permutations

TESTS = {"whole": whole, "zero": zero, "other": other}
N = 7
"""Length of each factor."""

CASES = {  # name -> (what is moved of each module, where its moments come from, which are kept)
    "two exchanged": (("whole", "whole"), ((1,), (0,)), [1]),
    "three in a ring": (("whole",) * 3, ((1,), (2,), (0,)), [1, 2]),
    "the ring the other way": (("whole",) * 3, ((2,), (0,), (1,)), [1, 2]),
    "two rings": (("whole",) * 4, ((1,), (0,), (3,), (2,)), [1, 3]),
    "one held": (("whole", None, "whole"), ((2,), (), (0,)), [2]),
    "another run": (("whole",) * 3, ((None,), (None,), (None,)), [0, 1, 2]),
    "a chain out of the adapter": (("whole",) * 3, ((1,), (2,), (None,)), [0, 1, 2]),
    "two of one origin": (("whole", "whole", None), ((2,), (2,), ()), [0, 1]),
    "zero factors of three in a ring": (("zero",) * 3, ((1,), (2,), (0,)), [1, 2]),
    "zero factors that stand still with others from elsewhere": (("other", "zero", "other"), ((1,), (2,), (None,)), [0, 1, 2]),
    "a zero factor one way, an other factor back": (("zero", "other", None), ((1,), (0,), ()), [1]),
    "two factors of different origin": (("whole", None, None), ((1, 2),), [0]),
    "origins crosswise": (("whole",) * 3, ((1, 2), (2, 0), (None, 1)), [0, 2]),
    "a list reversed in which the factors come from neighbours": (("whole",) * 4, ((2, 3), (2, 3), (0, 1), (0, 1)), [2, 3]),
    "a ring that is met late": (("whole", "whole", "whole"), ((2,), (2,), (1,)), [0, 1]),
}


def runs(rank: int, count: int, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    shapes = {"A": (rank, N), "m_A": (rank, N), "v_A": (rank, N), "B": (N, rank), "m_B": (N, rank), "v_B": (N, rank)}
    return [{key: rng.standard_normal(shape) ** (2 if key[0] == "v" else 1) for key, shape in shapes.items()} for _ in range(count)]


def in_gauge(run: dict[str, np.ndarray], g: np.ndarray) -> dict[str, np.ndarray]:
    plain = np.abs(g)
    return {
        "A": g @ run["A"],
        "m_A": g @ run["m_A"],
        "v_A": plain @ run["v_A"],
        "B": run["B"] @ g.swapaxes(1, 2),
        "m_B": run["m_B"] @ g.swapaxes(1, 2),
        "v_B": run["v_B"] @ plain.swapaxes(1, 2),
    }


def products(weights: dict[str, np.ndarray], of_zero: dict[str, np.ndarray], of_other: dict[str, np.ndarray]) -> Products:
    turned = lambda part: part.swapaxes(1, 2)  # noqa: E731
    u_b, u_a = of_zero["m_B"] / np.sqrt(of_zero["v_B"]), of_other["m_A"] / np.sqrt(of_other["v_A"])
    return Products(
        -turned(weights["B"]) @ u_b,
        turned(weights["B"]) @ of_zero["m_B"],
        of_other["m_A"] @ turned(weights["A"]),
        turned(u_b) @ of_zero["m_B"],
        of_other["m_A"] @ turned(u_a),
        np.sqrt(of_zero["v_B"]).sum(axis=1),
        np.sqrt(of_other["v_A"]).sum(axis=2),
    )


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_kept_modules_are_uniform_together(name, rank):
    moved, origins, kept = CASES[name]
    origins = [*origins, *[()] * (len(moved) - len(origins))]
    count = len(moved)
    rng = np.random.default_rng(len(name) + rank)
    outside = count  # one more module, whose moments stand for what is no module of the adapter
    base, group = runs(rank, count + 1, rng), signed_permutations(rank)
    chosen = np.array(list(itertools.product(range(len(group)), repeat=count)))
    turned = [in_gauge(base[i], group[chosen[:, i]]) for i in range(count)]
    turned.append(in_gauge(base[outside], np.repeat(np.eye(rank)[None], len(chosen), axis=0)))
    assert independent(moved, origins) == kept
    columns = []
    for i in kept:
        source = [outside if one is None else one for one in origins[i]]
        of_zero = turned[i if moved[i] == "other" else source[0]]
        of_other = turned[i if moved[i] == "zero" else source[-1]]
        columns.append([one.rank for (one,) in TESTS[moved[i]](products(turned[i], of_zero, of_other))])
    counts = Counter(zip(*columns))
    values = [sorted(set(column)) for column in columns]
    assert set(counts) == set(itertools.product(*values))
    shares = [{rank: column.count(rank) / len(column) for rank in set(column)} for column in columns]
    for ranks, seen in counts.items():
        assert seen == pytest.approx(len(chosen) * math.prod(share[rank] for share, rank in zip(shares, ranks)))
    for column in columns:  # uniform, or ties counted up
        assert all(sum(one <= value for one in column) * len(group) <= value * len(column) for value in set(column))


def test_what_does_not_go_together_is_refused():
    for moved, origins in ((("whole",), ((0,),)), (("zero",), ((None, None),)), (("other",), ((),))):
        with pytest.raises(ValueError, match="module 0"):
            independent(moved, origins)


def test_a_long_ring_is_no_recursion():
    count = 20_000
    assert independent(["whole"] * count, [((i + 1) % count,) for i in range(count)]) == list(range(1, count))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_has_no_cycle(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 12))
    origins = []
    for i in range(count):
        others = [one for one in range(count) if one != i]
        origins.append(tuple(int(one) for one in rng.choice(others, min(len(others), int(rng.integers(1, 3))), replace=False)))
    kept = set(independent(["whole"] * count, origins))
    edges = {i: set(origins[i]) & kept for i in kept}
    while edges:
        ends = [i for i, follow in edges.items() if not follow & set(edges)]
        assert ends, "a cycle is left"
        for i in ends:
            del edges[i]
