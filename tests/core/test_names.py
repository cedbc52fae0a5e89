"""The grammar of names: wrappers, PEFT's containers, the adapter's name in and out, the spellings of LoRA's factors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ostate.core.names import (
    ADAPTER_CONTAINERS,
    WRAPPERS,
    adapter_at,
    any_adapter,
    by_spelling,
    common_leads,
    component,
    component_of,
    factor_of,
    factor_words,
    first_names,
    is_tuned,
    kind_of,
    leading_modules,
    named_parameters,
    of_whole_module,
    place_in_model,
    plain_names,
    renamed_adapter,
    spelled,
    strip_wrappers,
    tuner_at,
    twins,
    with_adapter,
    without_adapter,
    without_inner,
    without_lead,
)
from ostate.errors import OrderingError, ProbeError

SEGMENT = st.sampled_from(["a", "b1", "layers", "0", "12", "q_proj", "module", "norm", "base_model", "model", "weights"])
LIVE = st.tuples(
    st.lists(SEGMENT, min_size=1, max_size=4).map(".".join),
    st.sampled_from(["lora_A", "lora_B", "hada_w1_a", "vera_lambda_b"]),
    st.sampled_from(["default", "other", "adapter_1"]),
)
"""(path of a module, container, adapter's name)."""


# wrappers


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("_orig_mod.a.weight", "a.weight"),
        ("a._fsdp_wrapped_module._checkpoint_wrapped_module.b.weight", "a.b.weight"),
        ("_forward_module._orig_mod.a.weight", "a.weight"),
        ("a._orig_mod", "a._orig_mod"),
        ("_orig_mod", "_orig_mod"),
        ("a.my_orig_mod.weight", "a.my_orig_mod.weight"),
        ("module._orig_mod.a.weight", "module.a.weight"),
        ("", ""),
    ],
)
def test_wrappers_segments_are_taken_out_wherever_they_stand_but_not_a_parameters_own_name(name, bare):
    assert without_inner(name) == bare


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("module.module.a.weight", "a.weight"),
        ("module._orig_mod.module.a.weight", "a.weight"),
        ("a.module.weight", "a.module.weight"),
        ("modules.a", "modules.a"),
        ("module.", "module."),
        ("module", "module"),
        ("module.a", "a"),
    ],
)
def test_one_name_loses_ddps_module_in_front_only(name, bare):
    assert strip_wrappers(name) == bare


@pytest.mark.parametrize(
    ("names", "lead"),
    [
        (["module.a", "module.b"], "module."),
        (["module.module.a", "module.b"], "module."),
        (["module.module.a", "module.module.b"], "module.module."),
        (["module.a", "b"], ""),
        (["b", "module.a"], ""),
        (["module.a", "module_b"], ""),
        (["module.", "module."], ""),
        (["module.module.", "module.module.a"], "module."),
        (["_orig_mod.module.a", "module._orig_mod.b"], "module."),
        ([], ""),
    ],
)
def test_a_leading_module_is_a_wrappers_only_where_every_name_has_it(names, lead):
    """One name without it, and `module` is a submodule of the model's own."""
    assert leading_modules(names) == lead
    assert plain_names(names) == [without_inner(name).removeprefix(lead) for name in names]


@given(st.lists(st.lists(SEGMENT, min_size=2, max_size=5).map(".".join), min_size=1, max_size=6, unique=True), st.sampled_from(sorted(WRAPPERS)))
def test_what_wraps_a_model_changes_none_of_its_plain_names(names, wrapper):
    bare = plain_names(names)
    assert plain_names([f"{wrapper}.{name}" for name in names]) == bare
    assert plain_names([f"module.{name}" for name in names]) == bare
    assert plain_names([f"module.{wrapper}.module.{name}" for name in names]) == bare
    assert len(set(bare)) == len(names)


class Model:
    """A stand-in that lists parameters, doubled where they are shared."""

    def __init__(self, *pairs):
        self.pairs = pairs

    def named_parameters(self, *, remove_duplicate):
        assert remove_duplicate is False
        return iter(self.pairs)


def test_a_shared_parameter_answers_to_each_of_its_names_and_is_called_by_the_first():
    shared, other = torch.zeros(1), torch.zeros(1)
    model = Model(("module.a", shared), ("module._orig_mod.b", other), ("module.c", shared))
    assert named_parameters(model) == [("a", shared), ("b", other), ("c", shared)]
    assert first_names(model) == {id(shared): "a", id(other): "b"}


