"""Trained LoRA of a tiny U-Net in the orders of image trainers: the order that was made is proven, and no other one of a program's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ostate
from tests.ordering.pipelines import Named, layers, unet

pytestmark = pytest.mark.filterwarnings("ignore")


def _loss(model: torch.nn.Module, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(2, 4, 8, 8, generator=source) for _ in range(2))
    text, time = torch.randn(2, 5, 8, generator=source), torch.randint(0, 1000, (2,), generator=source)
    return ((model(x + noise, time, encoder_hidden_states=text).sample - noise) ** 2).mean()


def _train(folder: Path, model: torch.nn.Module, named: Named, beside: dict[str, torch.Tensor]) -> list[str]:
    """Train the named parameters in this order; write weights and state; return the names."""
    optimizer = torch.optim.AdamW([parameter for _, parameter in named], lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        _loss(model, step % 4).backward()
        optimizer.step()
    folder.mkdir()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    save_file({**{name: parameter.detach().clone().contiguous() for name, parameter in named}, **beside}, folder / "lora.safetensors")
    return [name for name, _ in named]


def _hooked(model: torch.nn.Module, spell: Callable[[str], str]) -> Named:
    """Put a LoRA behind every layer of the transformer blocks, as sd-scripts do."""
    found: Named = []
    for path, layer in layers(model, ("Transformer2DModel",)):
        down = torch.nn.Parameter(torch.randn(4, layer.in_features) / layer.in_features**0.5)
        up = torch.nn.Parameter(torch.zeros(layer.out_features, 4))
        layer.register_forward_hook(lambda _, args, out, down=down, up=up: out + args[0] @ down.T @ up.T)
        found += [(f"{spell(path)}.lora_down.weight", down), (f"{spell(path)}.lora_up.weight", up)]
    return found


@pytest.mark.parametrize("own_unet", [False, True])
def test_sd_scripts_order_is_proven_whichever_unet_defined_it(own_unet: bool, tmp_path: Path):
    torch.manual_seed(0)
    model = unet().requires_grad_(False)
    named = _hooked(model, lambda path: f"lora_unet_{path.replace('.', '_')}")
    if own_unet:
        rank = {"attn1": 0, "ff": 1, "attn2": 2}

        def place(row: tuple[int, tuple[str, torch.nn.Parameter]]) -> tuple[object, ...]:
            head, _, rest = row[1][0].partition("_transformer_blocks_0_")
            first = next(at for at, (name, _) in enumerate(named) if name.startswith(f"{head}_transformer_blocks_0_")) if rest else row[0]
            return first, rank.get(rest.partition("_")[0], 0), row[0]

        named = [pair for _, pair in sorted(enumerate(named), key=place)]
    modules = dict.fromkeys(name.partition(".")[0] for name, _ in named)
    order = _train(tmp_path / "run", model, named, {f"{module}.alpha": torch.tensor(4.0) for module in modules})
    found = ostate.repair(str(tmp_path / "run"), None)
    assert found.ordering.verdict in ("verified", "recovered")
    assert list(found.ordering.names) == order
    assert not found.ordering.assumed


def test_lycoris_loha_without_any_configuration_is_proven(tmp_path: Path):
    import lycoris

    torch.manual_seed(0)
    model = unet().requires_grad_(False)
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Attention", "FeedForward"], "target_name": []})
    net = lycoris.create_lycoris(model, 1.0, linear_dim=4, linear_alpha=4, algo="loha")
    net.apply_to()
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    beside = {name: tensor.clone() for name, tensor in net.state_dict().items() if name.endswith(".alpha")}
    order = _train(tmp_path / "run", model, named, beside)
    found = ostate.repair(str(tmp_path / "run"), None)
    assert found.ordering.verdict == "verified"
    assert list(found.ordering.names) == order
