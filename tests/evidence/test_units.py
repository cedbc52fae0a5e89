"""Which tensors of a method are tested, and how each is read: written down from PEFT's sources, tensor by tensor."""

from __future__ import annotations

import numpy as np
import pytest

from ostate.core.naming import Adapter
from ostate.evidence.methods import starts_of, units_of
from tests.records import ArraySlot

VALUES, QUERIES, DOWN = "layers.0.self_attn.v_proj", "layers.0.self_attn.q_proj", "layers.0.mlp.down_proj"


def adapter(method: str, shapes: dict[str, tuple[int, ...]], **options) -> Adapter:
    tensors = {key: ArraySlot(np.zeros(shape, np.float32)) for key, shape in shapes.items()}
    return Adapter(path="a", file="a", kind="peft", tensors=tensors, config={"peft_type": method, **options})  # type: ignore[arg-type]


def units(method: str, shapes: dict[str, tuple[int, ...]], *, previous: bool = False, **options):
    made = adapter(method, shapes, **options)
    return units_of(made, previous=made if previous else None)


def pair(stem: str, zero: str, other: str, rank: int = 4) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.{zero}": (16, rank), f"{stem}.{other}": (rank, 12)}


@pytest.mark.parametrize(
    ("method", "zero", "other"),
    [
        ("HIRA", "hira_B", "hira_A"),
        ("SUPERTUNING", "supertuning_lora_B", "supertuning_lora_A"),
        ("GLORA", "Xd", "Xu"),
        ("GRALORA", "gralora_B_general", "gralora_A_general"),
        ("LOKR", "lokr_w1_a", "lokr_w1_b"),
    ],
)
def test_of_two_factors_the_one_that_starts_at_zero_is_displaced_and_stored_tall(method, zero, other):
    (unit,) = units(method, pair(QUERIES, zero, other))
    assert (unit.zero, unit.other, unit.prefix) == (f"{QUERIES}.{zero}", f"{QUERIES}.{other}", QUERIES)
    assert (unit.displaced, unit.tall, unit.balanced) == ((True, False), (True, False), True)


def test_with_an_earlier_adapter_both_factors_are_displaced():
    (unit,) = units("HIRA", pair(QUERIES, "hira_B", "hira_A"), previous=True)
    assert unit.displaced == (True, True)


def test_where_the_configuration_starts_otherwise_neither_is():
    (unit,) = units("HIRA", pair(QUERIES, "hira_B", "hira_A"), init_weights=False)
    assert unit.displaced == (False, False)
    assert units("HIRA", pair(QUERIES, "hira_B", "hira_A"), init_weights=False, previous=True)[0].displaced == (True, True)


def test_of_lohas_two_products_the_second_alone_starts_at_zero_in_its_wide_factor():
    shapes = pair(QUERIES, "hada_w1_a", "hada_w1_b") | pair(QUERIES, "hada_w2_a", "hada_w2_b")
    first, second = units("LOHA", shapes)
    assert (first.zero, first.other, first.displaced, first.tall) == (
        f"{QUERIES}.hada_w1_a", f"{QUERIES}.hada_w1_b", (False, False), (True, False),
    )  # fmt: skip
    assert (second.zero, second.other, second.displaced, second.tall) == (
        f"{QUERIES}.hada_w2_b", f"{QUERIES}.hada_w2_a", (True, False), (False, True),
    )  # fmt: skip


def test_two_factors_that_make_one_column_do_not_balance():
    """GLoRA's C, of which every gradient has one direction: both sides are one matrix times a number, and the true gauge may stand last of all."""
    (column,) = units("GLORA", {f"{QUERIES}.glora_C.Xd": (16, 4), f"{QUERIES}.glora_C.Xu": (4, 1)})
    assert (column.balanced, column.displaced, column.group) == (False, (True, False), "signed")
    (row,) = units("HIRA", {f"{QUERIES}.hira_B": (1, 4), f"{QUERIES}.hira_A": (4, 12)})
    assert not row.balanced


def test_a_product_with_a_core_between_its_factors_is_another_kind_and_not_tested():
    shapes = pair(QUERIES, "hada_w1_a", "hada_w1_b") | {f"{QUERIES}.hada_t1": (4, 4, 3, 3)}
    assert units("LOHA", shapes) == []
    assert len(units("LOHA", pair(QUERIES, "hada_w1_a", "hada_w1_b"))) == 1


def test_a_factor_without_its_partner_or_of_another_rank_is_no_pair():
    assert units("HIRA", {f"{QUERIES}.hira_B": (16, 4)}) == []
    assert units("HIRA", {f"{QUERIES}.hira_B": (16, 4), f"{QUERIES}.hira_A": (5, 12)}) == []


@pytest.mark.parametrize(
    ("method", "key", "shape", "group", "flat"),
    [
        ("SHIRA", "shira_weight", (24,), "signs", True),
        ("RANDLORA", "randlora_lambda", (4, 2), "signs", True),
        ("WAVEFT", "waveft_spectrum", (24,), "signs", True),
        ("C3A", "c3a_kernel", (4, 3, 4), "signs", False),
    ],
)
def test_what_takes_its_sign_from_an_attentions_values_is_tested_there_and_nowhere_else(method, key, shape, group, flat):
    options = {"init_weights": True}
    (unit,) = units(method, {f"{VALUES}.{key}": shape, f"{QUERIES}.{key}": shape}, **options)
    assert (unit.prefix, unit.group, unit.flat, unit.start) == (VALUES, group, flat, 0.0)
    assert unit.gauge.startswith("layers.0.self_attn")


