"""Factors under words of somebody's own: paired by one word that differs and by shapes, and named where the numbers prove it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ostate
from ostate.core.lora_modules import modules_of
from ostate.read.adapters import read_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = {
    "SAM's LoRA": ("blocks.{}.linear_a_{}.weight", "blocks.{}.linear_b_{}.weight"),
    "its file": ("w_a_{:03}.{}", "w_b_{:03}.{}"),
    "a module lora with A and B": ("blocks.{}.{}.lora.A", "blocks.{}.{}.lora.B"),
    "diffusers before 0.26": ("blocks.{}.{}.lora_layer.down.weight", "blocks.{}.{}.lora_layer.up.weight"),
    "its processors of attention": ("blocks.{}.processor.{}_lora.down.weight", "blocks.{}.processor.{}_lora.up.weight"),
}


def _run(folder: Path, words: tuple[str, str], *, turned: bool = False) -> list[str]:
    """Train four residual blocks with a LoRA on each of their layers; `turned`: factors are stored (n, r) and (r, m)."""
    torch.manual_seed(0)
    weights = [(torch.randn(40, 24) / 5, torch.randn(24, 40) / 6) for _ in range(4)]
    named: dict[str, torch.nn.Parameter] = {}
    for at, pair in enumerate(weights):
        for layer, weight in zip(("q", "v"), pair):
            a, b = torch.randn(6, weight.shape[1]) / weight.shape[1] ** 0.5, torch.zeros(weight.shape[0], 6)
            for word, factor in zip(words, (a, b)):
                named[word.format(at, layer)] = torch.nn.Parameter((factor.T if turned else factor).contiguous())
    optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
    x, y = torch.randn(64, 24), torch.randn(64, 24)
    for _ in range(40):
        hidden = x
        for at, pair in enumerate(weights):
            inner = hidden
            for layer, weight in zip(("q", "v"), pair):
                a, b = (named[word.format(at, layer)] for word in words)
                inner = torch.tanh(inner) @ (weight + ((a @ b).T if turned else b @ a)).T
            hidden = hidden + inner
        optimizer.zero_grad()
        (hidden - y).square().mean().backward()
        optimizer.step()
    folder.mkdir(exist_ok=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    save_file({name: parameter.detach().clone() for name, parameter in sorted(named.items())}, folder / "lora.safetensors")
    return list(named)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("words", WORDS)
def test_factors_are_paired_and_named_whatever_their_words_are(words: str, turned: bool, tmp_path: Path):
    if turned and words.endswith(("0.26", "attention")):
        turned = False  # nn.Linear stores its weight one way
    order = _run(tmp_path, WORDS[words], turned=turned)
    found = ostate.repair(str(tmp_path / "optimizer.pt"), None, adapter=str(tmp_path / "lora.safetensors"))
    assert found.ordering.verdict in ("verified", "recovered", "partial")
    named = {position: key for position, key in enumerate(found.ordering.keys) if key is not None}
    assert len(named) == len(order)
    assert all(order[position] == key for position, key in named.items())


@pytest.mark.parametrize(
    "shapes",
    [
        {"blocks.0.down.weight": (8, 32), "blocks.0.up.weight": (32, 8), "head.weight": (4, 8)},
        {"mlp.down_proj.weight": (8, 32), "mlp.up_proj.weight": (32, 8)},
        {"x.a": (8, 8), "x.b": (8, 8)},
    ],
)
def test_matrices_that_are_no_factors_are_not_paired(shapes: dict[str, tuple[int, int]], tmp_path: Path):
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    assert modules_of(read_adapter(str(tmp_path))) == []
