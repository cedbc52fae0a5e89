"""Wide factors are compared by a few projections of their rows first: what that proves is right, what it leaves open is asked again of more."""

from __future__ import annotations

import numpy as np
import pytest

from ostate import read as formats
from ostate.evidence import ask as evidence
from ostate.evidence import recover, statistics
from ostate.evidence.tables import tables
from ostate.read import adapters
from tests.records import replace
from tests.test_costs import checkpoint


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = checkpoint(tmp_path_factory.mktemp("wide"), layers=16, rank=64, wide=256)
    raw, adapter = formats.read(str(folder / "optimizer.pt")), adapters.read_adapter(str(folder))
    return raw, adapter, [str(entry.name).replace(".default", "") for entry in raw.entries]


def shuffled(raw, keys):
    order = np.random.default_rng(0).permutation(len(keys))
    entries = tuple(replace(raw.entries[old], position=new) for new, old in enumerate(order))
    return replace(raw, entries=entries), [keys[old] for old in order]


def test_projections_keep_what_balance_says():
    numbers = np.random.default_rng(0)
    projection = statistics.random_projection(64, 1, sketch_rows=8)
    Z, m_other = numbers.standard_normal((2, 64, 500)).astype(np.float32)
    G = numbers.standard_normal((500, 3)) @ numbers.standard_normal((3, 500))
    F = numbers.standard_normal((64, 500)).astype(np.float32)
    m_zero, m_other = (F @ G.T).astype(np.float32), (Z @ G).astype(np.float32)
    assert np.allclose(Z @ m_zero.T, m_other @ F.T, rtol=1e-3, atol=1)
    left = projection.first @ Z @ (projection.second @ m_zero).T
    right = projection.first @ m_other @ (projection.second @ F).T
    assert left.shape == (8, 8)
    assert np.abs(left - right).max() < 1e-4 * np.abs(left).max()


def test_a_diagonal_is_mixed_as_a_matrix():
    projection, sums = statistics.random_projection(64, 1, sketch_rows=8), np.arange(64, dtype=np.float32)
    assert np.allclose(projection.diagonal(sums), projection.first @ np.diag(sums) @ projection.second.T, atol=1e-3)


def test_narrow_factors_and_experts_stay_whole():
    assert statistics.random_projection(15, 1, sketch_rows=8).first is None
    assert statistics.random_projection(64, 4, sketch_rows=8).first is None
    assert statistics.random_projection(64, 1, sketch_rows=0).first is None
    assert statistics.random_projection(16, 1, sketch_rows=16).first is None


def test_the_widest_factor_says_what_is_tried():
    assert statistics.sketch_rows_to_try(8) == (0,)
    assert statistics.sketch_rows_to_try(16) == (8, 0)
    assert statistics.sketch_rows_to_try(64) == (8, 16)


def test_the_order_of_a_wide_adapter_is_proven_and_found(wide):
    raw, adapter, keys = wide
    assert tables.widths(adapter) == (8, 16)
    found = evidence.verify(keys, raw, adapter)
    assert found.verdict == "verified"
    assert not found.contradictions
    raw, keys = shuffled(raw, keys)
    found = recover.recover(raw, adapter)
    assert found.proven
    assert all(found.order[position] == keys[position] for position in found.proven)


def test_two_swapped_names_of_a_wide_adapter_are_contradicted(wide):
    raw, adapter, keys = wide
    swapped = list(keys)
    swapped[1], swapped[3] = swapped[3], swapped[1]
    found = evidence.verify(swapped, raw, adapter)
    assert found.verdict == "contradicted"
    assert {position for position, _, _ in found.contradictions} == {1, 3}


def test_what_few_projected_rows_leave_open_is_asked_of_more(wide, monkeypatch):
    raw, adapter, keys = wide
    asked = []
    gather = evidence.gather

    def noted(*arguments, sketch_rows, **more):
        asked.append(sketch_rows)
        return gather(*arguments, sketch_rows=sketch_rows, **more)

    monkeypatch.setattr(evidence, "gather", noted)
    monkeypatch.setattr(evidence, "is_decided", lambda *_: False)
    assert evidence.verify(keys, raw, adapter).verdict == "verified"
    assert asked == [8, 16]
