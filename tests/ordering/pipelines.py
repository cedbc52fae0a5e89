"""Tiny diffusion pipelines, and their LoRA weights as image trainers make and save them; noise for gradients, since only order is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

Named = list[tuple[str, torch.nn.Parameter]]


def unet() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4}
    return UNet2DConditionModel(sample_size=8, use_linear_projection=True, **sizes, **blocks)


def flux(blocks: int = 2, head: int = 8) -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    sizes = {"num_layers": blocks, "num_single_layers": blocks, "attention_head_dim": head, "num_attention_heads": 16 // head}
    widths = {"in_channels": 4, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    return FluxTransformer2DModel(axes_dims_rope=(2, 2, head - 4)[: head // 2], **widths, **sizes)


def wan() -> torch.nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(num_layers=2, num_attention_heads=2, attention_head_dim=8, text_dim=8, freq_dim=8, ffn_dim=12, in_channels=4)


def text_encoder(hidden: int = 8, *, projected: bool = False) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = {"hidden_size": hidden, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8}
    made = CLIPTextModelWithProjection if projected else CLIPTextModel
    return made(CLIPTextConfig(vocab_size=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes))


def write_pipeline(folder: Path, **components: torch.nn.Module) -> Path:
    """Write what a pipeline's `save_pretrained` writes, without weights: model_index.json and a config.json for each component."""
    for name, model in components.items():
        (folder / name).mkdir(parents=True)
        if hasattr(model, "save_config"):
            model.save_config(folder / name)
        else:
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def layers(model: torch.nn.Module, within: Sequence[str] = ()) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield path and layer as sd-scripts, OneTrainer and ai-toolkit walk: `named_modules()` of each module of a class `within`, or of the model."""
    roots = [(name, module) for name, module in model.named_modules() if type(module).__name__ in within] if within else [("", model)]
    for name, root in roots:
        for inner, layer in root.named_modules():
            if isinstance(layer, torch.nn.Linear):
                yield ".".join(part for part in (name, inner) if part), layer


def factors(model: torch.nn.Module, spell: Callable[[str], str], within: Sequence[str] = (), rank: int = 2) -> Named:
    """Return `lora_down` and `lora_up` for each layer under the name that `spell` makes of its path."""
    found: Named = []
    for path, layer in layers(model, within):
        found.append((f"{spell(path)}.lora_down.weight", torch.nn.Parameter(torch.randn(rank, layer.in_features))))
        found.append((f"{spell(path)}.lora_up.weight", torch.nn.Parameter(torch.randn(layer.out_features, rank))))
    return found


def save(folder: Path, groups: Sequence[Named], key: Callable[[str], str] = str, *, beside: Sequence[str] = ()) -> list[str]:
    """Take a step on noise; write optimizer.pt and the weights, keys sorted; return the names in the optimizer's order.

    Args:
        folder: where to write.
        groups: names and parameters, group by group.
        key: from a live name to its key in the file.
        beside: keys of scalars that are saved and not trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = [pair for group in groups for pair in group]
    optimizer = torch.optim.AdamW([{"params": [parameter for _, parameter in group]} for group in groups], lr=1e-3)
    for _, parameter in flat:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    weights = {key(name): parameter.detach().clone().contiguous() for name, parameter in flat}
    save_file({**weights, **{name: torch.ones(()) for name in beside}}, folder / "lora.safetensors")
    return [name for name, _ in flat]
