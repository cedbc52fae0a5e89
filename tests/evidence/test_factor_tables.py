"""What the tests compare is added up strip by strip: the sums are those of the whole tensors, however they are cut."""

from __future__ import annotations

import numpy as np
import pytest

from ostate.core.lora_modules import LoraModule, canonical
from ostate.core.tensors import Part, TensorRef
from ostate.evidence.tables import factor_tables
from ostate.evidence.tables.factor_tables import Precomputed, factor_table
from ostate.evidence.tables.read_moments import MomentReader
from ostate.evidence.tables.stream_rows import Rows
from tests.evidence.numbers import Toy, trained
from tests.records import ArraySlot, replace

MODULE = LoraModule("0", "0.lora_B.weight", "0.lora_A.weight", False, 1)
TURNED = replace(MODULE, flipped=True)


@pytest.fixture(scope="module")
def toy():
    import torch

    group = {"weight_decay": 0.1}
    return trained(Toy(layers=4, width=40, rank=5, steps=8, optimizer=torch.optim.Adam), (group, group), earlier=4)


def turned(adapter):
    return replace(adapter, tensors={key: ArraySlot(np.ascontiguousarray(held.values.T)) for key, held in adapter.tensors.items()})


def turned_state(raw):
    entries = tuple(
        replace(e, slots={n: ArraySlot(np.ascontiguousarray(s.read().T)) for n, s in e.slots.items()}, shape=(e.shape or ())[::-1])
        for e in raw.entries
    )
    return replace(raw, entries=entries)


def asked(toy, *, zero, embedding, moved):
    """All factors of one kind against all their positions, and the same numbers as whole matrices (w, n)."""
    known, before = toy
    raw, adapter = (turned_state(known.raw), turned(known.adapter)) if embedding else (known.raw, known.adapter)
    module = TURNED if embedding else MODULE
    word = "lora_B" if zero else "lora_A"
    keys = [key for key in adapter.tensors if word in key]
    positions = tuple(position for position, key in enumerate(known.keys) if word in str(key))
    reader = MomentReader(raw, adapter)
    earlier = MomentReader(raw, turned(before) if embedding else before) if moved else None
    precomputed = Precomputed({position: known.keys[position] for position in positions}, True, {})
    found = factor_table(reader, earlier, keys, positions, module, precomputed)

    def matrix(values):
        return canonical(values.astype(np.float64), zero=zero, flipped=module.flipped)

    weights = [matrix(adapter.tensors[key].read()) for key in keys]
    starts = [matrix(earlier.adapter.tensors[key].read()) if earlier else 0.0 for key in keys]
    m, v = ([matrix(raw.entries[position].slots[slot].read()) for position in positions] for slot in ("exp_avg", "exp_avg_sq"))
    first, second = 1 - 0.9**8, 1 - 0.999**8
    u = [a / first / (np.sqrt(b / second) + 1e-8) for a, b in zip(m, v)]
    return found, precomputed.found, weights, [w - s for w, s in zip(weights, starts)], m, v, u


CASES = [(zero, embedding, moved) for zero in (True, False) for embedding in (True, False) for moved in (True, False)]


@pytest.mark.parametrize(("zero", "embedding", "moved"), CASES)
@pytest.mark.parametrize("strip", [1, 6000, 1 << 25], ids=["a row at a time", "some rows", "whole"])
def test_the_sums_are_those_of_whole_tensors(toy, zero, embedding, moved, strip, monkeypatch):
    monkeypatch.setattr(factor_tables, "STRIP", strip)
    monkeypatch.setattr(factor_tables, "BATCH", 3)
    found, features, weights, displaced, m, v, u = asked(toy, zero=zero, embedding=embedding, moved=moved)
    decay = 0.1 * (1 - 0.9**8)
    for row, (weight, moves) in enumerate(zip(weights, displaced)):
        for column in range(len(m)):
            product = weight @ m[column].T if zero else m[column] @ weight.T
            assert np.allclose(found.products[row, column], found.unit * (product - decay * weight @ weight.T).reshape(-1), rtol=1e-3, atol=1e-4)
            if zero or moved:
                size = np.linalg.norm(moves) * np.linalg.norm(u[column])
                assert found.cosine[row, column] == pytest.approx(-(moves * u[column]).sum() / size, abs=1e-4)
                assert found.spread[row, column] == pytest.approx(np.linalg.norm(moves @ u[column].T) / 5**0.5 / size, rel=1e-3)
    for column, (first, second, step) in enumerate(zip(m, v, u)):
        along = step @ first.T if zero else first @ step.T
        assert np.allclose(found.drift[column, 0], found.unit * along.reshape(-1), rtol=1e-3, atol=1e-3)
        assert np.allclose(found.drift[column, 1], found.unit * np.diag(np.sqrt(second).sum(axis=1)).reshape(-1), rtol=1e-3)
    assert bool(features) == (zero and not moved)
    for index, ((_, _), value) in enumerate(features.items()):
        Z, root = weights[index], np.sqrt(v[index])
        size = np.sqrt((Z * Z).mean())
        exact = [f @ h.T for f in (Z, u[index] * size) for h in (m[index], root * Z / size, root * u[index] ** 3)]
        assert np.allclose(value, np.reshape(exact, (6, -1)), rtol=2e-3, atol=1e-6)


