"""Where a test does not apply it says nothing, with the reason, and contradicts nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostate.core.naming import Adapter
from ostate.evidence.ask import verify
from ostate.evidence.recover import recover
from tests.evidence.numbers import Known, Toy, trained
from tests.records import ArraySlot, replace

A, B = range(6), range(6, 12)
"""Positions of a toy's factors."""


@pytest.mark.parametrize("steps", [2, 5, 20, 100, 400])
def test_a_toy_is_recovered_at_every_step(steps):
    known = trained(Toy(steps=steps))[0].shuffled(1)
    found = recover(known.raw, known.adapter)
    assert found.proven == set(known.with_state)
    assert list(found.order) == list(known.keys)


def test_after_one_step_only_the_zero_factors_are_known():
    known, _ = trained(Toy(steps=1))
    found = verify(known.keys, known.raw, known.adapter)
    assert found.proven == set(B)
    assert "balance" in found.silent
    assert not found.contradictions


@pytest.mark.parametrize("rank", [4, 8, 16])
def test_small_and_large_ranks_are_recovered(rank):
    known = trained(Toy(rank=rank))[0].shuffled(2)
    assert recover(known.raw, known.adapter).proven == set(known.with_state)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fitted_tails_name_nothing_below_rank_four(rank):
    known = trained(Toy(rank=rank))[0].shuffled(2)
    assert not recover(known.raw, known.adapter).proven


def test_rank_one_proves_nothing_wrong():
    known = trained(Toy(rank=1))[0].shuffled(2)
    found = recover(known.raw, known.adapter)
    assert not found.other_run
    assert all(found.order[p] == known.keys[p] for p in found.proven)


@pytest.mark.parametrize("decay", [0.01, 0.1])
def test_l2_decay_inside_the_gradient_is_taken_out(decay):
    group = {"weight_decay": decay}
    known = trained(Toy(optimizer=torch.optim.Adam, steps=60), (group, group))[0].shuffled(3)
    assert recover(known.raw, known.adapter).proven == set(known.with_state)


@pytest.mark.parametrize(("rank", "width"), [(5, 0), (0, 40), (0, 0)])
def test_a_module_without_numbers_takes_no_part(rank, width):
    known, _ = trained(Toy())
    shapes = {"empty.lora_A.weight": (rank, width), "empty.lora_B.weight": (width, rank)}
    empty = {key: ArraySlot(np.zeros(shape, np.float32)) for key, shape in shapes.items()}
    more = [
        replace(known.raw.entries[0], position=len(known.keys) + index, shape=held.shape, slots={"exp_avg": held, "exp_avg_sq": held})
        for index, held in enumerate(empty.values())
    ]
    raw = replace(known.raw, entries=(*known.raw.entries, *more))
    found = verify([*known.keys, *empty], raw, replace(known.adapter, tensors={**known.adapter.tensors, **empty}))
    assert found.verdict == "verified"
    by_shape = set() if rank == width else {12, 13}  # the only ones of their shape
    assert found.proven == set(known.with_state) | by_shape


def test_a_frozen_lora_a_leaves_displacement():
    known, _ = trained(Toy())
    entries = tuple(replace(e, slots={}, shape=None) if e.position in A else e for e in known.raw.entries)
    found = verify(known.keys, replace(known.raw, entries=entries), known.adapter)
    assert found.proven == set(B)


def test_betas_that_differ_silence_balance():
    known, _ = trained(Toy(), ({"betas": (0.9, 0.999)}, {"betas": (0.8, 0.999)}))
    found = verify(known.keys, known.raw, known.adapter)
    assert "beta1 differs" in found.silent["balance"]
    assert found.proven == set(B)
    assert not found.contradictions


def test_learning_rates_that_differ_do_not():
    known, _ = trained(Toy(), ({"lr": 1e-3}, {"lr": 1e-2}))
    assert verify(known.keys, known.raw, known.adapter).proven == {*A, *B}


def test_a_start_away_from_zero_is_left_to_balance():
    known, _ = trained(Toy(start=0.2, steps=60), config={"init_lora_weights": "pissa"})
    found = verify(known.keys, known.raw, known.adapter)
    assert "pissa" in found.silent["displacement"]
    assert found.proven == {*A, *B}


def test_an_earlier_checkpoint_gives_displacement_back():
    known, before = trained(Toy(start=0.2, steps=20), config={"init_lora_weights": "pissa"}, earlier=15)
    found = verify(known.keys, known.raw, known.adapter, previous=before)
    assert "displacement" in found.used
    assert found.proven == {*A, *B}


def test_an_earlier_checkpoint_says_nothing_of_factors_that_were_frozen():
    """LoRA-FA: lora_A moved by nothing and has no position, and no other tensor has its shape."""
    known, before = trained(Toy(), earlier=15)
    entries = tuple(replace(known.raw.entries[old], position=new, group=0) for new, old in enumerate(B))
    raw = replace(known.raw, entries=entries, groups=(replace(known.raw.groups[0], positions=tuple(range(len(B)))),))
    found = verify([known.keys[old] for old in B], raw, known.adapter, previous=before)
    assert found.proven == {*range(len(B))}


@pytest.mark.parametrize("kind", ["ADALORA", "VERA", "LOHA"])
def test_other_tuners_are_not_judged_by_lora_s_laws(kind):
    known, _ = trained(Toy(), config={"peft_type": kind})
    found = verify(known.swapped(6, 7), known.raw, known.adapter)
    assert found.verdict == "silent"
    assert kind in found.silent["balance"]