def test_rows_of_lokr_are_read_one_by_one_along_values_and_as_one_sign_elsewhere():
    values, queries = units("LOKR", {f"{VALUES}.lokr_w1": (4, 3), f"{QUERIES}.lokr_w1": (4, 3)})
    assert (values.group, values.flat, bool(values.gauge)) == ("signs", False, True)
    assert (queries.group, queries.flat, queries.gauge) == ("signed", True, "")


def test_latent_dimensions_of_gralora_are_all_indices_but_the_last_and_change_their_signs_alone():
    (unit,) = units("GRALORA", {f"{QUERIES}.gralora_B": (2, 4, 8)})
    assert (unit.group, unit.folded, unit.flat, unit.tall) == ("signs", True, False, (False, False))


@pytest.mark.parametrize(
    ("method", "key", "shape", "group", "last"),
    [
        ("BONE", "bone_block", (4, 16), "signed", True),
        ("MISS", "miss_block", (4, 16), "signed", True),
        ("BEFT", "beft_bias", (1, 16), "signed", True),
        ("VERA", "vera_lambda_b", (16,), "signs", False),
        ("PVERA", "pvera_lambda_b", (16,), "signs", False),
        ("ROAD", "road_theta", (16,), "signs", False),
        ("IA3", "ia3_l", (16, 1), "permuted", False),
        ("BOFT", "boft_s", (16, 1), "permuted", False),
    ],
)
def test_vectors_along_an_attentions_values_have_its_gauge(method, key, shape, group, last):
    (unit,) = units(method, {f"{VALUES}.{key}": shape})
    assert (unit.group, unit.most, unit.tall, unit.displaced) == (group, 16, (last, False), (True, False))
    assert unit.start == (1.0 if method in {"IA3", "BOFT"} else 0.0)


@pytest.mark.parametrize(
    "path",
    [
        "encoder.layer.0.attention.self.value",
        "encoder.layer.0.attention.attention.value",
        "encoder.layer.0.attention.self.value_proj",
        "decoder.layers.0.encoder_attn.value_proj",
        "encoder.block.0.layer.0.SelfAttention.v",
        "decoder.block.0.layer.1.EncDecAttention.v",
        "encoder.block.0.layer.0.TransientGlobalSelfAttention.v",
        "blocks.0.attention.value",
    ],
)
def test_values_are_what_an_attention_calls_so(path):
    (unit,) = units("MISS", {f"{path}.miss_block": (4, 16)})
    assert (unit.group, unit.most) == ("signed", 16)


def test_what_a_feed_forward_block_calls_its_value_lies_in_the_residual_stream():
    """RWKV: `value` of `feed_forward` gives back what all layers read and write."""
    assert units("MISS", {"blocks.0.feed_forward.value.miss_block": (4, 16)})[0].group is None
    assert units("SHIRA", {"blocks.0.feed_forward.value.shira_weight": (24,)}) == []


@pytest.mark.parametrize("block", ["encoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.1.EncDecAttention"])
def test_queries_and_keys_that_carry_no_positions_have_one_gauge_between_them_and_the_values_another(block):
    found = units("IA3", {f"{block}.{word}.ia3_l": (16, 1) for word in "qkvo"})
    assert [(unit.prefix.rpartition(".")[2], unit.group, unit.most) for unit in found] == [(word, "permuted", 16) for word in "qkv"]
    assert found[0].gauge == found[1].gauge != found[2].gauge != ""
    assert units("MISS", {f"{block}.q.miss_block": (4, 16)})[0].group == "signed"


def test_queries_and_keys_that_may_carry_positions_are_not_tested():
    for path in (QUERIES, "layers.0.self_attn.k_proj", "encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.key"):
        assert units("MISS", {f"{path}.miss_block": (4, 16)}) == [], path


def test_what_scales_the_neurons_that_enter_a_layer_lies_along_a_row():
    """ia3_l (1, n) of a feed-forward module is multiplied with its input: half of the neurons are compared, in their order alone."""
    (row,) = units("IA3", {f"{DOWN}.ia3_l": (1, 32)})
    assert (row.group, row.most, row.tall) == ("permuted", 16, (True, False))
    (column,) = units("IA3", {f"{DOWN}.ia3_l": (32, 1)})  # of what comes out of it: the residual stream, which tells nothing
    assert column.group is None


def test_biases_of_lora_b_are_tested_where_lora_b_starts_at_zero():
    shapes = pair(VALUES, "lora_B.weight", "lora_A.weight") | {f"{VALUES}.lora_B.bias": (16,)}
    assert [unit.zero for unit in units("LORA", shapes)] == [f"{VALUES}.lora_B.weight", f"{VALUES}.lora_B.bias"]
    assert [unit.zero for unit in units("LORA", shapes, init_lora_weights=False)] == [f"{VALUES}.lora_B.weight"]


@pytest.mark.parametrize(
    ("method", "key", "start"),
    [
        ("VERA", "vera_lambda_d", 0.1),
        ("PVERA", "pvera_lambda_d", 0.1),
        ("RANDLORA", "randlora_lambda", 0.0),
        ("PEANUT", "peanut_B", 0.0),
        ("BOFT", "boft_R", 0.0),
        ("ROAD", "road_alpha", 1.0),
        ("OFT", "oft_s", 1.0),
        ("DELORA", "delora_B", 0.0),
    ],
)
def test_tensors_start_where_peft_starts_them(method, key, start):
    found = starts_of(adapter(method, {f"{QUERIES}.{key}": (4, 4)}))
    assert [(at, one.value) for at, one in found.items()] == [(f"{QUERIES}.{key}", start)]


def test_a_start_that_the_configuration_names_is_that_one():
    found = starts_of(adapter("VERA", {f"{QUERIES}.vera_lambda_d": (4,)}, d_initial=0.25))
    assert [one.value for one in found.values()] == [0.25]
