"""DeepSpeed itself loads what we write, where it is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import ostate
from ostate import read as formats
from ostate.core.naming import Ordering
from ostate.ordering.join import named_state
from tests import ranks


def trained():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(5, 3) for name in ("one", "two", "three")})
    model["three"].requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "weight_decay": 0.0}], lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        sum((p * torch.randn_like(p)).sum() for p in parameters).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra: test-frameworks)")
@pytest.mark.parametrize(("stage", "world"), [(1, 1), (2, 2), (3, 2)])
def test_deepspeed_loads_the_universal_checkpoint(tmp_path, stage, world):
    from safetensors.torch import save_file

    model, optimizer = trained()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    names = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    save_file({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, str(tmp_path / "model.safetensors"))
    order = Ordering(names=names, keys=names, source="given", verdict="verified")
    state = named_state(formats.read(str(tmp_path / "optimizer.pt")), order)
    done = ostate.export(state, "deepspeed-universal", tmp_path / "in" / "universal", adapter=str(tmp_path / "model.safetensors"))
    assert [f.text for f in done.findings if f.rule == "export-stage-3"] == [
        "ZeRO-3 takes one group's settings and one step for all; here weight_decay differ"
    ]
    ranks.program("tests.exporters.load_universal", tmp_path / "in", tmp_path / "out.pt", stage, world, DS_ACCELERATOR="cpu")
    seen = torch.load(tmp_path / "out.pt", weights_only=True)
    live = dict(model.named_parameters())
    for name in names:
        for slot in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(seen["found"][name][slot], optimizer.state[live[name]][slot]), (name, slot)
        assert torch.equal(seen["found"][name]["fp32"], live[name].detach())
    assert seen["steps"] == [4.0, 4.0]
    assert seen["decay"] == ([0.1, 0.0] if stage < 3 else [0.1, 0.1]), "ZeRO-3 takes the first group's settings for all, and the export says so"
