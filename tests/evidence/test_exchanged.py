"""Two factors of one square pair that changed places: the claim's rank among all signs of the pair, against each sign written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ostate.core.naming import Adapter
from ostate.core.state import Entry, Group, RawState
from ostate.evidence.exchanged import exchanged
from ostate.evidence.look import Source
from ostate.evidence.units import Unit
from tests.records import ArraySlot, replace

UNIT = Unit("0.", "0.B", "0.A", False, 1)
OWNERS = [(True, True), (True, False), (False, True)]


def numbers(size: int, seed: int = 0) -> list[np.ndarray]:
    """B, A, and the first moments that stand beside them."""
    return list(np.random.default_rng(seed).standard_normal((4, size, size)).astype(np.float32))


def source_of(parts: list[np.ndarray], optimizer: str = "adam", *, second: bool = True) -> Source:
    b, a, beside_b, beside_a = parts
    slots = [{"exp_avg": ArraySlot(m)} | ({"exp_avg_sq": ArraySlot(np.ones_like(m))} if second else {}) for m in (beside_b, beside_a)]
    entries = tuple(Entry(at, at, 0, each, 1000.0, shape=b.shape) for at, each in enumerate(slots))
    raw = RawState("", "torch", (), (Group(0, (0, 1), {"betas": (0.9, 0.999), "eps": 1e-8}),), entries, optimizer)
    return Source(raw, Adapter(path="", file="", kind="peft", tensors={"0.B": ArraySlot(b), "0.A": ArraySlot(a)}))


def turned(parts: list[np.ndarray], signs: tuple[float, ...], own: tuple[bool, bool]) -> list[np.ndarray]:
    """The same run begun in another gauge: B has the latent dimensions as columns, A as rows, and moments lie as what they are of."""
    b, a, beside_b, beside_a = parts
    s = np.array(signs, np.float32)
    return [b * s, a * s[:, None], beside_b * s[:, None] if own[0] else beside_b, beside_a * s if own[1] else beside_a]


def written_out(parts: list[np.ndarray], own: tuple[bool, bool], *, balanced: bool = True, displaced: bool = True) -> int:
    """The claim's rank, from the tensors themselves in each gauge."""
    rows = []
    for signs in itertools.product((1.0, -1.0), repeat=len(parts[0]) - 1):
        b, a, beside_b, beside_a = (part.astype(np.float64) for part in turned(parts, (1.0, *signs), own))
        left, right = np.diag(b.T @ beside_b), np.diag(beside_a @ a.T)
        rows.append((np.linalg.norm(left - right) / (np.linalg.norm(left) + np.linalg.norm(right)), (b * beside_b).sum()))
    told = [column for column, asked in zip(np.array(rows).T, (balanced, displaced)) if asked]
    total = sum(-(column - column.mean()) / column.std() for column in told)
    return int((total >= total[0] - 1e-9).sum())


@pytest.mark.parametrize("own", OWNERS)
@pytest.mark.parametrize("size", [3, 5])
def test_the_rank_is_that_of_the_claim_among_all_gauges_of_the_exchange(own, size):
    for seed in range(6):
        parts = numbers(size, seed)
        (found,) = exchanged(source_of(parts), UNIT, 0, 1, own)
        assert (found.rank, found.size) == (written_out(parts, own), 2 ** (size - 1))


@pytest.mark.parametrize(("balanced", "displaced"), [(True, False), (False, True)])
def test_what_does_not_hold_is_not_asked(balanced, displaced):
    unit = replace(UNIT, balanced=balanced, displaced=(displaced, False))
    for seed in range(4):
        parts = numbers(5, seed)
        (found,) = exchanged(source_of(parts), unit, 0, 1)
        assert found.rank == written_out(parts, (True, True), balanced=balanced, displaced=displaced)


@pytest.mark.parametrize("own", OWNERS)
def test_over_all_gauges_every_rank_is_taken_once(own):
    parts = numbers(5)
    every = [turned(parts, (1.0, *signs), own) for signs in itertools.product((1.0, -1.0), repeat=4)]
    assert sorted(exchanged(source_of(each), UNIT, 0, 1, own)[0].rank for each in every) == list(range(1, 17))


