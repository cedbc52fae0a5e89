"""Optimizers of other libraries: which row their files must be known by, and how to make them here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import adamw_bf16
import came_pytorch
import dadaptation
import lion_pytorch
import optimi
import prodigyopt
import prodigyplus
import pytorch_optimizer as po
import torch
from torch import Tensor

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

WRITTEN: dict[str, tuple[str, Make]] = {
    "pytorch_optimizer.ADOPT": ("adopt", po.ADOPT),
    "pytorch_optimizer.AdamP": ("adamp", po.AdamP),
    "pytorch_optimizer.Lamb": ("lamb", po.Lamb),
    "pytorch_optimizer.LARS": ("lars", po.LARS),
    "pytorch_optimizer.AdaBelief": ("adabelief", po.AdaBelief),
    "pytorch_optimizer.Adan": ("adan", po.Adan),
    "pytorch_optimizer.AdaFactor": ("adafactor_po", po.AdaFactor),
    "pytorch_optimizer.AdEMAMix": ("ademamix", po.AdEMAMix),
    "pytorch_optimizer.CAME": ("came", po.CAME),
    "pytorch_optimizer.DAdaptAdam": ("dadapt_adam", po.DAdaptAdam),
    "pytorch_optimizer.DAdaptLion": ("dadapt_lion", po.DAdaptLion),
    "pytorch_optimizer.Lion": ("lion", po.Lion),
    "pytorch_optimizer.Muon": ("muon_adam", lambda p: po.Muon([{"params": p[:1], "use_muon": True}, {"params": p[1:], "use_muon": False}])),
    "pytorch_optimizer.Prodigy": ("prodigy", po.Prodigy),
    "pytorch_optimizer.RAdam": ("adam_like", po.RAdam),
    "pytorch_optimizer.ScheduleFreeAdamW": ("adamw_schedulefree", po.ScheduleFreeAdamW),
    "pytorch_optimizer.SOAP": ("soap", po.SOAP),
    "pytorch_optimizer.SPAM": ("spam", po.SPAM),
    "pytorch_optimizer.StableSPAM": ("stable_spam", po.StableSPAM),
    "pytorch_optimizer.StableAdamW": ("stable_adamw", po.StableAdamW),
    "dadaptation.DAdaptAdam": ("dadapt_adam", dadaptation.DAdaptAdam),
    "dadaptation.DAdaptLion": ("dadapt_lion", dadaptation.DAdaptLion),
    "dadaptation.DAdaptSGD": ("dadapt_sgd", dadaptation.DAdaptSGD),
    "dadaptation.DAdaptAdaGrad": ("dadapt_adagrad", dadaptation.DAdaptAdaGrad),
    "dadaptation.DAdaptAdan": ("adan", dadaptation.DAdaptAdan),
    "prodigyopt.Prodigy": ("prodigy", prodigyopt.Prodigy),
    "prodigyopt.Prodigy, a slice": ("prodigy", lambda p: prodigyopt.Prodigy(p, slice_p=11)),
    "prodigyplus": ("prodigy_schedulefree", prodigyplus.ProdigyPlusScheduleFree),
    "prodigyplus, not factored": ("prodigy_schedulefree", lambda p: prodigyplus.ProdigyPlusScheduleFree(p, factored=False)),
    "prodigyplus, no schedule-free": ("prodigy_schedulefree", lambda p: prodigyplus.ProdigyPlusScheduleFree(p, use_schedulefree=False)),
    "came_pytorch.CAME": ("came", lambda p: came_pytorch.CAME(p, lr=1e-3)),
    "lion_pytorch.Lion": ("lion", lion_pytorch.Lion),
    "optimi.StableAdamW": ("stable_adamw", lambda p: optimi.StableAdamW(p, lr=1e-3)),
    "optimi.AdamW": ("stable_adamw", lambda p: optimi.AdamW(p, lr=1e-3)),
    "optimi.RAdam": ("stable_adamw", lambda p: optimi.RAdam(p, lr=1e-3)),
    "optimi.Ranger": ("ranger_optimi", lambda p: optimi.Ranger(p, lr=1e-3)),
    "optimi.SGD": ("sgd_optimi", lambda p: optimi.SGD(p, lr=1e-3, momentum=0.9)),
    "optimi.Adan": ("adan", lambda p: optimi.Adan(p, lr=1e-3)),
    "optimi.Lion": ("lion", lambda p: optimi.Lion(p, lr=1e-3)),
    "adamw_bf16": ("adamw_bf16", lambda p: adamw_bf16.AdamWBF16(bfloat16(p))),
}
"""Made by the real packages: name -> row, constructor."""


def bfloat16(params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    for param in params:
        param.data = param.data.bfloat16()
    return params


# What follows is no package of a registry: its entries are retyped from its source, around Adam's own numbers.


def auto8bit(values: Tensor) -> dict[str, Any]:
    """As ai-toolkit's `Auto8bitTensor(values).state_dict()` (toolkit/optimizers/optimizer_utils.py)."""
    largest = values.abs().max().item()
    scale = largest / 127.0 if largest > 0 else 1.0
    return {"quantized": (values / scale).round().clamp(-127, 127).to(torch.int8), "scale": scale, "orig_dtype": values.dtype}