def test_two_parameters_that_end_under_one_name_are_refused_and_one_that_stands_twice_is_not():
    one, other = torch.zeros(1), torch.zeros(1)
    assert named_parameters(Model(("a.b", one), ("a._orig_mod.b", one))) == [("a.b", one), ("a.b", one)]
    with pytest.raises(OrderingError, match=r"two parameters are called 'a\.b'") as told:
        named_parameters(Model(("a.b", one), ("a._orig_mod.b", other)))
    assert told.value.where == "a._orig_mod.b"
    assert "_orig_mod" in told.value.fix
    with pytest.raises(ProbeError):
        first_names(Model(("a.b", one), ("a._orig_mod.b", other)), error=ProbeError)
    with pytest.raises(ProbeError, match="not a str"):
        named_parameters("model", error=ProbeError)


def test_twins_are_the_names_that_stand_more_than_once_in_order_of_appearance():
    assert twins(["b", "a", None, "b", "c", "a", "b", None]) == ["b", "a"]
    assert twins(["a", "b"]) == []


# the adapter's name


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("q.lora_A.default.weight", 2),
        ("q.lora_A.default", 2),
        ("q.lora_A.weight", None),
        ("q.lora_A.bias", None),
        ("q.lora_A.weight.weight", 2),
        ("q.lora_A.weights", 2),
        ("q.lora_embedding_A.other", 2),
        ("m.modules_to_save.default.weight", 2),
        ("m.modules_to_save.default.dense.weight", 2),
        ("prompt_encoder.default.embedding.weight", 1),
        ("q.lora_A", None),
        ("lora_A.x", 1),
        ("a.b.weight", None),
        ("lora_A.default.inner.lora_B.other.weight", 4),
        ("a.modules_to_save.x.lora_A.weight", 2),
        ("", None),
    ],
)
def test_the_adapters_name_stands_after_the_last_container_that_has_room_for_it(name, at):
    assert adapter_at(name.split(".")) == at
    parts = name.split(".")
    assert any_adapter(name) == (name if at is None else ".".join([*parts[:at], "*", *parts[at + 1 :]]))


@given(LIVE)
def test_an_adapters_name_goes_out_and_comes_in_again(live):
    path, container, adapter = live
    key = f"{path}.{container}.weight"
    name = with_adapter(key, adapter)
    assert name == f"{path}.{container}.{adapter}.weight"
    assert any_adapter(name) == f"{path}.{container}.*.weight"
    assert key in list(without_adapter(name, adapter))
    assert next(without_adapter(name, adapter)) == name
    assert renamed_adapter(name, adapter, "new") == f"{path}.{container}.new.weight"
    assert renamed_adapter(name, "else", "new") == name
    assert is_tuned(name)
    assert is_tuned(key)
    assert not is_tuned(f"{path}.weight")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("q.lora_A.weight", "q.lora_A.default.weight"),
        ("q.lora_B.bias", "q.lora_B.default.bias"),
        ("q.lora_embedding_A", "q.lora_embedding_A.default"),
        ("q.lora_magnitude_vector", "q.lora_magnitude_vector.default"),
        ("weight", "weight.default"),
        ("q.weights", "q.weights.default"),
    ],
)
def test_the_adapters_name_comes_before_a_last_weight_or_bias_else_at_the_end(key, name):
    assert with_adapter(key, "default") == name


