"""Modules with one start share a gauge, and speak once."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from ostate.evidence.starts import independent_starts, shared_starts
from tests.evidence.test_independent import TESTS, in_gauge, products, runs
from tests.evidence.turned import signed_permutations

CASES = {  # name -> (which start each module has, where its moments come from, which speak)
    "each its own": ((0, 1, 2), ((1,), (2,), (0,)), [1, 2]),
    "two kinds exchanged, one seed a layer": ((0, 1, 0, 1), ((1,), (0,), (3,), (2,)), [1]),
    "layers exchanged, one seed a layer": ((0, 1, 0, 1), ((2,), (3,), (0,), (1,)), []),
    "two of three alike": ((0, 0, 2), ((2,), (0,), (1,)), [2]),
    "all alike": ((0, 0, 0), ((1,), (2,), (0,)), []),
    "another run": ((0, 0, 2), ((None,), (None,), (None,)), [0, 2]),
}


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_modules_of_one_start_speak_once_and_are_uniform_together(name, rank):
    """All gauges of all starts written out; data and everything but the start differ between modules."""
    starts, origins, speaking = CASES[name]
    moved = ["whole"] * len(starts)
    assert independent_starts(moved, origins, starts) == speaking
    base, group = runs(rank, len(starts) + 1, np.random.default_rng(rank)), signed_permutations(rank)
    own = sorted(set(starts))
    chosen = np.array(list(itertools.product(range(len(group)), repeat=len(own))))
    turned = [in_gauge(base[i], group[chosen[:, own.index(start)]]) for i, start in enumerate(starts)]
    turned.append(in_gauge(base[-1], np.repeat(np.eye(rank)[None], len(chosen), axis=0)))
    columns = []
    for i in speaking:
        source = turned[-1 if origins[i][0] is None else origins[i][0]]
        columns.append([one.rank for (one,) in TESTS["whole"](products(turned[i], source, source))])
    counts = Counter(zip(*columns))
    assert set(counts) == set(itertools.product(*(sorted(set(column)) for column in columns))) - {()}
    assert len(set(counts.values())) <= 1
    assert all(len(set(column)) == len(group) for column in columns)


def test_starts_of_one_seed_are_found_whatever_their_shape_and_scale():
    rng = np.random.default_rng(0)
    streams = rng.uniform(-1, 1, (40, 300))
    samples = [scale * streams[i, :length] + 0.2 * scale * rng.standard_normal(length) for i in range(40) for scale, length in ((1, 300), (0.1, 80))]
    assert shared_starts(samples) == [2 * (i // 2) for i in range(80)]


def test_unrelated_starts_are_not_taken_for_one():
    samples = np.random.default_rng(1).uniform(-1, 1, (3000, 64))
    assert sum(first != i for i, first in enumerate(shared_starts(samples))) <= 20


def test_what_is_too_short_or_broken_is_like_nothing():
    assert shared_starts([np.ones(3), np.ones(3), np.full(64, np.nan), np.full(64, np.nan), np.zeros(64), np.zeros(64)]) == list(range(6))


def test_peft_with_one_seed_for_every_module_has_one_start():
    """A seed set anew in front of every module, as a patched initialiser does: torch fills tensors of other widths from the same stream."""
    import torch
    from peft import LoraConfig, get_peft_model

    net = torch.nn.ModuleDict({"q": torch.nn.Linear(32, 16), "k": torch.nn.Linear(32, 16), "down": torch.nn.Linear(48, 16)})
    model = get_peft_model(net, LoraConfig(r=4, target_modules=["q", "k", "down"]))
    drawn = [model.base_model.model[name].lora_A["default"].weight.detach().numpy().reshape(-1).copy() for name in net]
    assert shared_starts(drawn) == [0, 1, 2]
    samples = []
    for name in net:
        torch.manual_seed(3)
        layer = model.base_model.model[name]
        layer.reset_lora_parameters("default", True)
        samples.append(layer.lora_A["default"].weight.detach().numpy().reshape(-1))
    assert shared_starts(samples) == [0, 0, 0]
