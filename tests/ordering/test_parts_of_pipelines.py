"""Image models of which a part was trained, as diffusers' scripts, IP-Adapter and LyCORIS leave them on disk: the live names, or a refusal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model

from ostate.commands.repair import repair
from ostate.errors import Ambiguous
from tests.ordering.pipelines import text_encoder, unet, write_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")


def train(folder: Path, parameters: Iterable[torch.nn.Parameter], denoiser: torch.nn.Module | None = None) -> Path:
    """Take three steps, on noise where no denoiser is given; write optimizer.bin into the checkpoint and return its folder."""
    optimizer = torch.optim.AdamW(list(parameters), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        if denoiser is None:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.randn_like(parameter)
        else:
            made = denoiser(torch.randn(2, 4, 8, 8), torch.randint(0, 1000, (2,)), torch.randn(2, 4, 8)).sample
            (made - torch.randn_like(made)).pow(2).mean().backward()
        optimizer.step()
    folder.mkdir(parents=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    return folder


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("part", ["attn2", "time_emb", "up_blocks"])
def test_a_part_of_a_unet_is_told_by_the_pipelines_weights(part, accelerate, tmp_path):
    model = unet()
    pipeline = write_pipeline(tmp_path / "base", unet=model, text_encoder=text_encoder())
    with torch.no_grad():
        for parameter in model.parameters():  # no norm is ones, no bias zero
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(pipeline / "unet")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    folder = train(tmp_path / "checkpoint-3", (one for one in model.parameters() if one.requires_grad), model)
    save_model(model, str(folder / "model.safetensors")) if accelerate else model.save_pretrained(folder / "unet")
    assert list(repair(str(folder), base=str(pipeline)).ordering.names) == names
    with pytest.raises(Ambiguous):
        repair(str(folder))


def test_textual_inversion_trains_the_only_tensor_of_its_shape(tmp_path):
    model = text_encoder()
    model.resize_token_embeddings(18)
    embedding = model.get_input_embeddings()
    folder = train(tmp_path / "checkpoint-3", embedding.parameters())
    save_model(model, str(folder / "model.safetensors"))
    name = next(name for name, parameter in model.named_parameters() if parameter is embedding.weight)
    assert list(repair(str(folder)).ordering.names) == [name]


def test_two_tensors_of_a_shape_are_not_told_apart_by_it(tmp_path):
    model = torch.nn.ModuleList([torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)])
    folder = train(tmp_path / "checkpoint-3", [model[1].weight])
    save_model(model, str(folder / "model.safetensors"))
    with pytest.raises(Ambiguous):
        repair(str(folder))


class IPAdapter(torch.nn.Module):
    """As IP-Adapter's tutorial_train.py holds it: the denoiser, whose processors are the adapter's modules, and the projection of images."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = unet().requires_grad_(False)
        self.image_proj_model = torch.nn.ModuleDict({"proj": torch.nn.Linear(12, 32), "norm": torch.nn.LayerNorm(8)})
        self.adapter_modules = torch.nn.ModuleList()
        for path in self.unet.attn_processors:
            layer = self.unet.get_submodule(path.removesuffix(".processor"))
            width = layer.to_q.weight.shape[0]
            new = {"to_k_ip": torch.nn.Linear(8, width, bias=False), "to_v_ip": torch.nn.Linear(8, width, bias=False)} if "attn2" in path else {}
            layer.processor = torch.nn.ModuleDict(new)
            self.adapter_modules.append(layer.processor)


def test_an_ip_adapter_in_an_ordered_file_has_the_files_names(tmp_path):
    model = IPAdapter()
    trained = chain(model.image_proj_model.parameters(), model.adapter_modules.parameters())
    folder = train(tmp_path / "checkpoint-3", trained)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    names = [f"image_proj_model.{name}" for name, _ in model.image_proj_model.named_parameters()]
    names += [f"adapter_modules.{name}" for name, _ in model.adapter_modules.named_parameters()]
    assert list(repair(str(folder)).ordering.names) == names


