"""PEFT's other methods: their own order is proven, every order that a program could have made in its place is not, and the rest say why."""

from __future__ import annotations

import re

import peft
import pytest
import torch

from ostate.core.naming import Claim, Evidence, Question
from ostate.evidence.comparison import Comparison
from ostate.ordering.family import family_of
from tests import trained
from tests.evidence import runs
from tests.evidence.method_runs import METHODS, SILENT, saved_steps, train
from tests.evidence.numbers import Known
from tests.records import replace

FEW_BITS = {"lokr": 2, "hra": 4, "pvera": 8}
"""Methods a module of which says so little that names exchanged by hand are only listed: bits of its gauge."""
STEPS = {"ia3": 3, "boft": 3, "miss": 5, "vera": 3, "beft": 3, "pvera": 3, "road": 3}
"""Where not 16: vectors of 32 numbers fade early."""


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory):
    (folder,) = train(tmp_path_factory.mktemp(request.param), METHODS[request.param](), [STEPS.get(request.param, 16)], layers=8)
    return request.param, runs.known(folder)


def ask(known: Known, keys: tuple[str | None, ...]) -> Evidence:
    claim = Claim(source="given", rule="given", names=keys, keys=keys)
    return Comparison(known.raw, known.adapter).test(claim, family_of(claim, (), Question(raw=known.raw, adapter=known.adapter)))


def renamed(keys: tuple[str | None, ...], layers: dict[int, int]) -> tuple[str | None, ...]:
    """Return the claim that numbers the layers otherwise."""
    return tuple(key and re.sub(r"(layers?)\.(\d+)\.", lambda found: f"{found[1]}.{layers.get(int(found[2]), int(found[2]))}.", key) for key in keys)


def test_the_order_of_the_run_is_proven_as_a_whole(run):
    name, known = run
    found = ask(known, known.keys)
    assert found.verdict == "verified", (name, found.silent)
    assert (found.open, found.apart, found.undecided) == ((), (), ()), name
    assert found.margin is not None
    assert found.margin >= 6
    assert ("balance" in found.silent) == (name in ("adalora", "delora"))  # factors of a product that balance is not asked of, and why


@pytest.mark.parametrize(
    "layers",
    [{i: 7 - i for i in range(8)}, {i: (i + 1) % 8 for i in range(8)}, {i: (i + 7) % 8 for i in range(8)}],
    ids=["reversed", "shifted", "shifted back"],
)
def test_layers_in_another_order_are_never_verified(run, layers):
    name, known = run
    found = ask(known, renamed(known.keys, layers))
    assert found.verdict != "verified" or not found.proven, name


def test_kinds_exchanged_in_every_layer_are_never_verified(run):
    name, known = run
    pairs = [("q_proj", "v_proj"), ("k_proj", "v_proj")]
    for one, other in pairs:
        swap = {one: other, other: one}
        keys = tuple(key and re.sub(f"{one}|{other}", lambda found, swap=swap: swap[found[0]], key) for key in known.keys)
        if keys != known.keys and set(keys) == set(known.keys):
            found = ask(known, keys)
            assert not {p for p in found.proven if keys[p] != known.keys[p]}, name


@pytest.mark.parametrize("name", ["boft", "adalora", "loha"])
def test_kinds_exchanged_under_a_convention_are_never_proven_where_a_third_kind_stands(name, tmp_path):
    """The third kind says that the state is this run's; of the two exchanged the first tensors say nothing (BOFT's all of q and k)."""
    config = METHODS[name]()
    config.target_modules = {"q_proj", "k_proj", "v_proj"}
    (folder,) = train(tmp_path, config, [16], layers=8)
    known = runs.known(folder)
    keys = tuple(re.sub("q_proj|k_proj", lambda found: {"q_proj": "k_proj", "k_proj": "q_proj"}[found[0]], str(key)) for key in known.keys)
    claim = Claim(source="convention", rule="module order", names=keys, keys=keys)
    found = Comparison(known.raw, known.adapter).test(claim, family_of(claim, (), Question(raw=known.raw, adapter=known.adapter)))
    assert not {position for position in found.proven if keys[position] != known.keys[position]}


def test_two_layers_exchanged_by_hand_are_not_proven(run):
    name, known = run
    keys = renamed(known.keys, {2: 5, 5: 2})
    moved = {p for p, key in enumerate(keys) if key != known.keys[p]}
    found = ask(known, keys)
    if name in FEW_BITS:
        assert not moved & found.alone
        return
    spoken = {p for p in moved if "k_proj" not in str(keys[p])}
    assert found.apart, name
    assert len(moved & found.proven) <= len(moved) // 4, (name, len(moved & found.proven), len(moved), spoken)


def test_the_adapter_of_another_run_is_never_verified(run, tmp_path):
    name, known = run
    (other,) = train(tmp_path, METHODS[name](), [STEPS.get(name, 16)], layers=8, seed=6)
    found = ask(replace(known, adapter=runs.known(other).adapter), known.keys)
    if name in STEPS:  # the base model is the same, and with it the gauge: the names are right
        assert found.verdict in ("verified", "silent")
    else:
        assert found.verdict != "verified"


@pytest.mark.parametrize("name", SILENT)
def test_methods_without_a_law_say_why(name, tmp_path):
    (folder,) = train(tmp_path, SILENT[name](), [3], layers=4)
    known = runs.known(folder)
    found = ask(known, known.keys)
    assert found.verdict == "silent"
    assert all(len(why) > 15 for why in found.silent.values()), found.silent


def test_glora_beside_biases_is_proven_and_none_of_its_columns_stands_apart(tmp_path):
    """Its C, a product of one column, has one direction at every step: where that turns against itself the true gauge stands last of all."""
    net, loss = runs.language_model(lambda: trained.opt(4))
    torch.manual_seed(5)
    model = peft.get_peft_model(net, peft.GloraConfig(r=4, target_modules=["q_proj", "v_proj", "fc2"], task_type="CAUSAL_LM"))
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    (folder,) = saved_steps(tmp_path, model, loss, named, torch.optim.AdamW(list(named.values()), lr=3e-3), [20], 7)
    known = runs.known(folder)
    found = ask(known, known.keys)
    assert (found.verdict, found.apart) == ("verified", ())
