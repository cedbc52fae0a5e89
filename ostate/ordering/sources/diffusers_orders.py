"""Data: the order in which diffusers' models define their modules; releases 0.30.3, 0.32.2, 0.39.0, 0.42.1.

Made by `python -m tests.list_diffusers`, never by hand.
"""

from __future__ import annotations

_SHARED: tuple[str, ...] = (
    "linear_1 linear_2",  # 0
    "proj",  # 1
    "net",  # 2
    "linear",  # 3
    "to_q to_k to_v to_out",  # 4
    "norm1 norm1_context attn ff ff_context",  # 5
    "to_q to_k to_v add_k_proj add_v_proj add_q_proj to_out to_add_out",  # 6
    "timestep_embedder",  # 7
    "attn1 attn2 ff",  # 8
    "to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out",  # 9
    "emb linear",  # 10
    "norm proj_mlp proj_out attn",  # 11
    "timestep_embedder text_embedder",  # 12
    "time_text_embed proj_in token_refiner",  # 13
    "refiner_blocks",  # 14
    "attn ff norm_out",  # 15
    "timestep_embedder guidance_embedder text_embedder",  # 16
    "attn norm proj_mlp proj_out",  # 17
    "patch_embedding condition_embedder blocks proj_out",  # 18
    "attn1 attn2 ffn",  # 19
    "pos_embed time_text_embed context_embedder transformer_blocks norm_out proj_out",  # 20
    "time_text_embed context_embedder x_embedder transformer_blocks single_transformer_blocks norm_out proj_out",  # 21
    "attn ff ff_context",  # 22
    "x_embedder context_embedder time_text_embed transformer_blocks single_transformer_blocks norm_out proj_out",  # 23
    "linear_1 linear_2 linear_3",  # 24
    "proj text_proj",  # 25
    "patch_embed time_embed transformer_blocks norm_out proj_out",  # 26
    "w1 w2 w3",  # 27
    "linear adaLN_modulation",  # 28
    "time_embed context_embedder x_embedder transformer_blocks single_transformer_blocks norm_out proj_out",  # 29
    "time_embedder time_proj text_embedder",  # 30
)
_ROWS: dict[str, tuple[str, ...]] = {
    "UNet2DConditionModel": (
        "0 8 4 2 1",
        "attentions resnets downsamplers",
        "proj_in transformer_blocks proj_out",
        "conv",
        "conv1 time_emb_proj conv2 conv_shortcut",
        "attentions resnets upsamplers",
        "conv_in time_embedding add_embedding down_blocks up_blocks mid_block conv_out",
    ),
    "SD3Transformer2DModel of diffusers 0.32.2, 0.39.0, 0.42.1": (
        "20 1 12 0 3 6 2",
        "norm1 norm1_context attn attn2 ff ff_context",
    ),
    "SD3Transformer2DModel of diffusers 0.30.3": ("20 1 12 0 5 3 6 2",),
    "FluxTransformer2DModel of diffusers 0.39.0, 0.42.1": ("21 16 0 5 3 9 2 1 11",),
    "FluxTransformer2DModel of diffusers 0.30.3, 0.32.2": ("21 16 0 5 3 6 2 1 11",),
    "Flux2Transformer2DModel": (
        "0 3 22 9",
        (
            "time_guidance_embed double_stream_modulation_img double_stream_modulation_txt single_stream_modulation x_embedder "
            "context_embedder transformer_blocks single_transformer_blocks norm_out proj_out"
        ),
        "timestep_embedder guidance_embedder",
        "linear_in linear_out",
        "to_qkv_mlp_proj to_out",
    ),
    "PixArtTransformer2DModel": (
        "1 8 4 2 10 0",
        "pos_embed transformer_blocks proj_out adaln_single",
        "timestep_embedder resolution_embedder aspect_ratio_embedder",
    ),
    "AuraFlowTransformer2DModel": (
        "1 5 3 6",
        "pos_embed context_embedder time_step_proj joint_transformer_blocks single_transformer_blocks norm_out proj_out",
        "linear_1 linear_2 out_projection",
    ),
    "HunyuanVideoTransformer3DModel of diffusers 0.39.0, 0.42.1": (
        "23 1 13 0 14 15 2 3 5 6 17",
        "timestep_embedder text_embedder guidance_embedder",
    ),
    "HunyuanVideoTransformer3DModel of diffusers 0.32.2": ("23 1 13 0 14 15 2 3 16 5 6 17",),
    "Lumina2Transformer2DModel": (
        "4 24 3",
        "x_embedder time_caption_embed noise_refiner context_refiner layers norm_out",
        "timestep_embedder caption_embedder",
        "attn feed_forward norm1",
    ),
    "SanaTransformer2DModel": (
        "1 10 7 0 8 4",
        "patch_embed time_embed caption_projection transformer_blocks proj_out",
        "conv_inverted conv_depth conv_point",
    ),
    "CogVideoXTransformer3DModel": (
        "25 0 3 4 2",
        "patch_embed time_embedding transformer_blocks norm_out proj_out",
        "norm1 attn1 norm2 ff",
    ),
    "CogView4Transformer2DModel": (
        "25 0 3 4 2",
        "patch_embed time_condition_embed transformer_blocks norm_out proj_out",
        "timestep_embedder condition_embedder",
        "norm1 attn1 ff",
    ),
    "WanTransformer3DModel": (
        "18 0 19 2 1",
        "time_embedder time_proj text_embedder image_embedder",
        "ff",
        "to_q to_k to_v to_out add_k_proj add_v_proj",
    ),
    "LTXVideoTransformer3DModel": (
        "10 7 0 8 4 2 1",
        "proj_in time_embed caption_projection transformer_blocks proj_out",
    ),
    "MochiTransformer3DModel": (
        "26 1 0 3 6 2",
        "timestep_embedder pooler caption_proj",
        "to_kv to_q to_out",
        "norm1 norm1_context attn1 ff ff_context",
    ),
    "QwenImageTransformer2DModel": (
        "7 0 6 2 1 3",
        "time_text_embed img_in txt_in transformer_blocks norm_out proj_out",
        "img_mod attn img_mlp txt_mod txt_mlp",
    ),
    "ChromaTransformer2DModel": (
        "0 22 9 2 1",
        "distilled_guidance_layer context_embedder x_embedder transformer_blocks single_transformer_blocks proj_out",
        "in_proj layers out_proj",
        "proj_mlp proj_out attn",
    ),
    "HiDreamImageTransformer2DModel": (
        "7 0 1 27 28",
        "t_embedder p_embedder x_embedder double_stream_blocks single_stream_blocks final_layer caption_projection",
        "pooled_embedder",
        "block",
        "adaLN_modulation attn1 ff_i ff_t",
        "to_q to_k to_v to_out to_q_t to_k_t to_v_t to_out_t",
        "shared_experts experts",
    ),
    "ZImageTransformer2DModel": (
        "28 4 27",
        "all_x_embedder all_final_layer noise_refiner context_refiner t_embedder cap_embedder layers",
        "2-1",
        "attention feed_forward adaLN_modulation",
        "mlp",
    ),
    "StableAudioDiTModel": (
        "8 4 2 1",
        "timestep_proj global_proj cross_attention_proj preprocess_conv proj_in transformer_blocks proj_out postprocess_conv",
    ),
    "AllegroTransformer3DModel": (
        "1 8 4 2 10 7 0",
        "pos_embed transformer_blocks proj_out adaln_single caption_projection",
    ),
    "PriorTransformer": (
        "0 4 2 1",
        "time_embedding proj_in embedding_proj encoder_hidden_states_proj transformer_blocks proj_to_clip_embeddings",
        "attn1 ff",
    ),
    "HunyuanDiT2DModel": (
        "0 1 3 4 2",
        "text_embedder pos_embed time_extra_emb blocks norm_out proj_out",
        "timestep_embedder pooler style_embedder extra_embedder",
        "k_proj q_proj v_proj c_proj",
        "norm1 attn1 attn2 ff skip_linear",
    ),
    "CosmosTransformer3DModel": (
        "26 1 0 4 2",
        "t_embedder",
        "norm1 attn1 norm2 attn2 norm3 ff",
    ),
    "LTX2VideoTransformer3DModel": (
        "0 10 7 4 2 1",
        (
            "proj_in audio_proj_in caption_projection audio_caption_projection time_embed audio_time_embed "
            "av_cross_attn_video_scale_shift av_cross_attn_audio_scale_shift av_cross_attn_video_a2v_gate "
            "av_cross_attn_audio_v2a_gate transformer_blocks proj_out audio_proj_out"
        ),
        "attn1 audio_attn1 attn2 audio_attn2 audio_to_video_attn video_to_audio_attn ff audio_ff",
    ),
    "SanaVideoTransformer3DModel": (
        "10 7 0 8 4",
        "patch_embedding time_embed caption_projection transformer_blocks proj_out",
        "conv_inverted conv_depth conv_point conv_temp",
    ),
    "HunyuanVideo15Transformer3DModel": (
        "1 13 12 14 15 2 3 24 5 6",
        ("x_embedder image_embedder context_embedder context_embedder_2 time_embed cond_type_embed transformer_blocks norm_out proj_out"),
    ),
    "BriaTransformer2DModel": ("29 7 0 5 3 9 2 1 11",),
    "Kandinsky5Transformer3DModel": (
        "",
        ("time_embeddings text_embeddings pooled_text_embeddings visual_embeddings text_transformer_blocks visual_transformer_blocks out_layer"),
        "in_layer out_layer",
        "text_modulation self_attention feed_forward",
        "to_query to_key to_value out_layer",
        "visual_modulation self_attention cross_attention feed_forward",
        "modulation out_layer",
    ),
    "ChronoEditTransformer3DModel": ("18 30 0 19 4 2 1",),
    "SkyReelsV2Transformer3DModel": ("18 30 0 19 4 2 1",),
    "AceStepTransformer1DModel": (
        "4",
        "layers proj_in_conv time_embed time_embed_r condition_embedder proj_out_conv",
        "self_attn cross_attn mlp",
        "gate_proj up_proj down_proj",
        "linear_1 linear_2 time_proj",
    ),
    "HunyuanImageTransformer2DModel": (
        "1 13 12 0 14 15 2 3 5 6 17",
        "x_embedder context_embedder time_guidance_embed transformer_blocks single_transformer_blocks norm_out proj_out",
    ),
    "ErnieImageTransformer2DModel": (
        "1 0 4 3",
        "x_embedder text_proj time_embedding adaLN_modulation layers final_norm final_linear",
        "self_attention mlp",
        "gate_proj up_proj linear_fc2",
    ),
    "LongCatImageTransformer2DModel": ("29 7 0 5 3 9 2 1 11",),
    "OvisImageTransformer2DModel": (
        "0 5 3 9 2 1 11",
        "timestep_embedder context_embedder x_embedder transformer_blocks single_transformer_blocks norm_out proj_out",
    ),
}
"""Class -> numbers in `_SHARED`, its own chains."""
DIFFUSERS: dict[str, tuple[str, ...]] = {
    name: (*(_SHARED[int(number)] for number in numbers.split()), *own) for name, (numbers, *own) in _ROWS.items()
}
"""Class -> modules that lie side by side, in the order of their definition; a word alone has no siblings."""