def test_wide_factors_are_thinned_alike_however_they_are_cut(monkeypatch):
    known, before = trained(Toy(layers=4, width=48, rank=20, steps=6), earlier=3)
    reader = MomentReader(known.raw, known.adapter, 8)
    for word, zero in (("lora_A", False), ("lora_B", True)):
        keys = [key for key in known.adapter.tensors if word in key]
        positions = tuple(position for position, key in enumerate(known.keys) if word in str(key))
        tables = []
        for strip, piece in ((1, 48 * 3), (1 << 25, 1 << 18)):
            monkeypatch.setattr(factor_tables, "STRIP", strip)
            monkeypatch.setattr(factor_tables, "PIECE", piece)
            for earlier in (None, MomentReader(known.raw, before, 8)):
                tables.append(factor_table(reader, earlier, keys, positions, MODULE, Precomputed({}, True, {})))
        assert tables[0].products.shape == (4, 4, 64)
        assert bool(tables[0].cosine.size) == zero
        for one, two in zip(tables[:2], tables[2:]):
            for name in ("cosine", "spread"):
                assert np.allclose(getattr(one, name), getattr(two, name), rtol=1e-3, atol=1e-5)
            for name in ("products", "drift"):
                assert np.allclose(getattr(one, name) / one.unit, getattr(two, name) / two.unit, rtol=1e-3, atol=1e-6)


def test_a_number_that_is_not_finite_silences_its_tensor_and_no_other(toy):
    known, _ = toy
    exact = asked(toy, zero=True, embedding=False, moved=False)[0]
    broken = known.raw.entries[5]
    slot = broken.slots["exp_avg"].read().copy()
    slot[-1, -1] = np.inf
    entries = tuple(replace(e, slots={**e.slots, "exp_avg": ArraySlot(slot)}) if e.position == 5 else e for e in known.raw.entries)
    found = asked((replace(known, raw=replace(known.raw, entries=entries)), None), zero=True, embedding=False, moved=False)[0]
    at = found.positions.index(5)
    assert not found.products[:, at].any()
    assert not found.drift[at].any()
    assert not found.cosine[:, at].any()
    others = [column for column in range(len(found.positions)) if column != at]
    assert np.allclose(found.products[:, others] / found.unit, exact.products[:, others] / exact.unit, rtol=1e-4, atol=1e-6)


def test_rows_are_the_stored_ones_whatever_the_parts(tmp_path):
    """A tensor in three pieces, as ranks write them, some ending within a row; and one of 16 bits."""
    values = np.random.default_rng(0).standard_normal(60).astype(np.float32)
    (tmp_path / "numbers").write_bytes(values.tobytes())
    cuts = [(0, 7), (7, 40), (40, 60)]
    parts = tuple(Part(str(tmp_path / "numbers"), 4 * a, (b - a,), (1,), (a,)) for a, b in cuts)
    rows = Rows(TensorRef("F32", (10, 6), parts), 6, strip=4)
    assert np.array_equal(np.concatenate([rows.take(4), rows.take(4), rows.take(2)]), values.reshape(10, 6))
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "halves").write_bytes(halves.tobytes())
    whole = TensorRef("BF16", (10, 6), (Part(str(tmp_path / "halves"), 0, (10, 6), (6, 1), (0, 0)),))
    rows = Rows(whole, 6, strip=3)
    rounded = (halves.astype(np.uint32) << 16).view(np.float32).reshape(10, 6)
    assert np.array_equal(np.concatenate([rows.take(3), rows.take(3), rows.take(4)]), rounded)
    assert np.array_equal(Rows(whole, 10, strip=6, turned=True).take(6), rounded.T)


def test_features_of_one_pair_are_those_of_the_whole_side(toy):
    known, _ = toy
    found, features, *_ = asked(toy, zero=True, embedding=False, moved=False)
    (key, position), value = next(iter(features.items()))
    alone = factor_tables.features_of(MomentReader(known.raw, known.adapter), key, position, MODULE, displaced=True)
    assert np.allclose(alone, value, rtol=1e-4)
    assert found.width == 5
