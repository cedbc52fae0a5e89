"""What other libraries' optimizers write, noted from states they made: slots, other entries, and the groups' values.

Made with galore-torch 1.0, apollo-torch 1.0.3, lomo-optim 0.1.1, grokadamw 0.1.2, lion-pytorch 0.2.5, prodigyopt 1.1.2, came-pytorch 0.1.3,
adam-mini 1.1.1, torch-optimi 0.3.3, pytorch-optimizer 4.1.0 on two small layers; deepspeed 0.19.8, peft 0.21.2, transformers 4.46 and
torchdistx from their sources.
"""

from __future__ import annotations

from typing import Any

ADAM = {"exp_avg", "exp_avg_sq"}
FACTORED = {"exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"}
HF: dict[str, Any] = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True}
LOW_RANK = {"rank": 4, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}
FACTORS = {
    "lr": None, "eps": [1e-30, 0.001], "clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None, "weight_decay": 0.0, "scale_parameter": True,
    "relative_step": True, "warmup_init": False,
}  # fmt: skip
OPTIMI = {
    "lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.01, "decouple_lr": False, "max_lr": None, "kahan_sum": None,
    "foreach": None, "triton": False, "gradient_release": False, "setup": True, "step": 2,
}  # fmt: skip
BETAS: dict[str, Any] = {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "eps": 1e-8}
PYTORCH_OPTIMIZER = {**BETAS, "weight_decouple": True, "fixed_decay": False, "foreach": None, "step": 2}

RECORDED: dict[str, tuple[str, set[str], set[str], dict[str, Any]]] = {
    "galore_torch.GaLoreAdamW": ("galore", ADAM, {"step", "projector"}, {**LOW_RANK, **HF}),
    "galore_torch.GaLoreAdafactor": ("galore", FACTORED, {"step", "RMS", "projector"}, {**LOW_RANK, **FACTORS}),
    "apollo_torch.APOLLOAdamW": (
        "apollo", {*ADAM, "scaled_grad"}, {"seed", "step", "projector"}, {**LOW_RANK, **HF, "proj": "random", "scale_type": "channel"},
    ),
    "lomo_optim.Lomo": ("lomo", set(), set(), {"lr": 1e-3, "clip_grad_norm": None, "clip_grad_value": None}),
    "grokadamw.GrokAdamW": (
        "grokadamw", set(), set(),
        {**BETAS, "alpha_init": 0.98, "lamb": 2.0, "gamma": 0.1, "grokking_signal_fns": None, "grokking_signal_decay_rate": 0.1},
    ),
    "lion_pytorch.Lion": ("lion", {"exp_avg"}, set(), {"lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0.0}),
    "optimi.Lion": ("lion", {"exp_avg"}, {"kahan_comp"}, {key: value for key, value in OPTIMI.items() if key not in {"eps", "step"}}),
    "pytorch_optimizer.Lion": ("lion", {"exp_avg"}, set(), {key: value for key, value in PYTORCH_OPTIMIZER.items() if key != "eps"}),
    "prodigyopt.Prodigy": (
        "prodigy", {*ADAM, "s", "p0"}, {"step"},
        {**BETAS, "beta3": None, "d": 1e-6, "d0": 1e-6, "d_max": 1e-6, "d_coef": 1.0, "k": 2, "use_bias_correction": False, "slice_p": 11},
    ),
    "pytorch_optimizer.Prodigy": ("prodigy", {*ADAM, "s", "p0"}, set(), {**PYTORCH_OPTIMIZER, "d": 1e-6, "d0": 1e-6, "d_coef": 1.0}),
    "came_pytorch.CAME": (
        "came", {*FACTORED, "exp_avg", "exp_avg_res_row", "exp_avg_res_col"}, {"step", "RMS"},
        {"lr": 1e-3, "eps": [1e-30, 1e-16], "clip_threshold": 1.0, "betas": [0.9, 0.999, 0.9999], "weight_decay": 0.0},
    ),
    "adam_mini.Adam_mini": (
        "adam_mini", {"m", "v", "vmean"}, {"step", "reduced", "block_numel"},
        {"name": "0.weight", "weight_decay": 0.0, "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    ),
    "pytorch_optimizer.SOAP": (
        "soap", {*ADAM, "GG.0", "GG.1", "Q.0", "Q.1"}, {"precondition_frequency", "shampoo_beta"},
        {**BETAS, "shampoo_beta": None, "precondition_frequency": 10, "max_precondition_dim": 10000, "merge_dims": False, "precondition_1d": False,
         "correct_bias": True, "normalize_gradient": False, "step": 2},
    ),
    "optimi.StableAdamW": ("stable_adamw", ADAM, {"eps_sq", "kahan_comp"}, OPTIMI),
    "optimi.AdamW": ("stable_adamw", ADAM, {"kahan_comp"}, {**OPTIMI, "decouple_wd": True}),
    "pytorch_optimizer.StableAdamW": ("stable_adamw", ADAM, {"kahan_comp"}, {**BETAS, "kahan_sum": True, "weight_decouple": True, "step": 2}),
    "pytorch_optimizer.AdEMAMix": ("ademamix", {*ADAM, "exp_avg_slow"}, set(), {**PYTORCH_OPTIMIZER, "alpha": 5.0, "t_alpha_beta3": None}),
    "pytorch_optimizer.ScheduleFreeAdamW": (
        "adamw_schedulefree", {"z", "exp_avg_sq"}, set(), {**PYTORCH_OPTIMIZER, "r": 0.0, "train_mode": True, "weight_sum": 1e-5, "lr_max": 1e-3},
    ),
    "transformers.AdamW": ("adamw_hf", ADAM, {"step"}, HF),
    "deepspeed.FusedAdam": ("fused_adam", ADAM, {"step"}, {**BETAS, "bias_correction": True, "step": 0}),
    "deepspeed.DeepSpeedCPUAdam": ("fused_adam", ADAM, {"step"}, {**BETAS, "bias_correction": True, "amsgrad": False}),
    "peft.LoraFAOptimizer": ("lora_fa", {"exp_avg_B", "exp_avg_sq_B"}, {"step"}, {**HF, "scaling_factors": [2.0], "names": ["a"]}),
    "peft.LoraFAOptimizer before scaling_factors": ("lora_fa", ADAM, {"step"}, {**HF, "scaling_factor": 2.0}),
    "torchdistx.AnyPrecisionAdamW": (
        "adamw_anyprecision", {*ADAM, "compensation"}, {"step"},
        {**BETAS, "use_kahan_summation": True, "momentum_dtype": "BF16", "variance_dtype": "BF16", "compensation_buffer_dtype": "BF16"},
    ),
    "bitsandbytes 0.42 Adam": ("adam_bnb", ADAM, {"step", "bitsandbytes"}, BETAS),
    "torch 1.9 RAdam": ("adam_like", ADAM, {"step"}, BETAS),
}  # fmt: skip
"""Writer -> row, slots, other entries, groups' values merged."""
