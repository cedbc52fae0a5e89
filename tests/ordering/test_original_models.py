"""Models in the code of sd-scripts and musubi-tuner: LoRA in the order in which their networks walk, retyped from the sources named beside each."""

from __future__ import annotations

import random

import pytest

from ostate.ordering.sources.convention import orders_by_convention

SD3 = "attn_qkv attn_proj mlp_fc1 mlp_fc2 adaLN_modulation_1"
LUMINA = "attention_qkv attention_out feed_forward_w1 feed_forward_w2 feed_forward_w3 adaLN_modulation_1"
ANIMA = (
    "self_attn_q_proj self_attn_k_proj self_attn_v_proj self_attn_output_proj cross_attn_q_proj cross_attn_k_proj cross_attn_v_proj "
    "cross_attn_output_proj mlp_layer1 mlp_layer2 adaln_modulation_self_attn_1 adaln_modulation_self_attn_2 adaln_modulation_cross_attn_1 "
    "adaln_modulation_mlp_1"
)
WORDS = ("img_attn_q", "img_attn_k", "img_attn_v", "img_attn_proj", "img_mlp_fc1", "img_mlp_fc2")
VIDEO = " ".join(["img_mod_linear", *WORDS, "txt_mod_linear", *(word.replace("img", "txt") for word in WORDS)])
DOUBLE = "img_mod_lin img_attn_qkv img_attn_proj img_mlp_0 img_mlp_2 txt_mod_lin txt_attn_qkv txt_attn_proj txt_mlp_0 txt_mlp_2"
MODELS: dict[str, list[tuple[str, str]]] = {
    # (where the modules lie, their names in order); networks/lora_flux.py with `in_dims`: create_modules once more for each input
    "Flux, in_dims": [
        ("double_blocks_0", DOUBLE), ("double_blocks_1", DOUBLE), ("single_blocks_0", "linear1 linear2 modulation_lin"),
        ("", "img_in time_in_in_layer time_in_out_layer vector_in_in_layer vector_in_out_layer guidance_in_in_layer guidance_in_out_layer txt_in"),
    ],
    "Flux 2 (musubi-tuner flux_2/flux2_models.py)": [
        ("double_blocks_0", "img_attn_qkv img_attn_proj img_mlp_0 img_mlp_2 txt_attn_qkv txt_attn_proj txt_mlp_0 txt_mlp_2"),
        ("single_blocks_0", "linear1 linear2"),
        ("", "double_stream_modulation_img_lin double_stream_modulation_txt_lin single_stream_modulation_lin"),
    ],
    "SD3, emb_dims (networks/lora_sd3.py)": [
        ("joint_blocks_0_context_block", SD3), ("joint_blocks_0_x_block", SD3),
        ("", "context_embedder t_embedder_mlp_0 t_embedder_mlp_2 x_embedder_proj y_embedder_mlp_0 y_embedder_mlp_2 final_layer_adaLN_modulation_1"),
        ("", "final_layer_linear"),
    ],
    "Lumina 2 (lumina_models.py)": [("context_refiner_0", LUMINA[:LUMINA.index(" adaLN")]), ("noise_refiner_0", LUMINA), ("layers_0", LUMINA)],
    "Lumina 2, embedder_dims (networks/lora_lumina.py)": [
        ("noise_refiner_0", LUMINA), ("layers_0", LUMINA), ("", "x_embedder t_embedder_mlp_0 t_embedder_mlp_2 cap_embedder_1"),
    ],
    "Anima (library/anima_models.py)": [("blocks_0", ANIMA), ("blocks_1", ANIMA), ("final_layer", "linear adaln_modulation_1 adaln_modulation_2")],
    "HunyuanVideo 1.5 (musubi-tuner hunyuan_video_1_5/)": [("double_blocks_0", VIDEO), ("double_blocks_1", VIDEO)],
    "Krea 2 (musubi-tuner krea2/krea2_mmdit.py)": [
        ("", "first"), ("blocks_0", "attn_wq attn_wk attn_wv attn_gate attn_wo mlp_gate mlp_up mlp_down"),
        ("", "tmlp_0 tmlp_2 txtfusion_layerwise_blocks_0_attn_wq txtfusion_projector txtfusion_refiner_blocks_0_mlp_up txtmlp_1 last_linear tproj_1"),
    ],
    "Ideogram 4 (musubi-tuner ideogram4/ideogram4_model.py)": [
        ("layers_0", "attention_qkv attention_o feed_forward_w1 feed_forward_w2 feed_forward_w3 adaln_modulation"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_the_order_of_their_network_is_among_the_orders(model: str):
    paths = [f"{place}_{word}" if place else word for place, words in MODELS[model] for word in words.split()]
    keys = [f"lora_unet_{path}.{factor}.weight" for path in paths for factor in ("lora_down", "lora_up")]
    found = orders_by_convention(random.Random(0).sample(keys, len(keys)))
    assert not isinstance(found, str), found
    assert keys in [order for _, order in found]
