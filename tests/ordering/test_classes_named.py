"""Model classes that people train with LoRA, no base model at hand: every name right, attention alone and every linear layer.

The modules are the real class's, in its order, their widths divided; each pair is trained by itself on a regression, as a model would train it as far
as the tests of the numbers see: the loss knows A and B through B A alone. docs/grouping.md counts what these tests hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ostate.commands.repair import repair
from tests.list_diffusers import OPTIONS, built
from tests.ordering.test_convention import MODELS

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGE = (
    "SD3Transformer2DModel", "FluxTransformer2DModel", "Flux2Transformer2DModel", "PixArtTransformer2DModel", "AuraFlowTransformer2DModel",
    "HunyuanVideoTransformer3DModel", "Lumina2Transformer2DModel", "SanaTransformer2DModel", "CogVideoXTransformer3DModel",
    "CogView4Transformer2DModel", "WanTransformer3DModel", "LTXVideoTransformer3DModel", "MochiTransformer3DModel", "QwenImageTransformer2DModel",
    "ChromaTransformer2DModel", "StableAudioDiTModel",
)  # fmt: skip
LANGUAGE = ("llama", "qwen3", "gemma2", "phi3", "deepseek_v3", "qwen3_next", "qwen2_5_vl", "t5", "bert", "gpt2", "whisper", "opt")
_ATTENTION = re.compile(r"\.(?:to|add)_\w+(?:\.0)?$|[._](?:attn|attention|SelfAttention|EncDecAttention)\.(?!output)|attention\.output")
_MLP = re.compile(r"(?:^|\.)(?:mlp|ff|ffn|ff_context)\.|experts")
Layers = list[tuple[str, tuple[int, int]]]


def _layers(model: torch.nn.Module, selection: str) -> Layers:
    """Return path and (out, in) of the linear layers in the first two blocks of each kind, widths above 512 divided by 64."""
    found = []
    for path, module in model.named_modules():
        wide = type(module).__name__ == "Conv1D"  # GPT-2 keeps (in, out)
        if not (wide or isinstance(module, torch.nn.Linear)) or re.search(r"(?:^|\.)(?:lm_head|cls|proj_out)$", path):
            continue
        if any(int(number) > 1 for number in re.findall(r"\.(\d+)\.", path)) and not path.endswith(".2"):
            continue
        if selection == "attention" and (not _ATTENTION.search(path) or _MLP.search(path)):
            continue
        out, width = (size if size < 512 else size // 64 for size in (module.weight.shape[::-1] if wide else module.weight.shape))
        found.append((path, (out, width)))
    return found


def _trained(folder: Path, layers: Layers, spelled: Callable[[str, str], str]) -> dict[str, torch.nn.Parameter]:
    """Train a pair for each layer with one AdamW; write optimizer.pt; return name -> parameter in the optimizer's order."""
    source = torch.Generator().manual_seed(0)
    pairs, named = [], {}
    for path, (out, width) in layers:
        first = torch.nn.Parameter(torch.randn(4, width, generator=source) / width**0.5)
        second = torch.nn.Parameter(torch.zeros(out, 4))
        named |= {spelled(path, "A"): first, spelled(path, "B"): second}
        pairs.append((first, second, torch.randn(out, width, generator=source) / width**0.5))
    optimizer = torch.optim.AdamW(list(named.values()), lr=5e-3, foreach=True)
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.zeros(())
        for first, second, wanted in pairs:
            x = torch.randn(8, first.shape[1], generator=source)
            loss = loss + (x @ first.T @ second.T - x @ wanted.T).pow(2).mean()
        loss.backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return named


def _assert_all_named(folder: Path, names: Sequence[str]) -> None:
    ordering = repair(str(folder)).ordering
    assert list(ordering.names) == list(names)
    assert ordering.verdict in ("verified", "recovered")


@pytest.mark.parametrize("selection", ["attention", "all-linear"])
@pytest.mark.parametrize("name", IMAGE)
def test_lora_of_a_diffusion_class_is_named_without_its_pipeline(name: str, selection: str, tmp_path: Path):
    layers = _layers(built(name, OPTIONS.get(name, [{}])[-1]), selection)
    named = _trained(tmp_path, layers, lambda path, half: f"{path}.lora_{half}.default.weight")
    weights = {f"transformer.{key.replace('.default', '')}": value.detach().clone() for key, value in named.items()}
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    _assert_all_named(tmp_path, list(named))


@pytest.mark.parametrize("selection", ["attention", "all-linear"])
@pytest.mark.parametrize("name", LANGUAGE)
def test_lora_of_a_transformers_class_is_named_without_its_base_model(name: str, selection: str, tmp_path: Path):
    layers = _layers(MODELS[name](), selection)
    named = _trained(tmp_path, layers, lambda path, half: f"base_model.model.{path}.lora_{half}.default.weight")
    weights = {key.replace(".default", ""): value.detach().clone() for key, value in named.items()}
    save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["a"], "inference_mode": True, "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    _assert_all_named(tmp_path, list(named))
