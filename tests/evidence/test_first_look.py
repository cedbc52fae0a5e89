"""The first look at wide factors tells displacement by some of their rows, and everything else by all of them; the second look by all rows."""

from __future__ import annotations

import numpy as np
import pytest

from ostate import read as formats
from ostate.core.lora_modules import LoraModule
from ostate.evidence import ask as evidence
from ostate.evidence import recover, statistics
from ostate.evidence.statistics import median, quantile
from ostate.evidence.tables import factor_tables
from ostate.evidence.tables.factor_tables import Precomputed, factor_table
from ostate.evidence.tables.read_moments import MomentReader
from ostate.read import adapters
from tests.evidence.numbers import Known, Toy, trained
from tests.test_costs import checkpoint

MODULE = LoraModule("0", "0.lora_B.weight", "0.lora_A.weight", False, 1)
ROWS, RANK, STEPS = 48, 32, 6


@pytest.fixture(scope="module")
def toy():
    return trained(Toy(layers=4, width=ROWS, rank=RANK, steps=STEPS), earlier=3)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def zero_side(toy, sketch_rows, *, moved=False):
    known, before = toy
    keys = [key for key in known.adapter.tensors if "lora_B" in key]
    positions = tuple(position for position, key in enumerate(known.keys) if "lora_B" in str(key))
    reader = MomentReader(known.raw, known.adapter, sketch_rows)
    precomputed = Precomputed({position: known.keys[position] for position in positions}, True, {})
    return factor_table(
        reader, MomentReader(known.raw, before, sketch_rows) if moved else None, keys, positions, MODULE, precomputed
    ), precomputed.found


