"""Orders without a base model: by convention, and by the key order of a file that torch.save wrote."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from ostate.core.naming import Adapter, Question
from ostate.core.tensors import TensorRef
from ostate.ordering import claims, heuristic_orders
from ostate.ordering.sources import convention
from ostate.ordering.sources.adapter_order import definition_order
from ostate.ordering.sources.convention import divided, orders_by_convention
from ostate.read import read
from ostate.read.adapters import read_adapter
from tests import real
from tests.list_diffusers import CLASSES, OPTIONS, built
from tests.ordering import tiny
from tests.ordering.tiny import CAUSAL, TARGETS, llama, opt
from tests.records import replace

pytestmark = pytest.mark.filterwarnings("ignore")
REF = TensorRef(dtype="F32", shape=(1,), parts=())


def _on_meta(kind: str, config: str, **options: Any) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import transformers

        with torch.device("meta"):
            return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return build


SMALL = {"hidden_size": 16, "num_hidden_layers": 11, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 64}
PICTURES = {word: size for word, size in SMALL.items() if word != "vocab_size"} | {"image_size": 28, "patch_size": 14}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": _on_meta("LlamaForCausalLM", "LlamaConfig", **SMALL),
    "mistral": _on_meta("MistralForCausalLM", "MistralConfig", **{**SMALL, "num_key_value_heads": 2}),
    "qwen2": _on_meta("Qwen2ForCausalLM", "Qwen2Config", **{**SMALL, "num_key_value_heads": 2}),
    "qwen3": _on_meta("Qwen3ForCausalLM", "Qwen3Config", **{**SMALL, "num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": _on_meta("Gemma2ForCausalLM", "Gemma2Config", **{**SMALL, "num_key_value_heads": 2, "head_dim": 8}),
    "phi": _on_meta("PhiForCausalLM", "PhiConfig", **SMALL),
    "phi3": _on_meta("Phi3ForCausalLM", "Phi3Config", **{**SMALL, "pad_token_id": 0}),
    "opt": _on_meta("OPTForCausalLM", "OPTConfig", hidden_size=16, num_hidden_layers=11, num_attention_heads=2, ffn_dim=24, word_embed_proj_dim=16),
    "bart": _on_meta(
        "BartForConditionalGeneration", "BartConfig", d_model=16, encoder_layers=11, decoder_layers=3, encoder_ffn_dim=24, decoder_ffn_dim=24,
        encoder_attention_heads=2, decoder_attention_heads=2,
    ),
    "whisper": _on_meta(
        "WhisperForConditionalGeneration", "WhisperConfig", d_model=16, encoder_layers=2, decoder_layers=11, encoder_ffn_dim=24, decoder_ffn_dim=24,
        encoder_attention_heads=2, decoder_attention_heads=2,
    ),
    "gptj": _on_meta("GPTJForCausalLM", "GPTJConfig", n_embd=16, n_layer=11, n_head=2, rotary_dim=4, vocab_size=64),
    "gpt_neo": _on_meta("GPTNeoForCausalLM", "GPTNeoConfig", hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]),
    "gpt2": _on_meta("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=11, n_head=2, vocab_size=64),
    "gpt_neox": _on_meta("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL),
    "bloom": _on_meta("BloomForCausalLM", "BloomConfig", hidden_size=16, n_layer=11, n_head=2, vocab_size=64),
    "falcon": _on_meta("FalconForCausalLM", "FalconConfig", hidden_size=16, num_hidden_layers=11, num_attention_heads=2, vocab_size=64),
    "t5": _on_meta("T5ForConditionalGeneration", "T5Config", d_model=16, d_kv=8, d_ff=24, num_layers=11, num_heads=2, vocab_size=64),
    "mt5": _on_meta("MT5ForConditionalGeneration", "MT5Config", d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=64),
    "bert": _on_meta("BertForMaskedLM", "BertConfig", **SMALL),
    "roberta": _on_meta("RobertaForSequenceClassification", "RobertaConfig", **SMALL),
    "distilbert": _on_meta("DistilBertForMaskedLM", "DistilBertConfig", dim=16, n_layers=11, n_heads=2, hidden_dim=24, vocab_size=64),
    "starcoder2": _on_meta("Starcoder2ForCausalLM", "Starcoder2Config", **{**SMALL, "num_key_value_heads": 2}),
    "glm": _on_meta("GlmForCausalLM", "GlmConfig", **{**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}),
    "deberta_v2": _on_meta("DebertaV2ForSequenceClassification", "DebertaV2Config", **SMALL),
    "mpnet": _on_meta("MPNetForMaskedLM", "MPNetConfig", **SMALL),
    "llava": _on_meta("LlavaForConditionalGeneration", "LlavaConfig", text_config={"model_type": "llama", **SMALL},
                      vision_config={"model_type": "clip_vision_model", **{word: size for word, size in SMALL.items() if word != "vocab_size"}}),
    "qwen2_5_vl": _on_meta("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig",
                           text_config={**SMALL, "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
                           vision_config={"depth": 11, "hidden_size": 16, "out_hidden_size": 16, "num_heads": 2, "intermediate_size": 24}),
    "deepseek_v3": _on_meta("DeepseekV3ForCausalLM", "DeepseekV3Config",
                            **{**SMALL, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
                               "qk_nope_head_dim": 4, "first_k_dense_replace": 11}),
    "albert": _on_meta("AlbertForSequenceClassification", "AlbertConfig", **SMALL, embedding_size=8),
    "bamba": _on_meta("BambaForCausalLM", "BambaConfig",
                      **{**SMALL, "num_key_value_heads": 2, "attn_layer_indices": [1], "mamba_n_heads": 2, "mamba_d_head": 16}),
    "beit": _on_meta("BeitForImageClassification", "BeitConfig", **PICTURES),
    "bert_classifier": _on_meta("BertForSequenceClassification", "BertConfig", **SMALL),
    "blip": _on_meta("BlipForConditionalGeneration", "BlipConfig", vision_config=PICTURES, text_config=SMALL),
    "clip": _on_meta("CLIPModel", "CLIPConfig", vision_config=PICTURES, text_config=SMALL),
    "deberta": _on_meta("DebertaForSequenceClassification", "DebertaConfig", **SMALL),
    "dinov2": _on_meta("Dinov2ForImageClassification", "Dinov2Config", **PICTURES),
    "dinov3": _on_meta("DINOv3ViTModel", "DINOv3ViTConfig", **PICTURES),
    "electra": _on_meta("ElectraForSequenceClassification", "ElectraConfig", **SMALL, embedding_size=8),
    "gemma3": _on_meta("Gemma3ForConditionalGeneration", "Gemma3Config", text_config={**SMALL, "num_key_value_heads": 2}, vision_config=PICTURES),
    "hubert": _on_meta("HubertForCTC", "HubertConfig", **SMALL),
    "idefics3": _on_meta("Idefics3ForConditionalGeneration", "Idefics3Config", text_config={"model_type": "llama", **SMALL}, vision_config=PICTURES),
    "lfm2": _on_meta("Lfm2ForCausalLM", "Lfm2Config", **{**SMALL, "num_key_value_heads": 2}),
    "modernbert": _on_meta("ModernBertForSequenceClassification", "ModernBertConfig", **{**SMALL, "pad_token_id": 0}),
    "paligemma": _on_meta("PaliGemmaForConditionalGeneration", "PaliGemmaConfig", vision_config={"model_type": "siglip_vision_model", **PICTURES},
                          text_config={"model_type": "gemma", **SMALL, "num_key_value_heads": 2}),
    "pixtral": _on_meta("PixtralVisionModel", "PixtralVisionConfig", **PICTURES),
    "qwen3_next": _on_meta("Qwen3NextForCausalLM", "Qwen3NextConfig",
                           **{**SMALL, "num_hidden_layers": 4, "num_key_value_heads": 2, "num_experts": 2}),
    "roberta_classifier": _on_meta("RobertaForSequenceClassification", "RobertaConfig", **SMALL),
    "siglip": _on_meta("SiglipModel", "SiglipConfig", vision_config=PICTURES, text_config=SMALL),
    "swin": _on_meta("SwinForImageClassification", "SwinConfig", embed_dim=8, depths=[2, 2], num_heads=[1, 2]),
    "vit": _on_meta("ViTForImageClassification", "ViTConfig", **PICTURES),
    "wav2vec2": _on_meta("Wav2Vec2ForCTC", "Wav2Vec2Config", **SMALL),
    "wavlm": _on_meta("WavLMForCTC", "WavLMConfig", **SMALL),
    "xlm_roberta": _on_meta("XLMRobertaForSequenceClassification", "XLMRobertaConfig", **SMALL),
    "clip_text": _on_meta("CLIPTextModel", "CLIPTextConfig", **SMALL),
}  # fmt: skip


SEVERAL = {"bamba", "qwen2_5_vl", "qwen3_next", "roberta", "roberta_classifier", "xlm_roberta"}
"""Models whose names are those of another one that defines them in another order: both orders are tried."""


@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_convention_is_the_order_of_the_real_model(model: str):
    classifies = {"task_type": "SEQ_CLS"} if model.endswith(("classifier", "bert", "xlm_roberta", "electra", "deberta")) else {}
    wrapped = peft.get_peft_model(MODELS[model](), peft.LoraConfig(r=2, target_modules="all-linear", **classifies))
    order = [_key(name) for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    shuffled = random.Random(0).sample(order, len(order))
    found = orders_by_convention(shuffled)
    assert not isinstance(found, str), found
    assert order in [keys for _, keys in found]
    assert len(found) <= (2 if model in SEVERAL else 1)


WITH_NORMS = ["llama", "qwen3", "gemma2", "opt", "t5", "whisper", "gpt2", "bert", "falcon", "starcoder2", "qwen2_5_vl", "deepseek_v3", "mamba2",
              "xglm", "nemotron_h", "olmo2"]  # fmt: skip
OTHERS: dict[str, Callable[[], torch.nn.Module]] = {
    "mamba2": _on_meta("Mamba2ForCausalLM", "Mamba2Config", hidden_size=16, num_hidden_layers=11, num_heads=4, head_dim=8, state_size=8, n_groups=1),
    "xglm": _on_meta("XGLMForCausalLM", "XGLMConfig", vocab_size=64, d_model=16, ffn_dim=24, num_layers=11, attention_heads=2),
    "nemotron_h": _on_meta("NemotronHForCausalLM", "NemotronHConfig", vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
                           hybrid_override_pattern="M*-M", num_attention_heads=2, num_key_value_heads=2, head_dim=8, mamba_num_heads=4,
                           mamba_head_dim=8, ssm_state_size=8, n_groups=1),
    "olmo2": _on_meta("Olmo2ForCausalLM", "Olmo2Config", **{**SMALL, "pad_token_id": 0}),
}  # fmt: skip


@pytest.mark.parametrize("model", WITH_NORMS)
def test_norms_that_are_trained_beside_lora_have_their_place_in_the_class(model: str):
    """`modules_to_save=["norm"]`, LongLoRA: the tables know linear layers only, transformers' own classes know the norms between them."""
    made = {**MODELS, **OTHERS}[model]()
    linear = [name for name, module in made.named_modules() if isinstance(module, torch.nn.Linear) and not name.endswith(("lm_head", "out_proj"))]
    wrapped = peft.get_peft_model(made, peft.LoraConfig(r=2, target_modules=linear or ["c_attn", "c_proj"]))
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "norm" in name.lower() or ".ln_" in name)
    order = [_key(name) for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    found = orders_by_convention(random.Random(0).sample(order, len(order)))
    assert not isinstance(found, str), found
    assert order in [keys for _, keys in found]
    assert len(found) <= 2


def test_the_class_that_has_the_modules_at_their_very_places_comes_before_those_that_share_words_with_it():
    keys = [f"base_model.model.biogpt.layers.{layer}.self_attn.{word}_proj.lora_{half}.weight" for layer in (0, 1) for word in "vq" for half in "AB"]
    assert keys in [order for _, order in orders_by_convention(sorted(keys))]


def test_a_model_under_a_module_of_somebodys_own_is_known_by_what_lies_in_it():
    keys = ["net.backbone.embeddings.lora_embedding_A", "net.backbone.layers.0.mixer.in_proj.lora_A.weight", "net.backbone.norm_f.weight"]
    assert [order for _, order in orders_by_convention(keys[::-1])] == [keys]


def test_own_tensors_of_a_module_stand_before_those_of_the_modules_in_it():
    """ViT's class token is a parameter of the embeddings themselves."""
    keys = ["vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight", "vit.layers.0.layernorm_before.weight"]
    assert [order for _, order in orders_by_convention(keys[::-1])] == [keys]


def _key(name: str) -> str:
    return name.replace("modules_to_save.default.", "").replace(".default.", ".")


DIFFUSION: dict[str, list[str]] = {
    name: listed.split() for name, listed in json.loads((Path(__file__).parent / "diffusion_modules.json").read_text()).items()
}
"""Linear and convolution modules of each class of diffusers 0.39 as `named_modules` gave them, `#` for the number of a block."""


def _blocks(modules: list[str]) -> list[str]:
    """Write the modules of eleven blocks out, each list of blocks in its place."""
    out: list[str] = []
    for _, run in groupby(modules, key=lambda module: module.partition("#")[0] if "#" in module else ""):
        members = list(run)
        if "#" not in members[0]:
            out += members
            continue
        for at in range(11):
            out += _blocks([module.replace("#", str(at), 1) for module in members])
    return out


@pytest.mark.parametrize("attention_only", [True, False])
@pytest.mark.parametrize("model", sorted(DIFFUSION))
def test_the_order_of_a_diffusion_model_is_among_those_of_its_convention(model: str, attention_only: bool):
    modules = [one for one in _blocks(DIFFUSION[model]) if not attention_only or ".to_" in one or ".add_" in one]
    order = [f"transformer.{module}.{factor}.weight" for module in modules for factor in ("lora_A", "lora_B")]
    found = orders_by_convention(random.Random(0).sample(order, len(order)))
    assert not isinstance(found, str), found
    assert order in [keys for _, keys in found]
    assert len(found) <= 4


SPELLINGS = {
    "peft, diffusers and ai-toolkit": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "OneTrainer": ("unet.{}.lora_down.weight", "unet.{}.lora_up.weight"),
    "sd-scripts and musubi-tuner": ("lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight"),
    "LyCORIS": ("lycoris_{_}.lokr_w1", "lycoris_{_}.lokr_w2_a", "lycoris_{_}.lokr_w2_b"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_installed_diffusers_defines_its_models_in_the_order_of_the_convention(name: str):
    model = built(name, OPTIONS.get(name, [{}])[-1])
    layers = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    attention = [path for path in layers if re.search(r"\.(?:to|add)_\w+(?:\.0)?$", path)]
    for spelling in SPELLINGS.values():
        for paths in (layers, attention) if attention else (layers,):
            order = [key.replace("{}", path).replace("{_}", path.replace(".", "_")) for path in paths for key in spelling]
            found = orders_by_convention(random.Random(0).sample(order, len(order)))
            assert not isinstance(found, str), found
            assert order in [keys for _, keys in found], spelling
            assert len(found) <= 4


def test_flux_has_the_order_of_each_release_of_diffusers():
    """0.30 and 0.32 made `add_*_proj` before `to_out`; 0.39 after it."""
    words = {
        "old": "to_q to_k to_v add_k_proj add_v_proj add_q_proj to_out.0 to_add_out",
        "new": "to_q to_k to_v to_out.0 add_q_proj add_k_proj add_v_proj to_add_out",
    }
    for order in words.values():
        keys = [f"transformer.transformer_blocks.{at}.attn.{word}.lora_{f}.weight" for at in range(3) for word in order.split() for f in "AB"]
        assert keys in [listed for _, listed in orders_by_convention(keys[::-1])]


ORIGINAL = {
    "Flux": "img_mod_lin img_attn_qkv img_attn_proj img_mlp_0 img_mlp_2 txt_mod_lin txt_attn_qkv txt_attn_proj txt_mlp_0 txt_mlp_2",
    "HunyuanVideo": "img_attn_qkv img_attn_proj img_mlp_fc1 img_mlp_fc2 txt_attn_qkv txt_attn_proj txt_mlp_fc1 txt_mlp_fc2",
}


@pytest.mark.parametrize("model", sorted(ORIGINAL))
def test_blocks_of_the_first_authors_code_are_ordered(model: str):
    modules = [f"double_blocks_{at}_{word}" for at in range(11) for word in ORIGINAL[model].split()]
    modules += [f"single_blocks_{at}_{word}" for at in range(11) for word in ("linear1", "linear2")]
    order = [f"lora_unet_{module}.lora_{factor}.weight" for module in modules for factor in ("down", "up")]
    assert [keys for _, keys in orders_by_convention(random.Random(0).sample(order, len(order)))] == [order]


def test_wan_of_its_authors_is_ordered():
    words = [*(f"{part}.{word}" for part in ("self_attn", "cross_attn") for word in "qkvo"), "ffn.0", "ffn.2"]
    order = [f"diffusion_model.blocks.{at}.{word}.lora_{factor}.weight" for at in range(11) for word in words for factor in "AB"]
    assert [keys for _, keys in orders_by_convention(order[::-1])] == [order]


def test_sd_scripts_own_unet_has_its_feed_forward_between_the_attentions_and_text_encoders_stand_on_either_side():
    block = ["attn1_to_q", "attn1_to_out_0", "ff_net_0_proj", "ff_net_2", "attn2_to_q", "attn2_to_out_0"]
    sides = ["lora_te1_text_model_encoder_layers_{}_mlp_fc1", *(f"lora_unet_input_blocks_4_1_transformer_blocks_{{}}_{word}" for word in block)]
    te, unet = ([side.format(at) for at in range(3) for side in part] for part in (sides[:1], sides[1:]))
    for modules in (te + unet, unet + te):
        order = [f"{module}.lora_{factor}.weight" for module in modules for factor in ("down", "up")]
        assert order in [keys for _, keys in orders_by_convention(order[::-1])]


def test_a_path_that_divides_in_two_ways_is_not_divided():
    assert divided("a_b_0_c", {"a", "b", "a_b", "c"}) == ("a_b", "0", "c")
    assert divided("a_b_c", {"a_b", "c", "a", "b_c"}) is None
    assert divided("a_x", {"a"}) is None


def test_kinds_of_names_in_diffusion_files_are_understood():
    modules = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.1.attn.to_q"]
    for key in ("transformer.{}.lora.{}.weight", "{}.lora_{}.weight"):
        order = [key.format(module, factor) for module in modules for factor in ("down", "up")]
        assert [keys for _, keys in orders_by_convention(order[::-1])] == [order]
    dollars = [f"transformer$${module.replace('.', '$$')}.lora_{factor}.weight" for module in modules for factor in ("down", "up")]
    assert [keys for _, keys in orders_by_convention(dollars[::-1])] == [dollars]


EXPERTS = ["gate", *(f"experts.{expert}.{word}_proj" for expert in range(11) for word in ("gate", "up", "down")), "shared_expert.gate_proj"]


def test_a_router_may_stand_before_or_behind_its_experts():
    """transformers 4 defined the router first in Qwen2-MoE and Mixtral, the experts first in DeepSeek; the names do not tell which."""
    for modules in (EXPERTS, [*EXPERTS[1:-1], EXPERTS[0], EXPERTS[-1]]):
        order = [f"base_model.model.model.layers.{layer}.mlp.{module}.lora_A.weight" for layer in range(3) for module in modules]
        found = orders_by_convention(order[::-1])
        assert len(found) == 2
        assert order in [keys for _, keys in found]


def test_modules_that_are_in_no_table_make_no_claim():
    keys = [f"base_model.model.model.layers.0.self_attn.{word}.lora_A.weight" for word in ("q_proj", "nobody_knows")]
    assert orders_by_convention(keys) == "no convention orders 'nobody_knows' and 'q_proj'"
    assert orders_by_convention(["base_model.model.a.lora_A.weight"]) == "the architecture is not in the table of conventions"


@pytest.mark.parametrize("name", real.names("one-process"))
def test_without_a_base_model_every_claim_about_a_real_case_is_right_or_left_to_the_numbers(name: str):
    case = real.case(name)
    if case.meta.get("negative") == "truncated file" or name == "plain_sorted_names":
        pytest.skip("its state cannot be read, or only its numbers know the order")
    raw = read(str(case.state))
    found, _ = claims(Question(raw=raw, adapter=read_adapter(str(case.adapter))), ["convention", "adapter-order"])
    truth = {row["index"]: row["name"] for row in case.truth}
    for claim in found:
        assert claim.source == "convention"
        assert all(claim.names[entry.position] == truth[entry.position] for entry in raw.entries if entry.has_state), claim.rule


def _as_bin(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(str(folder), safe_serialization=False)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head", "embed_tokens"]}, {"use_dora": True}])
def test_the_key_order_of_a_bin_adapter_is_the_order_of_definition(options: dict, tmp_path: Path):
    model = peft.get_peft_model(opt(num_hidden_layers=11), peft.LoraConfig(r=2, **TARGETS, **CAUSAL, **options))
    made = tiny.write(tmp_path, model, tiny.trainables(model), save=_as_bin)
    found, _ = claims(Question(raw=made.raw, adapter=made.adapter()), ["adapter-order"])
    assert [list(claim.names) for claim in found] == [made.flat]
    tiny.assert_keys_hold_the_live_values(found[0], made)


def test_a_saved_module_that_the_configuration_no_longer_lists_makes_no_claim(tmp_path: Path):
    """`lm_head.weight` and `lm_head.modules_to_save.default.weight` look the same in the file: only the configuration tells them apart."""
    model = peft.get_peft_model(opt(), peft.LoraConfig(r=2, modules_to_save=["lm_head"], **TARGETS, **CAUSAL))
    made = tiny.write(tmp_path, model, tiny.trainables(model), save=_as_bin)
    adapter = made.adapter()
    found, _ = claims(Question(raw=made.raw, adapter=adapter), ["adapter-order"])
    assert [list(claim.names) for claim in found] == [made.flat]
    unlisted = replace(adapter, config={**adapter.config, "modules_to_save": ["score"]})
    found, lost = claims(Question(raw=made.raw, adapter=unlisted), ["adapter-order", "convention"])
    assert found == []
    assert any("tell in which module" in reason["reason"] for reason in lost)
    assert not [guess for guess in heuristic_orders(Question(raw=made.raw, adapter=unlisted)) if set(guess.names) - set(made.flat)]


def test_biases_are_put_back_where_the_layers_have_them(tmp_path: Path):
    model = peft.get_peft_model(opt(), peft.LoraConfig(r=2, bias="lora_only", **TARGETS, **CAUSAL))
    made = tiny.write(tmp_path, model, tiny.trainables(model), save=_as_bin)
    found, _ = claims(Question(raw=made.raw, adapter=made.adapter()), ["adapter-order"])
    assert [list(claim.names) for claim in found] == [made.flat]


def test_appended_biases_of_layers_without_lora_have_no_place(tmp_path: Path):
    model = peft.get_peft_model(opt(), peft.LoraConfig(r=2, bias="all", **TARGETS, **CAUSAL))
    made = tiny.write(tmp_path, model, tiny.trainables(model), save=_as_bin)
    found, lost = claims(Question(raw=made.raw, adapter=made.adapter()), ["adapter-order"])
    assert found == []
    assert "PEFT appends" in lost[0]["reason"]


def test_a_saved_norm_is_appended_to_the_file_so_its_place_is_unknown(tmp_path: Path):
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, modules_to_save=["input_layernorm"], **TARGETS, **CAUSAL))
    made = tiny.write(tmp_path, model, tiny.trainables(model), save=_as_bin)
    found, lost = claims(Question(raw=made.raw, adapter=made.adapter()), ["adapter-order"])
    assert found == []
    assert "PEFT appends" in lost[0]["reason"]


def test_safetensors_sorts_its_keys_and_tells_nothing(tmp_path: Path):
    model = peft.get_peft_model(opt(), peft.LoraConfig(r=2, **TARGETS, **CAUSAL))
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    assert claims(Question(raw=made.raw, adapter=made.adapter()), ["adapter-order"]) == ([], [])


def test_a_whole_state_dict_keeps_the_order_of_definition(tmp_path: Path):
    model = peft.get_peft_model(opt(), peft.LoraConfig(r=2, **TARGETS, **CAUSAL))
    made = tiny.write(tmp_path, model, tiny.trainables(model), save=lambda one, to: torch.save({"state_dict": one.state_dict()}, to / "model.ckpt"))
    adapter = read_adapter(str(tmp_path / "model.ckpt"))
    found, _ = claims(Question(raw=made.raw, adapter=adapter), ["adapter-order"])
    assert [list(claim.names) for claim in found] == [made.flat]
    tiny.assert_keys_hold_the_live_values(found[0], made, adapter)


def test_frozen_parameters_between_the_trained_ones_do_not_disturb(tmp_path: Path):
    model = peft.get_peft_model(opt(), peft.LoraConfig(r=2, **TARGETS, **CAUSAL))
    made = tiny.write(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=1e-3), save=_as_bin)
    found, _ = claims(Question(raw=made.raw, adapter=made.adapter()), ["adapter-order"])
    assert len(found) == 1
    assert tiny.agree(found[0], made)


def test_a_layers_bias_stands_before_its_lora_weights():
    keys = ["m.q.lora_A.weight", "m.q.bias", "m.q.lora_B.weight", "m.v.lora_A.weight", "m.v.bias", "m.v.lora_B.weight"]
    adapter = Adapter(path="a", file="a", kind="peft", tensors=dict.fromkeys(keys, REF), ordered=True)
    assert definition_order(keys, adapter) == [
        "m.q.bias", "m.q.lora_A.weight", "m.q.lora_B.weight", "m.v.bias", "m.v.lora_A.weight", "m.v.lora_B.weight"
    ]  # fmt: skip


def test_an_order_is_looked_for_once_however_many_alternatives_ask_for_it(monkeypatch):
    asked, families = [], convention._families
    monkeypatch.setattr(convention, "_families", lambda *words: asked.append(words) or families(*words))
    keys = [f"base_model.model.model.layers.{at}.self_attn.{name}.lora_A.weight" for at in range(2) for name in ("o_proj", "q_proj", "v_proj")]
    first = orders_by_convention(keys)
    first[0][1].clear()
    assert sorted(orders_by_convention(keys)[0][1]) == sorted(keys)
    assert len(asked) == 1
