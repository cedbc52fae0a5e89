"""Small healthy runs through the whole of `repair`'s naming: rank 1 to 4, four to eight modules, 1 to 12 steps. `make calibrate` makes 10,000."""

from __future__ import annotations

import pytest

from tests.calibrate import small_runs
from tests.evidence.small_runs import NEVER


@pytest.mark.parametrize("seed", [101, 102])
def test_small_healthy_runs_keep_their_names_and_get_no_wrong_one(seed):
    found = small_runs(25, seed=seed)
    assert sum(found.values()) == 75
    assert not [what for what in found if what.endswith(NEVER)]


@pytest.mark.long
def test_a_thousand_small_healthy_runs_keep_their_names_and_get_no_wrong_one():
    found = small_runs(1000, seed=7)
    assert not [what for what in found if what.endswith(NEVER)]
    assert sum(times for what, times in found.items() if what.endswith(": verified")) > 50
