"""Data: the order in which models define their modules, read off the models themselves."""

from __future__ import annotations

PLACES: tuple[tuple[str, ...], ...] = (
    ("embeddings", "embed_tokens", "wte", "shared", "word_embeddings", "tok_embeddings", "prompt_encoder"),
    ("embed_positions", "wpe", "position_embeddings"),
    ("bert", "roberta", "distilbert", "electra", "vit", "model", "transformer", "gpt_neox", "bart", "mpnet", "deberta"),
    ("text_model", "vision_tower", "vision_model", "visual", "conv1", "conv2", "conv_in"),
    ("multi_modal_projector", "aligner", "connector"),
    ("encoder", "down_blocks"),
    ("decoder", "up_blocks", "mid_block"),
    ("layers", "layer", "h", "block", "blocks", "transformer_blocks", "language_model"),
    ("self_attn", "attention", "attn", "SelfAttention", "self_attention", "attn1", "mixer", "linear_attn"),
    ("encoder_attn", "EncDecAttention", "crossattention", "cross_attn", "attn2"),
    ("intermediate", "mlp", "feed_forward", "ffn", "ff", "DenseReluDense", "block_sparse_moe"),
    ("output",),
    ("pooler",),
    ("pre_classifier",),
    ("lm_head", "cls", "vocab_transform", "classifier", "score", "qa_outputs", "v_head", "embed_out", "conv_out"),
)
"""Components of a name, in the order in which models hold them. Those of one row never lie side by side, but for the pairs of `BESIDE`."""
BESIDE: tuple[tuple[str, ...], ...] = (
    ("down_blocks", "up_blocks", "mid_block"),
    ("vision_tower", "language_model"),
    ("visual", "language_model"),
    ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"),
)

FAMILIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # name, what the keys must look like, linear layers within a block in the order of their definition
    ("OPT, BART, Whisper, CLIP", r"\.(decoder|encoder)\.layers\.\d+\.(self_attn|encoder_attn|fc1|fc2)",
     ("self_attn", "k_proj", "v_proj", "q_proj", "out_proj", "encoder_attn", "fc1", "fc2")),
    ("GPT-J, GPT-Neo", r"\.h\.\d+\.attn\.(attention\.)?[kvq]_proj", ("k_proj", "v_proj", "q_proj", "out_proj", "fc_in", "c_fc", "fc_out", "c_proj")),
    ("GPT-2", r"\.h\.\d+\.(attn|mlp|crossattention)\.(c_attn|c_proj|c_fc|q_attn)",
     ("attn", "crossattention", "mlp", "c_attn", "q_attn", "c_fc", "c_proj")),
    ("NeoX, Falcon, Bloom", r"\.query_key_value\.|\.dense_h_to_4h\.", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    ("T5", r"\.block\.\d+\.layer\.\d+\.", ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")),
    ("DistilBERT", r"\.[qkv]_lin\.", ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")),
    ("BERT, RoBERTa, ViT", r"\.attention\.(attention\.|self\.)?(query|key|value)\.|\.attention\.output\.dense\.",
     ("attention", "crossattention", "intermediate", "self", "output", "query", "key", "value", "dense", "out_proj")),
    ("Phi-3", r"\.self_attn\.qkv_proj\.", ("o_proj", "qkv_proj", "gate_up_proj", "down_proj")),
    ("Phi", r"\.self_attn\.dense\.", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    ("torchtune", r"layers\.\d+\.attn\.q_proj", ("q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3")),
    ("Llama and its kin", r"\.layers\.\d+\.(self_attn|mlp|linear_attn)\.",
     ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkvz", "in_proj_ba", "out_proj",
      "gate", "experts", "shared_expert", "shared_experts", "shared_expert_gate", "gate_proj", "up_proj", "gate_up_proj", "down_proj",
      "c_fc", "c_proj", "fc1", "fc2", "w1", "w2", "w3")),
    ("vision towers of Qwen-VL", r"\.blocks\.\d+\.attn\.(qkv|proj)\.",
     ("attn", "mlp", "qkv", "proj", "gate_proj", "up_proj", "down_proj", "linear_fc1", "linear_fc2", "fc1", "fc2")),
    ("projectors", r"\.linear_[12]\.", ("linear_1", "linear_2")),
)  # fmt: skip

DIFFUSERS: dict[str, tuple[str, ...]] = {
    "UNet2DConditionModel": (
        "conv_in time_embedding add_embedding down_blocks up_blocks mid_block conv_out",
        "linear_1 linear_2",
        "resnets downsamplers",
        "proj_in transformer_blocks proj_out",
        "attn1 attn2 ff",
        "to_q to_k to_v to_out",
        "conv1 time_emb_proj conv2 conv_shortcut",
        "attentions resnets upsamplers",
    ),
    "SD3Transformer2DModel": (
        "pos_embed time_text_embed context_embedder transformer_blocks norm_out proj_out",
        "timestep_embedder text_embedder",
        "linear_1 linear_2",
        "norm1 norm1_context attn attn2 ff ff_context",
        "to_q to_k to_v add_k_proj add_v_proj add_q_proj to_out to_add_out",
    ),
    "FluxTransformer2DModel": (
        "time_text_embed context_embedder x_embedder transformer_blocks single_transformer_blocks norm_out proj_out",
        "timestep_embedder guidance_embedder text_embedder",
        "linear_1 linear_2",
        "norm1 norm1_context attn ff ff_context",
        "to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out",
        "norm proj_mlp proj_out attn",
    ),
    "FluxTransformer2DModel before 0.35": (
        "time_text_embed context_embedder x_embedder transformer_blocks single_transformer_blocks norm_out proj_out",
        "timestep_embedder guidance_embedder text_embedder",
        "linear_1 linear_2",
        "norm1 norm1_context attn ff ff_context",
        "to_q to_k to_v add_k_proj add_v_proj add_q_proj to_out to_add_out",
        "norm proj_mlp proj_out attn",
    ),
    "PixArtTransformer2DModel; AllegroTransformer3DModel": (
        "pos_embed transformer_blocks proj_out adaln_single caption_projection",
        "attn1 attn2 ff",
        "to_q to_k to_v to_out",
        "emb linear",
        "linear_1 linear_2",
    ),
    "AuraFlowTransformer2DModel": (
        "pos_embed context_embedder time_step_proj joint_transformer_blocks single_transformer_blocks norm_out proj_out",
        "norm1 norm1_context attn ff ff_context",
        "to_q to_k to_v add_k_proj add_v_proj add_q_proj to_out to_add_out",
        "linear_1 linear_2 out_projection",
    ),
    "HunyuanVideoTransformer3DModel": (
        "x_embedder context_embedder time_text_embed transformer_blocks single_transformer_blocks norm_out proj_out",
        "time_text_embed proj_in token_refiner",
        "linear_1 linear_2",
        "attn ff norm_out",
        "timestep_embedder text_embedder guidance_embedder",
        "norm1 norm1_context attn ff ff_context",
        "to_q to_k to_v add_k_proj add_v_proj add_q_proj to_out to_add_out",
        "attn norm proj_mlp proj_out",
    ),
    "Lumina2Transformer2DModel": (
        "x_embedder time_caption_embed noise_refiner context_refiner layers norm_out",
        "timestep_embedder caption_embedder",
        "attn feed_forward norm1",
        "to_q to_k to_v to_out",
        "linear_1 linear_2 linear_3",
    ),
    "SanaTransformer2DModel": (
        "patch_embed time_embed caption_projection transformer_blocks proj_out",
        "emb linear",
        "linear_1 linear_2",
        "attn1 attn2 ff",
        "to_q to_k to_v to_out",
        "conv_inverted conv_depth conv_point",
    ),
    "CogVideoXTransformer3DModel": (
        "patch_embed time_embedding transformer_blocks norm_out proj_out",
        "proj text_proj",
        "linear_1 linear_2",
        "norm1 attn1 norm2 ff",
        "to_q to_k to_v to_out",
    ),
    "CogView4Transformer2DModel": (
        "patch_embed time_condition_embed transformer_blocks norm_out proj_out",
        "proj text_proj",
        "timestep_embedder condition_embedder",
        "linear_1 linear_2",
        "norm1 attn1 ff",
        "to_q to_k to_v to_out",
    ),
    "WanTransformer3DModel": (
        "patch_embedding condition_embedder blocks proj_out",
        "time_embedder time_proj text_embedder image_embedder",
        "linear_1 linear_2",
        "attn1 attn2 ffn",
        "to_q to_k to_v to_out add_k_proj add_v_proj",
    ),
    "LTXVideoTransformer3DModel": (
        "proj_in time_embed caption_projection transformer_blocks proj_out",
        "emb linear",
        "linear_1 linear_2",
        "attn1 attn2 ff",
        "to_q to_k to_v to_out",
    ),
    "MochiTransformer3DModel": (
        "patch_embed time_embed transformer_blocks norm_out proj_out",
        "timestep_embedder pooler caption_proj",
        "linear_1 linear_2",
        "to_kv to_q to_out",
        "norm1 norm1_context attn1 ff ff_context",
        "to_q to_k to_v add_k_proj add_v_proj add_q_proj to_out to_add_out",
    ),
    "QwenImageTransformer2DModel": (
        "time_text_embed img_in txt_in transformer_blocks norm_out proj_out",
        "linear_1 linear_2",
        "img_mod attn img_mlp txt_mod txt_mlp",
        "to_q to_k to_v add_k_proj add_v_proj add_q_proj to_out to_add_out",
    ),
    "ChromaTransformer2DModel": (
        "distilled_guidance_layer context_embedder x_embedder transformer_blocks single_transformer_blocks proj_out",
        "in_proj layers out_proj",
        "linear_1 linear_2",
        "attn ff ff_context",
        "to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out",
        "proj_mlp proj_out attn",
    ),
    "HiDreamImageTransformer2DModel": (
        "t_embedder p_embedder x_embedder double_stream_blocks single_stream_blocks final_layer caption_projection",
        "linear_1 linear_2",
        "adaLN_modulation attn1 ff_i ff_t",
        "to_q to_k to_v to_out to_q_t to_k_t to_v_t to_out_t",
        "shared_experts experts",
        "w1 w2 w3",
        "linear adaLN_modulation",
    ),
    "Flux2Transformer2DModel": (
        (
            "time_guidance_embed double_stream_modulation_img double_stream_modulation_txt "
            "single_stream_modulation x_embedder context_embedder transformer_blocks single_transformer_blocks norm_out proj_out"
        ),
        "timestep_embedder guidance_embedder",
        "linear_1 linear_2",
        "attn ff ff_context",
        "to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out",
        "linear_in linear_out",
        "to_qkv_mlp_proj to_out",
    ),
    "ZImageTransformer2DModel": (
        "all_x_embedder all_final_layer noise_refiner context_refiner t_embedder cap_embedder layers",
        "linear adaLN_modulation",
        "attention feed_forward adaLN_modulation",
        "to_q to_k to_v to_out",
        "w1 w2 w3",
    ),
    "StableAudioDiTModel": (
        "timestep_proj global_proj cross_attention_proj preprocess_conv proj_in transformer_blocks proj_out postprocess_conv",
        "attn1 attn2 ff",
        "to_q to_k to_v to_out",
    ),
    "PriorTransformer": (
        "time_embedding proj_in embedding_proj encoder_hidden_states_proj transformer_blocks proj_to_clip_embeddings",
        "linear_1 linear_2",
        "attn1 ff",
        "to_q to_k to_v to_out",
    ),
}
"""Class of diffusers (0.39; a release where one differs) -> modules that lie side by side, in the order of their definition."""
TOWERS = frozenset([
    "vision_tower", "vision_model", "visual", "audio_tower", "audio_model", "language_model", "qformer", "multi_modal_projector", "connector",
    "unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3",
])  # fmt: skip
"""Modules that hold a model of another family than what lies around them."""