def test_only_the_adapter_asked_for_is_renamed_and_a_name_without_one_stays():
    assert renamed_adapter("a.lora_A.x.weight", "x", "y") == "a.lora_A.y.weight"
    assert renamed_adapter("x.lora_A.x.weight", "x", "y") == "x.lora_A.y.weight"
    assert renamed_adapter("a.lora_A.z.weight", "x", "y") == "a.lora_A.z.weight"
    assert renamed_adapter("x.weight", "x", "y") == "x.weight"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        # each by a release of PEFT: the key in the file for the live name, the surest first
        ("q.lora_A.default.weight", ["q.lora_A.default.weight", "q.lora_A.weight"]),
        ("q.lora_embedding_A.default", ["q.lora_embedding_A.default", "q.lora_embedding_A"]),
        ("h.modules_to_save.default.weight", ["h.modules_to_save.default.weight", "h.weight", "h.modules_to_save.weight", "h.default.weight"]),
        ("h.modules_to_save.default.dense.weight", ["h.modules_to_save.default.dense.weight", "h.dense.weight", "h.default.dense.weight"]),
        (
            "q.lora_magnitude_vector.default.weight",
            [f"q.lora_magnitude_vector{rest}" for rest in (".default.weight", ".weight", "", ".default")],
        ),
        ("q.lora_magnitude_vector.other.weight", ["q.lora_magnitude_vector.other.weight", "q.lora_magnitude_vector.other"]),
        ("base.vblora_vector_bank.default", ["base.vblora_vector_bank.default", "base.vblora_vector_bank", "base_model.vblora_vector_bank"]),
        ("m.defaults.lora_A.default.weight", ["m.defaults.lora_A.default.weight", "m.defaults.lora_A.weight", "ms.lora_A.weight"]),
        ("h.modules_to_save.other.weight", ["h.modules_to_save.other.weight", "h.other.weight"]),
        ("a.weight", ["a.weight"]),
        ("default", ["default", ""]),
        ("weight", ["weight"]),
        ("default.weight", ["default.weight", "weight"]),
        ("lora_magnitude_vector.default.weight", [f"lora_magnitude_vector{rest}" for rest in (".default.weight", ".weight", "", ".default")]),
    ],
)  # fmt: skip
def test_the_keys_that_a_release_of_peft_wrote_for_a_live_name(name, keys):
    assert list(dict.fromkeys(without_adapter(name, "default"))) == keys


# spellings


@pytest.mark.parametrize(
    ("key", "stem", "kind"),
    [
        ("q.lora_A.weight", "q..weight", "A"),
        ("q.lora_B.default.weight", "q..default.weight", "B"),
        ("lora_A.weight", ".weight", "A"),
        ("q.lora_A", "q.", "A"),
        ("q.lora_embedding_A", "q.", "embedding_A"),
        ("q.lora_embedding_B.default", "q..default", "embedding_B"),
        ("q.lora_a.weight", "q..weight", "A"),
        ("q.lora_b.weight", "q..weight", "B"),
        ("lora_te_q.lora_down.weight", "lora_te_q..weight", "A"),
        ("lora_te_q.lora_up.weight", "lora_te_q..weight", "B"),
        ("q.lora.down.weight", "q..weight", "A"),
        ("q.lora.up.weight", "q..weight", "B"),
        ("q.down_lora.weight", "q..weight", "A"),
        ("q.up_lora.weight", "q..weight", "B"),
        ("q.down_list.0", "q..0", "A"),
        ("q.up_list.0", "q..0", "B"),
        ("q.lora_layer.down.weight", "q..weight", "A"),
        ("q.lora_linear_layer.up.weight", "q..weight", "B"),
        ("q.to_q_lora.down.weight", "q.to_q_lora..weight", "A"),
        ("q.to_q_lora.up.weight", "q.to_q_lora..weight", "B"),
    ],
)
def test_every_spelling_of_a_factor_is_known(key, stem, kind):
    assert factor_of(key) == (stem, kind)


@pytest.mark.parametrize(
    "key",
    ["q.lora_A.bias", "q.lora_magnitude_vector", "q.weight", "q.my_lora_A.weight", "q.lora_Ax.weight", "q.down.weight", "q.down_proj.weight",
     "down_blocks.0.weight", "q.lora_embedding_Ab", ""],
)  # fmt: skip
def test_what_is_no_factors_weight_is_not_taken_for_one(key):
    assert factor_of(key) is None


@given(st.lists(SEGMENT, min_size=1, max_size=3).map(".".join), st.sampled_from(["weight", "default.weight"]))
def test_both_factors_of_a_module_have_one_stem_whatever_their_spelling(path, last):
    pairs = (("lora_A", "lora_B"), ("lora_a", "lora_b"), ("lora_down", "lora_up"), ("lora.down", "lora.up"), ("lora_embedding_A", "lora_embedding_B"))
    for first, second in pairs:
        (stem, kind), (other, opposite) = factor_of(f"{path}.{first}.{last}"), factor_of(f"{path}.{second}.{last}")
        assert stem == other == f"{path}..{last}"
        assert (kind[-1], opposite[-1]) == ("A", "B")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("blocks.0.linear_a_q.weight", [("blocks.0.linear_*_q.weight", "A")]),
        ("w_b_000.weight", [("w_*_000.weight", "B")]),
        ("x.loraA.weight", [("x.*.weight", "A")]),
        ("x.LoRA_B.weight", [("x.LoRA_*.weight", "B")]),
        ("q.left.weight", [("q.*.weight", "A")]),
        ("q.right.weight", [("q.*.weight", "B")]),
        ("mlp.down_proj.weight", []),
        ("up_blocks.0.weight", []),
        ("down_block.up.weight", [("down_block.*.weight", "B")]),
        ("a.b", [("*.b", "A"), ("a.*", "B")]),
        ("mlp.gate.weight", []),
        ("up", [("*", "B")]),
    ],
)
def test_words_that_may_tell_two_factors_apart(key, words):
    assert list(factor_words(key)) == words


