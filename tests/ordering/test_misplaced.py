"""A list in which a few names were exchanged is not the order of any program; the one without the exchange is in its family, and only for lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ostate.core.naming import Claim, Question
from ostate.core.state import Entry, Group, RawState
from ostate.evidence.comparison import Comparison
from ostate.ordering.family import family_of
from tests.evidence import method_runs, runs
from tests.records import replace

KINDS = [
    "self_attn.q_proj.lora_A",
    "self_attn.q_proj.lora_B",
    "self_attn.v_proj.lora_A",
    "self_attn.v_proj.lora_B",
    "mlp.up_proj.lora_magnitude_vector",
]
LAYERS = 12
ORDERS = {
    "layer by layer": lambda layer, kind: (layer, kind),
    "kind by kind": lambda layer, kind: (kind, layer),
    "layers from the top, factor by factor": lambda layer, kind: (kind % 2, -layer, kind),
    "layers as text": lambda layer, kind: (str(layer), kind),
}


def listed(order: str, kinds: Sequence[str] = KINDS) -> list[str]:
    """Return the live names of a model in the order of a program."""
    places = sorted(((layer, kind) for layer in range(LAYERS) for kind in range(len(kinds))), key=lambda at: ORDERS[order](*at))
    return [f"base_model.model.model.layers.{layer}.{kinds[kind]}.default.weight" for layer, kind in places]


def exchanged(names: list[str], one: str, two: str) -> list[str]:
    """Return the list with two names in each other's place, by what they hold."""
    at = [next(place for place, name in enumerate(names) if part in name) for part in (one, two)]
    out = list(names)
    out[at[0]], out[at[1]] = names[at[1]], names[at[0]]
    return out


def orders(names: list[str], source: str = "given") -> dict[tuple[str | None, ...], str]:
    """Return the family of a list of names, all of one shape."""
    entries = tuple(Entry(position=at, key=at, group=0, slots={"exp_avg": None}, shape=(4, 4)) for at in range(len(names)))  # type: ignore[dict-item]
    raw = RawState(source="made", layout="torch", files=(), groups=(Group(0, tuple(range(len(names)))),), entries=entries)
    claim = Claim(source=source, rule="made", names=tuple(names), keys=(None,) * len(names))
    return {one.names: one.what for one in family_of(claim, (), Question(raw=raw, adapter=None)).alternatives}


@pytest.mark.parametrize(
    "pair",
    [
        ("layers.3.self_attn.q_proj.lora_A", "layers.7.self_attn.q_proj.lora_A"),
        ("layers.3.mlp.up_proj", "layers.10.mlp.up_proj"),
        ("layers.5.self_attn.q_proj.lora_B", "layers.5.self_attn.v_proj.lora_B"),
        ("layers.5.self_attn.q_proj.lora_B", "layers.8.self_attn.v_proj.lora_B"),
    ],
    ids=["one factor", "one vector", "kinds of one layer", "kinds of two layers"],
)
@pytest.mark.parametrize("order", ORDERS)
def test_the_list_without_the_exchange_is_in_the_family(order: str, pair: tuple[str, str]) -> None:
    names = listed(order)
    assert tuple(names) in orders(exchanged(names, *pair))


def test_of_two_kinds_that_disagree_either_may_be_right() -> None:
    """A layer of k_proj's vectors exchanged, or of v_proj's: the list looks the same."""
    names = listed("layer by layer", ["self_attn.k_proj.ia3_l", "self_attn.v_proj.ia3_l"])
    seen = exchanged(names, "layers.3.self_attn.v_proj", "layers.7.self_attn.v_proj")
    found = orders(seen)
    assert tuple(names) in found
    assert tuple(exchanged(seen, "layers.3.self_attn.k_proj", "layers.7.self_attn.k_proj")) in found


@pytest.mark.parametrize("order", ORDERS)
def test_a_list_that_a_program_made_has_no_misplaced_names(order: str) -> None:
    assert not [what for what in orders(listed(order)).values() if what.startswith("misplaced")]


def test_only_lists_have_misplaced_names() -> None:
    names = exchanged(listed("layer by layer"), "layers.3.mlp", "layers.7.mlp")
    assert [what for what in orders(names, "recorded").values() if what.startswith("misplaced")]
    assert not [what for what in orders(names, "convention").values() if what.startswith("misplaced")]


def test_uneven_layers_are_no_misplaced_names() -> None:
    """Every third layer has a module more, and the first one none of the others'."""
    names = [
        f"model.layers.{layer}.{kind}.weight"
        for layer in range(LAYERS)
        for kind in ("norm", *(("cross.q", "cross.v") if layer % 3 == 2 else ()), "q", *(("gate",) if layer else ()), "v")
    ]
    assert not [what for what in orders(names).values() if what.startswith("misplaced")]


@pytest.mark.parametrize("kind, part", [("gralora", "v_proj.gralora_A."), ("lora_bias", "q_proj.lora_B.default.bias"), ("road", "q_proj.road_alpha")])
def test_a_tensor_without_a_test_that_is_named_as_another_layers_is_not_proven(tmp_path: Path, kind: str, part: str) -> None:
    (folder,) = method_runs.train(tmp_path, method_runs.METHODS[kind](), [3], layers=6)
    known, live = runs.known(folder), runs.names(folder)
    at = [place for place, name in enumerate(live) if part in name][1:5:3]
    for table in (live, keys := list(known.keys)):
        table[at[0]], table[at[1]] = table[at[1]], table[at[0]]
    assert proven(replace(known, keys=tuple(keys)), live).isdisjoint(at)


def proven(known: Any, names: list[str]) -> frozenset[int]:
    claim = Claim(source="given", rule="given", names=tuple(names), keys=known.keys)
    found = Comparison(known.raw, known.adapter).test(claim, family_of(claim, (), Question(raw=known.raw, adapter=known.adapter)))
    return found.proven
