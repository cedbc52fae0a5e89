"""The table of optimizers: one row each. `recognise` tells them apart; `docs/optimizers.md` shows the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .spec import OptimizerSpec

if TYPE_CHECKING:
    from ostate.core.state import Hyper

ADAM = ("exp_avg", "exp_avg_sq")
AMSGRAD = (*ADAM, "max_exp_avg_sq")
FACTORED = (*ADAM, "exp_avg_sq_row", "exp_avg_sq_col")
PROJECTED = "the moments of its low-rank groups live in a projected space that changes during the run"
_BNB = "bitsandbytes/optim/"


def _betas(hyper: Hyper) -> tuple[float, ...]:
    betas = hyper.get("betas") or ()
    return tuple(float(value) for value in betas)


def _not_decoupled(hyper: Hyper) -> bool:
    return not hyper.get("decoupled_weight_decay", True)


def _lora_fa(hyper: Hyper) -> bool:
    return "scaling_factors" in hyper or "scaling_factor" in hyper


def _slow(hyper: Hyper) -> bool:
    return len(_betas(hyper)) == 3


def _lion(hyper: Hyper) -> bool:
    return not hyper.get("eps") and len(_betas(hyper)) == 2 and _betas(hyper)[1] > 0


def _momentum(hyper: Hyper) -> bool:
    return not hyper.get("eps") and len(_betas(hyper)) == 2 and _betas(hyper)[1] == 0


def _rmsprop(hyper: Hyper) -> bool:
    return bool(hyper.get("eps")) and len(_betas(hyper)) == 2 and _betas(hyper)[0] > 0


def _adagrad(hyper: Hyper) -> bool:
    return bool(hyper.get("eps")) and _betas(hyper) == (0.0, 0.0)


TORCH = {
    "adamw": OptimizerSpec(
        classes="torch.optim.AdamW", slots=AMSGRAD, always=("exp_avg_sq",), marks=("amsgrad",), moment="adam",
        source="torch/optim/adamw.py",
    ),
    "adam": OptimizerSpec(
        classes="torch.optim.Adam", slots=AMSGRAD, always=("exp_avg_sq",), marks=("amsgrad", "decoupled_weight_decay"),
        when=_not_decoupled, moment="adam", decay="l2", source="torch/optim/adam.py",
    ),
    "sparse_adam": OptimizerSpec(
        classes="torch.optim.SparseAdam", slots=ADAM, always=("exp_avg_sq",), marks=("betas", "maximize"),
        lacks=("weight_decay",), moment="adam_late_eps", decay="none", source="torch/optim/sparse_adam.py",
    ),
    "nadam": OptimizerSpec(
        classes="torch.optim.NAdam", slots=ADAM, always=("exp_avg_sq",), marks=("momentum_decay",), scalars=("mu_product",),
        moment="adam", decay="l2", source="torch/optim/nadam.py",
    ),
    "radam": OptimizerSpec(
        classes="torch.optim.RAdam", slots=ADAM, always=("exp_avg_sq",), marks=("betas", "weight_decay", "foreach"),
        lacks=("amsgrad", "momentum_decay", "k", "kahan_sum", "step"), moment="radam", decay="l2", source="torch/optim/radam.py",
    ),
    "adamax": OptimizerSpec(
        classes="torch.optim.Adamax", slots=("exp_avg", "exp_inf"), always=("exp_inf",), marks=("betas",),
        moment="adamax", decay="l2", source="torch/optim/adamax.py",
    ),
    "adagrad": OptimizerSpec(
        classes="torch.optim.Adagrad", slots=("sum",), always=("sum",), marks=("lr_decay", "initial_accumulator_value"),
        moment="adagrad", decay="l2", source="torch/optim/adagrad.py",
    ),
    "adadelta": OptimizerSpec(
        classes="torch.optim.Adadelta", slots=("square_avg", "acc_delta"), always=("acc_delta",), marks=("rho",),
        moment="two_averages", decay="l2", source="torch/optim/adadelta.py",
    ),
    "rmsprop": OptimizerSpec(
        classes="torch.optim.RMSprop", slots=("square_avg", "momentum_buffer", "grad_avg"),
        always=("square_avg",), marks=("alpha", "centered"), moment="rmsprop", decay="l2", source="torch/optim/rmsprop.py",
    ),
    "rprop": OptimizerSpec(
        classes="torch.optim.Rprop", slots=("prev", "step_size"), always=("step_size",),
        marks=("etas", "step_sizes"), decay="none", source="torch/optim/rprop.py",
    ),
    "sgd": OptimizerSpec(
        classes="torch.optim.SGD", slots=("momentum_buffer",), marks=("momentum", "dampening", "nesterov"), step="none",
        decay="l2", source="torch/optim/sgd.py",
    ),
    "asgd": OptimizerSpec(
        classes="torch.optim.ASGD", slots=("ax",), always=("ax",), scalars=("eta", "mu"), marks=("lambd", "t0"), decay="l2",
        source="torch/optim/asgd.py",
    ),
    "adafactor_torch": OptimizerSpec(
        classes="torch.optim.Adafactor", slots=("row_var", "col_var", "variance"), marks=("beta2_decay", "d"),
        moment="factored_torch", source="torch/optim/_adafactor.py",
    ),
    "muon": OptimizerSpec(
        classes="torch.optim.Muon", slots=("momentum_buffer",), marks=("ns_steps", "ns_coefficients"), step="none",
        source="torch/optim/_muon.py",
    ),
}  # fmt: skip
"""torch's own."""

