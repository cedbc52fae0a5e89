"""Master weights that a state keeps: they prove, contradict, or say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from ostate.commands.options import Options
from ostate.commands.repair import read
from ostate.core.naming import Evidence
from ostate.evidence.master_weights import TEST, with_master_weights
from ostate.ordering.keys import match_all
from ostate.read.adapters import read_adapter
from tests import real
from tests.records import replace


class Numbers:
    """A tensor in memory that satisfies `Slot`."""

    encoding = "plain"
    dtype = "F32"

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape = values.shape
        self.numel = values.size

    def read(self) -> np.ndarray:
        return self.values

    def chunks(self, elements: int = 1 << 18):
        flat = self.values.reshape(-1)
        yield from (flat[at : at + elements] for at in range(0, flat.size, elements))


@pytest.fixture
def trained():
    """llama_qv with master weights added: the adapter's own weights, by the true order."""
    case = real.case("llama_qv")
    raw, _ = read(str(case.state), Options(adapter=str(case.adapter)))
    adapter = read_adapter(str(case.adapter))
    keys = match_all([row["name"] for row in case.truth], adapter)[0]
    kept = {position: Numbers(adapter.tensors[key].read()) for position, key in enumerate(keys)}
    return replace(raw, master=kept), adapter, keys


SILENT = Evidence(verdict="silent", undecided=tuple(range(12)))


def test_masters_that_equal_the_adapter_prove_every_position(trained):
    raw, adapter, keys = trained
    said = with_master_weights(SILENT, keys, raw, adapter)
    assert (said.verdict, said.proven, said.undecided) == ("verified", frozenset(range(12)), ())


def test_masters_rounded_to_bfloat16_still_prove(trained):
    raw, adapter, keys = trained
    rounded = {p: Numbers((slot.read().view("<u4") & 0xFFFF0000).view("<f4")) for p, slot in raw.master.items()}
    assert with_master_weights(SILENT, keys, replace(raw, master=rounded), adapter).proven == frozenset(range(12))


def test_two_swapped_names_are_contradicted_and_both_are_named(trained):
    raw, adapter, keys = trained
    swapped = (keys[2], keys[1], keys[0], *keys[3:])
    said = with_master_weights(SILENT, swapped, raw, adapter)
    assert said.verdict == "contradicted"
    assert said.contradictions == ((0, keys[2], keys[0]), (2, keys[0], keys[2]))


def test_masters_of_another_run_say_nothing(trained):
    raw, adapter, keys = trained
    other = {p: Numbers(np.random.default_rng(p).standard_normal(slot.shape).astype(np.float32)) for p, slot in raw.master.items()}
    said = with_master_weights(SILENT, keys, replace(raw, master=other), adapter)
    assert (said.verdict, said.proven) == ("silent", frozenset())
    assert TEST in said.silent


def test_masters_of_zeros_prove_nothing(trained):
    raw, adapter, keys = trained
    zeros = {p: Numbers(np.zeros(slot.shape, np.float32)) for p, slot in raw.master.items()}
    assert with_master_weights(SILENT, keys, replace(raw, master=zeros), adapter).proven == frozenset()


def test_masters_that_differ_in_their_last_number_prove_nothing(trained):
    raw, adapter, keys = trained
    spoilt = {p: Numbers(slot.read().copy()) for p, slot in raw.master.items()}
    for slot in spoilt.values():
        slot.values.reshape(-1)[-1] += 1
    assert with_master_weights(SILENT, keys, replace(raw, master=spoilt), adapter).proven == frozenset()


def test_masters_that_are_not_finite_prove_nothing(trained):
    raw, adapter, keys = trained
    spoilt = {p: Numbers(np.full(slot.shape, np.nan, np.float32)) for p, slot in raw.master.items()}
    assert with_master_weights(SILENT, keys, replace(raw, master=spoilt), adapter).proven == frozenset()


def test_what_the_moments_say_outranks_the_masters(trained):
    """Masters may be read anew from the model while the moments of another order are kept."""
    raw, adapter, keys = trained
    order = (keys[2], keys[1], keys[0], *keys[3:])
    said = with_master_weights(replace(SILENT, order=order), keys, raw, adapter)
    assert said.proven == frozenset(range(1, 12)) - {2}
    assert set(said.undecided) == {0, 2}
