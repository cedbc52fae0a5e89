"""Where an order may not be proven: modules seeded anew, whose many agreeing gauges are one; a factor that is held; a family that was cut."""

from __future__ import annotations

import numpy as np

from ostate.core.family import Alternative, Exchangeable, Family
from ostate.core.naming import Adapter, Claim
from ostate.core.state import Entry, Group, RawState
from ostate.evidence.comparison import Comparison
from ostate.evidence.looks import Place
from tests.evidence.small_runs import BETAS, EPS, train
from tests.records import ArraySlot, replace

LAYERS, KINDS = 8, ("q_proj", "v_proj")
ONE_MODULE = 2.6
"""Digits of one module of rank 4."""


def run(starts: list[int]) -> tuple[Comparison, tuple[str, ...]]:
    """Train two kinds in eight layers, layer by layer; module i begins as module starts[i] does."""
    trained = train(np.random.default_rng(0), LAYERS * len(KINDS), 4, steps=8, starts=np.array(starts))
    tensors, entries = {}, []
    for i in range(LAYERS * len(KINDS)):
        stem = f"base_model.model.model.layers.{i // 2}.self_attn.{KINDS[i % 2]}"
        for factor, weight, m, v in (("A", trained.a, trained.m_a, trained.v_a), ("B", trained.b, trained.m_b, trained.v_b)):
            tensors[f"{stem}.lora_{factor}.weight"] = ArraySlot(weight[i])
            slots = {"exp_avg": ArraySlot(m[i]), "exp_avg_sq": ArraySlot(v[i])}
            entries.append(Entry(position=len(entries), key=len(entries), group=0, slots=slots, step=8.0, shape=m[i].shape))
    groups = (Group(index=0, positions=tuple(range(len(entries))), hyper={"lr": 1e-2, "betas": BETAS, "eps": EPS}),)
    raw = RawState(source="seeded", layout="torch", files=(), groups=groups, entries=tuple(entries), optimizer="adamw")
    adapter = Adapter(path="seeded", file="seeded", kind="peft", tensors=tensors, config={"peft_type": "LORA", "r": 4})
    return Comparison(raw, adapter), tuple(tensors)


def families(keys: tuple[str, ...]) -> dict[str, Family]:
    other = {"q_proj": "v_proj", "v_proj": "q_proj"}
    exchanged = tuple(next(key.replace(one, two) for one, two in other.items() if one in key) for key in keys)
    kinds = tuple(tuple((key, key.replace("lora_B", "lora_A")) for key in keys if kind in key and "lora_B" in key) for kind in KINDS)
    return {"an alternative": Family((Alternative("exchanged", exchanged, exchanged),), ()), "kinds": Family((), (Exchangeable(KINDS, kinds),))}


def digits(starts: list[int]) -> list[float]:
    """Return the digits against the weakest other order, with either family."""
    comparison, keys = run(starts)
    found = []
    for family in families(keys).values():
        evidence = comparison.test(Claim(source="convention", rule="test", names=keys, keys=keys), family)
        assert evidence.weakest_alternative is not None
        found.append(evidence.weakest_alternative[1])
    return found


def test_modules_with_starts_of_their_own_speak_each():
    assert min(digits(list(range(16)))) > 15


def test_one_seed_for_each_kind_is_one_gauge_in_all_layers():
    """Every lora_A of q_proj begins alike, and every one of v_proj: the exchange is one draw, not eight."""
    assert max(digits([i % 2 for i in range(16)])) <= 2 * ONE_MODULE


def test_one_seed_for_each_layer_leaves_no_gauge_between_its_kinds():
    assert max(digits([i - i % 2 for i in range(16)])) == 0


def test_one_seed_for_all_proves_nothing():
    assert max(digits([0] * 16)) == 0


def test_an_earlier_lora_a_tells_nothing_where_only_lora_b_is_moved():
    """Its displacement stands still while the zero factor's moments are turned: with it no rank would be uniform."""
    comparison, _ = run(list(range(16)))
    adapter = comparison.adapter
    rng = np.random.default_rng(3)
    found = []
    for scale in (0.0, 1.0):
        moved = {key: scale * ("lora_A" in key) * rng.standard_normal(one.shape) for key, one in adapter.tensors.items()}
        earlier = {key: ArraySlot(one.astype(np.float32)) for key, one in moved.items()}
        looks = Comparison(comparison.raw, adapter, previous=replace(adapter, tensors=earlier)).looks
        places = [Place(module, 2 * other + 1, 2 * other) for module in range(16) for other in [(module + 2) % 16]]  # another's moments
        found.append((looks.ranked(places, "zero"), looks.ranked(places, "whole")))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_family_that_was_cut_proves_nothing():
    comparison, keys = run(list(range(16)))
    claim = Claim(source="recorded", rule="test", names=keys, keys=keys)
    assert comparison.test(claim, Family((), ())).verdict == "verified"
    assert not comparison.test(claim, Family((), (), cut=3)).proven


def test_a_search_that_there_is_no_memory_for_says_how_much_it_would_take():
    one = ArraySlot(np.zeros((8, 64), np.float32))
    keys = [f"base_model.model.layers.{i}.q_proj.lora_A.weight" for i in range(4000)]
    entries = tuple(Entry(position=i, key=i, group=0, slots={"exp_avg": one, "exp_avg_sq": one}, step=3.0, shape=one.shape) for i in range(4000))
    raw = RawState("many", "torch", (), (Group(0, tuple(range(4000))),), entries, "adamw")
    comparison = Comparison(
        raw, Adapter(path="many", file="many", kind="peft", tensors=dict.fromkeys(keys, one), config={"peft_type": "LORA", "r": 8})
    )
    for found in (comparison.recover(), comparison.search(Claim(source="convention", rule="test", names=tuple(keys), keys=tuple(keys)))):
        assert found.verdict == "silent"
        (reason,) = found.silent.values()
        assert reason.startswith("4,000 tensors have the shape 8x64: comparing each with each would take 13 GB of memory; 2,000 of one shape are")