def _typed(values: Tensor) -> dict[str, Any]:
    return {"_type": "Auto8bitTensor", "state": auto8bit(values)}


def _adam8(entry: dict[str, Any]) -> dict[str, Any]:
    return {"step": int(entry["step"]), "exp_avg": _typed(entry["exp_avg"]), "exp_avg_sq": _typed(entry["exp_avg_sq"])}


def _factors(v: Tensor) -> dict[str, Tensor]:
    return {"exp_avg_sq_row": v.mean(-1), "exp_avg_sq_col": v.mean(-2)} if v.dim() > 1 else {"exp_avg_sq": v}


def _automagic(entry: dict[str, Any]) -> dict[str, Any]:
    v, mask = entry["exp_avg_sq"], torch.full_like(entry["exp_avg"], 3e-6)
    return {
        "step": int(entry["step"]), "avg_lr": mask.mean(), "last_polarity": entry["exp_avg"] > 0, **_factors(v), "RMS": torch.tensor(0.01),
        "lr_mask": auto8bit(mask),
    }  # fmt: skip


def _automagic3(entry: dict[str, Any]) -> dict[str, Any]:
    history = torch.zeros(8, math.ceil(entry["exp_avg"].numel() / 8), dtype=torch.uint8)
    return {
        "step": int(entry["step"]),
        "lr": torch.tensor(1e-5),
        "sign_history": history,
        "hist_idx": 3,
        "hist_fill": 3,
        **_factors(entry["exp_avg_sq"]),
    }


_MAGIC = {"lr": 1e-6, "eps": (1e-30, 1e-3), "clip_threshold": 1.0, "beta2": 0.999, "weight_decay": 0.0}
RETYPED: dict[str, list[tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, Any]]]] = {
    "adam_aitk": [(_adam8, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "decouple": True})],
    "automagic": [(_automagic, _MAGIC), (_automagic3, {**_MAGIC, "min_lr": 1e-7, "max_lr": 1e-3, "lr_bump": 1e-6, "polarity_history": 8})],
    "muon": [
        (lambda entry: {"momentum_buffer": entry["exp_avg"]}, {"lr": 1e-3, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "weight_decay": 0.1}),
    ],
    "adopt": [
        (dict, {"lr": 1e-3, "betas": (0.9, 0.9), "eps": 1e-6, "weight_decay": 0.0, "decouple": False, "maximize": False, "foreach": None,
                "capturable": False, "differentiable": False, "fused": None}),
        (dict, {"lr": 1e-3, "betas": (0.9, 0.9), "eps": 1e-6, "weight_decay": 0.0, "clip_exp": 0.333, "decoupled": False, "maximize": False,
                "foreach": None, "capturable": False, "differentiable": False}),
    ],
}  # fmt: skip
"""Row -> (from Adam's entry to the writer's, the writer's group): ai-toolkit, iShohei220/adopt, timm."""


def retyped(state_dict: dict[str, Any], rewrite: Callable[[dict[str, Any]], dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    """Return AdamW's state dict as the other writer would have it."""
    groups = [{**group, "params": one["params"]} for one in state_dict["param_groups"]]
    return {"state": {key: rewrite(entry) for key, entry in state_dict["state"].items()}, "param_groups": groups}