@pytest.mark.parametrize(
    ("key", "common"),
    [
        ("transformer$$blocks$$0$$q.lora_down.weight", "transformer.blocks.0.q.lora_A.weight"),
        ("q.lora_up.weight", "q.lora_B.weight"),
        ("q.lora.down.weight", "q.lora_A.weight"),
        ("q.lora_embedding_A", "q.lora_embedding_A"),
        ("q.weight", "q.weight"),
        ("q.lora_A.default.weight", "q.lora_A.default.weight"),
    ],
)
def test_a_key_is_put_into_pefts_spelling(key, common):
    assert spelled(key) == common


def test_names_that_differ_by_spelling_alone_meet_and_those_that_would_meet_twice_do_not():
    trained = ["transformer$$a$$q.lora_down.weight", "transformer$$a$$q.lora_up.weight"]
    file = ["diffusion_model.a.q.lora_A.weight", "diffusion_model.a.q.lora_B.weight"]
    assert by_spelling(trained).keys() == by_spelling(file).keys() == {"a.q.lora_A.weight", "a.q.lora_B.weight"}
    assert by_spelling(trained)["a.q.lora_B.weight"] == trained[1]
    assert by_spelling(["a.lora_A.x.weight", "a.lora_A.y.weight", "b.lora_A.x.weight"]) == {"b.lora_A.weight": "b.lora_A.x.weight"}
    assert by_spelling(["a.weight"]) == {"a.weight": "a.weight"}
    live, saved = [[f"{lead}_blocks_0_q.lokr_w1"] for lead in ("lora_transformer", "lycoris")]
    assert by_spelling(live).keys() == by_spelling(saved).keys()
    assert by_spelling([*live, *saved]).keys() == {*live, *saved}
    several = ["unet.q.weight", "text_encoder.k.weight", "unet.both.weight", "text_encoder.both.weight"]
    assert list(by_spelling(several)) == ["q.weight", "k.weight", "unet.both.weight", "text_encoder.both.weight"]


@pytest.mark.parametrize(
    ("keys", "lead"),
    [(["unet.a", "unet.b"], "unet."), (["unet.a", "text_encoder.b"], ""), (["unet.a", "b"], ""), (["a.x", "a.y"], ""), (["unet"], "unet."), ([], "")],
)
def test_a_component_is_one_only_where_all_keys_lie_in_it(keys, lead):
    assert component(keys) == lead


@pytest.mark.parametrize(
    ("names", "count", "left"),
    [
        (["m.a.lora_A.w", "m.b.lora_B.w"], 1, ["a.lora_A.w", "b.lora_B.w"]),
        (["m.a.lora_A.w", "v_head.w"], 1, ["a.lora_A.w", None]),
        (["m.a.lora_A.w", "n.b.lora_A.w"], 1, []),
        (["m.a.lora_A.w", None], 1, ["a.lora_A.w", None]),
        (["m.n.a.lora_A.w", "m.o.head.w"], 2, ["a.lora_A.w", None]),
        (["m.a.w", "m.b.w"], 1, ["a.w", "b.w"]),
        (["m.a.w", "n.b.w"], 1, []),
        (["m.a.w", "m.b.w", "v_head.w"], 1, ["a.w", "b.w", None]),
        ([None], 1, []),
        (["lora_A"], 1, []),
        (["m.lora_A"], 1, ["lora_A"]),
        (["m.lora_A"], 2, []),
    ],
)
def test_segments_in_front_are_taken_off_where_all_of_the_tuners_names_share_them(names, count, left):
    assert without_lead(names, count) == left


# what a name tells


@pytest.mark.parametrize(
    ("name", "after", "at"),
    [
        ("a.q.lora_A.weight", 0, 2), ("lora_A.q.lora_B.weight", 0, 0), ("lora_A.q.lora_B.weight", 1, 2), ("q.base_layer.weight", 0, 1),
        ("q.lora_down.weight", 0, 1), ("a.b.weight", 0, None), ("q.lora_A.weight", 1, 1), ("q.lora_A.weight", 2, None),
    ],
)  # fmt: skip
def test_where_the_tuners_own_part_begins(name, after, at):
    assert tuner_at(name.split("."), after=after) == at


