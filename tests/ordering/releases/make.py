"""Make the checkpoints of this folder, with whatever transformers and peft are installed: `python make.py CASE...`.

| cases | made with |
|---|---|
| `*_040` | torch 2.13.0, transformers 4.30.2, peft 0.4.0, accelerate 0.21.0 |
| `*_062` | torch 2.13.0, transformers 4.36.2, peft 0.6.2, accelerate 0.25.0 |
| `*_0132` | torch 2.13.0, transformers 4.45.2, peft 0.13.2, accelerate 1.0.1 |

The groups come from the real Trainer (or from peft's LoRA+), the step is taken on noise, truth.json holds the live optimizer's names.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

HERE = Path(__file__).parent
TARGETS = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2))


def opt():
    size = {"vocab_size": 32, "hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 8}
    return OPTForCausalLM(OPTConfig(max_position_embeddings=16, **size))


def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2))


def by_trainer(model):
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, report_to=[], optim="adamw_torch", weight_decay=0.1)
        return Trainer(model=model, args=arguments).create_optimizer()


def by_loraplus(model):
    from peft.optimizers import create_loraplus_optimizer

    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)


NORMS = {"modules_to_save": ["norm", "lm_head"]}
CASES = {
    "llama_norms_040": (llama, {**TARGETS, **NORMS}, by_trainer),
    "opt_bias_all_040": (opt, {**TARGETS, "bias": "all"}, by_trainer),
    "opt_bias_lora_only_040": (opt, {**TARGETS, "bias": "lora_only"}, by_trainer),
    "llama_norms_062": (llama, {**TARGETS, **NORMS}, by_trainer),
    "opt_bias_all_062": (opt, {**TARGETS, "bias": "all"}, by_trainer),
    "llama_norms_0132": (llama, {**TARGETS, **NORMS}, by_trainer),
    "opt_bias_lora_only_0132": (opt, {**TARGETS, "bias": "lora_only"}, by_trainer),
    "llama_dora_debias_0132": (llama, {**TARGETS, "use_dora": True}, by_trainer),
    "opt_loraplus_0132": (opt, {**TARGETS, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["final_layer_norm"]}, by_loraplus),
    "t5_norms_0132": (t5, {"r": 2, "target_modules": ["q", "v"], "modules_to_save": ["layer_norm"], "task_type": "SEQ_2_SEQ_LM"}, by_trainer),
}


def make(name):
    base, config, optimizer_for = CASES[name]
    torch.manual_seed(0)
    made = base()
    folder = HERE / name
    made.config.save_pretrained(folder / "base")
    adapter_name = "debias" if "debias" in name else "default"
    model = get_peft_model(made, LoraConfig(**config), adapter_name=adapter_name)
    optimizer = optimizer_for(model)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and ".original_module." not in names[id(parameter)]:
                parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    truth = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    (folder / "truth.json").write_text(json.dumps(truth, indent=0))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for wanted in sys.argv[1:]:
        make(wanted)
