"""Files that cannot be given names, and say why."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from ostate.optimizers import OPTIMIZERS, parameter_shape, recognise
from ostate.read import quantized as encodings
from ostate.read.container import torchsave

PROJECTORS = {
    "galore": ("galore_torch.galore_projector", "GaLoreProjector", {"rank": 4, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}),
    "apollo": ("apollo_torch.random_projector", "GradientProjector", {"rank": 4, "update_proj_gap": 200, "proj": "random", "scale_type": "channel"}),
}


@pytest.mark.parametrize("row", PROJECTORS)
def test_a_projected_state_is_opened_without_its_library_and_refused_for_what_it_is(row, tmp_path, monkeypatch):
    module_name, class_name, low_rank = PROJECTORS[row]
    kept = type(class_name, (), {"__module__": module_name})
    for at in range(1, module_name.count(".") + 2):
        part = ".".join(module_name.split(".")[:at])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    setattr(sys.modules[module_name], class_name, kept)
    projector = kept()
    projector.rank, projector.ortho_matrix = 4, torch.randn(4, 16)
    moments = {"exp_avg": torch.zeros(24, 4), "exp_avg_sq": torch.zeros(24, 4)}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True}
    state = {"state": {0: {"step": 3, "projector": projector, **moments}}, "param_groups": [{**group, **low_rank, "params": [0]}]}
    torch.save(state, tmp_path / "optimizer.pt")
    monkeypatch.undo()
    stored = torchsave.load(str(tmp_path / "optimizer.pt")).value
    slots, scalars = encodings.slots_of(stored["state"][0])
    assert scalars == {"step": 3.0, "projector": f"{module_name}.{class_name}"}
    assert recognise(slots, stored["param_groups"][0], scalars) == row
    assert "projected space" in OPTIMIZERS[row].refuse
    assert parameter_shape({name: slot.shape for name, slot in slots.items()}, row) is None


def test_only_what_holds_nothing_or_other_numbers_is_refused():
    assert {name for name, spec in OPTIMIZERS.items() if spec.refuse} == {"galore", "apollo", "lomo", "layerwise"}


@pytest.mark.parametrize(
    ("optimizer", "shapes", "wanted"),
    [
        ("adamw", {"exp_avg": (4, 3), "exp_avg_sq": (4, 3)}, (4, 3)),
        ("adafactor", {"exp_avg_sq_row": (2, 4), "exp_avg_sq_col": (2, 3)}, (2, 4, 3)),
        ("adafactor", {"exp_avg_sq": (5,)}, (5,)),
        ("adafactor_torch", {"row_var": (4, 1), "col_var": (1, 3)}, (4, 3)),
        ("prodigy", {"s": (12,), "p0": (12,), "exp_avg": (4, 3)}, (4, 3)),
        ("soap", {"GG.0": (4, 4), "GG.1": (3, 3), "exp_avg": (4, 3)}, (4, 3)),
        ("adam_mini", {"m": (8, 16), "vmean": (8, 1)}, None),
        ("unknown", {"exp_avg": (4, 3), "hessian": (9, 9)}, (4, 3)),
        ("unknown", {"hessian": (9, 9)}, None),
        ("adamw", {"exp_avg": ()}, ()),
    ],
)
def test_a_parameters_shape_follows_from_its_slots_where_they_tell_it(optimizer, shapes, wanted):
    assert parameter_shape(shapes, optimizer) == wanted


def test_repair_of_a_projected_state_gives_the_reason_and_writes_nothing(tmp_path):
    group = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.0,
        "correct_bias": True,
        "rank": 4,
        "update_proj_gap": 2,
        "proj_type": "std",
    }
    moments = {"step": 3, "exp_avg": torch.zeros(24, 4), "exp_avg_sq": torch.zeros(24, 4)}
    torch.save({"state": {0: moments}, "param_groups": [{**group, "params": [0]}]}, tmp_path / "optimizer.pt")
    save_file({"weight": torch.zeros(24, 16)}, tmp_path / "model.safetensors")
    asked = ["repair", str(tmp_path / "optimizer.pt"), "--adapter", str(tmp_path / "model.safetensors"), "-o", str(tmp_path / "named.safetensors")]
    done = subprocess.run([sys.executable, "-m", "ostate", *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "projected space" in done.stderr
    assert "with AdamW" in done.stderr
    assert not (tmp_path / "named.safetensors").exists()