PACKED = {
    "adam_bnb": OptimizerSpec(
        classes="bitsandbytes Adam, AdamW (8-bit, 32-bit, paged)", slots=ADAM, always=("exp_avg_sq",), tells=("bitsandbytes",),
        moment="adam", source=_BNB + "adam.py",
    ),
    "lamb_bnb": OptimizerSpec(
        classes="bitsandbytes LAMB", slots=ADAM, always=("exp_avg_sq",), scalars=("unorm_vec",), tells=("bitsandbytes", "unorm_vec"),
        moment="adam", source=_BNB + "lamb.py",
    ),
    "ademamix_bnb": OptimizerSpec(
        classes="bitsandbytes AdEMAMix (8-bit, 32-bit, paged)", slots=(*ADAM, "exp_avg_slow"), always=("exp_avg_slow",),
        tells=("bitsandbytes",), when=_slow, moment="adam", source=_BNB + "ademamix.py",
    ),
    "lion_bnb": OptimizerSpec(
        classes="bitsandbytes Lion (8-bit, 32-bit, paged)", slots=("exp_avg",), always=("exp_avg",), tells=("bitsandbytes",),
        when=_lion, source=_BNB + "lion.py",
    ),
    "sgd_bnb": OptimizerSpec(
        classes="bitsandbytes SGD", slots=("momentum_buffer",), always=("momentum_buffer",), tells=("bitsandbytes",),
        when=_momentum, decay="l2", source=_BNB + "sgd.py",
    ),
    "lars_bnb": OptimizerSpec(
        classes="bitsandbytes LARS", slots=("momentum_buffer",), always=("momentum_buffer",), scalars=("unorm_vec",),
        tells=("bitsandbytes", "unorm_vec"), when=_momentum, decay="l2", source=_BNB + "lars.py",
    ),
    "rmsprop_bnb": OptimizerSpec(
        classes="bitsandbytes RMSprop", slots=("square_avg",), always=("square_avg",), tells=("bitsandbytes",), when=_rmsprop,
        moment="rmsprop", decay="l2", source=_BNB + "rmsprop.py",
    ),
    "adagrad_bnb": OptimizerSpec(
        classes="bitsandbytes Adagrad", slots=("sum",), always=("sum",), tells=("bitsandbytes",), when=_adagrad,
        moment="adagrad", decay="l2", source=_BNB + "adagrad.py",
    ),
    "one_state_bnb": OptimizerSpec(
        classes="bitsandbytes, one of Lion, SGD, LARS, RMSprop, Adagrad", slots=("state1",), always=("state1",),
        scalars=("unorm_vec",), tells=("bitsandbytes",), decay="unknown", source=_BNB + "optimizer.py",
    ),
    "adam_torchao": OptimizerSpec(
        classes="torchao Adam, AdamW (8-bit, 4-bit, FP8)", slots=AMSGRAD, always=("exp_avg_sq",), tells=("torchao",), moment="adam",
        decay="unknown", source="torchao/optim/adam.py",
    ),
}  # fmt: skip
"""Those that pack their moments into few bits."""

