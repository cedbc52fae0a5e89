"""What looking at every module once says of an order: on real runs, with names exchanged, with modules that never trained."""

from __future__ import annotations

import numpy as np
import pytest

from ostate.core.lora_modules import canonical
from ostate.core.naming import Claim, Evidence, Question
from ostate.core.state import Entry, Group, RawState
from ostate.evidence import comparison, statistics
from ostate.evidence import look as look_module
from ostate.evidence.comparison import Comparison
from ostate.evidence.look import Source, look
from ostate.evidence.looks import Place, places_of
from ostate.evidence.methods import units_of
from ostate.evidence.order import EVERYTHING
from ostate.evidence.tables.stream_rows import Buffers
from ostate.ordering.family import family_of
from tests import trained
from tests.evidence import runs
from tests.evidence.numbers import Known, Toy
from tests.evidence.numbers import trained as toy
from tests.records import ArraySlot, replace

CAUSAL = {"task_type": "CAUSAL_LM"}
KINDS = {
    "conv2d": (runs.convolutions, {"target_modules": [*(f"body.{index}" for index in range(6)), "narrow", "wide"]}),
    "conv1d": (lambda: runs.language_model(runs.gpt2), {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True, **CAUSAL}),
    "embedding": (lambda: runs.language_model(lambda: trained.llama(4)), {"target_modules": ["embed_tokens", "q_proj", "v_proj"], **CAUSAL}),
}


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    make, lora = KINDS[request.param]
    return runs.known(runs.train(tmp_path_factory.mktemp(request.param), make(), lora, steps=20))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    made = runs.language_model(lambda: trained.llama(4))
    return runs.known(runs.train(tmp_path_factory.mktemp("llama"), made, {"target_modules": ["q_proj", "v_proj"], **CAUSAL}, steps=20))


def ask(known: Known, keys: tuple[str | None, ...] | None = None, source: str = "given") -> Evidence:
    """Return what the numbers say of an order of keys, the true one where none is given."""
    keys = keys or known.keys
    claim = Claim(source=source, rule=source, names=keys, keys=keys)
    return Comparison(known.raw, known.adapter).test(claim, family_of(claim, (), Question(raw=known.raw, adapter=known.adapter)))