def test_of_many_dimensions_some_gauges_are_drawn():
    """512 of ten dimensions are all there are; of more, 1,023 and the claim itself. Sixteen dimensions are compared, all are turned."""
    assert [exchanged(source_of(numbers(size)), UNIT, 0, 1)[0].size for size in (10, 11, 20)] == [512, 1024, 1024]
    parts = numbers(20)
    changed = [part.copy() for part in parts]
    changed[0][:, 16:] *= 3.0  # columns of B that are not compared
    changed[1][16:] *= 3.0
    assert exchanged(source_of(parts), UNIT, 0, 1) == exchanged(source_of(changed), UNIT, 0, 1)
    changed[0][:, 15] *= -9.0
    assert exchanged(source_of(parts), UNIT, 0, 1) != exchanged(source_of(changed), UNIT, 0, 1)


def test_a_pair_that_stands_where_it_belongs_is_first_of_all():
    """Moments of a product: balance holds, and B lies along its updates."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((5, 5)).astype(np.float32)
    error = rng.standard_normal((5, 5)).astype(np.float32)
    b = (-error @ a.T).astype(np.float32)
    (found,) = exchanged(source_of([b, a, error @ a.T, b.T @ error]), UNIT, 0, 1)
    assert found.rank == 1


def test_where_a_second_moment_is_kept_directions_are_divided_by_its_root():
    parts = numbers(5, 8)
    plain, divided = source_of(parts, second=False), source_of(parts)
    large = {"exp_avg": ArraySlot(parts[2]), "exp_avg_sq": ArraySlot(np.diag([1e8, 1.0, 1.0, 1.0, 1.0]).astype(np.float32) + 1)}
    entries = (divided.raw.entries[0]._replace(slots=large), divided.raw.entries[1])
    only = replace(UNIT, balanced=False)
    ranks = [exchanged(one, only, 0, 1)[0].rank for one in (plain, divided, Source(divided.raw._replace(entries=entries), divided.adapter))]
    assert ranks[0] == ranks[1] == written_out(parts, (True, True), balanced=False)
    changed = [part.copy() for part in parts]
    changed[2][0, 0] = 0.0  # what is divided by 1e4 hardly counts
    assert ranks[2] == written_out(
        [*changed[:2], (changed[2] / np.sqrt(large["exp_avg_sq"].values)).astype(np.float32), changed[3]], (True, True), balanced=False
    )


@pytest.mark.parametrize(
    "case",
    ["not square", "no moments", "steps averaged", "several blocks", "neurons", "nothing holds", "not finite", "another size"],
)
def test_nothing_is_said_where_the_statistic_is_not_defined(case):
    parts, unit, optimizer = numbers(4), UNIT, "adam"
    if case == "not square":
        parts[1] = parts[1][:, :3]
    unit = replace(unit, blocks=2) if case == "several blocks" else unit
    unit = replace(unit, group="neurons") if case == "neurons" else unit
    unit = replace(unit, balanced=False, displaced=(False, False)) if case == "nothing holds" else unit
    if case == "not finite":
        parts[3][1, 1] = np.nan
    source = source_of(parts, "adopt" if case == "steps averaged" else optimizer)
    entries = list(source.raw.entries)
    if case == "no moments":
        entries[1] = entries[1]._replace(slots={"exp_avg_sq": entries[1].slots["exp_avg_sq"]})
    if case == "another size":
        entries[1] = entries[1]._replace(slots={"exp_avg": ArraySlot(np.ones((3, 3), np.float32))}, shape=(3, 3))
    assert exchanged(Source(source.raw._replace(entries=tuple(entries)), source.adapter), unit, 0, 1) == ()


def test_tensors_longer_than_a_strip_and_stored_flat_say_the_same(monkeypatch):
    parts = numbers(6, 5)
    source = source_of(parts)
    whole = exchanged(source, UNIT, 0, 1)
    monkeypatch.setattr(Source, "strip", property(lambda self: 13))  # two rows at a time
    assert exchanged(source, UNIT, 0, 1) == whole
    flat = tuple(
        entry._replace(slots={name: ArraySlot(slot.values.reshape(-1)) for name, slot in entry.slots.items()}) for entry in source.raw.entries
    )
    assert exchanged(Source(source.raw._replace(entries=flat), source.adapter), UNIT, 0, 1) == whole
