"""The table of slots, held against live optimizers: what it calls a moment behaves as one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import schedulefree
import torch

from ostate.optimizers import OPTIMIZERS
from ostate.optimizers.slots import FIRST_BESIDE, MARKS_ANYWHERE, MARKS_BELOW_STATE, SLOTS, first_moment, row_of, second_moment, weights_slot

OPT = torch.optim
MOMENTS = {
    "AdamW": (OPT.AdamW, "exp_avg", "exp_avg_sq"),
    "AdamW amsgrad": (lambda p: OPT.AdamW(p, amsgrad=True), "exp_avg", "exp_avg_sq"),
    "RAdam": (OPT.RAdam, "exp_avg", "exp_avg_sq"),
    "Adamax": (OPT.Adamax, "exp_avg", None),
    "Adagrad": (OPT.Adagrad, None, "sum"),
    "Adadelta": (OPT.Adadelta, None, "square_avg"),
    "RMSprop": (lambda p: OPT.RMSprop(p, momentum=0.9), None, "square_avg"),
    "RMSprop centered": (lambda p: OPT.RMSprop(p, momentum=0.9, centered=True), "grad_avg", "square_avg"),
    "Rprop": (OPT.Rprop, None, None),
    "SGD": (lambda p: OPT.SGD(p, momentum=0.9), "momentum_buffer", None),
    "Muon": (lambda p: OPT.Muon(p, weight_decay=0.0), "momentum_buffer", None),
    "Adafactor": (OPT.Adafactor, None, None),
    "AdamWScheduleFree": (schedulefree.AdamWScheduleFree, None, "exp_avg_sq"),
}


def entry_after(make, scale):
    """What an optimizer keeps for a matrix after three steps of the same gradients, times `scale`."""
    generator = torch.Generator().manual_seed(3)
    param = torch.nn.Parameter(torch.randn((4, 6), generator=generator))
    optimizer = make([param])
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(3):
        param.grad = torch.randn((4, 6), generator=generator) * scale
        optimizer.step()
    return SimpleNamespace(slots={slot: value for slot, value in optimizer.state[param].items() if torch.is_tensor(value)}), param


@pytest.mark.parametrize("name", MOMENTS)
def test_a_first_moment_doubles_and_a_second_one_quadruples_with_the_gradients(name):
    make, first, second = MOMENTS[name]
    (one, _), (two, _) = entry_after(make, 1.0), entry_after(make, 2.0)
    assert (first_moment(one), second_moment(one)) == (first, second)
    for slot, factor in ((first, 2.0), (second, 4.0)):
        if slot is not None:
            assert torch.allclose(two.slots[slot], factor * one.slots[slot], rtol=1e-4), slot


def test_every_slot_of_every_optimizer_has_a_row():
    for name, spec in OPTIMIZERS.items():
        assert set(spec.slots) <= set(SLOTS), name


def test_the_first_moment_beside_a_second_is_one():
    assert FIRST_BESIDE["exp_avg_sq"] == "exp_avg"
    assert FIRST_BESIDE["exp_avg_sq_B"] == "exp_avg_B"
    assert all(SLOTS[first].role == "first_moment" for first in FIRST_BESIDE.values())


def test_the_weights_of_schedule_free_are_told():
    entry, param = entry_after(schedulefree.AdamWScheduleFree, 1e-4)
    assert weights_slot(entry) == "z"
    assert (entry.slots["z"] - param.detach()).abs().max() < 0.1
    assert weights_slot(SimpleNamespace(slots={"exp_avg": 0, "p0": 0})) == "p0"
    assert weights_slot(entry_after(OPT.AdamW, 1.0)[0]) is None


def test_what_models_use_as_names_too_does_not_tell_a_state():
    assert not {"sum", "v", "m", "z", "s", "step", "variance", "mu", "Q"} & set(MARKS_ANYWHERE)
    assert {"sum", "step", "exp_avg", "momentum_buffer", "state1"} <= set(MARKS_BELOW_STATE)


def test_an_item_of_a_list_has_the_row_of_its_list():
    assert row_of("GG.0") == SLOTS["GG"]
    assert row_of("never_seen").role == "other"