OTHERS = {
    "adamw_hf": OptimizerSpec(
        classes="transformers.AdamW (until 4.47)", slots=ADAM, always=("exp_avg_sq",), marks=("correct_bias",),
        moment="adam_late_eps", source="transformers/optimization.py",
    ),
    "adafactor": OptimizerSpec(
        classes="transformers.Adafactor", slots=FACTORED, scalars=("RMS",), marks=("decay_rate", "clip_threshold", "relative_step"),
        moment="factored", source="transformers/optimization.py",
    ),
    "adamw_anyprecision": OptimizerSpec(
        classes="torchdistx AnyPrecisionAdamW", slots=(*ADAM, "compensation"), always=("exp_avg_sq",),
        marks=("use_kahan_summation", "variance_dtype"), moment="adam", source="torchdistx/optimizers/anyprecision_optimizer.py",
    ),
    "fused_adam": OptimizerSpec(
        classes="DeepSpeed FusedAdam, DeepSpeedCPUAdam; apex FusedAdam", slots=ADAM, always=("exp_avg_sq",), marks=("bias_correction",),
        moment="adam", decay="unknown", source="deepspeed/ops/adam/fused_adam.py",
    ),
    "adamw_schedulefree": OptimizerSpec(
        classes="schedulefree.AdamWScheduleFree", slots=("z", "exp_avg_sq"), always=("z", "exp_avg_sq"),
        marks=("weight_sum", "train_mode"), step="group:k,step", moment="adam", source="schedulefree/adamw_schedulefree.py",
    ),
    "radam_schedulefree": OptimizerSpec(
        classes="schedulefree.RAdamScheduleFree", slots=("z", "exp_avg_sq"), always=("z", "exp_avg_sq"),
        marks=("weight_sum", "train_mode", "silent_sgd_phase"), step="group:k,step", moment="radam_schedulefree",
        source="schedulefree/radam_schedulefree.py",
    ),
    "sgd_schedulefree": OptimizerSpec(
        classes="schedulefree.SGDScheduleFree", slots=("z",), always=("z",), marks=("weight_sum", "train_mode"), step="group:k,step",
        source="schedulefree/sgd_schedulefree.py",
    ),
    "stable_adamw": OptimizerSpec(
        classes="optimi StableAdamW, AdamW, Adam; pytorch_optimizer StableAdamW", slots=(*ADAM, "kahan_comp"),
        always=("exp_avg_sq",), scalars=("eps_sq",), marks=("kahan_sum",), step="group:step", moment="debiased", decay="unknown",
        source="optimi/stableadamw.py",
    ),
    "galore": OptimizerSpec(
        classes="GaLore AdamW, Adafactor, AdamW8bit", slots=FACTORED, scalars=("RMS",), marks=("rank", "update_proj_gap", "proj_type"),
        lacks=("scale_type",), moment="projected", refuse=PROJECTED, source="galore_torch/adamw.py",
    ),
    "apollo": OptimizerSpec(
        classes="APOLLO AdamW", slots=(*ADAM, "scaled_grad"), marks=("scale_type", "correct_bias"), scalars=("seed",),
        moment="projected", refuse=PROJECTED, source="apollo_torch/apollo.py",
    ),
    "lomo": OptimizerSpec(
        classes="LOMO", marks=("clip_grad_norm", "clip_grad_value"), step="none", refuse="it keeps no state: there is nothing to name",
        source="lomo_optim/lomo.py",
    ),
    "grokadamw": OptimizerSpec(
        classes="GrokAdamW", slots=(*ADAM, "grok_ema"), marks=("grokking_signal_decay_rate",), moment="adam_late_eps",
        caution="v is of the gradient plus a multiple of its own average",
        source="grokadamw/grokadamw.py",
    ),
    "lora_fa": OptimizerSpec(
        classes="peft LoraFAOptimizer", slots=(*ADAM, "exp_avg_B", "exp_avg_sq_B"),
        marks=("correct_bias",), when=_lora_fa, moment="transformed", source="peft/optimizers/lorafa.py",
    ),
    "lion": OptimizerSpec(
        classes="lion_pytorch.Lion and others", slots=("exp_avg", "kahan_comp"), always=("exp_avg",),
        lacks=("eps",), step="none", source="lion_pytorch/lion_pytorch.py",
    ),
    "prodigy": OptimizerSpec(
        classes="prodigyopt.Prodigy", slots=(*ADAM, "s", "p0"), always=("s", "p0"), marks=("d_coef", "d0"),
        step="entry,group:step", moment="weighted", source="prodigyopt/prodigy.py",
    ),
    "came": OptimizerSpec(
        classes="CAME", slots=(*FACTORED, "exp_avg_res_row", "exp_avg_res_col"),
        always=("exp_avg_res_row",), scalars=("RMS",), marks=("betas",), step="entry,group:step", moment="factored", source="came_pytorch/CAME.py",
    ),
    "soap": OptimizerSpec(
        classes="SOAP", slots=(*ADAM, "GG", "Q"), marks=("precondition_frequency", "max_precondition_dim"),
        step="entry,group:step", moment="rotated", source="pytorch_optimizer/optimizer/soap.py",
    ),
    "adam_mini": OptimizerSpec(
        classes="Adam-mini", slots=("m", "v", "vmean"), always=("m",),
        scalars=("reduced", "block_numel", "head_per_gpu", "neuron_per_gpu"),
        marks=("beta1", "beta2"), moment="blocks", source="adam_mini/adam_mini.py",
    ),
    "ademamix": OptimizerSpec(
        classes="AdEMAMix", slots=(*ADAM, "exp_avg_slow"), always=("exp_avg_slow",), marks=("alpha",), step="entry,group:step",
        moment="adam",
        source="pytorch_optimizer/optimizer/ademamix.py",
    ),
    "adam_like": OptimizerSpec(
        classes="of Adam's kind, not known by name", slots=AMSGRAD, always=("exp_avg_sq",), step="entry,group:step",
        moment="adam", decay="unknown",
        caution="the optimizer is not known: its moments are taken for Adam's", source="-",
    ),
}  # fmt: skip
"""Those of other libraries."""

OPTIMIZERS: dict[str, OptimizerSpec] = {**TORCH, **PACKED, **OTHERS}
"""By the name that `RawState.optimizer` carries."""
