"""Positions and names, joined; what the person fills in, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostate.core.naming import Adapter, Ordering
from ostate.errors import CheckError, OrderingError
from ostate.ordering.join import as_raw, named_state
from ostate.read import adapters
from tests import real
from tests.checks.made import SHAPES, read, state_dict
from tests.records import replace

NAMES = tuple(f"layers.{i}.weight" for i in range(len(SHAPES)))


def ordering(names=NAMES, keys=None):
    return Ordering(names=tuple(names), keys=tuple(keys or [None] * len(names)), source="given", verdict="unverified")


@pytest.fixture
def raw(tmp_path):
    return read(tmp_path, state_dict())


def test_every_position_gets_its_own_numbers(raw):
    stored = state_dict()["state"]
    state = named_state(raw, ordering())
    for position, name in enumerate(NAMES):
        assert np.array_equal(state.tensor(name, "exp_avg_sq"), stored[position]["exp_avg_sq"].numpy())
        assert state.parameters[name].position == position
    assert state.groups[0].names == NAMES
    assert state.optimizer_class == "torch.optim.AdamW"


def test_a_position_without_a_name_is_left_out_and_said_so(raw):
    state = named_state(raw, ordering([*NAMES[:3], None, *NAMES[4:]]))
    assert NAMES[3] not in state.parameters
    assert state.groups[0].positions == (0, 1, 2, 4, 5)
    assert state.ordering.left_out == (3,)


def test_two_positions_of_one_name_are_refused(raw):
    with pytest.raises(OrderingError, match="two positions are called"):
        named_state(raw, ordering([*NAMES[:-1], NAMES[0]]))
    with pytest.raises(OrderingError, match="5 names for 6 positions"):
        named_state(raw, ordering(NAMES[:-1]))


def without(raw, *, step=False, keys=()):
    groups = tuple(replace(group, hyper={key: value for key, value in group.hyper.items() if key not in keys}) for group in raw.groups)
    entries = tuple(replace(entry, step=None) if step else entry for entry in raw.entries)
    return replace(raw, groups=groups, entries=entries)


def test_what_the_file_lacks_can_be_given(raw):
    bare = without(raw, step=True, keys=("betas", "eps"))
    state = named_state(bare, ordering(), step=7, betas=(0.8, 0.9), eps=1e-6)
    assert {parameter.step for parameter in state.parameters.values()} == {7.0}
    assert (state.groups[0].hyper["betas"], state.groups[0].hyper["eps"]) == ((0.8, 0.9), 1e-6)
    assert state.findings[-1].text == "not in the file, given by hand: betas (0.8, 0.9), eps 1e-06, step 7"


def test_what_agrees_with_the_file_is_no_matter(raw):
    assert named_state(raw, ordering(), step=6, betas=(0.9, 0.999), eps=1e-8).findings == ()


@pytest.mark.parametrize("given", [{"step": 5}, {"betas": (0.9, 0.99)}, {"eps": 1e-6}])
def test_what_contradicts_the_file_is_refused(raw, given):
    with pytest.raises(CheckError, match="contradicts the file"):
        named_state(raw, ordering(), **given)


def test_flat_entries_take_the_adapters_shapes(raw):
    flat = tuple(
        replace(e, flat=True, shape=(e.numel,), slots={slot: value.with_shape((e.numel,)) for slot, value in e.slots.items()}) for e in raw.entries
    )
    keys = [f"k{i}" for i in range(len(SHAPES))]
    adapter = adapters.read_adapter(str(real.case("llama_qv").adapter))
    refs = {key: replace(next(iter(adapter.tensors.values())), shape=shape) for key, shape in zip(keys, SHAPES)}
    made = Adapter(path=adapter.path, file=adapter.file, kind="peft", tensors=refs)
    state = named_state(replace(raw, entries=flat), ordering(keys=keys), made)
    for name, shape in zip(NAMES, SHAPES):
        assert state.parameters[name].shape == shape
        assert state.tensor(name, "exp_avg").shape == shape


def test_the_step_is_taken_from_where_its_optimizer_keeps_it(tmp_path):
    schedulefree = pytest.importorskip("schedulefree")
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = schedulefree.AdamWScheduleFree([parameter], lr=1e-3)
    optimizer.train()
    for _ in range(3):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    raw = read(tmp_path, optimizer.state_dict())
    assert named_state(raw, ordering(["w"])).parameters["w"].step == 3.0


def test_a_named_state_is_positions_again(raw):
    state = named_state(raw, ordering())
    again = as_raw(state)
    assert [entry.name for entry in again.entries] == list(NAMES)
    assert [entry.position for entry in again.entries] == list(range(6))
    assert again.groups[0].positions == raw.groups[0].positions
    fewer = as_raw(named_state(raw, ordering([*NAMES[:3], None, *NAMES[4:]])))
    assert [entry.position for entry in fewer.entries] == list(range(5))
    assert fewer.entries[3].name == NAMES[4]
