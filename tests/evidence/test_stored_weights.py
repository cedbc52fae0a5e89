"""Weights that the state itself keeps (schedule-free's z, Prodigy's p0) stand in their module's gauge: they prove an order without a first moment."""

from __future__ import annotations

import re

import numpy as np
import prodigyopt
import pytest
import schedulefree
import torch
from scipy.stats import kstest

from ostate.evidence.comparison import Comparison
from ostate.evidence.look import Source
from ostate.evidence.looks import Looks, Place
from ostate.evidence.methods import units_of
from ostate.evidence.stored_weights import stored_weights
from tests import trained
from tests.evidence import runs
from tests.evidence.method_runs import METHODS, train, train_whole
from tests.evidence.numbers import Known
from tests.evidence.test_methods import ask, renamed


def schedule_free(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    optimizer = schedulefree.AdamWScheduleFree(parameters, lr=lr)
    optimizer.train()
    return optimizer


def prodigy(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return prodigyopt.Prodigy(parameters, lr=1.0, d_coef=10.0)


def prodigy_sliced(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return prodigyopt.Prodigy(parameters, lr=1.0, d_coef=10.0, slice_p=11)


OPTIMIZERS = {"schedule-free": schedule_free, "prodigy": prodigy, "prodigy sliced": prodigy_sliced}


@pytest.fixture(scope="module", params=[(name, method) for name in OPTIMIZERS for method in ("lora", "miss")], ids="-".join)
def run(request, tmp_path_factory):
    name, method = request.param
    (folder,) = train(tmp_path_factory.mktemp(name), METHODS[method](), [10], layers=8, optimizer=OPTIMIZERS[name])
    return name, method, runs.known(folder)


def rotated(known: Known, by: int) -> tuple[str | None, ...]:
    return tuple(key and re.sub(r"layers\.(\d+)", lambda found: f"layers.{(int(found[1]) + by) % 8}", key) for key in known.keys)


def test_the_state_keeps_weights_that_are_read(run):
    name, method, known = run
    entry = known.raw.entries[0]
    if name.startswith("prodigy") and method == "miss":  # a parameter that starts at zero is kept as one number
        assert stored_weights(known.raw, entry) is None
        return
    if name == "prodigy sliced":
        stored = stored_weights(known.raw, entry, missing=5.0)
        assert stored is not None
        assert stored.read().reshape(-1)[::11].tolist() == entry.slots["p0"].read().reshape(-1).tolist()
        assert np.delete(stored.read().reshape(-1), slice(None, None, 11)).tolist() == [5.0] * (stored.read().size - entry.slots["p0"].shape[0])
        return
    assert stored_weights(known.raw, entry) is entry.slots["z" if name == "schedule-free" else "p0"]


def test_the_own_order_is_proven_and_no_other(run):
    name, method, known = run
    found = ask(known, known.keys)
    assert (found.verdict, found.open, found.apart) == ("verified", (), ()), (name, method, found)
    for keys in (rotated(known, 1), rotated(known, 7), tuple(reversed(known.keys))):
        assert not {p for p in ask(known, keys).proven if keys[p] != known.keys[p]}


def test_weights_of_another_module_stand_in_any_gauge(run):
    """Every module beside every other's: the first place of 384 gauges comes up as often as chance has it, not more."""
    _, method, known = run
    if method != "lora":
        return
    looks = Looks(Source(known.raw, known.adapter), units_of(known.adapter))
    at = {key: position for position, key in enumerate(known.keys)}
    places = [
        Place(one, at[other.zero], at[other.other])
        for one, unit in enumerate(looks.modules)
        for two, other in enumerate(looks.modules)
        if one != two and looks.shapes(one) == looks.shapes(two)
    ]
    ranks = [ranked[0].rank for ranked in looks.ranked(places, "whole")]
    assert len(ranks) == 240
    assert sum(rank <= 19 for rank in ranks) < 30  # 12 expected
    assert sum(rank <= 192 for rank in ranks) < 150  # 120 expected


@pytest.mark.parametrize("method", ["ia3", "hra"])
def test_what_starts_at_one_number_or_in_equal_pairs_is_asked_of_its_updates_beside_weights_that_say_nothing(method, tmp_path):
    """Prodigy's p0 of these is a constant, or equal in pairs: what moved is told by the moments alone."""
    (folder,) = train(tmp_path, METHODS[method](), [3], layers=8, optimizer=prodigy)
    known = runs.known(folder)
    assert ask(known, known.keys).verdict == "verified"


def test_the_neurons_of_a_whole_model_are_asked_of_the_weights_that_schedule_free_keeps(tmp_path):
    (folder,) = train_whole(tmp_path, lambda: trained.llama(6), [3], optimizer=schedule_free)
    known = runs.known(folder)
    comparison = Comparison(known.raw, known.adapter)
    at = {key: position for position, key in enumerate(known.keys)}
    units = [(number, unit) for number, unit in enumerate(comparison.looks.modules) if unit.group == "neurons"]
    own = comparison.looks.ranked([Place(number, at[unit.zero], at[unit.other]) for number, unit in units], "whole")
    assert {(one.rank, one.size) for ranked in own for one in ranked} == {(1, 24)}
    others = [Place(one, at[two.zero], at[two.other]) for one, unit in units for _, two in units if unit is not two]
    values = [one.rank for ranked in comparison.looks.ranked(others, "whole") for one in ranked]
    assert kstest((np.array(values) - np.random.default_rng(1).random(len(values))) / 24, "uniform").pvalue > 1e-3
    assert not ask(known, renamed(known.keys, {i: 5 - i for i in range(6)})).proven


def test_used_tests_are_named(run):
    _, method, known = run
    comparison = Comparison(known.raw, known.adapter)
    assert comparison.looks.balanced == (method == "lora")