def test_a_state_without_moments_says_nothing():
    known, _ = trained(Toy(optimizer=torch.optim.SGD), ({"momentum": 0.9}, {"momentum": 0.9}))
    found = verify(known.keys, known.raw, known.adapter)
    assert found.verdict == "silent"
    assert found.silent["displacement"] == "no position has both exp_avg and exp_avg_sq"


def test_a_cold_state_says_nothing():
    known, _ = trained(Toy())
    cold = tuple(replace(e, slots={n: ArraySlot(np.zeros_like(s.read())) for n, s in e.slots.items()}) for e in known.raw.entries)
    found = verify(known.keys, replace(known.raw, entries=cold), known.adapter)
    assert found.verdict == "silent"
    assert not found.other_run


def test_an_adapter_that_never_moved_is_said_to_be_one():
    known, before = trained(Toy(), earlier=0)
    found = verify(known.keys, known.raw, before)
    assert found.verdict == "silent"
    assert "still zero" in found.silent["displacement"]


@pytest.mark.parametrize("steps", [5, 200])
def test_the_adapter_of_another_run_is_foreign_early_and_late(steps):
    known, _ = trained(Toy(steps=steps))
    other, _ = trained(Toy(steps=steps, seed=5))
    found = verify(known.keys, known.raw, other.adapter)
    assert found.other_run
    assert not found.proven


def test_the_adapter_of_another_step_keeps_its_right_names():
    known, before = trained(Toy(steps=20), earlier=15)
    found = verify(known.keys, known.raw, before)
    assert found.verdict == "verified"
    assert set(B) <= found.proven
    assert not found.contradictions


def test_factors_of_one_square_shape_are_told_apart():
    known = trained(Toy(width=8, rank=8, layers=8))[0].shuffled(4)
    assert recover(known.raw, known.adapter).proven == set(known.with_state)


def test_numbers_that_are_not_finite_prove_and_contradict_nothing():
    known, _ = trained(Toy())
    broken = known.raw.entries[7]
    slots = {name: ArraySlot(np.full_like(slot.read(), np.nan)) for name, slot in broken.slots.items()}
    entries = tuple(replace(e, slots=slots) if e.position == 7 else e for e in known.raw.entries)
    found = verify(known.keys, replace(known.raw, entries=entries), known.adapter)
    assert 7 not in found.proven
    assert len(found.proven) >= 2
    assert not found.contradictions


@pytest.mark.parametrize("slot", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("number", [2.6e33, 3e38, -1e25, np.inf])
def test_one_number_near_the_end_of_its_range_proves_nothing_wrong(slot, number):
    """A flipped bit of an exponent: products overflow, and nothing that is then fitted may end in a proof, a warning, or no end at all."""
    known, _ = trained(Toy())

    def broken(held):
        values = np.array(held.read(), copy=True)
        values.flat[3] = number
        return ArraySlot(values)

    for position in (0, 7):
        entries = tuple(replace(e, slots={**e.slots, slot: broken(e.slots[slot])}) if e.position == position else e for e in known.raw.entries)
        for found in (
            verify(known.keys, replace(known.raw, entries=entries), known.adapter),
            recover(replace(known.raw, entries=entries), known.adapter),
        ):
            assert all(found.order[p] == known.keys[p] for p in found.proven)


def test_a_name_whose_tensor_the_file_does_not_hold_is_proven_for_nobody():
    known, _ = trained(Toy())
    tensors = {key: ref for key, ref in known.adapter.tensors.items() if not key.startswith("2.")}
    adapter = Adapter(path="", file="", kind="peft", tensors=tensors)
    found = recover(known.raw, adapter)
    lost = {position for position, key in enumerate(known.keys) if str(key).startswith("2.")}
    assert not found.proven & lost
    assert all(found.order[p] == known.keys[p] for p in found.proven)


def test_embeddings_begin_with_the_other_factor_at_zero():
    """lora_embedding_A (r, words) is the zero one there: the same numbers, turned round."""
    known, _ = trained(Toy())
    names = {"lora_A": "lora_embedding_B", "lora_B": "lora_embedding_A"}

    def turned(key: str) -> str:
        stem, side, _ = key.split(".")
        return f"{stem}.{names[side]}"

    tensors = {turned(key): ArraySlot(held.values.T.copy()) for key, held in known.adapter.tensors.items()}
    entries = tuple(
        replace(e, slots={n: ArraySlot(s.read().T.copy()) for n, s in e.slots.items()}, shape=e.shape[::-1] if e.shape else None)
        for e in known.raw.entries
    )
    keys = tuple(turned(str(key)) for key in known.keys)
    same = Known(replace(known.raw, entries=entries), Adapter(path="", file="", kind="peft", tensors=tensors), keys).shuffled(1)
    assert recover(same.raw, same.adapter).proven == set(same.with_state)


def test_only_the_number_of_elements_known_is_enough():
    known = trained(Toy())[0].shuffled(1)
    entries = tuple(
        replace(e, slots={n: s.with_shape((s.read().size,)) for n, s in e.slots.items()}, shape=(e.numel,), flat=True) for e in known.raw.entries
    )
    found = recover(replace(known.raw, entries=entries), known.adapter)
    assert found.proven == set(known.with_state)
    assert all(found.order[p] == known.keys[p] for p in found.proven)
