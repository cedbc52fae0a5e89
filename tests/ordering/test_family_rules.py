"""Small rules of the family by their own examples: how a name is taken apart, which rows are rearranged by themselves, which groups change places."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest

from ostate.core.naming import Claim, ClaimSource
from ostate.ordering.family import ROWS
from ostate.ordering.family.factors import adapter_orders, factor_orders
from ostate.ordering.family.names import components, inner_part, row_of
from ostate.ordering.family.recorded import groups_exchanged, shifted
from ostate.ordering.family.selections import selections
from ostate.ordering.family.sequence import ClaimRows


def rows_of(groups: list[list[str]], *, by_hand: bool = False) -> ClaimRows:
    """Return a claim of these names, all of one shape."""
    names = [name for group in groups for name in group]
    ends = [sum(map(len, groups[:at])) for at in range(len(groups) + 1)]
    return ClaimRows(
        claim=Claim(source="given", rule="", names=tuple(names), keys=tuple(names), by_hand=by_hand),
        rows=tuple(row_of(name, name) for name in names),
        positions=tuple(range(len(names))),
        groups=tuple(tuple(range(first, last)) for first, last in pairwise(ends)),
        group_numbers=tuple(range(len(groups))),
        places=(0,) * len(names),
        shapes=(0,) * len(names),
        levels=(),
    )


def factor(layer: int, kind: str, adapter: str = "default") -> str:
    return f"base_model.model.layers.{layer}.q_proj.lora_{kind}.{adapter}.weight"


@pytest.mark.parametrize(
    ("name", "path", "adapter"),
    [
        ("base_model.model.m.q_proj.lora_A.weight", ("m", "q_proj"), ""),
        ("base_model.model.m.q_proj.lora_A.bias", ("m", "q_proj"), ""),
        ("base_model.model.m.q_proj.lora_A.first.weight", ("m", "q_proj"), "first"),
        ("base_model.model.m.q_proj.lora_magnitude_vector", ("m", "q_proj"), ""),
        ("m.q_proj.base_layer.weight", ("m", "q_proj"), ""),
        ("m.norm.weight", ("m", "norm"), ""),
        ("weight", (), ""),
    ],
)
def test_a_name_is_its_module_and_its_adapter(name, path, adapter):
    row = row_of(name, None)
    assert (row.path, row.adapter) == (path, adapter)


def test_only_a_name_in_one_piece_is_cut_at_underscores():
    assert components(["lora_unet_down_blocks_0_attn1"]) == ("lora", "unet", "down", "blocks", "0", "attn1")
    assert components(["lora_unet_down", "attn1"]) == ("lora_unet_down", "attn1")
    assert components(["q_proj"]) == ("q_proj",)
    assert components(["a$$b", "c"]) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1", 5),
        ("unet.mid_block.attentions.0.proj_in", 2),
        ("unet.down_blocks.0.resnets.0.conv1", 0),
        ("model.layers.0.attentions.1.q", 0),
    ],
)
def test_the_inner_part_begins_behind_the_half_of_a_u_net_alone(path, part):
    assert inner_part(path.split(".")) == part


TWO_GROUPS = [[factor(0, "A"), factor(1, "A")], [factor(0, "B"), factor(1, "B")]]


def test_one_group_or_factor_is_rearranged_alone_only_where_a_person_made_the_groups():
    said = [words for words, _ in selections(rows_of(TWO_GROUPS))]
    assert said == ["", ", group by group"]
    said = [words for words, _ in selections(rows_of(TWO_GROUPS, by_hand=True))]
    assert said == ["", ", group by group", ", in group 0 alone", ", in group 1 alone", ", of lora_A alone", ", of lora_B alone"]
    said = [words for words, _ in selections(rows_of(TWO_GROUPS, by_hand=True), each_group=False, each_factor=False)]
    assert said == ["", ", group by group"]


def test_of_a_factor_alone_its_own_rows_are_rearranged():
    groups = [[factor(0, "A"), factor(1, "A"), factor(0, "B"), factor(1, "B")], [factor(2, "A"), factor(3, "A"), factor(2, "B"), factor(3, "B")]]
    found = dict(selections(rows_of(groups, by_hand=True)))
    assert found[", of lora_A alone"] == [[0, 1, 4, 5]]
    assert found[", of lora_B alone"] == [[2, 3, 6, 7]]
    assert found[", of lora_B in group 1 alone"] == [[6, 7]]


def test_a_single_group_is_no_group_by_itself():
    said = [words for words, _ in selections(rows_of([TWO_GROUPS[0]], by_hand=True))]
    assert said == [""]


def test_two_groups_change_places_and_one_has_none_to_change_with():
    assert list(groups_exchanged(rows_of([TWO_GROUPS[0]]))) == []
    assert [order for _, order in groups_exchanged(rows_of(TWO_GROUPS))] == [[0, 1, 2, 3], [2, 3, 0, 1]]


def test_four_groups_are_tried_in_every_order():
    assert len(list(groups_exchanged(rows_of([[factor(layer, "A")] for layer in range(4)])))) == 24


def test_of_many_groups_the_whole_list_is_turned_and_neighbours_change_places():
    orders = [order for _, order in groups_exchanged(rows_of([[factor(layer, "A")] for layer in range(6)]))]
    assert orders[0] == list(range(5, -1, -1))
    assert len(orders) == 6
    for at, order in enumerate(orders[1:]):
        expected = list(range(6))
        expected[at], expected[at + 1] = at + 1, at
        assert order == expected


def test_counts_that_are_one_off_go_both_ways_and_parts_are_turned():
    found = dict(shifted(rows_of([[factor(layer, "A") for layer in range(3)]])))
    assert found["every name one place later"] == [2, 0, 1]
    assert found["every name one place earlier"] == [1, 2, 0]
    assert found["every name, among modules of equal shapes, one module later"] == [2, 0, 1]
    assert found["every name, among modules of equal shapes, one module earlier"] == [1, 2, 0]
    assert found["every name, group by group, reversed"] == [2, 1, 0]
    assert "every name reversed" not in found  # a row of its own


def test_whole_tensors_stand_before_or_behind_the_adapters_weights():
    head = "base_model.model.head.modules_to_save.default.weight"
    found = dict(factor_orders(rows_of([[factor(0, "A"), head, factor(0, "B")]])))
    assert found["whole tensors after all adapter weights"] == [0, 2, 1]
    assert found["whole tensors before all adapter weights"] == [1, 0, 2]
    assert not any("whole tensors" in what for what, _ in factor_orders(rows_of([[factor(0, "A"), factor(0, "B")]])))


def test_three_adapters_are_tried_in_every_order_and_four_as_listed_and_turned():
    def firsts(count: int) -> set[str]:
        names = [factor(0, kind, f"a{number}") for number in range(count) for kind in "AB"]
        return {what for what, _ in adapter_orders(rows_of([names])) if what.startswith("all of adapter")}

    assert len(firsts(2)) == 2
    assert len(firsts(3)) == 6
    assert firsts(4) == {"all of adapter a0 before a1 before a2 before a3", "all of adapter a3 before a2 before a1 before a0"}


@pytest.mark.parametrize("source", get_args(ClaimSource))
def test_whatever_named_the_positions_other_orders_are_weighed_against_it(source):
    """A source that no row knew of would be proven against nothing."""
    asked = {row.name for row in ROWS if source in row.sources}
    assert asked >= {"layer order", "factor order", "adapters", "groups exchanged", "reversed", "names sorted", "kinds exchanged", "shifted"}
