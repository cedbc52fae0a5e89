"""Data: the order in which models define their modules, read off the models themselves."""

from __future__ import annotations

_EMBEDDINGS = ("embeddings", "embed_tokens", "wte", "shared", "word_embeddings", "tok_embeddings", "prompt_encoder", "embeddings_project",
               "embedding_hidden_mapping_in", "patch_embedding")  # fmt: skip
_MODELS = ("bert", "roberta", "distilbert", "electra", "vit", "model", "transformer", "gpt_neox", "bart", "mpnet", "deberta", "albert", "longformer",
           "big_bird", "camembert", "layoutlm", "layoutlmv3", "dinov2", "dinov2_with_registers", "dinov3_vit", "beit", "deit", "swin", "swinv2",
           "wav2vec2", "wav2vec2_bert", "hubert", "wavlm", "unispeech", "unispeech_sat", "data2vec_audio", "sew")  # fmt: skip
"""`base_model_prefix` of transformers' classes: what the model is called beside its heads."""
PLACES: tuple[tuple[str, ...], ...] = (
    _EMBEDDINGS,
    ("embed_positions", "wpe", "position_embeddings"),
    _MODELS,
    ("text_model", "vision_tower", "vision_model", "visual", "conv1", "conv2", "conv_in"),
    ("multi_modal_projector", "aligner", "connector"),
    ("encoder", "down_blocks"),
    ("decoder", "up_blocks", "mid_block"),
    ("layers", "layer", "h", "block", "blocks", "transformer_blocks", "language_model", "albert_layer_groups"),
    ("self_attn", "attention", "attn", "SelfAttention", "self_attention", "attn1", "mixer", "linear_attn"),
    ("encoder_attn", "EncDecAttention", "crossattention", "cross_attn", "attn2"),
    ("intermediate", "mlp", "feed_forward", "ffn", "ff", "DenseReluDense", "block_sparse_moe"),
    ("output",),
    ("pooler", "head", "vision_adapter"),
    ("pre_classifier",),
    ("lm_head", "cls", "vocab_transform", "classifier", "score", "qa_outputs", "v_head", "embed_out", "conv_out"),
)
"""Components of a name, in the order in which models hold them. Those of one row never lie side by side, but for the pairs of `BESIDE`."""
BESIDE: tuple[tuple[str, ...], ...] = (
    ("down_blocks", "up_blocks", "mid_block"),
    ("vision_tower", "language_model"),
    ("visual", "language_model"),
    ("vision_model", "qformer", "language_projection", "language_model"),
    ("unet", "transformer", "transformer_1", "transformer_2", "prior",
     "text_encoder", "text_encoder_1", "text_encoder_2", "text_encoder_3", "text_encoder_4"),
    ("lora_te", "lora_te1", "lora_te2", "lora_te3", "lora_unet", "lora_transformer", "lora_prior_unet", "lora_prior"),
)  # fmt: skip

_BERT = ("attention", "crossattention", "intermediate", "self", "output", "query", "key", "value", "query_proj", "key_proj", "value_proj", "dense",
         "out_proj", "transform", "decoder")  # fmt: skip
_LLAMA = ("vision_model", "connector", "text_model",
          "q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkvz", "in_proj_ba", "out_proj",
          "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")  # fmt: skip
_LLAMA_MLP = ("shared_expert", "shared_experts", "shared_expert_gate", "gate_proj", "up_proj", "gate_up_proj", "down_proj", "c_fc", "c_proj", "fc1",
              "fc2", "w1", "w2", "w3")  # fmt: skip
_MAMBA = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "x_proj", "dt_proj", "out_proj", "router", "experts", "gate_proj", "up_proj",
          "down_proj")  # fmt: skip
FAMILIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # name, what the keys must look like, linear layers within a block in the order of their definition
    ("OPT, BART, Whisper, CLIP", r"\.(decoder|encoder)\.layers\.\d+\.(self_attn|encoder_attn|fc1|fc2)",
     ("text_model", "vision_model", "visual_projection", "text_projection",
      "self_attn", "k_proj", "v_proj", "q_proj", "qkv", "out_proj", "projection", "encoder_attn", "fc1", "fc2")),
    ("XGLM", r"\.layers\.\d+\.fc1\.", ("self_attn", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")),
    ("GPT-J, GPT-Neo", r"\.h\.\d+\.attn\.(attention\.)?[kvq]_proj", ("k_proj", "v_proj", "q_proj", "out_proj", "fc_in", "c_fc", "fc_out", "c_proj")),
    ("GPT-2", r"\.h\.\d+\.(attn|mlp|crossattention)\.(c_attn|c_proj|c_fc|q_attn)",
     ("attn", "crossattention", "mlp", "c_attn", "q_attn", "c_fc", "c_proj")),
    ("NeoX, Falcon, Bloom", r"\.query_key_value\.|\.dense_h_to_4h\.", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    ("T5", r"\.block\.\d+\.layer\.\d+\.", ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")),
    ("DistilBERT", r"\.[qkv]_lin\.", ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")),
    ("ALBERT", r"\.albert_layers\.", ("attention", "query", "key", "value", "dense", "ffn", "ffn_output")),
    ("BERT, RoBERTa, ViT", r"\.attention\.(attention\.|self\.)?(query|key|value)\.|\.attention\.output\.dense\.",
     ("vision_model", "text_decoder", *_BERT)),
    ("XLM-RoBERTa of transformers 5, its classifier first",
     r"\.attention\.(attention\.|self\.)?(query|key|value)\.|\.attention\.output\.dense\.", ("classifier", "roberta", *_BERT)),
    ("MiniMax", r"\.self_attn\.output_gate\.",
     ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "output_gate", "gate", "experts", "w1", "w2", "w3")),
    ("MPT, ModernBERT", r"\.attn\.Wqkv\.", ("Wqkv", "Wi", "Wo", "out_proj", "up_proj", "down_proj")),
    ("Phi-3", r"\.self_attn\.qkv_proj\.", ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_up_proj", "down_proj")),
    ("Phi", r"\.self_attn\.dense\.", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    ("torchtune", r"layers\.\d+\.attn\.q_proj", ("q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3")),
    ("Jamba", r"\.layers\.\d+\.mamba\.", ("mamba", "self_attn", "feed_forward", *_MAMBA)),
    ("Bamba", r"\.layers\.\d+\.mamba\.", ("feed_forward", "mamba", "self_attn", *_MAMBA)),
    ("LFM2", r"(?s)\.self_attn\.out_proj\.(?=.*\.feed_forward\.w3\.)|\.feed_forward\.w3\.(?=.*\.self_attn\.out_proj\.)",
     ("self_attn", "conv", "in_proj", "q_proj", "k_proj", "v_proj", "out_proj", "w1", "w3", "w2")),
    ("LongCat", r"\.layers\.\d+\.self_attn\.\d+\.",
     ("mlp", "self_attn", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "experts", "router", "classifier")),
    ("Pixtral", r"\.transformer\.layers\.\d+\.(feed_forward\.gate_proj|attention\.[qkv]_proj)\.",
     ("feed_forward", "attention", "gate_proj", "up_proj", "down_proj", "k_proj", "v_proj", "q_proj", "o_proj")),
    ("Llama and models like it", r"\.layers\.\d+\.(self_attn|mlp|linear_attn|block_sparse_moe)\.",
     (*_LLAMA, "gate", "router", "experts", *_LLAMA_MLP)),
    ("Llama and models like it, experts before their router", r"\.layers\.\d+\.(self_attn|mlp|linear_attn|block_sparse_moe)\.",
     (*_LLAMA, "experts", "gate", "router", *_LLAMA_MLP)),
    ("wav2vec, HuBERT", r"\.encoder\.layers\.\d+\.(attention\.[kvq]_proj|feed_forward\.)",
     ("feature_projection", "encoder", "k_proj", "v_proj", "q_proj", "out_proj", "gru_rel_pos_linear", "intermediate_dense", "output_dense")),
    ("DINOv3", r"(?<!encoder)\.layer\.\d+\.attention\.[qkv]_proj", ("k_proj", "v_proj", "q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    ("ViT, DINO, BEiT, Swin", r"\.(?:layers?|blocks)\.\d+\.attention\.[qkv]_proj",
     ("blocks", "downsample", "q_proj", "k_proj", "v_proj", "o_proj", "projection_layer", "fc1", "fc2", "up_proj", "down_proj")),
    ("MPNet", r"\.attention\.attn\.[qkvo]\.", ("q", "k", "v", "o", "attention", "intermediate", "output", "dense", "out_proj")),
    ("CodeGen", r"\.h\.\d+\.attn\.qkv_proj", ("qkv_proj", "out_proj", "fc_in", "fc_out")),
    ("vision towers of Qwen-VL", r"\.blocks\.\d+\.attn\.(qkv|proj)\.",
     ("patch_embed", "blocks", "merger", "deepstack_merger_list",
      "attn", "mlp", "qkv", "proj", "gate_proj", "up_proj", "down_proj", "linear_fc1", "linear_fc2", "fc1", "fc2")),
    ("projectors", r"\.linear_[12]\.", ("patch_merger", "linear_1", "linear_2")),
)  # fmt: skip

ORIGINALS: dict[str, tuple[str, ...]] = {
    # sd-scripts library/original_unet.py: blocks are attn1, ff, attn2
    "U-Net of sd-scripts": (
        "conv_in time_embedding down_blocks up_blocks mid_block conv_out",
        "linear_1 linear_2",
        "attentions resnets downsamplers",
        "attentions resnets upsamplers",
        "proj_in transformer_blocks proj_out",
        "attn1 ff attn2",
        "to_q to_k to_v to_out",
        "conv1 time_emb_proj conv2 conv_shortcut",
        "conv", "net", "proj",
    ),
    # sd-scripts library/sdxl_original_unet.py, with the names of Stability's own code
    "U-Net of sd-scripts for SDXL": (
        "time_embed label_emb input_blocks middle_block output_blocks out",
        "in_layers emb_layers out_layers skip_connection",
        "proj_in transformer_blocks proj_out",
        "attn1 ff attn2",
        "to_q to_k to_v to_out",
        "op", "conv", "net", "proj",
    ),
    # sd-scripts library/flux_models.py, musubi-tuner flux/flux_models.py
    "Flux of Black Forest Labs": (
        "img_in time_in vector_in guidance_in txt_in double_blocks single_blocks final_layer",
        "in_layer out_layer",
        "img_mod img_attn img_mlp txt_mod txt_attn txt_mlp",
        "qkv proj",
        "linear1 linear2 modulation",
        "linear adaLN_modulation",
        "lin",
    ),
    # sd-scripts networks/lora_flux.py, `in_dims`: what lies around the blocks is tuned behind them
    "Flux of Black Forest Labs, its inputs last": (
        "double_blocks single_blocks img_in time_in vector_in guidance_in txt_in",
        "in_layer out_layer",
        "img_mod img_attn img_mlp txt_mod txt_attn txt_mlp",
        "qkv proj",
        "linear1 linear2 modulation",
        "lin",
    ),
    # musubi-tuner flux_2/flux2_models.py
    "Flux 2 of Black Forest Labs": (
        (
            "img_in time_in txt_in guidance_in double_blocks single_blocks double_stream_modulation_img double_stream_modulation_txt "
            "single_stream_modulation final_layer"
        ),
        "in_layer out_layer",
        "img_attn img_mlp txt_attn txt_mlp",
        "qkv proj",
        "linear1 linear2",
        "linear adaLN_modulation",
        "lin",
    ),
    # musubi-tuner hunyuan_model/models.py
    "HunyuanVideo of Tencent": (
        "img_in txt_in time_in vector_in guidance_in double_blocks single_blocks final_layer",
        "img_mod img_attn_qkv img_attn_proj img_mlp txt_mod txt_attn_qkv txt_attn_proj txt_mlp",
        "fc1 fc2",
        "linear1 linear2 modulation",
        "linear adaLN_modulation",
    ),
    # musubi-tuner hunyuan_video_1_5/hunyuan_video_1_5_models.py, sd-scripts library/hunyuan_image_models.py
    "HunyuanVideo 1.5 and HunyuanImage 2.1 of Tencent": (
        "byt5_in img_in vision_in txt_in time_in double_blocks single_blocks final_layer cond_type_embedding",
        "input_embedder t_embedder c_embedder individual_token_refiner",
        "self_attn_qkv self_attn_proj mlp adaLN_modulation",
        (
            "img_mod img_attn_q img_attn_k img_attn_v img_attn_qkv img_attn_proj img_mlp "
            "txt_mod txt_attn_q txt_attn_k txt_attn_v txt_attn_qkv txt_attn_proj txt_mlp"
        ),
        "fc1 fc2 fc3",
        "linear_1 linear_2",
        "linear1 linear2 modulation",
        "linear adaLN_modulation",
        "blocks", "proj",
    ),
    # musubi-tuner wan/modules/model.py
    "Wan of Alibaba": (
        "patch_embedding text_embedding time_embedding time_projection blocks head img_emb",
        "self_attn cross_attn ffn",
        "q k v o k_img v_img",
        "proj",
    ),
    # sd-scripts library/sd3_models.py
    "SD3 of Stability": (
        "x_embedder t_embedder y_embedder context_embedder joint_blocks final_layer",
        "context_block x_block",
        "attn attn2 mlp adaLN_modulation",
        "qkv proj",
        "fc1 fc2",
        "linear adaLN_modulation",
    ),
    # sd-scripts networks/lora_sd3.py, `emb_dims`
    "SD3 of Stability, its embedders last": (
        "joint_blocks context_embedder t_embedder x_embedder y_embedder final_layer",
        "context_block x_block",
        "attn attn2 mlp adaLN_modulation",
        "qkv proj",
        "fc1 fc2",
        "adaLN_modulation linear",
    ),
    # sd-scripts library/lumina_models.py
    "Lumina 2 of Alpha-VLLM": (
        "t_embedder cap_embedder context_refiner x_embedder noise_refiner layers final_layer",
        "attention feed_forward adaLN_modulation",
        "qkv out",
        "w1 w2 w3",
        "linear adaLN_modulation",
        "mlp",
    ),
    # sd-scripts networks/lora_lumina.py, `embedder_dims`
    "Lumina 2 of Alpha-VLLM, its embedders last": (
        "context_refiner noise_refiner layers final_layer x_embedder t_embedder cap_embedder",
        "attention feed_forward adaLN_modulation",
        "qkv out",
        "w1 w2 w3",
        "linear adaLN_modulation",
        "mlp",
    ),
    # sd-scripts library/anima_models.py; diffusion-pipe models/cosmos_predict2_modeling.py
    "Cosmos-Predict2, Anima": (
        "x_embedder t_embedder blocks final_layer",
        "linear_1 linear_2",
        "self_attn cross_attn mlp adaln_modulation_self_attn adaln_modulation_cross_attn adaln_modulation_mlp",
        "q_proj k_proj v_proj output_proj",
        "layer1 layer2",
        "linear adaln_modulation",
        "proj",
    ),
    # musubi-tuner krea2/krea2_mmdit.py
    "Krea 2": (
        "first blocks tmlp txtfusion txtmlp last tproj",
        "layerwise_blocks projector refiner_blocks",
        "attn mlp",
        "wq wk wv gate wo",
        "gate up down",
        "linear",
    ),
    # musubi-tuner ideogram4/ideogram4_model.py: its blocks
    "Ideogram 4": ("layers", "attention feed_forward adaln_modulation", "qkv o", "w1 w2 w3"),
}  # fmt: skip
"""The models of other code than diffusers', under the names that their trainers' files have; read in the sources that stand beside each."""
LEADS = ("lora_te", "lora_te1", "lora_te2", "lora_te3", "lora_unet", "lora_transformer", "lora_prior_unet", "lora_prior", "oft_unet", "lycoris")
"""What sd-scripts, musubi-tuner, LyCORIS and ai-toolkit write in front of a path whose dots they turn into underscores."""
TOWERS = frozenset([
    "vision_tower", "vision_model", "visual", "audio_tower", "audio_model", "language_model", "qformer", "multi_modal_projector", "connector",
    "unet", "transformer", "transformer_1", "transformer_2", "prior", "diffusion_model",
    "text_encoder", "text_encoder_1", "text_encoder_2", "text_encoder_3", "text_encoder_4", *LEADS,
])  # fmt: skip
"""Modules that hold a model of another family than what lies around them."""