def test_every_container_of_peft_marks_a_tuned_parameter_and_takes_an_adapters_name():
    for container in ADAPTER_CONTAINERS:
        name = f"q.{container}.default"
        assert is_tuned(name)
        assert adapter_at(name.split(".")) == 2
        assert tuner_at(name.split(".")) == 1
    assert len(set(ADAPTER_CONTAINERS)) == len(ADAPTER_CONTAINERS)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("unet.down_blocks.0.weight", "unet"), ("text_encoder_2.a", "text_encoder_2"), ("base_model.model.unet.a", "unet"),
        ("lora_te1_text_q", "lora_te1"),
        ("lora_unet_down", "lora_unet"), ("lora_te_x", "lora_te"), ("lora_prior_unet_x", "lora_prior_unet"), ("transformer$$a", "transformer"),
        ("oft_unet_x", "oft_unet"), ("unets.a", ""), ("model.unet.a", ""), ("transformer_h.0", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_component_of_a_pipeline_that_a_name_begins_with(name, found):
    assert component_of(name) == found


@pytest.mark.parametrize(
    ("name", "dimensions", "kind"),
    [
        ("q.lora_A.default.weight", 2, "lora_A"), ("q.lora_B.default.bias", 1, "lora_B.bias"), ("q.lora_embedding_A.default", 2, "lora_embedding_A"),
        ("q.lora_magnitude_vector.default.weight", 1, "lora_magnitude_vector"), ("q.bias", 1, "bias"), ("layers.0.input_layernorm.weight", 1, "norm"),
        ("h.0.ln_1.weight", 1, "norm"), ("ln.weight", 2, "norm"), ("ln2.weight", None, "norm"), ("embed_tokens.weight", 2, "embed"),
        ("wte.weight", 2, "embed"),
        ("embed_out.weight", 2, "head"), ("lm_head.weight", 2, "head"), ("score.weight", 2, "head"), ("v_head.x.weight", 2, "head"),
        ("lm_heads.weight", 2, "other"), ("q.weight", 1, "norm"), ("q.weight", 2, "other"), ("q.weight", None, "other"),
        ("q.modules_to_save.default.weight", 2, "modules_to_save"), ("q.modules_to_save.default.weight", 1, "norm"),
        ("score.modules_to_save.default.weight", 2, "head"), ("lnx.weight", 2, "other"), ("trainable_tokens_delta.default", 2, "embed"),
    ],
)  # fmt: skip
def test_the_sort_of_a_parameter(name, dimensions, kind):
    assert kind_of(name, dimensions) == kind


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("base_model.model.model.layers.0.q.base_layer.weight", "model.layers.0.q.weight"),
        ("base_model.model.score.modules_to_save.default.weight", "score.weight"),
        ("base_model.model.a.modules_to_save.default.base_layer.modules_to_save.weight", "a.modules_to_save.weight"),
        ("model.layers.0.q.weight", "model.layers.0.q.weight"),
        ("base_model.model.weight", "weight"),
        ("a.modules_to_save", "a"),
    ],
)
def test_the_name_that_a_parameter_had_before_peft_wrapped_it(name, place):
    assert place_in_model(name) == place


def test_names_share_the_modules_that_all_of_them_lie_in_and_no_more():
    assert common_leads(["model.layers.0.weight"]) == ["model.", "model.layers.", "model.layers.0."]
    assert common_leads(["model.layers.0.q.weight", "model.layers.1.q.weight", "model.layers.0.bias"]) == ["model.", "model.layers."]
    assert common_leads(["a.weight", "b.weight"]) == common_leads(["weight", "a.weight"]) == common_leads([]) == []


def test_a_name_that_begins_with_a_tuners_word_is_the_tuners_from_its_first_segment_on():
    assert tuner_at(["lora_A", "default", "weight"]) == 0
    assert tuner_at(["lora_A", "default", "weight"], after=1) is None


@pytest.mark.parametrize(("live", "saved"), [("lora_unet_mid_norm.weight", "lora_unet_mid_norm.diff"), ("lycoris_norm.bias", "lycoris_norm.diff_b")])
def test_what_lycoris_trains_whole_is_spelled_as_the_difference_that_it_saves_and_back(live, saved):
    assert spelled(live) == saved
    assert of_whole_module(saved) == live
    assert of_whole_module("norm.diff") == "norm.diff"  # of no module that LyCORIS has made
