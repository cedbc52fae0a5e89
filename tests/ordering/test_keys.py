"""Live name to adapter key and back, in every form that releases and wrappers wrote."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

import pytest

from ostate.core.names import CONTAINERS, strip_wrappers
from ostate.core.naming import Adapter
from ostate.core.tensors import TensorRef
from ostate.ordering.keys import adapter_key, live_name, live_names, match_all

P = "base_model.model.model.layers.0.self_attn."
REF = TensorRef(dtype="F32", shape=(1,), parts=())


def adapter(*keys: str, kind: str = "peft", name: str = "default", known: bool = False, facts: dict | None = None, **config: object) -> Adapter:
    return Adapter(path="a", file="a", kind=kind, tensors=dict.fromkeys(keys, REF), config=config, name=name, name_known=known, facts=facts or {})


@pytest.mark.parametrize(
    "name",
    [
        f"module.{P}q_proj.lora_A.default.weight",
        f"module.module.{P}q_proj.lora_A.default.weight",
        f"_orig_mod.{P}q_proj.lora_A.default.weight",
        f"_fsdp_wrapped_module.{P}q_proj._fsdp_wrapped_module.lora_A.default.weight",
        "base_model.model.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.lora_A.default.weight",
    ],
)
def test_wrappers_are_stripped_wherever_they_stand(name: str):
    assert strip_wrappers(name) == f"{P}q_proj.lora_A.default.weight"


def test_a_module_that_is_really_called_module_stays():
    assert strip_wrappers("encoder.module.weight") == "encoder.module.weight"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (f"{P}q_proj.lora_A.default.weight", f"{P}q_proj.lora_A.weight"),
        (f"{P}q_proj.lora_magnitude_vector.default.weight", f"{P}q_proj.lora_magnitude_vector"),
        (f"{P}q_proj.lora_magnitude_vector.default", f"{P}q_proj.lora_magnitude_vector"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "base_model.model.lm_head.weight"),
        ("base_model.model.classifier.modules_to_save.default.dense.bias", "base_model.model.classifier.dense.bias"),
        ("base_model.model.model.embed_tokens.lora_embedding_A.default", "base_model.model.model.embed_tokens.lora_embedding_A"),
        (f"{P}q_proj.base_layer.bias", f"{P}q_proj.base_layer.bias"),
        (f"{P}q_proj.base_layer.bias", f"{P}q_proj.bias"),
        (f"{P}q_proj.lora_B.default.bias", f"{P}q_proj.lora_B.bias"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", f"{P}q_proj.lora_A.weight"),
        ("base_model.model.mlp.experts.base_layer.lora_A.default.weight", "base_model.model.mlp.experts.base_layer.lora_A.weight"),
        ("prompt_encoder.default.prefix_task_cols", "prefix_task_cols"),
    ],
)
def test_a_live_name_finds_its_key(name: str, key: str):
    assert adapter_key(name, adapter(key)) == key


def test_releases_up_to_0_17_removed_the_adapters_name_wherever_it_stood():
    old = adapter("base_model.model.nse.lora_A.weight", name="de")
    assert adapter_key("base_model.model.dense.lora_A.de.weight", old) is None
    eaten = adapter("base_model.model.x_model.lora_A.weight", name="de")
    assert adapter_key("base_model.model.x_model.lora_A.de.weight", eaten) == "base_model.model.x_model.lora_A.weight"
    middle = adapter("base_model.modelnse.lora_A.weight", name="de")
    assert adapter_key("base_model.model.dense.lora_A.de.weight", middle) == "base_model.modelnse.lora_A.weight"


def test_a_name_that_is_in_no_form_of_the_file_has_no_key():
    assert adapter_key(f"{P}k_proj.lora_A.default.weight", adapter(f"{P}q_proj.lora_A.weight")) is None


def test_another_adapters_parameter_is_not_this_ones():
    assert adapter_key(f"{P}q_proj.lora_A.second.weight", adapter(f"{P}q_proj.lora_A.weight")) is None


def test_a_computed_prompt_is_not_the_embedding_it_is_computed_from():
    name = "prompt_encoder.default.embedding.weight"
    assert adapter_key(name, adapter("prompt_embeddings", peft_type="PROMPT_TUNING")) == "prompt_embeddings"
    assert adapter_key(name, adapter("prompt_embeddings", peft_type="PREFIX_TUNING", prefix_projection=True)) is None
    assert adapter_key(name, adapter("prompt_embeddings", peft_type="P_TUNING")) is None


def test_recorded_names_tell_the_adapters_name():
    names = [f"{P}q_proj.lora_A.french.weight", f"{P}q_proj.lora_B.french.weight"]
    keys, told = match_all(names, adapter(f"{P}q_proj.lora_A.weight", f"{P}q_proj.lora_B.weight"))
    assert told == "french"
    assert keys == (f"{P}q_proj.lora_A.weight", f"{P}q_proj.lora_B.weight")


def test_a_known_name_is_not_overruled_by_recorded_ones():
    names = [f"{P}q_proj.lora_A.french.weight"]
    keys, told = match_all(names, adapter(f"{P}q_proj.lora_A.weight", name="german", known=True))
    assert (keys, told) == ((None,), "german")


@pytest.mark.parametrize(
    ("key", "config", "name"),
    [
        (f"{P}q_proj.lora_A.weight", {}, f"{P}q_proj.lora_A.default.weight"),
        (f"{P}q_proj.lora_magnitude_vector", {}, f"{P}q_proj.lora_magnitude_vector.default.weight"),
        (f"{P}q_proj.base_layer.bias", {}, f"{P}q_proj.base_layer.bias"),
        ("base_model.model.score.weight", {"task_type": "SEQ_CLS"}, "base_model.model.score.modules_to_save.default.weight"),
        ("base_model.model.qa_outputs.bias", {"task_type": "QUESTION_ANS"}, "base_model.model.qa_outputs.modules_to_save.default.bias"),
        (
            "base_model.model.model.layers.0.input_layernorm.weight",
            {"modules_to_save": ["norm"]},
            "base_model.model.model.layers.0.input_layernorm.modules_to_save.default.weight",
        ),
        (
            "base_model.model.classifier.dense.weight",
            {"modules_to_save": ["classifier"]},
            "base_model.model.classifier.modules_to_save.default.dense.weight",
        ),
        ("base_model.model.model.embed_tokens.lora_embedding_A", {}, "base_model.model.model.embed_tokens.lora_embedding_A.default"),
        ("prompt_embeddings", {"peft_type": "PROMPT_TUNING"}, "prompt_encoder.default.embedding.weight"),
    ],
)
def test_a_key_gets_its_live_name_back(key: str, config: dict, name: str):
    assert live_name(key, adapter(key, **config)) == name


def test_dora_of_peft_0_9_to_0_11_had_no_weight_below_its_vector():
    key = f"{P}q_proj.lora_magnitude_vector"
    assert live_name(key, adapter(key, facts={"peft_version": "0.11.1"})) == f"{key}.default"
    assert live_name(key, adapter(key, facts={"peft_version": "0.12.0"})) == f"{key}.default.weight"


def test_keys_of_a_whole_model_are_its_names():
    assert live_name("module.model.layers.0.weight", adapter(kind="model")) == "model.layers.0.weight"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("unet.down_blocks.0.attn1.to_q.lora.down.weight", "unet.down_blocks.0.attn1.to_q.lora_A.default.weight"),
        ("unet.down_blocks.0.attn1.to_out.0.lora.up.weight", "unet.down_blocks.0.attn1.to_out.0.lora_B.default.weight"),
        ("transformer.blocks.0.attn.to_k.lora_A.weight", "transformer.blocks.0.attn.to_k.lora_A.default.weight"),
        ("text_encoder_2.layers.0.q_proj.lora_linear_layer.up.weight", "text_encoder_2.layers.0.q_proj.lora_B.default.weight"),
    ],
)
def test_diffusers_keys_keep_their_component_in_the_name(key: str, name: str):
    assert live_name(key, adapter(key, kind="diffusers")) == name


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("down_blocks.0.to_q.lora_A.default.weight", "unet.down_blocks.0.to_q.lora.down.weight"),
        ("unet.down_blocks.0.to_q.lora_B.default.weight", "unet.down_blocks.0.to_q.lora.up.weight"),
        ("transformer$$blocks$$0$$to_q.lora_down.weight", "transformer.blocks.0.to_q.lora_A.weight"),
        ("transformer$$blocks$$0$$to_q.lora_up.weight", "diffusion_model.blocks.0.to_q.lora_B.weight"),
    ],
)
def test_a_name_in_another_spelling_finds_its_key(name: str, key: str):
    assert match_all([name], adapter(key, kind="diffusers"))[0] == (key,)


def test_of_two_components_a_name_without_one_could_be_either():
    keys = ("text_encoder.q.lora_A.weight", "text_encoder_2.q.lora_A.weight")
    assert match_all(["q.lora_A.default.weight"], adapter(*keys, kind="diffusers"))[0] == (None,)


def test_live_names_of_two_components_lack_both_and_are_found_where_one_alone_has_them():
    keys = ("text_encoder.q.lora_A.weight", "text_encoder.both.lora_A.weight", "unet.to_q.lora.down.weight", "unet.both.lora.down.weight")
    names = ["to_q.lora_A.default.weight", "both.lora_A.default.weight", "q.lora_A.default.weight"]
    assert match_all(names, adapter(*keys, kind="diffusers"))[0] == (keys[2], None, keys[0])
    whole = ("text_encoder.q.weight", "unet.to_q.weight")
    assert match_all(["to_q.weight", "q.weight"], adapter(*whole, kind="model"))[0] == (whole[1], whole[0])


def test_names_that_are_keys_get_the_adapters_name_back():
    keys = (f"{P}q_proj.lora_A.weight", f"{P}q_proj.base_layer.bias")
    assert live_names(keys, keys, adapter(*keys)) == [f"{P}q_proj.lora_A.default.weight", keys[1]]


def test_beside_a_live_name_the_bias_of_a_module_called_lora_A_is_live_too():
    held = adapter(f"{P}q_proj.lora_A.weight", "base_model.model.lora_A.bias")
    names = [f"{P}q_proj.lora_A.default.weight", "base_model.model.lora_A.bias"]
    assert live_names(names, match_all(names, held)[0], held) == names


@pytest.mark.filterwarnings("ignore")
def test_the_table_knows_every_container_of_the_installed_tuners():
    import peft.tuners

    known = set()
    for module in pkgutil.iter_modules(peft.tuners.__path__):
        if module.ispkg and importlib.util.find_spec(f"peft.tuners.{module.name}.layer") is not None:
            layer = importlib.import_module(f"peft.tuners.{module.name}.layer")
            for thing in vars(layer).values():
                if isinstance(thing, type):
                    known |= set(getattr(thing, "adapter_layer_names", ()))
    assert {"lora_A", "oft_R", "trainable_tokens_delta"} <= known
    assert known - CONTAINERS <= {"modules_to_save", "osf_svd_params"}
