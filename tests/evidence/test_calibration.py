"""P values are uniform where they should be. A tenth of what `make calibrate` draws."""

from __future__ import annotations

import pytest

from tests.calibrate import KINDS, RANKS, held_back, uniformity


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_another_run_give_uniform_p_values(kind, rank):
    assert min(uniformity(kind, rank, draws=1000, steps=3, shared=0.0)) > 1e-3


@pytest.mark.parametrize("rank", [2, 4, 8])
@pytest.mark.parametrize("steps", [2, 10])
def test_moments_of_another_module_of_one_run_give_uniform_p_values(rank, steps):
    """All modules share most of their data and targets: only their starts tell them apart."""
    assert min(uniformity("whole", rank, draws=1000, steps=steps, shared=0.9)) > 1e-3


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_p_values_are_never_smaller_than_chance_allows(rank):
    """Where two statistics of one sign each tie, the larger rank is taken: fewer small p values, never more."""
    assert held_back("zero", rank, draws=1000, steps=2, shared=0.9) < 1.2