@pytest.mark.parametrize("algo", ["locon", "loha"])
def test_lycoris_scalars_lie_in_no_file_and_all_others_have_the_models_order(algo, tmp_path):
    import lycoris

    model = unet().requires_grad_(False)
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Attention", "FeedForward"], "target_name": []})
    net = lycoris.create_lycoris(model, 1.0, linear_dim=4, linear_alpha=4, algo=algo, use_scalar=True)
    net.apply_to()
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    folder = train(tmp_path / "state", (parameter for _, parameter in named), model)
    save_file({key: value.clone().contiguous() for key, value in net.state_dict().items()}, folder / "pytorch_lora_weights.safetensors")
    found = repair(str(folder), base=str(write_pipeline(tmp_path / "base", unet=unet()))).ordering
    assert list(found.names) == [None if name.endswith(".scalar") else name for name, _ in named]
    assert not found.proven
    assert len(found.left_out) == sum(name.endswith(".scalar") for name, _ in named)
    with pytest.raises(Ambiguous, match="--base DIR"):
        repair(str(folder))


def _custom_diffusion(model: torch.nn.Module, *, train_q_out: bool) -> torch.nn.Module:
    """Return the layers that diffusers' train_custom_diffusion.py trains: processors in the place of every cross-attention's own."""
    from diffusers.loaders import AttnProcsLayers
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

    made = {}
    for path in model.attn_processors:
        cross = "attn2" in path
        width = model.get_submodule(path.removesuffix(".processor")).to_q.weight.shape[0]
        options = {"train_kv": cross, "train_q_out": cross and train_q_out, "cross_attention_dim": 8 if cross else None}
        made[path] = CustomDiffusionAttnProcessor(hidden_size=width, **options)
    model.requires_grad_(False).set_attn_processor(made)
    return AttnProcsLayers(model.attn_processors)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_custom_diffusion_weights.safetensors"])
@pytest.mark.parametrize("train_q_out", [False, True])
def test_custom_diffusion_has_the_order_of_the_processors_in_the_pipelines_unet(train_q_out, file, tmp_path):
    model = unet()
    layers = _custom_diffusion(model, train_q_out=train_q_out)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    folder = train(tmp_path / "checkpoint-3", layers.parameters(), model)
    save_file({key: value.clone().contiguous() for key, value in layers.state_dict().items()}, folder / file)
    pipeline = write_pipeline(tmp_path / "base", unet=unet(), text_encoder=text_encoder())
    found = repair(str(folder), base=str(pipeline)).ordering
    assert list(found.names) == names
    assert not found.proven
    with pytest.raises(Ambiguous, match="--base DIR"):
        repair(str(folder))


def test_custom_diffusion_in_an_ordered_file_needs_no_pipeline(tmp_path):
    model = unet()
    layers = _custom_diffusion(model, train_q_out=True)
    folder = train(tmp_path / "checkpoint-3", layers.parameters(), model)
    torch.save(layers.state_dict(), tmp_path / "pytorch_custom_diffusion_weights.bin")
    found = repair(str(folder), adapter=str(tmp_path / "pytorch_custom_diffusion_weights.bin")).ordering
    assert list(found.names) == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_the_embedding_of_a_new_word_beside_custom_diffusion_is_named_from_the_text_encoder_saved_with_it(tmp_path):
    model, text = unet(), text_encoder()
    text.resize_token_embeddings(18)
    (word,) = [name for name, parameter in text.named_parameters() if parameter is text.get_input_embeddings().weight]
    layers = _custom_diffusion(model, train_q_out=False)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    folder = train(tmp_path / "checkpoint-3", [text.get_input_embeddings().weight, *layers.parameters()])
    save_file({key: value.clone().contiguous() for key, value in layers.state_dict().items()}, folder / "model.safetensors")
    save_model(text, str(folder / "model_1.safetensors"))
    found = repair(str(folder), base=str(write_pipeline(tmp_path / "base", unet=unet(), text_encoder=text_encoder()))).ordering
    assert list(found.names) == [word, *names]
    assert found.verdict == "unverified"
