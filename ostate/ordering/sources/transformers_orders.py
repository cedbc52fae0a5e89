"""Data: the order in which transformers' models define their modules; release 5.23.0.

Made by `python -m tests.list_transformers`, never by hand.
"""

from __future__ import annotations

TRANSFORMERS = """
@0: (embed_tokens layers@37 norm)
@1: (k_proj v_proj q_proj out_proj)
@2: (gate_proj up_proj down_proj)
@3: (#(attention(self@46 output@13) intermediate@51 output@13))
@4: (q_proj k_proj v_proj o_proj)
@5: (embeddings@31 encoder@53 post_layernorm head(attention(out_proj) layernorm mlp@36))
@6: (embeddings@31 pre_layrnorm encoder@24 post_layernorm)
@7: (#(self_attn@1 self_attn_layer_norm encoder_attn@1 encoder_attn_layer_norm fc1 fc2 final_layer_norm))
@8: (q_proj k_proj v_proj o_proj q_norm k_norm)
@9: (word_embeddings position_embeddings token_type_embeddings LayerNorm)
@10: (#(self_attn@1 self_attn_layer_norm fc1 fc2 final_layer_norm))
@11: (convolution normalization)
@12: (feature_extractor(conv_layers(#(conv layer_norm))) feature_projection(layer_norm projection)
 encoder(pos_conv_embed(conv(parametrizations(weight))) layer_norm layers(#(attention@1 layer_norm feed_forward@23 final_layer_norm))))
@13: (dense LayerNorm)
@14: (embed_tokens layers(#(self_attn@8 mlp@2 input_layernorm post_attention_layernorm)) norm)
@15: (embeddings@31 encoder@53 post_layernorm)
@16: (gate_proj up_proj down_proj experts gate shared_experts@2)
@17: (subsampling(layers(#) linear) layers(#(feed_forward1(linear1 linear2) self_attn(q_proj k_proj v_proj o_proj relative_k_proj)
 conv(pointwise_conv1 depthwise_conv norm pointwise_conv2) feed_forward2(linear1 linear2) norm_feed_forward1 norm_self_att norm_conv
 norm_feed_forward2 norm_out)))
@18: (q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj)
@19: (predictions(transform@13 decoder))
@20: (#(attention@4 layernorm_before layernorm_after mlp@36))
@21: (conv(conv) stage(#(norm ffn_norm ffn(linear1 linear2) mixer(conv))))
@22: (layer(#(attention(self@46 output@13) crossattention(self@46 output@13) intermediate@51 output@13)))
@23: (intermediate_dense output_dense)
@24: (layers(#(self_attn@1 layer_norm1 mlp@36 layer_norm2)))
@25: (q k v o relative_attention_bias)
@26: (#(self_attn@4 mlp@36 input_layernorm post_attention_layernorm))
@27: (word_embeddings token_type_embeddings LayerNorm position_embeddings)
@28: (patch_embeddings(projection))
@29: (embed_tokens(embed_norm) layers(#(attention_input mlp_input self_attn(q_proj k_proj v_proj r_proj o_proj k_sconv(conv1d) v_sconv(conv1d)
 rel_logits_proj gate_proj sink_proj q_l2_clip rel_l2_clip) mlp(experts gate) input_layernorm post_attention_layernorm
 post_attention_convolution(conv1d) post_mlp_convolution(conv1d))) norm final_input)
@30: (embed_tokens layers(#(self_attn(q_proj q_norm k_norm k_proj v_proj o_proj) mlp@2 input_layernorm post_attention_layernorm
 pre_feedforward_layernorm post_feedforward_layernorm per_layer_input_gate per_layer_projection post_per_layer_input_norm)) norm
 embed_tokens_per_layer per_layer_model_projection per_layer_projection_norm)
@31: (patch_embedding position_embedding)
@32: (dense out_proj)
@33: (embed_tokens layers(#(self_attn@4 mlp(gate_up_proj down_proj) input_layernorm post_attention_layernorm post_self_attn_layernorm
 post_mlp_layernorm)) norm)
@34: (word_embeddings position_embeddings LayerNorm)
@35: (embed_tokens layers(#(linear_attn(conv1d norm out_proj in_proj_qkv in_proj_z in_proj_b in_proj_a) mlp@2 input_layernorm
 post_attention_layernorm)) norm)
@36: (fc1 fc2)
@37: (#(self_attn@4 mlp@2 input_layernorm post_attention_layernorm))
@38: (embed_tokens layers(#(self_attn@8 mlp(experts gate) input_layernorm post_attention_layernorm)) norm)
@39: (shared encoder(embed_tokens embed_positions layers@10 layernorm_embedding) decoder(embed_tokens embed_positions layers@7 layernorm_embedding))
@40: (embed_tokens layers(#(self_attn@8 mlp@2 input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm)) norm)
@41: (#(norm1 norm2 attn(qkv proj) mlp(linear_fc1 linear_fc2)))
@42: (dense layer_norm decoder)
@43: (embed_tokens block(#(layer(#(SelfAttention@25 EncDecAttention(q k v o) DenseReluDense(wi_0 wi_1 wo) layer_norm)))) final_layer_norm)
@44: (embed_tokens(embed_norm) layers(#(self_attn(q_proj k_proj v_proj r_proj o_proj k_sconv(conv1d) v_sconv(conv1d) q_norm k_norm rel_logits_proj)
 mlp(gate experts shared_experts) input_layernorm post_attention_layernorm attn_sconv(conv1d) mlp_sconv(conv1d))) norm)
@45: (#(layer(#(SelfAttention@25 EncDecAttention(q k v o) DenseReluDense(wi wo) layer_norm))))
@46: (query key value)
@47: (#(ffn1_layer_norm ffn1@23 self_attn_layer_norm self_attn(linear_q linear_k linear_v linear_out distance_embedding) conv_module(layer_norm
 pointwise_conv1 depthwise_conv depthwise_layer_norm pointwise_conv2) ffn2_layer_norm ffn2@23 final_layer_norm))
@48: (embeddings(patch_embedding) encoder(layers(#(self_attn(qkv projection) layer_norm1 mlp@36 layer_norm2))) post_layernorm)
@49: (patch_conv ln_pre transformer(layers(#(attention_norm feed_forward@2 attention(k_proj v_proj q_proj o_proj) ffn_norm))))
@50: (#(ffn1_layer_norm ffn1@23 self_attn_layer_norm self_attn(linear_q linear_k linear_v linear_out linear_pos) conv_module(layer_norm
 pointwise_conv1 depthwise_conv batch_norm pointwise_conv2) ffn2_layer_norm ffn2@23 final_layer_norm))
@51: (dense)
@52: (embed_tokens block(#(layer(#(SelfAttention@25 DenseReluDense(wi_0 wi_1 wo) layer_norm)))) final_layer_norm)
@53: (layers(#(layer_norm1 self_attn@1 layer_norm2 mlp@36)))
@54: (embed_tokens layers(#(conv(conv in_proj out_proj) self_attn(q_proj k_proj v_proj o_proj q_norm k_norm g_proj) feed_forward(w1 w3 w2)
 operator_norm ffn_norm post_operator_norm post_ffn_norm)) embedding_norm)
afmoe: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj o_proj q_norm k_norm gate_proj) input_layernorm post_attention_layernorm
 pre_mlp_layernorm post_mlp_layernorm mlp(gate_proj up_proj down_proj router(gate) shared_experts@2 experts))) norm) lm_head
apertus: model(embed_tokens layers(#(self_attn@8 mlp(up_proj down_proj act_fn) attention_layernorm feedforward_layernorm)) norm) lm_head score
arcee: model(embed_tokens layers(#(self_attn@4 mlp(up_proj down_proj) input_layernorm post_attention_layernorm)) norm) lm_head score
aria_text: model(embed_tokens layers(#(self_attn@4 mlp(router experts shared_experts@2) input_layernorm post_attention_layernorm)) norm) lm_head
axk1: model(embed_tokens layers(#(self_attn@18 mlp(gate_proj up_proj down_proj experts gate shared_experts@2 post_mlp_layernorm) input_layernorm
 post_attention_layernorm)) norm) lm_head score
axk2: model(embed_tokens layers(#(self_attn(q_a_proj q_a_layernorm q_gate_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj indexer(wq_b wk
 k_norm weights_proj)) mlp@16 input_layernorm(norm mlp@36) post_attention_layernorm(norm mlp@36))) norm) lm_head score
bailing_hybrid: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj conv1d forget_gate(f_proj) b_proj o_norm o_proj g_proj) mlp@16
 input_layernorm post_attention_layernorm)) norm) lm_head
bamba: model(embed_tokens layers(#(feed_forward@2 input_layernorm pre_ff_layernorm mamba(conv1d in_proj norm out_proj))) final_layernorm) lm_head
bart mvp plbart: model@39 lm_head classification_head@32
beam: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj o_proj q_norm k_norm gate_proj) mlp@2 input_layernorm post_attention_layernorm
 pre_feedforward_layernorm post_feedforward_layernorm)) norm) lm_head
bert: bert(embeddings@9 encoder(layer@3) pooler@51) cls@19 classifier
bert-generation: bert(embeddings@34 encoder(layer@3)) lm_head(decoder)
big_bird: bert(embeddings@9 encoder(layer@3) pooler) cls@19 classifier@32
bigbird_pegasus: model(shared encoder(embed_tokens embed_positions layers(#(self_attn(self@46 output) self_attn_layer_norm fc1 fc2 final_layer_norm))
 layernorm_embedding) decoder(embed_tokens embed_positions layers@7 layernorm_embedding)) lm_head classification_head@32
biogpt: biogpt(embed_tokens embed_positions layers@10 layer_norm) output_projection score classifier
bitnet: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj o_proj attn_sub_norm) mlp(gate_proj up_proj down_proj ffn_sub_norm)
 input_layernorm post_attention_layernorm)) norm) lm_head
blenderbot pegasus: model(shared encoder(embed_tokens embed_positions layers@10 layer_norm) decoder(embed_tokens embed_positions layers@7
 layer_norm)) lm_head
blenderbot-small: model@39 lm_head
bloom: transformer(word_embeddings word_embeddings_layernorm h(#(input_layernorm self_attention(query_key_value dense) post_attention_layernorm
 mlp(dense_h_to_4h dense_4h_to_h))) ln_f) lm_head score classifier
blt: model(local_encoder(layers@37 patch_embedding_projection embed_tokens cross_attn_layers(#@8)) global_transformer(layers@37)
 local_decoder(layers@37 patch_embedding_projection norm cross_attn_layers(#@8)) encoder_hash_tok_embedding patcher(layers@37 embed_tokens norm
 lm_head)) lm_head
camembert xlm-roberta: lm_head@42 classifier@32 roberta(embeddings@27 encoder(layer@3))
codegen: transformer(wte h(#(ln_1 attn(qkv_proj out_proj) mlp(fc_in fc_out))) ln_f) lm_head
cohere cohere2: model(embed_tokens layers(#(self_attn@4 mlp@2 input_layernorm)) norm) lm_head
cohere2_moe: model(embed_tokens layers(#(self_attn@4 mlp(gate experts) input_layernorm)) norm) lm_head
cpmant: cpmant(encoder(layers(#(self_att(layernorm_before_attention self_attention(project_q project_k project_v attention_out))
 ffn(layernorm_before_ffn ffn(w_in(w_0 w_1) w_out)))) output_layernorm) segment_embedding input_embedding position_bias) lm_head
ctrl: transformer(w h(#(multi_head_attention(Wq Wk Wv dense) ffn(#) layernorm1 layernorm2)) layernorm) lm_head classifier
cwm ernie4_5 granite granite_swa internlm3: model@0 lm_head
data2vec-text: data2vec_text(embeddings@27 encoder(layer@3)) lm_head@42 classifier@32
deepseek_v2: model(embed_tokens layers(#(self_attn@18 mlp(experts gate shared_experts@2) input_layernorm post_attention_layernorm)) norm) lm_head
 score
deepseek_v3 minicpm3: model(embed_tokens layers(#(self_attn@18 mlp@2 input_layernorm post_attention_layernorm)) norm) lm_head score
deepseek_v32 glm_moe_dsa: model(embed_tokens layers(#(self_attn(q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj
 indexer(wq_b wk k_norm weights_proj)) mlp@2 input_layernorm post_attention_layernorm)) norm) lm_head
deepseek_v4: model(embed_tokens layers(#(self_attn(q_a_proj q_a_norm q_b_proj kv_proj kv_norm o_a_proj o_b_proj compressor(kv_proj gate_proj
 kv_norm)) mlp(gate experts shared_experts@2) input_layernorm post_attention_layernorm attn_hc ffn_hc)) norm hc_head) lm_head
diffllama gemma helium ministral3 mistral qwen2 seed_oss smollm3 stablelm: model@0 lm_head score
doge: model(embed_tokens layers(#(input_layernorm self_attn(q_proj k_proj v_proj dt_proj o_proj q_norm k_norm) post_attention_layernorm mlp@2)) norm)
 lm_head score
electra: electra(embeddings@9 embeddings_project encoder(layer@3)) generator_predictions(LayerNorm dense) generator_lm_head classifier@32
ernie: ernie(embeddings@9 encoder(layer@3) pooler@51) cls@19 classifier
ernie4_5_moe: model(embed_tokens layers(#(self_attn@4 mlp(gate_proj up_proj down_proj gate(moe_statics) experts shared_experts@2) input_layernorm
 post_attention_layernorm)) norm) lm_head
exaone4 olmo2 olmo3: model(embed_tokens layers(#(self_attn@8 mlp@2 post_attention_layernorm post_feedforward_layernorm)) norm) lm_head score
exaone_moe: model(embed_tokens layers(#(self_attn@8 mlp@16 input_layernorm post_attention_layernorm)) norm) lm_head
falcon: transformer(word_embeddings h(#(self_attention(query_key_value dense) mlp(dense_h_to_4h dense_4h_to_h) input_layernorm)) ln_f) lm_head score
 classifier
falcon_h1: model(embed_tokens layers(#(feed_forward@2 mamba(conv1d in_proj out_proj) self_attn@4 input_layernorm pre_ff_layernorm)) final_layernorm)
 lm_head
falcon_mamba mamba: backbone(embeddings layers(#(norm mixer(conv1d in_proj x_proj dt_proj out_proj))) norm_f) lm_head
flex_olmo: model(embed_tokens layers(#(self_attn@8 mlp(gate experts) post_attention_layernorm post_feedforward_layernorm)) norm) lm_head
flint: model(embed_tokens layers(#(self_attn@8 mlp(gate_proj up_proj down_proj experts gate shared_expert@2) input_layernorm
 post_attention_layernorm)) norm) lm_head
fuyu: model(language_model(embed_tokens layers(#(self_attn(query_key_value dense q_layernorm k_layernorm) mlp(dense_h_to_4h dense_4h_to_h)
 input_layernorm post_attention_layernorm)) final_layernorm) vision_embed_tokens) lm_head
gemma2: model(embed_tokens layers(#(self_attn@4 mlp@2 input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm))
 norm) lm_head score
gemma3: model(vision_tower@5 multi_modal_projector(mm_soft_emb_norm) language_model@40) lm_head score
gemma3_text: model@40 lm_head score
gemma4: model(language_model@30) lm_head
gemma4_text: model@30 lm_head
gemma4_unified: model(language_model(embed_tokens layers(#(self_attn(q_proj q_norm k_norm k_proj v_proj o_proj) mlp@2 input_layernorm
 post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm)) norm)) lm_head
gemma4_unified_text: model(embed_tokens layers(#(self_attn(q_proj q_norm k_norm k_proj v_proj o_proj) mlp@2 input_layernorm post_attention_layernorm
 pre_feedforward_layernorm post_feedforward_layernorm)) norm) lm_head
git: git(embeddings@34 image_encoder(vision_model@6) encoder(layer@3) visual_projection(visual_projection(#))) output
glm: model(embed_tokens layers(#(self_attn@4 mlp(gate_up_proj down_proj) input_layernorm post_attention_layernorm)) norm) lm_head score
glm4: model@33 lm_head score
glm4_moe: model(embed_tokens layers(#(self_attn@4 mlp@16 input_layernorm post_attention_layernorm)) norm) lm_head
glm4_moe_lite: model(embed_tokens layers(#(self_attn@18 mlp@16 input_layernorm post_attention_layernorm)) norm) lm_head
got_ocr2: model(vision_tower(patch_embed(projection) layers(#(layer_norm1 attn(qkv proj) layer_norm2 mlp(lin1 lin2))) neck(conv1 layer_norm1 conv2
 layer_norm2)) multi_modal_projector(conv_upsampler1 conv_upsampler2 multimodal_projector) language_model@0) lm_head
gpt-sw3 gpt_bigcode: transformer(wte wpe h(#(ln_1 attn(c_attn c_proj) ln_2 mlp(c_fc c_proj))) ln_f) lm_head score classifier
gpt_neo: transformer(wte wpe h(#(ln_1 attn(attention@1) ln_2 mlp(c_fc c_proj))) ln_f) lm_head score classifier
gpt_neox: gpt_neox(embed_in layers(#(input_layernorm post_attention_layernorm attention(query_key_value dense) mlp(dense_h_to_4h dense_4h_to_h)))
 final_layer_norm) lm_head score classifier
gpt_neox_japanese: gpt_neox_japanese(embed_in layers(#(input_layernorm post_attention_layernorm attention(query_key_value dense) mlp(dense_h_to_4h
 dense_4h_to_h))) final_layer_norm) embed_out
gpt_oss phimoe: model(embed_tokens layers(#(self_attn@4 mlp(router experts) input_layernorm post_attention_layernorm)) norm) lm_head score
gptj: transformer(wte h(#(ln_1 attn@1 mlp(fc_in fc_out))) ln_f) lm_head score
granitemoe granitemoe_swa granitemoeshared: model(embed_tokens layers(#(self_attn@4 input_layernorm post_attention_layernorm block_sparse_moe(router
 experts))) norm) lm_head
granitemoehybrid: model(embed_tokens layers(#(input_layernorm post_attention_layernorm block_sparse_moe(router experts) shared_mlp(input_linear
 output_linear) mamba(conv1d in_proj norm out_proj))) norm) lm_head
hrm_text: model(embed_tokens L_module(layers(#(self_attn(q_proj k_proj v_proj o_proj gate_proj) mlp@2))) H_module(layers(#(self_attn(q_proj k_proj
 v_proj o_proj gate_proj) mlp@2)))) lm_head
hy_v3: model(embed_tokens layers(#(self_attn@8 mlp(gate_proj up_proj down_proj gate experts shared_experts@2) input_layernorm
 post_attention_layernorm)) norm) lm_head
hy_v4: model(embed_tokens layers(#(self_attn(q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj indexer(wq_b wk
 k_norm weights_proj) gate_proj) mlp@16 input_layernorm post_attention_layernorm attn_hc ffn_hc)) norm hc_head) lm_head
hyperclovax: model(embed_tokens layers(#(self_attn@4 mlp@2 input_layernorm post_attention_layernorm post_norm1 post_norm2)) norm) lm_head
inkling2_text: model@29 lm_head
inkling_text: model@44 lm_head
jais2: model(embed_tokens layers(#(self_attn@4 mlp(up_proj down_proj) input_layernorm post_attention_layernorm)) norm) lm_head
jamba: model(embed_tokens layers(#(mamba(conv1d in_proj x_proj dt_proj out_proj dt_layernorm b_layernorm c_layernorm) feed_forward(gate_proj up_proj
 down_proj router experts) input_layernorm pre_ff_layernorm)) final_layernorm) lm_head score
jetmoe: model(embed_tokens layers(#(mlp(input_linear output_linear router(layer)) input_layernorm post_attention_layernorm
 self_attention(experts(input_linear output_linear router(layer)) kv_proj))) norm) lm_head score
kimi_linear: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj conv1d forget_gate(f_a_proj f_b_proj) b_proj g_a_proj g_b_proj o_norm o_proj)
 mlp@16 input_layernorm post_attention_layernorm)) norm) lm_head
kolibri1: model(embed_tokens layers(#(self_attn@8 mlp(experts gate shared_experts@2) input_layernorm post_attention_layernorm
 post_self_attn_layernorm post_mlp_layernorm)) norm) lm_head
laguna: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj o_proj q_norm k_norm g_proj) mlp@16 input_layernorm post_attention_layernorm))
 norm) lm_head
lfm2: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj out_proj q_layernorm k_layernorm) feed_forward(w1 w3 w2) operator_norm ffn_norm))
 embedding_norm) lm_head
lfm3: model@54 lm_head
longcat_flash: model(embed_tokens layers(#(mlp(experts router(classifier)) self_attn(#@18) mlps(#@2) input_layernorm(#) post_attention_layernorm(#)))
 norm) lm_head
mamba2: backbone(embeddings layers(#(norm mixer(conv1d in_proj norm out_proj))) norm_f) lm_head
marian: model(shared encoder(embed_tokens embed_positions layers@10) decoder(embed_tokens embed_positions layers@7)) lm_head
mbart: model(shared encoder(embed_tokens embed_positions layers@10 layernorm_embedding layer_norm) decoder(embed_tokens embed_positions layers@7
 layernorm_embedding layer_norm)) lm_head classification_head@32
megatron-bert: bert(embeddings(word_embeddings position_embeddings token_type_embeddings) encoder(layer(#(attention(ln self@46 output@51) ln
 intermediate@51 output@51)) ln) pooler@51) cls@19 classifier
mellum: model@38 lm_head
mimo_v2_flash: model(embed_tokens layers(#(self_attn@4 mlp(gate_proj up_proj down_proj experts gate) input_layernorm post_attention_layernorm)) norm)
 lm_head
minimax: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj o_proj norm qkv_proj out_proj output_gate) input_layernorm
 post_attention_layernorm mlp(gate experts))) norm) lm_head score
minimax_m2 olmoe: model(embed_tokens layers(#(self_attn@8 mlp(gate experts) input_layernorm post_attention_layernorm)) norm) lm_head
minimax_m3_vl_text: model(embed_tokens layers(#(self_attn@8 mlp(gate experts shared_experts(gate_up_proj down_proj)) input_layernorm
 post_attention_layernorm)) norm) lm_head
mixtral: model(embed_tokens layers(#(self_attn@4 mlp(gate experts) input_layernorm post_attention_layernorm)) norm) lm_head score
mllama: model(embed_tokens layers@37 norm vision_model(patch_embedding gated_positional_embedding(tile_embedding)
 pre_tile_positional_embedding(embedding) post_tile_positional_embedding(embedding) layernorm_pre layernorm_post transformer(layers@26)
 global_transformer(layers@26)) language_model@0 multi_modal_projector) lm_head
modernbert-decoder: model(embeddings(tok_embeddings norm) layers(#(attn_norm attn(q_proj k_proj v_proj Wo) mlp_norm mlp(Wi Wo))) final_norm)
 lm_head(dense norm) decoder head(dense norm) classifier
moshi: model(embed_tokens layers(#(self_attn(q_proj(linear) k_proj(linear) v_proj(linear) o_proj(linear)) mlp@36 input_layernorm
 post_attention_layernorm)) norm) lm_head
moss_transcribe_diarize: model(audio_tower(conv1 conv2 embed_positions layers@10 layer_norm) language_model@14 multi_modal_projector(linear_1
 linear_2 norm)) lm_head
mpt: transformer(wte blocks(#(norm_1 attn(Wqkv out_proj) norm_2 ffn(up_proj down_proj))) norm_f) lm_head score classifier
nanochat: model(embed_tokens layers(#(self_attn@4 mlp@36))) lm_head
nemotron_h: model(embeddings layers(#(norm mixer(conv1d in_proj norm out_proj experts gate shared_experts(up_proj down_proj) q_proj k_proj v_proj
 o_proj up_proj down_proj))) norm_f) lm_head
olmo: model(embed_tokens layers(#(self_attn@4 mlp@2))) lm_head score
olmo_hybrid: model(embed_tokens layers(#(mlp@2 input_layernorm post_attention_layernorm linear_attn(q_proj k_proj v_proj a_proj b_proj g_proj o_proj
 conv1d o_norm))) norm) lm_head
openai-gpt: transformer(tokens_embed positions_embed h(#(attn(c_attn c_proj) ln_1 mlp(c_fc c_proj) ln_2))) lm_head score
opt: model(decoder(embed_tokens embed_positions final_layer_norm layers@10)) lm_head score
persimmon: model(embed_tokens layers(#(self_attn(query_key_value dense q_layernorm k_layernorm) mlp(dense_h_to_4h dense_4h_to_h) input_layernorm
 post_attention_layernorm)) final_layernorm) lm_head score
phi: model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj dense) mlp@36 input_layernorm)) final_layernorm) lm_head score
phi3: model(embed_tokens layers(#(self_attn(o_proj qkv_proj) mlp(gate_up_proj down_proj) input_layernorm post_attention_layernorm)) norm) lm_head
 score
phi4_multimodal: model(embed_tokens layers(#(self_attn(o_proj qkv_proj) mlp(gate_up_proj down_proj) input_layernorm post_attention_layernorm)) norm
 embed_tokens_extend(image_embed(img_processor@5 img_projection_up img_projection_down) audio_embed(encoder(embed(conv(#) out)
 relative_attention_bias_layer(bias_values) encoders(#(feed_forward_in(layer_norm gate_up_proj down_proj) self_attn@4 conv(layer_norm
 glu(ext_pw_conv_1d) dw_sep_conv_1d(dw_conv pw_conv) ext_pw_conv_1d) feed_forward_out(layer_norm gate_up_proj down_proj) layer_norm_att layer_norm)))
 up_proj_for_speech down_proj_for_speech up_proj_for_vision_speech down_proj_for_vision_speech))) lm_head
prophetnet: prophetnet(word_embeddings encoder(word_embeddings position_embeddings embeddings_layer_norm layers(#(self_attn(key_proj value_proj
 query_proj out_proj) self_attn_layer_norm feed_forward(intermediate output) feed_forward_layer_norm))) decoder(word_embeddings position_embeddings
 ngram_embeddings layers(#(self_attn(key_proj value_proj query_proj out_proj relative_pos_embeddings) self_attn_layer_norm cross_attn(key_proj
 value_proj query_proj out_proj) cross_attn_layer_norm feed_forward(intermediate output) feed_forward_layer_norm)) embeddings_layer_norm)) lm_head
qwen2_moe: model(embed_tokens layers(#(self_attn@4 mlp(gate experts shared_expert@2 shared_expert_gate) input_layernorm post_attention_layernorm))
 norm) lm_head score
qwen3: model@14 lm_head score
qwen3_moe: model@38 lm_head score
qwen3_next: model(embed_tokens layers(#(linear_attn(conv1d in_proj_qkvz in_proj_ba norm out_proj) mlp(gate experts shared_expert@2
 shared_expert_gate) input_layernorm post_attention_layernorm)) norm) lm_head score
recurrent_gemma: model(embed_tokens layers(#(temporal_pre_norm temporal_block(linear_y linear_x linear_out conv_1d rg_lru q_proj k_proj v_proj
 o_proj) channel_pre_norm mlp_block@2)) final_norm) lm_head
rembert: rembert(embeddings@9 encoder(embedding_hidden_mapping_in layer@3) pooler@51) cls(predictions(dense decoder LayerNorm)) classifier
roberta: roberta(embeddings@27 encoder(layer@3)) lm_head@42 classifier@32
roberta-prelayernorm: roberta_prelayernorm(embeddings@27 encoder(layer(#(attention(self@46 output@51 LayerNorm) intermediate(LayerNorm dense)
 output@51))) LayerNorm) lm_head@42 classifier@32
roc_bert: roc_bert(embeddings(word_embeddings pronunciation_embed shape_embed position_embeddings token_type_embeddings map_inputs_layer LayerNorm)
 encoder(layer@3) pooler@51) cls@19 classifier
roformer: roformer(embeddings(word_embeddings token_type_embeddings LayerNorm) encoder(embed_positions layer@3)) cls@19 classifier@32
rwkv: rwkv(embeddings blocks(#(pre_ln ln1 ln2 attention(key value receptance output) feed_forward(key receptance value))) ln_out) head
solar_open: model(embed_tokens layers(#(self_attn@4 mlp(experts gate shared_experts@2) input_layernorm post_attention_layernorm)) norm) lm_head
starcoder2: model(embed_tokens layers(#(self_attn@4 mlp(c_fc c_proj) input_layernorm post_attention_layernorm)) norm) lm_head score
trocr: model(decoder(embed_tokens embed_positions layernorm_embedding layers@7)) output_projection
vaultgemma: model(embed_tokens layers(#(self_attn@4 mlp@2 input_layernorm pre_feedforward_layernorm)) norm) lm_head
whisper: model(encoder(conv1 conv2 embed_positions layers@10 layer_norm) decoder(embed_tokens embed_positions layers@7 layer_norm)) proj_out
 encoder(conv1 conv2 embed_positions layers@10 layer_norm) projector classifier
xglm: model(embed_tokens layers@10 layer_norm) lm_head
xlm flaubert: transformer(position_embeddings embeddings layer_norm_emb attentions(#(q_lin k_lin v_lin out_lin)) layer_norm1(#) ffns(#(lin1 lin2))
 layer_norm2(#)) pred_layer(proj) sequence_summary(summary) classifier
xlm-roberta-xl: roberta(embeddings(word_embeddings token_type_embeddings position_embeddings) encoder(layer(#(attention(self@46 output@51
 self_attn_layer_norm) intermediate@51 output@51 LayerNorm)) LayerNorm)) lm_head@42 classifier@32
xlnet: transformer(word_embedding layer(#(rel_attn(layer_norm) ff(layer_norm layer_1 layer_2)))) lm_loss sequence_summary(summary) logits_proj
 classifier
xlstm: backbone(embeddings blocks(#(norm_mlstm mlstm_layer(q k v ogate_preact igate_preact fgate_preact multihead_norm out_proj) norm_ffn
 ffn(proj_up_gate proj_up proj_down))) out_norm) lm_head
xmod: roberta(embeddings@27 encoder(layer(#(attention(self@46 output@13) intermediate@51 output(dense LayerNorm adapter_modules(en_XX(dense1
 dense2))))))) lm_head@42 classifier@32
youtu: model(embed_tokens layers(#(self_attn@18 mlp@2 input_layernorm post_attention_layernorm)) norm) lm_head
zamba: model(embed_tokens layers(#(mamba(conv1d in_proj out_proj) input_layernorm shared_transf(self_attn@4 feed_forward@2 input_layernorm
 pre_ff_layernorm) linear mamba_decoder(mamba(conv1d in_proj out_proj) input_layernorm))) final_layernorm) lm_head score
zamba2: model(embed_tokens layers(#(mamba(conv1d in_proj norm out_proj) input_layernorm linear mamba_decoder(mamba(conv1d in_proj norm out_proj)
 input_layernorm) shared_transformer(self_attn@4 feed_forward(gate_up_proj down_proj gate_up_proj_adapter_list(#(#))) input_layernorm
 pre_ff_layernorm))) final_layernorm) lm_head score
zaya: model(embed_tokens layers(#(self_attn(o_proj qkv_proj(q_proj k_proj v_proj_current v_proj_delayed conv_qk_depthwise conv_qk_grouped) qk_norm)
 mlp(gate(down_proj router_mlp(norm fc1 fc2 out_proj)) experts) input_layernorm post_attention_layernorm post_attention_residual_scale
 post_mlp_residual_scale)) norm) lm_head
audioflamingo3 musicflamingo voxtral: model(audio_tower(conv1 conv2 embed_positions layers@10 layer_norm) language_model@0
 multi_modal_projector(linear_1 linear_2)) lm_head
encoder-decoder: encoder(embeddings@9 encoder(layer@3) pooler@51) decoder(bert(embeddings@9 encoder@22) cls@19)
fsmt: model(encoder(embed_tokens embed_positions layers@10) decoder(embed_tokens embed_positions layers@7 output_projection))
glmasr: model(audio_tower(conv1 conv2 layers@26 norm) language_model@0 multi_modal_projector(linear_1 linear_2)) lm_head
granite_speech granite_speech_plus: model(encoder(input_linear layers(#(ff1(pre_norm up_proj down_proj) attn(pre_norm to_q to_kv to_out rel_pos_emb)
 conv(norm up_conv depth_conv(conv) batch_norm down_conv) ff2(pre_norm up_proj down_proj) post_norm)) out out_mid) projector(qformer(layernorm
 encoder(layer(#(attention(attention@46 output@13) crossattention(attention@46 output@13) intermediate_query@51 output_query@13)))) linear)
 language_model@0) lm_head
led: led(shared encoder(embed_tokens embed_positions layers(#(self_attn(longformer_self_attn(query key value query_global key_global value_global)
 output) self_attn_layer_norm fc1 fc2 final_layer_norm)) layernorm_embedding) decoder(embed_tokens embed_positions layers@7 layernorm_embedding))
 lm_head
longt5: shared encoder(embed_tokens block(#(layer(#(LocalSelfAttention@25 DenseReluDense(wi wo) layer_norm)))) final_layer_norm) decoder(embed_tokens
 block@45 final_layer_norm) lm_head
m2m_100: model(shared encoder(embed_tokens layers@10 layer_norm) decoder(embed_tokens layers@7 layer_norm)) lm_head
mt5 umt5: shared encoder@52 decoder@43 lm_head transformer(shared encoder@52 decoder@43) classification_head@32 classifier
nemo_speechlm: model(audio_tower(asr_encoder(embedder(projection) input_layer_norm layers(#(self_attn@8 layer_norm1 mlp@36 layer_norm2)) layer_norm)
 diarization_model(model(audio_tower(embedder(projection) input_layer_norm layers(#(self_attn@4 layer_norm1 mlp@36 layer_norm2)) layer_norm) proj
 upsampler(conv)) classifier@32) asr_norm speaker_norm) language_model(embeddings layers(#(norm mixer(conv1d in_proj norm out_proj experts gate
 shared_experts(up_proj down_proj) q_proj k_proj v_proj o_proj))) norm_f) multi_modal_projector word_timestamp_encoder(upsampler input_layer_norm
 layers(#(self_attn@8 layer_norm1 mlp@36 layer_norm2)) layer_norm)) lm_head word_timestamp_head
nllb-moe: model(shared encoder(embed_tokens layers(#(self_attn@1 self_attn_layer_norm ffn@36 ff_layer_norm)) layer_norm) decoder(embed_tokens
 layers(#(self_attn@1 self_attn_layer_norm cross_attention@1 cross_attention_layer_norm ffn@36 ff_layer_norm)) layer_norm)) lm_head
pegasus_x: model(shared encoder(embed_tokens embed_global layers(#(self_attn@1 self_attn_layer_norm global_self_attn_layer_norm fc1 fc2
 final_layer_norm)) layer_norm) decoder(embed_tokens layers@7 layer_norm)) lm_head
qwen2_audio: model(audio_tower(conv1 conv2 embed_positions layers@10 layer_norm) multi_modal_projector(linear) language_model@0) lm_head
qwen3_asr: model(audio_tower(layers@10 ln_post conv2d1 conv2d2 conv2d3 conv_out) language_model@14 multi_modal_projector(linear_1 linear_2)) lm_head
 score
seamless_m4t: shared text_encoder(embed_tokens layers(#(self_attn@1 self_attn_layer_norm ffn@36 ffn_layer_norm)) layer_norm)
 speech_encoder(feature_projection(layer_norm projection) encoder(layers@50 layer_norm) intermediate_ffn@23 adapter(layers(#(residual_layer_norm
 residual_conv self_attn_layer_norm self_attn_conv self_attn(linear_q linear_k linear_v linear_out) ffn_layer_norm ffn@23))) inner_layer_norm)
 text_decoder(embed_tokens layers(#(self_attn@1 self_attn_layer_norm cross_attention@1 cross_attention_layer_norm ffn@36 ffn_layer_norm)) layer_norm)
 lm_head
seamless_m4t_v2: shared text_encoder(embed_tokens layers(#(self_attn@1 self_attn_layer_norm ffn@36 ffn_layer_norm)) layer_norm)
 speech_encoder(feature_projection(layer_norm projection) encoder(layers@47 layer_norm) intermediate_ffn@23 adapter(layers(#(residual_layer_norm
 residual_conv self_attn_layer_norm self_attn_conv self_attn(linear_q linear_k linear_v linear_out) ffn_layer_norm ffn@23))) inner_layer_norm)
 text_decoder(embed_tokens layers(#(self_attn@1 self_attn_layer_norm cross_attention@1 cross_attention_layer_norm ffn@36 ffn_layer_norm)) layer_norm)
 lm_head
switch_transformers: shared encoder(embed_tokens block(#(layer(#(SelfAttention@25 mlp(wi wo router(classifier) experts(expert_0(wi wo) expert_1(wi
 wo))) layer_norm)))) final_layer_norm) decoder(embed_tokens block(#(layer(#(SelfAttention@25 EncDecAttention(q k v o) mlp(wi wo router(classifier)
 experts(expert_0(wi wo) expert_1(wi wo))) layer_norm)))) final_layer_norm) lm_head
t5: shared encoder(embed_tokens block(#(layer(#(SelfAttention@25 DenseReluDense(wi wo) layer_norm)))) final_layer_norm) decoder(embed_tokens block@45
 final_layer_norm) lm_head transformer(shared encoder(embed_tokens block(#(layer(#(SelfAttention@25 DenseReluDense(wi wo) layer_norm))))
 final_layer_norm) decoder(embed_tokens block@45 final_layer_norm)) classification_head@32 classifier
t5gemma: model(encoder(embed_tokens norm layers(#(self_attn@4 pre_self_attn_layernorm post_self_attn_layernorm mlp@2 pre_feedforward_layernorm
 post_feedforward_layernorm))) decoder(embed_tokens norm layers(#(self_attn@4 pre_self_attn_layernorm post_self_attn_layernorm mlp@2
 pre_feedforward_layernorm post_feedforward_layernorm cross_attn@4 pre_cross_attn_layernorm post_cross_attn_layernorm)))) lm_head(out_proj)
 score(out_proj)
t5gemma2: model(encoder(text_model(embed_tokens norm layers(#(self_attn@8 pre_self_attn_layernorm post_self_attn_layernorm mlp@2
 pre_feedforward_layernorm post_feedforward_layernorm))) vision_tower@5 multi_modal_projector(mm_soft_emb_norm)) decoder(embed_tokens norm
 layers(#(self_attn@8 pre_self_attn_layernorm post_self_attn_layernorm mlp@2 pre_feedforward_layernorm post_feedforward_layernorm))))
 lm_head(out_proj) score(out_proj)
vibevoice_asr: model(acoustic_tokenizer_encoder(stem@21 conv_layers(#@21) head(conv)) semantic_tokenizer_encoder(stem@21 conv_layers(#@21)
 head(conv)) multi_modal_projector(acoustic_linear_1 acoustic_norm acoustic_linear_2 semantic_linear_1 semantic_norm semantic_linear_2)
 language_model@0) lm_head
voxtral_realtime: model(audio_tower(embedder(conv1 conv2) layers(#(self_attn@4 self_attn_layer_norm final_layer_norm mlp@2)) norm)
 language_model(embed_tokens layers(#(self_attn@4 mlp@2 input_layernorm post_attention_layernorm ada_rms_norm(linear1 linear2))) norm)
 multi_modal_projector(linear_1 linear_2)) lm_head
albert: albert(embeddings@9 encoder(embedding_hidden_mapping_in albert_layer_groups(#(albert_layers(#(full_layer_layer_norm attention(query key value
 dense LayerNorm) ffn ffn_output))))) pooler) predictions(LayerNorm dense decoder) classifier
convbert: convbert(embeddings@9 encoder(layer(#(attention(self(query key value key_conv_attn_layer(depthwise pointwise) conv_kernel_layer
 conv_out_layer) output@13) intermediate@51 output@13)))) generator_predictions(LayerNorm dense) generator_lm_head classifier@32
deberta: deberta(embeddings@34 encoder(layer(#(attention(self(in_proj) output@13) intermediate@51 output@13)))) cls@19 pooler@51 classifier
deberta-v2: deberta(embeddings@34 encoder(layer(#(attention(self(query_proj key_proj value_proj) output@13) intermediate@51 output@13)))) cls@19
 pooler@51 classifier
distilbert: distilbert(embeddings@34 transformer(layer(#(attention(q_lin k_lin v_lin out_lin) sa_layer_norm ffn(lin1 lin2) output_layer_norm))))
 vocab_transform vocab_layer_norm vocab_projector pre_classifier classifier
esmc: esmc@14 lm_head@42 classifier@32 score
eurobert: model@0 lm_head dense classifier
fnet: fnet(embeddings(word_embeddings position_embeddings token_type_embeddings LayerNorm projection) encoder(layer(#(fourier(output(LayerNorm))
 intermediate@51 output@13))) pooler@51) cls@19 classifier
funnel: funnel(embeddings(word_embeddings layer_norm) encoder(blocks(#(#(attention(q_head k_head v_head post_proj layer_norm) ffn(linear_1 linear_2
 layer_norm))))) decoder(layers(#(attention(q_head k_head v_head post_proj layer_norm) ffn(linear_1 linear_2 layer_norm))))) lm_head
 classifier(linear_hidden linear_out)
gte: gte(embeddings(word_embeddings token_type_embeddings LayerNorm) pooler@51 layers(#(post_attention_layernorm mlp@2 self_attn@4
 post_mlp_layernorm))) lm_head@42 classifier
ibert: ibert(embeddings(word_embeddings token_type_embeddings position_embeddings LayerNorm) encoder(layer@3)) lm_head@42 classifier@32
jina_embeddings_v3: lm_head@42 classifier@32 roberta(embeddings(word_embeddings token_type_embeddings LayerNorm) layers(#(post_attention_layernorm
 mlp@36 self_attn@4 post_mlp_layernorm)))
layoutlm: layoutlm(embeddings(word_embeddings position_embeddings x_position_embeddings y_position_embeddings h_position_embeddings
 w_position_embeddings token_type_embeddings LayerNorm) encoder(layer@3) pooler@51) cls@19 classifier
longformer: longformer(embeddings@27 encoder(layer(#(attention(self(query key value query_global key_global value_global) output@13) intermediate@51
 output@13)))) lm_head@42 classifier@32
luke: luke(embeddings@9 entity_embeddings(entity_embeddings entity_embedding_dense position_embeddings token_type_embeddings LayerNorm)
 encoder(layer(#(attention(self(query key value w2e_query e2w_query e2e_query) output@13) intermediate@51 output@13))) pooler@51) lm_head@42
 entity_predictions(transform@13 decoder) classifier
mobilebert: mobilebert(embeddings(word_embeddings position_embeddings token_type_embeddings embedding_transformation LayerNorm)
 encoder(layer(#(attention(self@46 output@13) intermediate@51 output(dense LayerNorm bottleneck@13) bottleneck(input@13 attention@13)
 ffn(#(intermediate@51 output@13))))) pooler@51) cls(predictions(transform@13 dense decoder)) classifier
modernbert: model(embeddings(tok_embeddings norm) layers(#(attn_norm attn(Wqkv Wo) mlp_norm mlp(Wi Wo))) final_norm) head(dense norm) decoder
 classifier
modernvbert: model(vision_model@5 connector(modality_projection) text_model(embeddings(tok_embeddings norm) layers(#(attn_norm attn(Wqkv Wo) mlp_norm
 mlp(Wi Wo))) final_norm)) projection_head(dense norm) lm_head head(dense norm) classifier
mpnet: mpnet(embeddings@34 encoder(layer(#(attention(attn(q k v o) LayerNorm) intermediate@51 output@13)) relative_attention_bias)) lm_head@42
 classifier@32
mra: mra(embeddings@9 encoder(layer@3)) cls@19 classifier@32
neomme: model(embed_tokens(word_embeddings embedding_projection) patch_embeddings(norm up_proj down_proj) layers(#(self_attn(q_proj k_proj v_proj
 exclusive_self_attention output_projection(gate_proj o_proj)) mlp(up_proj down_proj))) value_embeddings) unembedding_projection lm_head
nomic_bert: nomic_bert(embeddings(word_embeddings token_type_embeddings LayerNorm) pooler@51 layers(#(post_attention_layernorm mlp@2 self_attn@4
 post_mlp_layernorm))) cls(predictions(transform(dense layer_norm) decoder)) classifier
nystromformer: nystromformer(embeddings@9 encoder(layer(#(attention(self(query key value conv) output@13) intermediate@51 output@13)))) cls@19
 classifier@32
perceiver: perceiver(input_preprocessor(embeddings convnet_1x1 position_embeddings positions_projection) embeddings
 encoder(cross_attention(attention(self(layernorm1 layernorm2 query key value) output@51) layernorm mlp(dense1 dense2))
 self_attends(#(attention(self(layernorm1 query key value) output@51) layernorm mlp(dense1 dense2)))) decoder(output_position_encodings
 decoding_cross_attention(attention(self(layernorm1 layernorm2 query key value) output@51) layernorm mlp(dense1 dense2))
 decoder(output_position_encodings decoding_cross_attention(attention(self(layernorm1 layernorm2 query key value) output@51) layernorm mlp(dense1
 dense2)) final_layer))) embedding_decoder
reformer: reformer(embeddings(word_embeddings position_embeddings(weights)) encoder(layers(#(attention(layer_norm self_attention(query key query_key
 value) output@51) feed_forward(layer_norm dense@51 output@51))) layer_norm)) lm_head(decoder) classifier@32
squeezebert: transformer(embeddings@9 encoder(layers(#(attention@46 post_attention(conv1d layernorm) intermediate(conv1d) output(conv1d layernorm))))
 pooler@51) cls@19 classifier
tapas: tapas(embeddings(word_embeddings position_embeddings token_type_embeddings_0 token_type_embeddings_1 token_type_embeddings_2
 token_type_embeddings_3 token_type_embeddings_4 token_type_embeddings_5 token_type_embeddings_6 LayerNorm) encoder(layer@3) pooler@51) cls@19
 classifier
ultrabert: model@0 head(linear1 linear2 decoder) classifier
ultravbert: model(vision_model@15 connector(modality_projection norm) text_model@0) projection_head(linear1 linear2) lm_head classifier
yoso: yoso(embeddings@9 encoder(layer@3)) cls@19 classifier@32
canine: canine(char_embeddings(HashBucketCodepointEmbedder_0 HashBucketCodepointEmbedder_1 HashBucketCodepointEmbedder_2
 HashBucketCodepointEmbedder_3 HashBucketCodepointEmbedder_4 HashBucketCodepointEmbedder_5 HashBucketCodepointEmbedder_6
 HashBucketCodepointEmbedder_7 char_position_embeddings token_type_embeddings LayerNorm) initial_char_encoder(layer@3) chars_to_molecules(conv
 LayerNorm) encoder(layer@3) projection(conv LayerNorm) final_char_encoder(layer@3) pooler@51) classifier
layoutlmv3: layoutlmv3(embeddings(word_embeddings token_type_embeddings LayerNorm position_embeddings x_position_embeddings y_position_embeddings
 h_position_embeddings w_position_embeddings) patch_embed(proj) LayerNorm norm encoder(layer@3 rel_pos_bias rel_pos_x_bias rel_pos_y_bias))
 classifier@32
lilt: lilt(embeddings@9 layout_embeddings(x_position_embeddings y_position_embeddings h_position_embeddings w_position_embeddings
 box_position_embeddings box_linear_embeddings LayerNorm) encoder(layer(#(attention(self(query key value layout_query layout_key layout_value)
 output@13 layout_output@13) intermediate@51 output@13 layout_intermediate@51 layout_output@13)))) classifier@32
llama: model@0 score
markuplm: markuplm(embeddings(word_embeddings position_embeddings xpath_embeddings(xpath_unitseq2_embeddings xpath_unitseq2_inner inner2emb
 xpath_tag_sub_embeddings(#) xpath_subs_sub_embeddings(#)) token_type_embeddings LayerNorm) encoder(layer@3) pooler@51) classifier
mistral4: model(embed_tokens layers(#(self_attn@18 mlp(experts gate shared_experts@2) input_layernorm post_attention_layernorm)) norm) score lm_head
qwen3_5: model(visual(patch_embed(proj) pos_embed blocks@41 merger(norm linear_fc1 linear_fc2)) language_model@35) score lm_head
qwen3_5_text: model@35 score
bros: bros(embeddings@9 bbox_embeddings(bbox_projection) encoder(layer@3) pooler@51) classifier
openai_privacy_filter: model(embed_tokens layers(#(self_attn@4 mlp(router experts) input_layernorm post_attention_layernorm)) norm) score
aria: model(vision_tower(embeddings@31 encoder@24 post_layernorm) multi_modal_projector(cross_attn(q_proj k_proj v_proj multihead_attn(out_proj)
 linear layer_norm layer_norm_kv) layer_norm feed_forward(linear_in linear_out)) language_model(embed_tokens layers(#(self_attn@4 mlp(router experts
 shared_experts@2) input_layernorm post_attention_layernorm)) norm)) lm_head
blip: text_model(embeddings@34 encoder@22 pooler@51) vision_model@48 text_decoder(bert(embeddings@34 encoder@22) cls@19) visual_projection
 text_projection
blip-2: vision_model@48 embeddings(word_embeddings position_embeddings) qformer(layernorm encoder(layer(#(attention(attention@46 output@13)
 crossattention(attention@46 output@13) intermediate_query@51 output_query@13)))) language_projection language_model(model(decoder(embed_tokens
 embed_positions final_layer_norm layers@10)) lm_head) vision_projection text_projection itm_head
cohere2_vision: model(vision_tower@5 multi_modal_projector(linear_1 linear_2) language_model(embed_tokens layers(#(self_attn@4 mlp@2
 input_layernorm)) norm)) lm_head
cosmos3_edge: model(visual@15 language_model(embed_tokens layers@26 norm) projector(norm linear_fc1 linear_fc2)) lm_head
cosmos3_omni qwen3_vl: model(visual(patch_embed(proj) pos_embed blocks@41 merger(norm linear_fc1 linear_fc2) deepstack_merger_list(#(norm linear_fc1
 linear_fc2))) language_model@14) lm_head
deepseek_vl: model(vision_model@5 aligner(linear1 linear2) language_model@0) lm_head
deepseek_vl_hybrid: model(high_res_vision_model(vision_encoder(patch_embed(projection) layers(#(layer_norm1 attn(qkv proj) layer_norm2 mlp(lin1
 lin2))) neck(conv1 layer_norm1 conv2 layer_norm2))) high_res_vision_neck(conv1 layer_norm1 conv2 layer_norm2) high_res_vision_proj(conv1 conv2)
 vision_model@5 aligner(vision_proj high_res_vision_proj proj) language_model@0) lm_head
dots3_note: model(language_model(embed_tokens layers(#(self_attn(q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj
 k_rope_only_layernorm g_proj indexer(wq_b wk k_norm weights_proj)) mlp@16 input_layernorm post_attention_layernorm)) norm)
 vision_tower(patch_embed(proj norm) blocks(#(norm1 attn(qkv proj q_norm k_norm) norm2 mlp@2)) merger(ln_q mlp(#)) norm)
 audio_tower(conv_stem(convs(#) conv_out) layers(#(self_attn@4 input_layernorm mlp(gate_up_proj down_proj) post_attention_layernorm)) layer_norm
 adapter(norm fc1 fc2))) lm_head
ernie4_5_vl_moe: model(language_model(embed_tokens layers(#(self_attn@4 mlp(gate_proj up_proj down_proj text_moe(gate(moe_statics) experts)
 vision_moe(gate(moe_statics) experts) shared_experts@2) input_layernorm post_attention_layernorm)) norm) vision_tower(patch_embed(proj)
 blocks(#(norm1 norm2 attn(qkv proj) mlp@36)) ln) resampler_model(spatial_linear(fc1 fc2 ln) temporal_linear(fc1 fc2 ln) mlp after_norm)) lm_head
evolla: model(embed_tokens protein_encoder(model(embeddings(word_embeddings) encoder(layer(#(attention(self@46 output@51 LayerNorm) intermediate@51
 output@51 LayerNorm)) emb_layer_norm_after)) sequence_compressor_resampler(layers(#(#(norm_media norm_latents to_q to_kv to_out norm fc1 fc2))) norm
 protein_projector)) layers(#(self_attn@4 mlp@2 input_layernorm post_attention_layernorm adapter(query key_protein value_protein attention_norm
 out_proj ff(norm fc1 fc2)))) norm) lm_head
exaone4_5: model(visual(patch_embed(proj) blocks(#(norm1 norm2 attn(proj qkv) mlp@2)) merger(ln_q mlp(#))) language_model(embed_tokens
 layers(#(self_attn@8 mlp@2 post_attention_layernorm post_feedforward_layernorm)) norm)) lm_head
florence2: model(vision_tower(convs(#(conv norm)) blocks(#(#(spatial_block(conv1 norm1 window_attn(qkv proj) conv2 norm2 ffn@36) channel_block(conv1
 norm1 channel_attn(qkv proj) conv2 norm2 ffn@36))))) multi_modal_projector(image_projection image_proj_norm image_position_embed(row_embeddings
 column_embeddings)) language_model@39) lm_head
glm46v glm4v: model(visual(embeddings(position_embedding) patch_embed(proj) blocks(#(norm1 norm2 attn(qkv proj) mlp@2)) merger(proj
 post_projection_norm gate_proj up_proj down_proj) post_conv_layernorm downsample post_layernorm) language_model@33) lm_head
glm4v_moe: model(visual(embeddings(position_embedding) patch_embed(proj) blocks(#(norm1 norm2 attn(qkv proj) mlp@2)) merger(proj post_projection_norm
 gate_proj up_proj down_proj) post_conv_layernorm downsample post_layernorm) language_model(embed_tokens layers(#(self_attn@4 mlp@16 input_layernorm
 post_attention_layernorm)) norm)) lm_head
glm5_next: model(visual(patch_embed(proj) blocks(#(norm1 norm2 attn(qkv proj q_norm k_norm) mlp@2)) merger(proj post_projection_norm gate_proj
 up_proj down_proj) downsample post_layernorm) language_model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj conv1d forget_gate(f_a_proj
 f_b_proj) b_proj g_a_proj g_b_proj o_norm o_proj) mlp@2 input_layernorm post_attention_layernorm attn_hc ffn_hc)) norm)) lm_head
glm_ocr: model(visual(patch_embed(proj) blocks(#(norm1 norm2 attn(qkv proj q_norm k_norm) mlp@2)) merger(proj post_projection_norm gate_proj up_proj
 down_proj) downsample post_layernorm) language_model@33) lm_head
granite_docling: model(vision_model(embeddings@31 encoder@24 post_layernorm connector(ln_in coarse(projection deepstack_mergers(#(layer_norm linear_1
 linear_2))) fine(projection deepstack_mergers(#(layer_norm linear_1 linear_2))) ln_mid mlp_fc2 ln_out)) text_model@0) lm_head
hyperclovax_vision_v2: model(vision_model(patch_embed(proj) blocks(#(norm1 norm2 attn(qkv proj) mlp@2)) merger(ln_q mlp(#))) projector
 language_model(embed_tokens layers(#(self_attn@4 mlp@2 input_layernorm post_attention_layernorm post_norm1 post_norm2)) norm)) lm_head
idefics: model(embed_tokens vision_model@6 layers(#(self_attn@4 mlp(gate_proj down_proj up_proj) input_layernorm post_attention_layernorm))
 gated_cross_attn_layers(#(cross_attn@4 mlp(gate_proj down_proj up_proj) input_layernorm post_attention_layernorm)) norm) lm_head
idefics2: model(vision_model(embeddings@31 encoder@24 post_layernorm) connector(modality_projection@2 perceiver_resampler(layers(#(input_latents_norm
 input_context_norm self_attn@4 post_attention_layernorm mlp@2)) norm)) text_model@0) lm_head
idefics3 smolvlm: model(vision_model(embeddings@31 encoder@24 post_layernorm) connector(modality_projection(proj)) text_model@0) lm_head
inkling2: model(language_model@29 vision_tower(embeddings@31 pre_layernorm layers(#(self_attn@1 mlp@36 layernorm_before layernorm_after))
 merger(linear_1 linear_2))) lm_head
inkling_mm_model: model(language_model@44 audio_tower(embed_audio_tokens(embed_audio_tokens) norm) vision_tower(encoder_layers(#(projection
 layer_norm)) final_norm)) lm_head
instructblip instructblipvideo: vision_model@48 qformer(embeddings(word_embeddings position_embeddings layernorm)
 encoder(layer(#(attention(attention@46 output@13) crossattention(attention@46 output@13) intermediate@51 output@13 intermediate_query@51
 output_query@13)))) language_projection language_model(model(decoder(embed_tokens embed_positions final_layer_norm layers@10)) lm_head)
internvl: model(vision_tower(embeddings@28 encoder(layer(#(attention(q_proj k_proj v_proj projection_layer) mlp@36 layernorm_before
 layernorm_after)))) multi_modal_projector(layer_norm linear_1 linear_2) language_model@0) lm_head
janus: model(vision_model(embeddings@31 encoder(layers(#(layer_norm1 self_attn(q_proj k_proj v_proj projection_layer) layer_norm2 mlp@36)))
 post_layernorm) aligner(fc1 hidden_layers(#)) vqmodel(encoder(conv_in down(#(block(#(norm1 conv1 norm2 conv2 nin_shortcut)) downsample(conv)
 attn(#(norm q k v proj_out)))) mid(block_1(norm1 conv1 norm2 conv2) attn_1(norm q k v proj_out) block_2(norm1 conv1 norm2 conv2)) norm_out conv_out)
 quantize(embedding) quant_conv post_quant_conv decoder(conv_in mid(block_1(norm1 conv1 norm2 conv2) attn_1(norm q k v proj_out) block_2(norm1 conv1
 norm2 conv2)) up(#(block(#(norm1 conv1 norm2 conv2 nin_shortcut)) attn(#(norm q k v proj_out)) upsample(conv))) norm_out conv_out))
 generation_embeddings generation_aligner(fc1 hidden_layers(#)) generation_head(proj_out vision_head) language_model@0) lm_head
kimi_k25: model(vision_tower(patch_embed(proj pos_emb) layers(#(norm1 norm2 attn(proj q_proj k_proj v_proj) mlp@36)) final_layernorm)
 language_model(embed_tokens layers(#(self_attn@18 mlp@2 input_layernorm post_attention_layernorm)) norm) mm_projector(pre_norm in_proj out_proj))
 lm_head
kosmos-2: text_model(model(embed_tokens layers(#(self_attn(k_proj v_proj q_proj out_proj inner_attn_ln) self_attn_layer_norm ffn(fc1 fc2
 ffn_layernorm) final_layer_norm)) layer_norm) lm_head) vision_model(model@6) image_to_text_projection(dense x_attn@1)
kosmos-2.5: text_model(model(embed_tokens segment_emb layers(#(self_attn@1 self_attn_layer_norm ffn(fc1 fc2 ffn_layernorm) final_layer_norm))
 layer_norm) lm_head) vision_model(embeddings(patch_projection row_embedder column_embedder) encoder(layer(#(attention(query key value output)
 mlp(wi_0 wi_1 wo) pre_mlp_layer_norm pre_attention_layer_norm))) layernorm) image_to_text_projection(dense x_attn@1)
lfm2_vl: model(vision_tower@5 multi_modal_projector(layer_norm linear_1 linear_2) language_model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj
 out_proj q_layernorm k_layernorm) feed_forward(w1 w3 w2) operator_norm ffn_norm)) embedding_norm)) lm_head
lfm3_vl: model(language_model@54 vision_tower(patch_embed embedding_norm layers(#(conv(in_proj spatial_conv out_proj) self_attn(q_proj k_proj v_proj
 out_proj q_norm k_norm) feed_forward(w1 w3 w2) operator_norm ffn_norm))) multi_modal_projector(layer_norm linear_1 linear_2)) lm_head
lighton_ocr: model(vision_encoder@49 vision_projection(norm patch_merger(merging_layer) linear_1 linear_2) language_model@14) lm_head
llama4: vision_model(patch_embedding(linear) layernorm_pre layernorm_post model(layers@26) vision_adapter(mlp@36)) multi_modal_projector(linear_1)
 language_model(model(embed_tokens layers(#(self_attn@4 feed_forward(experts router shared_expert@2) input_layernorm post_attention_layernorm)) norm)
 lm_head)
llava llava_next llava_next_video: model(vision_tower@6 multi_modal_projector(linear_1 linear_2) language_model@0) lm_head
llava_onevision: model(vision_tower@15 multi_modal_projector(linear_1 linear_2) language_model@0) lm_head
minicpm_ocr minicpmv4_6 minicpmv4_7: model(vision_tower(embeddings@31 encoder@53 post_layernorm vit_merger(self_attn@1 layer_norm1 pre_norm linear_1
 linear_2)) language_model@35 merger(mlp(#(pre_norm linear_1 linear_2)))) lm_head
minimax_m3_vl: model(vision_tower(embeddings(proj) pre_layrnorm layers(#(self_attn@1 layer_norm1 mlp@36 layer_norm2))) multi_modal_projector(linear_1
 linear_2 merge_linear_1 merge_linear_2) language_model(embed_tokens layers(#(self_attn@8 mlp(gate experts shared_experts(gate_up_proj down_proj))
 input_layernorm post_attention_layernorm)) norm)) lm_head
mistral3: model(vision_tower@49 multi_modal_projector(norm patch_merger(merging_layer) linear_1 linear_2) language_model@0) lm_head
mistral_large4: model(vision_tower@49 multi_modal_projector(norm patch_merger(merging_layer) linear_1 linear_2) language_model(embed_tokens
 layers(#(self_attn(kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj indexer(wq_b wk k_norm weights_proj q_input_norm softmax_scaling) q_proj
 softmax_scaling) mlp@16 input_layernorm post_attention_layernorm)) norm)) lm_head
molmo2: model(vision_tower(patch_embedding layers(#(layer_norm1 self_attn@4 layer_norm2 mlp@36))) multi_modal_projector(image_pooling_2d@4
 image_projector@2) language_model@14) lm_head
muse_glimmer: model(vision_tower(patch_embedder(patch_embedding position_embedding_table) ln_pre layers(#(norm1 norm2 attn(proj q_proj k_proj v_proj)
 mlp@36)) ln_post) language_model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj o_proj gate_proj) mlp@2 input_layernorm
 post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm)) norm) vision_adapter@36 vision_projection) lm_head
muse_spark: model(vision_tower(patch_embedder(patch_embedding position_embedding_table) ln_pre layers(#(norm1 norm2 attn(proj q_proj k_proj v_proj)
 mlp@36)) ln_post) language_model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj o_proj gate_proj) mlp(gate pre_expert_proj pre_expert_norm
 experts(post_expert_norm) post_expert_proj) input_layernorm pre_feedforward_layernorm post_feedforward_layernorm post_attention_residual_gate
 post_feedforward_residual_gate)) norm) vision_adapter@36 vision_projection audio_tower(layers(#(patch_embedder(proj norm) conv_blocks(#(conv norm
 mlp@36)))) norm proj post_proj_norm)) lm_head
nemotron_h_omni: language_model(model(embeddings layers(#(norm mixer(conv1d in_proj norm out_proj experts gate shared_experts(up_proj down_proj)
 q_proj k_proj v_proj o_proj up_proj down_proj))) norm_f) lm_head) vision_model(embeddings(patch_projection video_patch_projection)
 encoder(layer(#(norm1 attention@4 layer_scale1 norm2 mlp@36 layer_scale2)))) multi_modal_projector(layer_norm linear_1 linear_2)
ovis2: model(vision_tower(transformer(embeddings(patch_embedding position_embedding rms_norm) encoder(layers(#(attention@1 ffn@2 rms_norm1
 rms_norm2))) rms_norm) head_linear head_norm) language_model@0 visual_embeddings_table) lm_head
paddleocr_vl: model(visual(vision_model@15) language_model@0 projector(pre_norm linear_1 linear_2)) lm_head
paligemma: model(vision_tower@15 multi_modal_projector(linear) language_model@0) lm_head
pi0: model(dit@0 vlm(vision_tower@15 multi_modal_projector(linear) language_model@0)) embed_action_time(action_in_proj state_proj action_time_mlp_in
 action_time_mlp_out) action_out_proj
pix2struct: encoder(embeddings(patch_projection row_embedder column_embedder) encoder(layer(#(attention(query key value output) mlp(wi_0 wi_1 wo)
 pre_mlp_layer_norm pre_attention_layer_norm))) layernorm) decoder(embed_tokens layer(#(self_attention(attention(query key value output
 relative_attention_bias) layer_norm) encoder_decoder_attention(attention(query key value output) layer_norm) mlp(DenseReluDense(wi_0 wi_1 wo)
 layer_norm))) final_layer_norm lm_head)
pp_formulanet: model(decoder(embed_tokens embed_positions layers@7 layernorm_embedding layer_norm) encoder(patch_embed(projection)
 layers(#(layer_norm1 attn(qkv proj) layer_norm2 mlp(lin1 lin2))) neck(conv1 layer_norm1 conv2 layer_norm2) multi_modal_projector(conv1 conv2
 linear_1 linear_2))) lm_head
qianfan_ocr: model(vision_tower(embeddings@28 layers(#(attention(q_proj k_proj v_proj projection_layer) mlp@36 layernorm_before layernorm_after)))
 multi_modal_projector(layer_norm linear_1 linear_2) language_model@14) lm_head
qwen2_5_omni_thinker: model(audio_tower(conv1 conv2 audio_bos_eos_token layers@10 ln_post proj) visual(patch_embed(proj) blocks(#(norm1 norm2 attn(q
 k v proj) mlp@2)) merger(ln_q mlp(#))) language_model@0) lm_head
qwen2_5_vl: model(visual(patch_embed(proj) blocks(#(norm1 norm2 attn(qkv proj) mlp@2)) merger(ln_q mlp(#))) language_model@0) lm_head
qwen2_vl: model(visual(patch_embed(proj) blocks(#(norm1 norm2 attn(qkv proj) mlp@36)) merger(ln_q mlp(#))) language_model@0) lm_head
qwen3_5_moe: model(visual(patch_embed(proj) pos_embed blocks@41 merger(norm linear_fc1 linear_fc2)) language_model(embed_tokens
 layers(#(linear_attn(conv1d norm out_proj in_proj_qkv in_proj_z in_proj_b in_proj_a) mlp(gate experts shared_expert@2 shared_expert_gate)
 input_layernorm post_attention_layernorm)) norm)) lm_head
qwen3_omni_moe_thinker: model(audio_tower(layers@10 ln_post conv2d1 conv2d2 conv2d3 conv_out proj1 proj2) visual(merger_list(#(ln_q mlp(#)))
 patch_embed(proj) pos_embed blocks@41 merger(ln_q mlp(#))) language_model@38) lm_head
qwen3_vl_moe: model(visual(patch_embed(proj) pos_embed blocks@41 merger(norm linear_fc1 linear_fc2) deepstack_merger_list(#(norm linear_fc1
 linear_fc2))) language_model@38) lm_head
qwen4_exp: model(visual(patch_embed(proj) pos_embed blocks@41 merger(norm linear_fc1 linear_fc2)) language_model(embed_tokens
 layers(#(linear_attn(conv1d norm out_proj in_proj_qkv in_proj_z in_proj_b in_proj_a) mlp(gate experts shared_expert@2 shared_expert_gate)
 attn_hyper_connection(hc_norm input_mix_weight_down input_mix_weight_up block_inject_weight) mlp_hyper_connection(hc_norm input_mix_weight_down
 input_mix_weight_up block_inject_weight))) hyper_connection_mixer(hc_norm input_mix_weight_down input_mix_weight_up))) lm_head
step3p7: model(vision_model(embeddings@31 pre_layernorm layers(#(self_attn@1 mlp@36 layernorm_before layernorm_after)) downsampler1 downsampler2)
 language_model(embed_tokens layers(#(self_attn(q_proj k_proj v_proj o_proj q_norm k_norm g_proj) mlp@2 input_layernorm post_attention_layernorm))
 norm) multi_modal_projector) lm_head
udop: shared patch_embed(proj) encoder(embed_tokens embed_patches(proj) block(#(layer(#(SelfAttention@25 DenseReluDense(wi wo) layer_norm))))
 final_layer_norm cell_2d_embedding(x_position_embeddings y_position_embeddings) relative_bias(biases(#(relative_attention_bias))))
 decoder(embed_tokens embed_patches(proj) block@45 final_layer_norm relative_bias(biases(#(relative_attention_bias)))) lm_head
unlimited_ocr: model(vision_tower(sam_encoder(patch_embed(projection) layers(#(layer_norm1 attn(qkv proj) layer_norm2 mlp(lin1 lin2))) neck(conv1
 layer_norm1 conv2 layer_norm2) proj(conv1 conv2)) vision_encoder(embeddings(position_embedding) pre_layrnorm encoder@24)) multi_modal_projector
 language_model(embed_tokens layers(#(self_attn@4 mlp@16 input_layernorm post_attention_layernorm)) norm)) lm_head
video_llama_3: model(vision_model(embeddings(patch_embedding) encoder@53 post_layernorm) projector(readout(#)) language_model@0) lm_head
video_llava: model(video_tower@6 image_tower@6 multi_modal_projector(linear_1 linear_2) language_model@0) lm_head
vipllava: model(vision_tower@6 multi_modal_projector(projector_layernorm linear_1 linear_2) language_model@0) lm_head
vision-encoder-decoder: encoder(embeddings@28 layers@20 layernorm pooler@51) decoder(bert(embeddings@9 encoder@22) cls@19)
beit: beit(embeddings@28 layers@20 pooler(layernorm)) classifier
bit: bit(embedder(convolution) encoder(stages(#(layers(#(downsample(conv) norm1 conv1 norm2 conv2 norm3 conv3))))) norm) classifier(#)
clip metaclip_2: text_model(embeddings(token_embedding position_embedding) encoder@24 final_layer_norm) vision_model@6 classifier visual_projection
 text_projection
convnext: convnext(embeddings(patch_embeddings layernorm) encoder(stages(#(downsampling_layer(#) layers(#(dwconv layernorm pwconv1 pwconv2)))))
 layernorm) classifier
convnextv2: convnextv2(embeddings(patch_embeddings layernorm) encoder(stages(#(downsampling_layer(#) layers(#(dwconv layernorm pwconv1 grn
 pwconv2))))) layernorm) classifier
cvt: cvt(encoder(stages(#(embedding(convolution_embeddings(projection normalization))
 layers(#(attention(attention(convolution_projection_query(convolution_projection@11) convolution_projection_key(convolution_projection@11)
 convolution_projection_value(convolution_projection@11) projection_query projection_key projection_value) output@51) intermediate@51 output@51
 layernorm_before layernorm_after)))))) layernorm classifier
data2vec-vision: data2vec_vision(embeddings@28 encoder(layer(#(attention(attention@46 output@51) intermediate@51 output@51 layernorm_before
 layernorm_after))) pooler(layernorm)) classifier
deit: deit(embeddings@28 layers@20 layernorm) classifier cls_classifier distillation_classifier
dinov2: dinov2(embeddings@28 encoder(layer(#(norm1 attention@4 layer_scale1 norm2 mlp@36 layer_scale2))) layernorm) classifier
dinov2_with_registers: dinov2_with_registers(embeddings@28 encoder(layer(#(norm1 attention@4 layer_scale1 norm2 mlp@36 layer_scale2))) layernorm)
 classifier
donut-swin: donut(embeddings(patch_embeddings(projection) norm) encoder(layers(#(blocks(#(layernorm_before attention(self@46 output@51)
 layernorm_after intermediate@51 output@51)) downsample(reduction norm))))) classifier
efficientnet: efficientnet(embeddings(convolution batchnorm) encoder(blocks(#(expansion(expand_conv expand_bn) depthwise_conv(depthwise_conv
 depthwise_norm) squeeze_excite(reduce expand) projection(project_conv project_bn))) top_conv top_bn)) classifier
focalnet: focalnet(embeddings(patch_embeddings(projection) norm) encoder(stages(#(layers(#(norm1 modulation(projection_in projection_context
 projection_out focal_layers(#(#))) norm2 mlp@36)) downsample(projection norm)))) layernorm) classifier
hgnet_v2: embedder(stem1@11 stem2a@11 stem2b@11 stem3@11 stem4@11) encoder(stages(#(downsample@11 blocks(#(layers(#(convolution normalization
 conv1@11 conv2@11)) aggregation(#@11)))))) fc
hiera: hiera(embeddings@28 encoder(stages(#(layers(#(layernorm_before attn(qkv proj) layernorm_after mlp@36 proj))))) pooler(layernorm)) classifier
ijepa: ijepa(embeddings@28 layers@20 layernorm) classifier
imagegpt: transformer(wte wpe h(#(ln_1 attn(c_attn c_proj) ln_2 mlp(c_fc c_proj))) ln_f) score
levit: levit(patch_embeddings(embedding_layer_1(convolution batch_norm) embedding_layer_2(convolution batch_norm) embedding_layer_3(convolution
 batch_norm) embedding_layer_4(convolution batch_norm)) encoder(stages(#(layers(#(module(queries_keys_values(linear batch_norm) projection(linear
 batch_norm) linear_up(linear batch_norm) linear_down(linear batch_norm)) keys_values(linear batch_norm) queries(linear batch_norm) projection(linear
 batch_norm))))))) classifier(batch_norm linear) classifier_distill(batch_norm linear)
mobilenet_v1: mobilenet_v1(conv_stem@11 layer(#@11)) classifier
mobilenet_v2: mobilenet_v2(conv_stem(first_conv@11 conv_3x3@11 reduce_1x1@11) layer(#(expand_1x1@11 conv_3x3@11 reduce_1x1@11)) conv_1x1@11)
 classifier
mobilevit: mobilevit(conv_stem@11 encoder(layer(#(layer(#(expand_1x1@11 conv_3x3@11 reduce_1x1@11)) downsampling_layer(expand_1x1@11 conv_3x3@11
 reduce_1x1@11) conv_kxk@11 conv_1x1(convolution) transformer(layer(#(attention(attention@46 output@51) intermediate@51 output@51 layernorm_before
 layernorm_after))) layernorm conv_projection@11 fusion@11))) conv_1x1_exp@11) classifier
mobilevitv2: mobilevitv2(conv_stem@11 encoder(layer(#(layer(#(expand_1x1@11 conv_3x3@11 reduce_1x1@11)) downsampling_layer(expand_1x1@11 conv_3x3@11
 reduce_1x1@11) conv_kxk@11 conv_1x1(convolution) transformer(layer(#(layernorm_before attention(qkv_proj(convolution) out_proj(convolution))
 layernorm_after ffn(conv1(convolution) conv2(convolution))))) layernorm conv_projection@11)))) classifier
poolformer: poolformer(encoder(patch_embeddings(#(projection)) block(#(#(output(conv1 conv2) before_norm after_norm))))) norm classifier
pp_lcnet: encoder(convolution@11 blocks(#(layers(#(depthwise_convolution@11 squeeze_excitation_module(convolutions(#)) pointwise_convolution@11)))))
 last_convolution head
pvt: pvt(encoder(patch_embeddings(#(projection layer_norm)) block(#(#(layer_norm_1 attention(self(query key value sequence_reduction layer_norm)
 output@51) layer_norm_2 mlp(dense1 dense2)))) layer_norm)) classifier
pvt_v2: pvt_v2(encoder(layers(#(patch_embedding(proj layer_norm) blocks(#(layer_norm_1 attention(query key value proj spatial_reduction layer_norm)
 layer_norm_2 mlp(dense1 dwconv(dwconv) dense2))) layer_norm)))) classifier
regnet: regnet(embedder(embedder@11) encoder(stages(#(layers(#(shortcut@11 layer(#(convolution normalization attention(#))))))))) classifier(#)
resnet: resnet(embedder(embedder@11) encoder(stages(#(layers(#(shortcut@11 layer(#@11))))))) classifier(#)
segformer: segformer(stages(#(patch_embeddings(proj layer_norm) blocks(#(layernorm_before attention(q_proj k_proj v_proj o_proj
 sequence_reduction(sequence_reduction layer_norm)) layernorm_after mlp(fc1 dwconv(dwconv) fc2))) layer_norm))) classifier
shieldgemma2: model(model(vision_tower@5 multi_modal_projector(mm_soft_emb_norm) language_model@40) lm_head)
siglip siglip2: text_model(embeddings(token_embedding position_embedding) encoder@53 final_layer_norm head) vision_model@5 classifier
swiftformer: swiftformer(patch_embed(patch_embedding(#)) encoder(network(#(blocks(#(depth_wise_conv norm point_wise_conv1 point_wise_conv2
 local_representation(depth_wise_conv norm point_wise_conv1 point_wise_conv2) attn(to_query to_key proj final) linear(norm1 fc1 fc2))) proj norm))))
 norm head dist_head
swin: swin(embeddings(patch_embeddings(projection) norm) encoder(layers(#(blocks(#(attention(q_proj k_proj v_proj o_proj relative_position_bias)
 layernorm_before layernorm_after mlp@36)) downsample(reduction norm)))) layernorm) classifier
swinv2: swinv2(embeddings(patch_embeddings(projection) norm) encoder(layers(#(blocks(#(attention(self(continuous_position_bias_mlp(#) query key
 value) output@51) layernorm_before intermediate@51 output@51 layernorm_after)) downsample(reduction norm)))) layernorm) classifier
textnet: textnet(stem(conv batch_norm) encoder(stages(#(stage(#(main_conv main_batch_norm vertical_conv vertical_batch_norm horizontal_conv
 horizontal_batch_norm rbr_identity)))))) fc
vit vit_msn: vit(embeddings@28 layers@20 layernorm) classifier
canary: model(encoder@17 decoder(embed_tokens layers(#(self_attn@4 encoder_attn@4 mlp@36 input_layernorm post_attention_layernorm final_layernorm))
 norm embedding_layernorm)) proj_out
cohere_asr: model(encoder@17 decoder(embed_tokens layers(#(self_attn@4 encoder_attn@4 mlp@36 input_layernorm post_attention_layernorm
 final_layernorm)) norm pos_emb embedding_layernorm proj)) proj_out
dia: model(encoder(embedding layers(#(pre_sa_norm self_attention@4 post_sa_norm mlp(gate_up_proj down_proj))) norm) decoder(embeddings(embed)
 layers(#(self_attention@4 cross_attention@4 pre_sa_norm pre_ca_norm pre_mlp_norm mlp(gate_up_proj down_proj))) norm)) logits_dense
fun_asr_nano: model(audio_tower(layers(#(self_attn(q_proj k_proj v_proj o_proj fsmn(conv)) mlp@36 input_layernorm post_attention_layernorm
 final_layernorm))) language_model@14 multi_modal_projector(linear_1 linear_2 layers@26)) lm_head
kyutai_speech_to_text: model(embed_tokens(embed_tokens) layers(#(self_attn(q_proj(linear) k_proj(linear) v_proj(linear) o_proj(linear)) mlp@36
 input_layernorm post_attention_layernorm)) norm) lm_head codec_model(encoder(encoder_seanet(layers(#(conv block(#(conv)))))
 encoder_transformer(layers(#(self_attn@4 mlp@36 input_layernorm post_attention_layernorm self_attn_layer_scale mlp_layer_scale))) downsample(conv))
 decoder(upsample(conv) decoder_transformer(layers(#(self_attn@4 mlp@36 input_layernorm post_attention_layernorm self_attn_layer_scale
 mlp_layer_scale))) decoder_seanet(layers(#(conv block(#(conv)))))) quantizer(semantic_residual_vector_quantizer(input_proj output_proj)
 acoustic_residual_vector_quantizer(input_proj output_proj)))
moonshine: model(encoder(conv1 conv2 conv3 groupnorm layers@26 layer_norm) decoder(embed_tokens layers(#(self_attn@4 encoder_attn@4 mlp@36
 input_layernorm post_attention_layernorm final_layernorm)) norm)) proj_out
pop2piano: shared mel_conditioner(embedding) encoder@52 decoder@43 lm_head
speech-encoder-decoder: encoder@12 decoder(bert(embeddings@9 encoder@22) cls@19)
speech_to_text: model(encoder(conv(conv_layers(#)) layers@10 layer_norm) decoder(embed_tokens layers@7 layer_norm)) lm_head
speecht5: speecht5(encoder(prenet(feature_encoder(conv_layers(#(conv layer_norm))) feature_projection(layer_norm projection)
 pos_conv_embed(conv(parametrizations(weight)))) wrapped_encoder(layer_norm layers(#(attention@1 layer_norm feed_forward@23 final_layer_norm))
 embed_positions(pe_k))) decoder(prenet(embed_tokens) wrapped_decoder(layers(#(self_attn@1 self_attn_layer_norm encoder_attn@1
 encoder_attn_layer_norm feed_forward@23 final_layer_norm))))) text_decoder_postnet(lm_head)
vibevoice: model(audio_tower(encoder(stem@21 conv_layers(#@21) head(conv)) decoder(stem@21 conv_layers(#(convtr(convtr) stage(#(norm ffn_norm
 ffn(linear1 linear2) mixer(conv))))) head(conv))) language_model@0 multi_modal_projector(linear_1 act linear_2) semantic_tokenizer_encoder(stem@21
 conv_layers(#@21) head(conv)) semantic_connector(linear_1 act linear_2) diffusion_head(noisy_images_proj cond_proj timestep_proj@36 layers(#(ffn@2
 norm linear)) final_layer(linear_1 linear_2))) lm_head
data2vec-audio: data2vec_audio(feature_extractor(conv_layers(#(conv layer_norm))) feature_projection(layer_norm projection)
 encoder(pos_conv_embed(layers(#(conv))) layer_norm layers(#(attention@1 layer_norm feed_forward@23 final_layer_norm)))) lm_head projector classifier
granite_speech5_ctc: encoder(input_linear layers(#(feed_forward1(linear1 linear2) self_attn(q_proj k_proj v_proj o_proj rel_pos_emb)
 conv(pointwise_lin1 depthwise_conv norm pointwise_lin2) feed_forward2(linear1 linear2) norm_feed_forward1 norm_self_att norm_conv norm_feed_forward2
 norm_out)) out out_mid) ctc_head
hubert: hubert@12 lm_head projector classifier
lasr_ctc: encoder(subsampler(dense_0 conv_0 conv_1 dense_1) layers(#(feed_forward1(linear1 linear2) self_attn@4 conv(pointwise_conv1 depthwise_conv
 norm pointwise_conv2) feed_forward2(linear1 linear2) norm_feed_forward1 norm_self_att norm_conv norm_feed_forward2 norm_out)) out_norm) ctc_head
parakeet_ctc: encoder@17 ctc_head
sew: sew(feature_extractor(conv_layers(#(conv layer_norm))) layer_norm feature_projection encoder(pos_conv_embed(conv(parametrizations(weight)))
 layer_norm layers(#(attention@1 layer_norm feed_forward@23 final_layer_norm)) upsample(projection))) lm_head projector classifier
sew-d: sew_d(feature_extractor(conv_layers(#(conv layer_norm))) layer_norm feature_projection encoder(pos_conv_embed(conv(parametrizations(weight)))
 encoder(layer(#(attention(self(query_proj key_proj value_proj) output@13) intermediate@51 output@13)) rel_embeddings LayerNorm)
 upsample(projection))) lm_head projector classifier
unispeech: unispeech@12 lm_head projector classifier
unispeech-sat: unispeech_sat@12 lm_head projector classifier
wav2vec2: wav2vec2@12 lm_head projector classifier
wavlm: wavlm(feature_extractor(conv_layers(#(conv layer_norm))) feature_projection(layer_norm projection)
 encoder(pos_conv_embed(conv(parametrizations(weight))) layer_norm layers(#(attention(k_proj v_proj q_proj out_proj gru_rel_pos_linear
 rel_attn_embed) layer_norm feed_forward@23 final_layer_norm)))) lm_head projector classifier
audio-spectrogram-transformer: audio_spectrogram_transformer(embeddings@28 layers@20 layernorm) classifier(layernorm dense)
wav2vec2-bert: wav2vec2_bert(feature_projection(layer_norm projection) encoder(layers@47)) projector classifier
wav2vec2-conformer: wav2vec2_conformer(feature_extractor(conv_layers(#(conv layer_norm))) feature_projection(layer_norm projection)
 encoder(pos_conv_embed(conv(parametrizations(weight))) layer_norm layers@50)) projector classifier
align: text_model(embeddings@9 encoder(layer@3) pooler@51) vision_model(embeddings(convolution batchnorm) encoder(blocks(#(expansion(expand_conv
 expand_bn) depthwise_conv(depthwise_conv depthwise_norm) squeeze_excite(reduce expand) projection(project_conv project_bn))))) text_projection
altclip: text_model(roberta(embeddings@27 encoder(layers@3)) transformation pre_LN) vision_model@6 visual_projection text_projection
chinese_clip: text_model(embeddings@9 encoder(layer@3)) vision_model@6 visual_projection text_projection
clipseg: text_model(embeddings(token_embedding position_embedding) encoder@24 final_layer_norm) vision_model@6 visual_projection text_projection
tipsv2: text_model(embeddings(token_embedding) encoder@24 final_layer_norm) vision_model(embeddings@28 encoder(layer(#(norm1 attention@4 layer_scale1
 norm2 mlp@36 layer_scale2))) layernorm)
videoprism: video_model(vision_model(layernorm1 layernorm2 spatial_embeddings@28 temporal_embeddings spatial_layers@20 temporal_layers@20)
 auxiliary_layers@20 head@4 head_layernorm) text_model(embeddings(token_embedding) layers@20 layernorm)
"""
"""Model types, and their modules, each with those in it in brackets, in the order of definition; `#` is every number of a list, `@N`
what the row of that name holds."""
