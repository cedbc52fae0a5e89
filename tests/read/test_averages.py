"""Moving averages of a model beside its weights, as latent diffusion, stable-audio-tools and ema_pytorch leave them in one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ostate.commands.repair import repair
from ostate.read.adapters import read_adapter


def _model() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.GELU(), torch.nn.Linear(6, 6), torch.nn.Linear(6, 3))


def _checkpoint(folder: Path, average: Callable[[str], str], *, lead: str = "model.diffusion_model.", beside: dict | None = None) -> list[str]:
    """Write a Lightning checkpoint of a trained model, its average under other names and an untrained part; return the live names."""
    torch.manual_seed(0)
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).pow(2).mean().backward()
        optimizer.step()
    weights = model.state_dict()
    state = {f"{lead}{name}": tensor for name, tensor in weights.items()}
    state |= {average(name): tensor * 0.9 for name, tensor in weights.items()}
    state |= {"model_ema.decay": torch.tensor(0.99), "first_stage_model.conv.weight": torch.randn(4, 3), **(beside or {})}
    made = {"global_step": 3, "pytorch-lightning_version": "2.1.0", "state_dict": state, "optimizer_states": [optimizer.state_dict()]}
    torch.save(made, folder / "last.ckpt")
    return [f"{lead}{name}" for name, _ in model.named_parameters()]


@pytest.mark.parametrize(
    "average",
    [
        lambda name: f"model_ema.diffusion_model{name.replace('.', '')}",
        lambda name: f"diffusion_ema.ema_model.{name}",
        lambda name: f"ema.diffusion_model.{name}",
    ],
    ids=["latent diffusion", "stable-audio-tools", "ema"],
)
def test_no_position_is_named_after_an_average(average, tmp_path: Path):
    names = _checkpoint(tmp_path, average)
    found = repair(str(tmp_path)).ordering
    assert list(found.names) == names
    assert found.verdict == "unverified"


def test_what_averages_nothing_is_no_average(tmp_path: Path):
    """A module that is called so and has a weight that no other one has was perhaps trained."""
    extra = {"model_ema.head.weight": torch.randn(5, 7)}
    _checkpoint(tmp_path, lambda name: f"model_ema.{name}", beside=extra)
    file = tmp_path / "last.ckpt"
    assert set(extra) < set(read_adapter(str(file)).tensors)


def test_an_average_in_a_mapping_of_its_own_is_not_taken_for_the_model(tmp_path: Path):
    """F5-TTS keeps `ema_model_state_dict` beside `model_state_dict` (f5_tts/model/trainer.py, `save_checkpoint`)."""
    names = _checkpoint(tmp_path, lambda name: f"ema.{name}", lead="")
    lightning = torch.load(tmp_path / "last.ckpt")
    weights = {name: lightning["state_dict"][name] for name in names}
    average = {f"ema_model.{name}": tensor * 0.9 for name, tensor in weights.items()} | {"step": torch.tensor(3)}
    made = {"ema_model_state_dict": average, "model_state_dict": weights, "optimizer_state_dict": lightning["optimizer_states"][0], "update": 3}
    torch.save(made, tmp_path / "model_last.pt")
    assert list(repair(str(tmp_path / "model_last.pt")).ordering.names) == names
