"""The tests of PEFT's other methods are exact: beside another layer's moments each rank is uniform, and no wrong name comes out of small runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.evidence.method_nets import LAWS, networks, uniformity
from tests.evidence.small_runs import NEVER, outcomes_of


@pytest.mark.parametrize("method", LAWS)
def test_ranks_beside_another_layers_moments_are_uniform(method):
    for kind, p in uniformity(method, 60, steps=4, seed=3).items():
        assert p > 1e-4, kind


@pytest.mark.parametrize("method", LAWS)
def test_small_runs_yield_no_wrong_name(method):
    found: Counter[str] = Counter()
    for number, run in enumerate(networks(method, 12, layers=5, steps=3, seed=4)):
        found.update(outcomes_of(run, np.random.default_rng(number)))
    assert not set(found) & {f"{asked}: {what}" for what in NEVER for asked in ("own names", "no names")}, found
    assert not any(what in outcome for what in NEVER for outcome in found), found
