"""How far two states lie apart: against the plain formula, and where the difference sits at an edge of what is read at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ostate
from ostate.core.stream import PIECE

SIZES = (1, PIECE - 1, PIECE, 2 * PIECE + 3)


def saved(path, *tensors):
    """Save an SGD's state dict whose momentum is `tensors`, as torch would."""
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": list(range(len(tensors)))}
    torch.save({"state": {i: {"momentum_buffer": tensor} for i, tensor in enumerate(tensors)}, "param_groups": [group]}, path)
    return str(path)


def only_gap(tmp_path, x, y):
    found = ostate.diff(saved(tmp_path / "a.pt", x), saved(tmp_path / "b.pt", y))
    assert len(found.gaps) == 1
    return found, found.gaps[0]


def numbers(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_the_distance_and_the_angle_are_those_of_the_plain_formula(tmp_path, size):
    x, y = numbers(size), numbers(size, 1)
    _, gap = only_gap(tmp_path, x, y)
    a, b = x.double().numpy(), y.double().numpy()
    assert not gap.equal
    assert gap.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-12)
    assert gap.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("where", ["first", "last"])
def test_one_bit_that_differs_is_found_wherever_it_is(tmp_path, size, where):
    x = numbers(size)
    y = x.clone()
    y.view(torch.int32)[0 if where == "first" else -1] ^= 1
    found, gap = only_gap(tmp_path, x, y)
    a, b = x.double().numpy(), y.double().numpy()
    assert not found.same
    assert gap.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9)
    assert gap.cosine == pytest.approx(1)


@pytest.mark.parametrize("size", SIZES)
def test_equal_numbers_are_equal_and_point_the_same_way(tmp_path, size):
    found, gap = only_gap(tmp_path, numbers(size), numbers(size))
    assert found.same
    assert (gap.equal, gap.relative, gap.cosine) == (True, 0.0, 1.0)
    assert (found.cold_a, found.cold_b) == (False, False)


def test_the_same_nan_on_both_sides_is_equal_bit_for_bit(tmp_path):
    x = numbers(9)
    x[4] = math.nan
    found, gap = only_gap(tmp_path, x, x.clone())
    assert found.same
    assert gap.relative == 0


def test_beside_a_nan_no_distance_is_told(tmp_path):
    x, y = numbers(9), numbers(9, 1)
    x[4] = y[4] = math.nan
    _, gap = only_gap(tmp_path, x, y)
    assert not gap.equal
    assert math.isnan(gap.relative)
    assert math.isnan(gap.cosine)


def test_zero_and_minus_zero_differ_in_bits_and_lie_nowhere_apart(tmp_path):
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])
    _, gap = only_gap(tmp_path, x, y)
    assert (gap.equal, gap.relative) == (False, 0.0)
    assert gap.cosine == pytest.approx(1)


def test_bfloat16_is_compared_by_the_numbers_it_stands_for(tmp_path):
    x = numbers(2 * PIECE + 3).bfloat16()
    assert only_gap(tmp_path, x, x.float())[0].same
    assert only_gap(tmp_path, x, x.clone())[0].same


def test_float64_is_another_type_and_yet_nowhere_apart(tmp_path):
    x = numbers(PIECE + 1)
    _, gap = only_gap(tmp_path, x, x.double())
    assert (gap.equal, gap.relative) == (False, 0.0)


def test_complex_numbers_are_compared_with_both_their_parts(tmp_path):
    x, y = torch.view_as_complex(numbers(18).reshape(9, 2)), torch.view_as_complex(numbers(18, 1).reshape(9, 2))
    _, gap = only_gap(tmp_path, x, y)
    a, b = x.numpy().astype("c16"), y.numpy().astype("c16")
    assert gap.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-12)
    assert gap.cosine == pytest.approx(np.vdot(a, b).real / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
    assert only_gap(tmp_path, x, x.real.clone())[1].relative == pytest.approx(np.linalg.norm(a.imag) / np.linalg.norm(a))


def test_the_same_bits_of_another_type_are_other_numbers(tmp_path):
    x = numbers(9)
    assert not only_gap(tmp_path, x, x.view(torch.int32))[1].equal


def test_a_tensor_that_does_not_lie_in_order_is_compared_all_the_same(tmp_path):
    x = numbers(60).reshape(6, 10)
    assert only_gap(tmp_path, x.T.contiguous().T, x.clone())[0].same


@pytest.mark.parametrize(("place", "last"), [(-1, 0.0), (-1, 1.0), (0, 1.0)])
def test_cold_means_that_every_moment_is_zero_from_the_first_to_the_last(tmp_path, place, last):
    zeros = torch.zeros(PIECE + 1)
    mostly = zeros.clone()
    mostly[place] = last
    found = ostate.diff(saved(tmp_path / "a.pt", zeros, mostly), saved(tmp_path / "b.pt", zeros, mostly))
    assert found.same
    assert (found.cold_a, found.cold_b) == (not last, not last)
    assert math.isnan(found.gaps[0].cosine)


def test_a_zero_slot_beside_one_that_is_not_is_infinitely_far(tmp_path):
    found, gap = only_gap(tmp_path, torch.zeros(5), torch.ones(5))
    assert gap.relative == math.inf
    assert math.isnan(gap.cosine)
    assert (found.cold_a, found.cold_b) == (True, False)


def test_an_empty_slot_is_equal_to_an_empty_slot(tmp_path):
    assert only_gap(tmp_path, torch.zeros(0, 3), torch.zeros(0, 3))[0].same