def numbers(toy, *, moved):
    known, before = toy
    keys = [key for key in known.adapter.tensors if "lora_B" in key]
    weights = [known.adapter.tensors[key].read() - (before.tensors[key].read() if moved else 0) for key in keys]
    entries = [known.raw.entries[position] for position, key in enumerate(known.keys) if "lora_B" in str(key)]
    m, v = ([entry.slots[slot].read().astype(np.float64) for entry in entries] for slot in ("exp_avg", "exp_avg_sq"))
    return weights, [a / (1 - 0.9**STEPS) / (np.sqrt(b / (1 - 0.999**STEPS)) + 1e-8) for a, b in zip(m, v)]


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("strip", "last"), [(16, 6), (7, 2)], ids=["even strips", "the last one shorter"])
def test_the_first_rows_of_each_strip_tell_displacement_and_all_rows_the_rest(toy, moved, strip, last, monkeypatch):
    whole, features = zero_side(toy, 8, moved=moved)
    assert whole.numel == ROWS * RANK
    monkeypatch.setattr(factor_tables, "DISPLACEMENT_NUMBERS", ROWS * RANK // 3)
    monkeypatch.setattr(factor_tables, "PIECE", strip * RANK)
    some, same = zero_side(toy, 8, moved=moved)
    final = (ROWS - 1) // strip
    told = [row for row in range(ROWS) if row % strip < (last if row // strip == final else -(-strip // 3))]  # a third, rounded up
    assert some.numel == len(told) * RANK
    for name in ("products", "drift"):
        assert np.allclose(getattr(some, name) / some.unit, getattr(whole, name) / whole.unit, rtol=1e-3, atol=1e-6)
    assert features.keys() == same.keys()
    assert all(np.allclose(features[pair], same[pair], rtol=1e-3, atol=1e-6) for pair in features)
    weights, directions = numbers(toy, moved=moved)
    for row, weight in enumerate(weights):
        for column, u in enumerate(directions):
            size = np.linalg.norm(weight[told]) * np.linalg.norm(u[told])
            assert some.cosine[row, column] == pytest.approx(-(weight[told] * u[told]).sum() / size, abs=1e-4)
    assert not np.allclose(some.cosine, whole.cosine, atol=1e-4)


def test_the_second_look_asks_all_rows(toy, monkeypatch):
    monkeypatch.setattr(factor_tables, "DISPLACEMENT_NUMBERS", 64)
    first, second = (zero_side(toy, sketch_rows)[0] for sketch_rows in statistics.SKETCH_ROWS)
    assert first.numel < second.numel == ROWS * RANK
    monkeypatch.undo()
    assert np.allclose(second.cosine, zero_side(toy, 16)[0].cosine, atol=1e-5)


def test_factors_that_stay_whole_tell_displacement_by_all_rows(toy, monkeypatch):
    monkeypatch.setattr(factor_tables, "DISPLACEMENT_NUMBERS", 64)
    assert zero_side(toy, 0)[0].numel == ROWS * RANK


def test_what_some_rows_tell_is_right(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "wide", layers=8, rank=32, wide=256)
    raw, adapter = formats.read(str(folder / "optimizer.pt")), adapters.read_adapter(str(folder))
    known = Known(raw, adapter, tuple(str(entry.name).replace(".default", "") for entry in raw.entries))
    monkeypatch.setattr(factor_tables, "DISPLACEMENT_NUMBERS", 512)
    monkeypatch.setattr(statistics, "SKETCH_ROWS", (8, 8))  # and no second look
    assert evidence.verify(known.keys, raw, adapter).proven == set(known.with_state)
    found = evidence.verify(known.swapped(1, 5), raw, adapter)
    assert {position for position, _, _ in found.contradictions} == {1, 5}
    mixed = known.shuffled(3)
    found = recover.recover(mixed.raw, mixed.adapter)
    assert len(found.proven) > 12
    assert all(found.order[position] == mixed.keys[position] for position in found.proven)


def residual(left, right, *drifts):
    """Of one pair, by least squares."""
    basis = np.linalg.qr(np.concatenate([drift / np.linalg.norm(drift, axis=-1, keepdims=True) for drift in drifts]).T)[0]
    one, two, apart = (part - basis @ (basis.T @ part) for part in (left, right, left - right))
    return np.linalg.norm(apart) / (np.linalg.norm(one) + np.linalg.norm(two))


K, P = 5, 7
LAYOUTS = {  # how callers broadcast: left, right, and the drifts of both
    "zero factors held": ((K, 1), (K, P), (K, 1), (1, P)),
    "other factors held": ((K, P), (K, 1), (1, P), (K, 1)),
    "whole modules": ((K, P), (K, P), (1, P), (1, P)),
    "a list of pairs": ((K,), (K,), (K,), (K,)),
    "one of each": ((1, 1), (1, 1), (1, 1), (1, 1)),
    "nowhere to go": ((K, 1), (K, 0), (K, 1), (1, 0)),
    "nowhere to come from": ((K, 0), (K, 1), (1, 0), (K, 1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_balance_is_what_the_drifts_leave_however_the_tables_are_laid_out(layout, rng):
    one, two, first, second = LAYOUTS[layout]
    left, right = rng.standard_normal((*one, 16)), rng.standard_normal((*two, 16))
    drifts = rng.standard_normal((*first, 2, 16)), rng.standard_normal((*second, 2, 16))
    found = statistics.balance(left, right, *drifts)
    assert found.shape == np.broadcast_shapes(one, two)
    for at in np.ndindex(found.shape):
        parts = [np.broadcast_to(part, (*found.shape, 16))[at] for part in (left, right)]
        spans = [np.broadcast_to(drift, (*found.shape, 2, 16))[at] for drift in drifts]
        assert found[at] == pytest.approx(-np.log(residual(*parts, *spans)), rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 40, 101])
def test_quantiles_and_medians_are_those_of_numpy(size, rng):
    values = rng.standard_normal(size)
    for share in (0.5, 0.95, 0.99):
        assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-12)
    assert median(values) == float(np.median(values))
    values[size // 2] = np.nan
    assert np.isnan(quantile(values, 0.5))
    assert np.isnan(median(values))
