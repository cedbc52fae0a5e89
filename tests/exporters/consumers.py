"""How the consumers load their files, rewritten from what they publish (facts of LESS, bergson, dattri-llm, OTA-merge, DeepSpeed)."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def less_moments(path, model):
    """LESS: `torch.load(...)["state"]`, then both moments of every trainable name, flattened in the model's order."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state"]
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return tuple(torch.cat([state[name][slot].view(-1) for name in names]) for slot in ("exp_avg", "exp_avg_sq"))


def bergson_normalizers(path, model):
    """Bergson: `param_name` first; `.weight` and the base prefix cut off, the adapter's suffix put on; only modules that the model has."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    assert len(stored["param_groups"]) == 1
    suffix = "." + next(iter(model.peft_config))
    modules = {name for name, _ in model.base_model.named_modules()}
    found = {}
    for entry in stored["state"].values():
        name = entry["param_name"]
        if not name.endswith(".weight") or entry["exp_avg_sq"].ndim != 2:
            continue
        module = name.removesuffix(".weight").removeprefix("base_model.") + suffix
        assert module in modules, module
        assert tuple(model.base_model.get_submodule(module).weight.shape) == tuple(entry["exp_avg_sq"].shape)
        found[module] = entry["exp_avg_sq"]
    return found


def dattri_optimizer(model, folder):
    """dattri-llm: groups of parameters by the list of names, then `load_state_dict`."""
    stored = torch.load(Path(folder) / "optimizer.pt", map_location="cpu", weights_only=True)
    names = json.loads((Path(folder) / "param_names.json").read_text())
    parameters = dict(model.named_parameters())
    groups = []
    for saved in stored["param_groups"]:
        group = {key: value for key, value in saved.items() if key != "params"}
        groups.append({**group, "params": [parameters[names[i]] for i in saved["params"]]})
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(stored)
    return optimizer


def ota_preconditioner(path, weight, shape):
    """OTA-merge: the tensor of the weight's name, or with `.exp_avg_sq`, in the weight's shape."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        key = weight if weight in keys else weight + ".exp_avg_sq"
        tensor = file.get_tensor(key)
    assert tensor.shape == shape
    return tensor


def universal_moments(folder):
    """DeepSpeed: a folder a parameter, each file a dict with `param`; every group's settings in `optimizer_state.pt`."""
    shared = torch.load(Path(folder) / "zero" / "optimizer_state.pt", weights_only=True)
    assert shared["ds_version"]
    assert all("betas" in group for group in shared["param_groups"])
    found = {}
    for place in (Path(folder) / "zero").iterdir():
        if place.is_dir():
            row = {name: torch.load(place / f"{name}.pt", weights_only=True) for name in ("fp32", "exp_avg", "exp_avg_sq", "step")}
            found[place.name] = {name: value["param"] if isinstance(value, dict) else value for name, value in row.items()}
    return found
