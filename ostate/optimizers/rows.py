"""The table of optimizers: one row each. `recognise` tells them apart; `docs/optimizers.md` shows the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostate.core.hyper import all_betas

from .spec import OptimizerSpec

if TYPE_CHECKING:
    from ostate.core.state import Hyper

ADAM = ("exp_avg", "exp_avg_sq")
AMSGRAD = (*ADAM, "max_exp_avg_sq")
FACTORED = (*ADAM, "exp_avg_sq_row", "exp_avg_sq_col")
PROJECTED = "the moments of its low-rank groups live in a projected space that changes during the run"
_BNB = "bitsandbytes/optim/"


def _betas(hyper: Hyper) -> tuple[float, ...]:
    betas = all_betas(hyper)
    known = tuple(beta for beta in betas if beta is not None)
    return known if len(known) == len(betas) else ()


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


def _adopt(hyper: Hyper) -> bool:
    """ADOPT's group keys are another's in two of three libraries; in pytorch_optimizer only its defaults are its own."""
    if "clip_exp" in hyper or {"decouple", "capturable"} <= set(hyper):
        return True
    return {"weight_decouple", "fixed_decay"} <= set(hyper) and _betas(hyper)[1:] == (0.9999,) and hyper.get("eps") == 1e-6


def _learning_rate_alone(hyper: Hyper) -> bool:
    """No optimizer has so few settings; `initial_lr` is a scheduler's, the last three torch's own for every optimizer."""
    return set(hyper) <= {"lr", "initial_lr", "foreach", "maximize", "differentiable"}


def _unrectified(hyper: Hyper) -> bool:
    return not hyper.get("rectify")


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
        lacks=("amsgrad", "momentum_decay", "k", "kahan_sum", "step", "decouple", "clip_exp"), moment="radam", decay="l2",
        source="torch/optim/radam.py",
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
        classes="torch.optim.SGD", slots=("momentum_buffer",), marks=("momentum", "dampening", "nesterov"),
        lacks=("trust_coefficient",), step="none", decay="l2", source="torch/optim/sgd.py",
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
        classes="torch.optim.Muon, and others with ns_steps", slots=("momentum_buffer",), marks=("ns_steps",), lacks=("use_muon",),
        step="none", source="torch/optim/_muon.py",
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
        moment="factored", averages="steps", source="transformers/optimization.py",
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
        classes="optimi StableAdamW, AdamW, Adam, RAdam; pytorch_optimizer StableAdamW", slots=(*ADAM, "kahan_comp"),
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
        starts_cold="it looks for its moments in its groups, under the live parameters themselves, which no file holds",
        source="grokadamw/grokadamw.py",
    ),
    "layerwise": OptimizerSpec(
        classes="a layerwise GaLore or APOLLO of Trainer", marks=("lr",), when=_learning_rate_alone, step="none",
        refuse="it is one optimizer a parameter, and Trainer saves none of them: the file holds a stand-in, and a resume starts cold",
        source="transformers/trainer_pt_utils.py, LayerWiseDummyOptimizer",
    ),
    "lora_fa": OptimizerSpec(
        classes="peft LoraFAOptimizer", slots=(*ADAM, "exp_avg_B", "exp_avg_sq_B"),
        marks=("correct_bias",), when=_lora_fa, moment="transformed", source="peft/optimizers/lorafa.py",
    ),
    "lion": OptimizerSpec(
        classes="lion_pytorch.Lion and others", slots=("exp_avg", "kahan_comp"), always=("exp_avg",),
        lacks=("eps", "dampening"), step="none", source="lion_pytorch/lion_pytorch.py",
    ),
    "prodigy": OptimizerSpec(
        classes="prodigyopt.Prodigy", slots=(*ADAM, "s", "p0"), always=("s", "p0"), marks=("d_coef", "d0"),
        step="entry,group:step-1", moment="weighted", source="prodigyopt/prodigy.py",
    ),
    "came": OptimizerSpec(
        classes="CAME", slots=(*FACTORED, "exp_avg_res_row", "exp_avg_res_col"),
        always=("exp_avg_res_row",), scalars=("RMS",), marks=("betas",), step="entry,group:step", moment="factored", averages="steps",
        source="came_pytorch/CAME.py",
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
    "adopt": OptimizerSpec(
        classes="ADOPT (adopt, timm; pytorch_optimizer with its default betas and eps)", slots=ADAM, always=("exp_avg_sq",), lacks=("amsgrad",),
        when=_adopt, step="entry,group:step", moment="adopt", averages="steps", decay="unknown", source="adopt/adopt.py",
    ),
    "adamp": OptimizerSpec(
        classes="adamp and pytorch_optimizer AdamP", slots=ADAM, always=("exp_avg_sq",), marks=("delta", "wd_ratio"), step="entry,group:step",
        moment="adam_late_eps", decay="unknown", source="pytorch_optimizer/optimizer/adamp.py",
    ),
    "lamb": OptimizerSpec(
        classes="pytorch_optimizer Lamb", slots=ADAM, always=("exp_avg_sq",), scalars=("weight_norm", "adam_norm", "trust_ratio"),
        marks=("grad_averaging", "max_grad_norm"), when=_unrectified, step="entry,group:step", moment="uncorrected", decay="unknown",
        source="pytorch_optimizer/optimizer/lamb.py",
    ),
    "lars": OptimizerSpec(
        classes="pytorch_optimizer LARS", slots=("momentum_buffer",), marks=("momentum", "dampening", "trust_coefficient"), step="group:step",
        decay="l2", source="pytorch_optimizer/optimizer/lars.py",
    ),
    "adabelief": OptimizerSpec(
        classes="pytorch_optimizer AdaBelief", slots=("exp_avg", "exp_avg_var"), always=("exp_avg_var",), marks=("rectify",), when=_unrectified,
        lacks=("amsgrad",), step="entry,group:step", moment="belief", decay="unknown", source="pytorch_optimizer/optimizer/adabelief.py",
    ),
    "adan": OptimizerSpec(
        classes="Adan (sail-sg, optimi, pytorch_optimizer), DAdaptAdan",
        slots=(*ADAM, "exp_avg_diff", "prev_grad", "pre_grad", "neg_pre_grad", "previous_grad", "s", "kahan_comp"), always=("exp_avg_diff",),
        step="entry,group:step", moment="with_change", decay="unknown", source="optimi/adan.py",
    ),
    "adafactor_po": OptimizerSpec(
        classes="pytorch_optimizer AdaFactor", slots=FACTORED, scalars=("RMS",), marks=("betas", "scale_parameter", "relative_step", "eps1"),
        step="entry,group:step", moment="factored", averages="steps", decay="unknown", source="pytorch_optimizer/optimizer/adafactor.py",
    ),
    "ranger_optimi": OptimizerSpec(
        classes="optimi Ranger", slots=(*ADAM, "la_param", "kahan_comp"), always=("la_param",), marks=("kahan_sum",), step="group:step",
        moment="debiased", decay="unknown", source="optimi/ranger.py",
    ),
    "sgd_optimi": OptimizerSpec(
        classes="optimi SGD", slots=("exp_avg", "kahan_comp"), marks=("momentum", "dampening", "torch_init"), step="none", decay="unknown",
        source="optimi/sgd.py",
    ),
    "dadapt_adam": OptimizerSpec(
        classes="DAdaptAdam (dadaptation, pytorch_optimizer)", slots=(*ADAM, "s"), always=("s", "exp_avg_sq"), marks=("d", "numerator_weighted"),
        step="entry,group:step,k", moment="uncorrected", decay="unknown", source="dadaptation/dadapt_adam.py",
    ),
    "dadapt_lion": OptimizerSpec(
        classes="DAdaptLion (dadaptation, pytorch_optimizer)", slots=("exp_avg", "s"), always=("s",), marks=("d", "numerator_weighted"),
        step="group:step,k", source="dadaptation/dadapt_lion.py",
    ),
    "dadapt_sgd": OptimizerSpec(
        classes="DAdaptSGD", slots=("z", "s", "x0"), always=("x0", "s"), marks=("d", "numerator_weighted"), step="group:step,k", decay="unknown",
        source="dadaptation/dadapt_sgd.py",
    ),
    "dadapt_adagrad": OptimizerSpec(
        classes="DAdaptAdaGrad", slots=("alphak", "sk", "x0"), always=("alphak",), marks=("d", "skl1"), step="group:step,k", moment="weighted",
        decay="unknown", source="dadaptation/dadapt_adagrad.py",
    ),
    "prodigy_schedulefree": OptimizerSpec(
        classes="ProdigyPlusScheduleFree", slots=(*FACTORED, "z", "p0", "s"), always=("s",), scalars=("exp_avg_sq_metadata",),
        marks=("prodigy_steps", "d_coef"), step="group:k-1", moment="weighted", source="prodigyplus/core_optimiser.py",
    ),
    "adamw_bf16": OptimizerSpec(
        classes="adamw_bf16 and SimpleTuner AdamWBF16", slots=(*ADAM, "shift"), always=("shift",), scalars=("accumulated_decay",),
        moment="adam_late_eps", source="adamw_bf16/__init__.py",
    ),
    "adam_aitk": OptimizerSpec(
        classes="ai-toolkit Adam8bit (adam8, adamw8)", slots=ADAM, always=("exp_avg_sq",), marks=("decouple",), tells=("auto8bit",), moment="adam",
        decay="unknown", source="toolkit/optimizers/adam8bit.py",
    ),
    "automagic": OptimizerSpec(
        classes="ai-toolkit Automagic, Automagic2, Automagic3",
        slots=("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "lr_mask", "last_polarity", "sign_history"), scalars=("RMS", "avg_lr", "lr"),
        marks=("clip_threshold", "beta2"), lacks=("decay_rate", "betas"), moment="factored",
        caution="each element has a learning rate of its own beside it", source="toolkit/optimizers/automagic.py",
    ),
    "spam": OptimizerSpec(
        classes="SPAM (pytorch_optimizer)", slots=(*ADAM, "mask"), always=("exp_avg_sq", "mask"), step="group:step", moment="uncorrected",
        caution="its moments begin anew every update_proj_gap steps (500 by default), which the step beside them does not count",
        source="pytorch_optimizer/optimizer/spam.py",
    ),
    "stable_spam": OptimizerSpec(
        classes="StableSPAM (pytorch_optimizer)", slots=ADAM, always=("exp_avg_sq",), scalars=("m_norm_t", "v_norm_t", "m_max_t"),
        tells=("m_norm_t",), step="group:step", moment="adam",
        caution="each tensor's gradients were clipped and scaled by norms of its own, and its moments begin anew every update_proj_gap steps",
        source="pytorch_optimizer/optimizer/spam.py",
    ),
    "muon_adam": OptimizerSpec(
        classes="Muon with Adam for some groups (use_muon)", slots=(*ADAM, "momentum_buffer"), marks=("use_muon",), step="entry,group:step",
        moment="adam", decay="unknown", caution="the matrices of its Muon groups have no second moment", source="muon.py",
    ),
    "adam_like": OptimizerSpec(
        classes="an Adam variant, not known by name", slots=AMSGRAD, always=("exp_avg_sq",), step="entry,group:step",
        moment="adam", decay="unknown",
        assumed="the optimizer is not known by name: its moments are taken for Adam's", source="-",
    ),
}  # fmt: skip
"""Those of other libraries."""

OPTIMIZERS: dict[str, OptimizerSpec] = {**TORCH, **PACKED, **OTHERS}
"""By the name that `RawState.optimizer` carries."""
