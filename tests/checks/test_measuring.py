"""The quick ways of the pass over the numbers say what the plain formulas say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ostate.checks import measuring
from ostate.checks.numbers import UNDERFLOW, bound
from ostate.core.stream import Meter

LIMIT = bound({"betas": (0.9, 0.999)})
ODD = st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1e-38, 1e-19, 1e-18, 2e-18, 1e19, 3e38, -1.0])
FLOATS = st.one_of(ODD, st.floats(width=32))


def plainly(m, v, limit):
    """Return what `_unbounded` counts, without its short cut."""
    with np.errstate(all="ignore"):
        return int(np.count_nonzero(np.abs(m) > np.sqrt(np.maximum(v, 0)) * (limit * 1.01) + UNDERFLOW))


def highest(v):
    finite = v[np.isfinite(v)]
    return float(finite.max()) if finite.size else -np.inf


@settings(deadline=None)
@given(arrays.arrays(np.float32, (2, 6), elements=FLOATS), st.sampled_from([LIMIT, 1e-3, 1.0, 1e12, 1e25]))
def test_elements_out_of_bounds_are_counted_as_by_roots(both, limit):
    m, v = both
    assert measuring._unbounded(m, v, limit, highest(v)) == plainly(m, v, limit)


@settings(deadline=None)
@given(arrays.arrays(np.float32, 8, elements=st.floats(0, 2.0**120, width=32)), st.integers(-3, 3))
def test_at_the_very_edge_of_the_bound_too(v, ulps):
    with np.errstate(all="ignore"):
        m = np.sqrt(v) * (LIMIT * 1.01) + UNDERFLOW
    for _ in range(abs(ulps)):
        m = np.nextafter(m, np.float32(np.inf if ulps > 0 else 0))
    assert measuring._unbounded(m, v, LIMIT, highest(v)) == plainly(m, v, LIMIT)


def test_the_short_cut_is_taken_where_all_is_well_and_not_where_one_is_not():
    v = np.full(1000, 1e-9, np.float32)
    m = np.sqrt(v) * np.float32(LIMIT)
    assert not measuring._may_exceed(m, v, LIMIT, highest(v))
    m[500] *= 1.02
    assert measuring._may_exceed(m, v, LIMIT, highest(v))


@settings(deadline=None)
@given(arrays.arrays(np.float32, st.integers(0, 9), elements=FLOATS), st.sampled_from([0.0, 1e-16, 1.0]), st.integers(1, 9))
def test_a_meter_counts_what_numpy_counts_however_it_is_cut(values, tiny, step):
    meter = Meter(exact=True, tiny=tiny)
    for at in range(0, values.size, step):
        piece = values[at : at + step]
        finite = piece[np.isfinite(piece)]
        assert meter.add(piece) == ((float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf))
    seen, finite = meter.summary(), values[np.isfinite(values)]
    assert (seen.zeros, seen.negative) == (np.count_nonzero(finite == 0), np.count_nonzero(finite < 0))
    assert seen.tiny == np.count_nonzero((finite > 0) & (finite < tiny))
    assert (seen.nan, seen.inf) == (np.count_nonzero(np.isnan(values)), np.count_nonzero(np.isinf(values)))


@pytest.mark.parametrize(("m", "v", "lost"), [(1.0, 0.0, 1), (0.0, 0.0, 0), (np.nan, 0.0, 0), (1.0, -0.0, 1), (1.0, np.nan, 0), (1.0, 1e-45, 0)])
def test_a_first_moment_without_a_second_is_counted(m, v, lost):
    assert measuring._unpaired(np.float32([m, 1.0]), np.float32([v, 1.0])) == lost