@pytest.mark.parametrize("most", [None, 100], ids=["at-once", "in-strips-and-pieces"])
def test_a_look_keeps_the_products_of_whole_tensors(run, most, monkeypatch):
    for name in ("STRIP", "PIECE", "COMPARED") if most is not None else ():
        monkeypatch.setattr(look_module, name, most // 3 if name == "COMPARED" else most)
    source = Source(run.raw, run.adapter)
    at, buffers = {key: position for position, key in enumerate(run.keys)}, Buffers()
    for module in units_of(run.adapter):
        for key, zero in ((module.zero, True), (module.other, False)):
            seen = look(source, module, key, at[key], buffers)
            assert seen is not None
            entry, shape = run.raw.entries[at[key]], run.adapter.tensors[key].shape
            weight, m, v = (
                canonical(slot.read().reshape(shape).astype(np.float64), zero=zero, flipped=module.flipped)
                for slot in (run.adapter.tensors[key], entry.slots["exp_avg"], entry.slots["exp_avg_sq"])
            )
            u = statistics.update_direction(m, np.sqrt(v), step=entry.step, betas=(0.9, 0.999), eps=1e-8)
            for found, wanted in ((seen.update, weight @ u.T), (seen.first, weight @ m.T), (seen.drift, u @ m.T)):
                np.testing.assert_allclose(found[0], wanted, rtol=2e-4, atol=2e-5 * np.abs(wanted).max())
            np.testing.assert_allclose(seen.noise[0], np.sqrt(v).sum(axis=1), rtol=1e-4)


def test_the_true_order_stands_numbers_at_random_are_ruled_out_and_no_module_stands_apart(run):
    found = ask(run)
    assert found.verdict == "verified"
    assert EVERYTHING not in {what for what, _ in found.open}
    assert found.apart == ()


def test_the_true_order_of_four_layers_is_proven_whole(llama):
    found = ask(llama)
    assert (found.verdict, found.open, found.apart) == ("verified", (), ())
    assert found.margin is not None
    assert found.margin >= 6


def test_an_exchange_by_hand_stands_apart_and_is_not_proven(llama):
    for one, two in llama.swaps()[::5]:
        found = ask(llama, llama.swapped(one, two))
        assert not found.proven & {one, two}
        assert {one, two} <= set(found.undecided)


def test_no_shuffle_is_proven(llama):
    for seed in range(8):
        shuffled = llama.shuffled(seed)
        wrong = {p for p in llama.with_state if shuffled.keys[p] != llama.keys[p]}
        found = ask(replace(shuffled, keys=llama.keys), llama.keys)
        assert not found.proven & wrong


def test_modules_that_never_trained_are_said_to_be_that_and_silence_nobody(llama):
    """Experts that were never routed: moments all zero and lora_B still zero."""
    dead = [key for key in llama.keys if key is not None and ("layers.1." in key and "v_proj" in key)]
    entries = tuple(
        replace(entry, slots={name: ArraySlot(np.zeros(slot.shape, np.float32)) for name, slot in entry.slots.items()}) if key in dead else entry
        for entry, key in zip(llama.raw.entries, llama.keys)
    )
    zeros = {key: ArraySlot(np.zeros(llama.adapter.tensors[key].shape, np.float32)) for key in dead if "lora_B" in key}
    known = replace(llama, raw=replace(llama.raw, entries=entries), adapter=replace(llama.adapter, tensors={**llama.adapter.tensors, **zeros}))
    found = ask(known)
    assert found.untrained == tuple(position for position, key in enumerate(llama.keys) if key in dead)
    assert found.apart == ()
    assert found.proven >= set(llama.with_state) - set(found.untrained)


def test_a_trained_module_under_the_name_of_one_that_never_trained_stands_apart(llama):
    """The weights of a name are zero, but the moments that carry it are not."""
    key = next(key for key in llama.keys if key is not None and "layers.2." in key and "v_proj" in key and "lora_B" in key)
    zero = ArraySlot(np.zeros(llama.adapter.tensors[key].shape, np.float32))
    found = ask(replace(llama, adapter=replace(llama.adapter, tensors={**llama.adapter.tensors, key: zero})))
    assert llama.keys.index(key) in found.apart


def test_one_seed_for_every_module_proves_nothing(llama):
    """Where all lora_A began with the same numbers, all modules share one gauge."""
    first = next(key for key in llama.keys if key is not None and "lora_A" in key)
    same = {key: llama.adapter.tensors[first] if "lora_A" in key else ref for key, ref in llama.adapter.tensors.items()}
    found = ask(replace(llama, adapter=replace(llama.adapter, tensors=same)))
    assert not found.proven


def test_an_exchange_is_seen_beside_kinds_whose_own_gauges_say_little(llama):
    """Half of the modules are noise, as starved experts are: the others are compared among themselves."""
    noise = np.random.default_rng(0)
    starved = [p for p, key in enumerate(llama.keys) if key is not None and "v_proj" in key]
    entries = tuple(
        replace(e, slots={n: ArraySlot(noise.standard_normal(s.shape).astype(np.float32) ** 2) for n, s in e.slots.items()})
        if e.position in starved
        else e
        for e in llama.raw.entries
    )
    known = replace(llama, raw=replace(llama.raw, entries=entries))
    one, two = (llama.keys.index(f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_B.weight") for layer in (0, 1))
    found = ask(known, tuple(known.swapped(one, two)))
    assert not found.proven & {one, two}


def test_an_exchange_of_two_modules_of_rank_two_is_not_proven_either():
    """Of eight gauges one in three fits by chance: there the fitted search may refuse."""
    known, _ = toy(Toy(layers=20, rank=2, steps=40))
    keys = list(known.keys)
    pairs = [("2.lora_A.weight", "5.lora_A.weight"), ("2.lora_B.weight", "5.lora_B.weight")]
    for one, two in pairs:
        i, j = keys.index(one), keys.index(two)
        keys[i], keys[j] = keys[j], keys[i]
    wrong = {p for p, (said, true) in enumerate(zip(keys, known.keys)) if said != true}
    assert ask(known).proven == set(known.with_state)
    assert not wrong <= ask(known, tuple(keys)).proven


def test_a_lora_a_exchanged_alone_is_not_proven(llama):
    """Its module's lora_B still fits, so that both together may; the factor's own gauge or the residual of balance tells."""
    for one, two in [pair for pair in llama.swaps() if "lora_A" in str(llama.keys[pair[0]])][::4]:
        assert not {one, two} <= ask(llama, tuple(llama.swapped(one, two))).proven


def claim_of(keys: tuple[str | None, ...]) -> Claim:
    return Claim(source="given", rule="given", names=keys, keys=keys)


def test_the_fitted_search_is_asked_of_a_claim_and_contradicts_one_of_exchanged_names():
    known, _ = toy(Toy(layers=12))
    asked = Comparison(known.raw, known.adapter)
    assert not asked.search(claim_of(known.keys)).apart
    one, two = (known.keys.index(f"{layer}.lora_B.weight") for layer in (2, 5))
    found = asked.search(claim_of(tuple(known.swapped(one, two))))
    assert {one, two} <= set(found.apart) | {position for position, *_ in found.contradictions}
    assert asked.recover().order == known.keys


@pytest.mark.parametrize(("with_state", "count", "asked"), [(True, 2001, False), (True, 2000, True), (False, 2001, True)])
def test_the_search_is_not_asked_where_its_tables_would_be_too_large(with_state, count, asked):
    """2,000 positions of one shape that have state; positions without it are searched for by nobody."""
    slots = {"exp_avg": ArraySlot(np.zeros((1,), np.float32))} if with_state else {}
    entries = tuple(Entry(at, at, 0, slots, 1.0, shape=(1,)) for at in range(count))
    raw = RawState("", "torch", (), (Group(0, tuple(range(count))),), entries)
    said = Comparison(raw, toy(Toy(layers=2, steps=1))[0].adapter)._too_many()
    assert (said == "") == asked
    assert asked or "2,001 tensors have the shape" in said


def test_of_the_moved_positions_those_of_the_first_modules_are_looked_at():
    places = [Place(0, 0, 1), Place(1, 2, 3), Place(2, 4, None), Place(3, 6, 7)]
    assert comparison._some(places, {0, 3, 4, 6, 7}) == {0, 3, 4, 6, 7}
    assert comparison._some(places, {0, 3, 4, 6, 7}, 2) == {0, 3}
    assert comparison._some(places, set()) == set()


def test_a_factor_whose_pair_speaks_is_not_asked_of_by_itself_too():
    """With an earlier adapter the start of every tensor is known: a pair's moments would count twice."""
    known, before = toy(Toy(layers=3), earlier=10)
    asked = Comparison(known.raw, known.adapter, previous=before)
    single, _, _ = asked._single(claim_of(known.keys), known.adapter, places_of(known.keys, asked.looks.modules, asked.stated))
    assert single == {}


def test_an_adapter_of_zeros_was_never_trained_and_one_of_noise_is_no_better_than_chance():
    known, _ = toy(Toy(layers=3))
    for fill, said in ((np.zeros, "never trained"), (np.random.default_rng(0).standard_normal, "no better than chance")):
        tensors = {key: ArraySlot(fill(ref.shape).astype(np.float32)) if "lora_B" in key else ref for key, ref in known.adapter.tensors.items()}
        found = ask(replace(known, adapter=replace(known.adapter, tensors=tensors)))
        assert found.verdict == "silent"
        assert [said] == [word for word in ("never trained", "no better than chance") if any(word in why for why in found.silent.values())]
