"""Image trainers' orders with the pipeline's configurations at hand: diffusers' own models, and the programs' ways over them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file, save_model

from ostate.commands.repair import repair
from ostate.core.naming import Claim, Question
from ostate.ordering import claims
from ostate.read import read
from ostate.read.adapters import for_state, read_adapter
from tests.ordering.pipelines import Named, factors, flux, layers, save, text_encoder, unet, wan, write_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")
SD_TEXT = ("CLIPAttention", "CLIPMLP")


def _ask(folder: Path, base: Path | None) -> tuple[list[Claim], str]:
    adapter = read_adapter(str(folder / "lora.safetensors"))
    question = Question(raw=read(str(folder / "optimizer.pt")), adapter=adapter, base=None if base is None else str(base))
    found, lost = claims(question, sources={"skeleton"})
    return found, "; ".join(row["reason"] for row in lost)


def _keys(claim: Claim) -> list[str | None]:
    return list(claim.keys)


def _kohya(prefix: str, path: str) -> str:
    return f"{prefix}_{path}".replace(".", "_")


def _turned(named: Named) -> Named:
    """Put `ff` in front of `attn2` within each block, as sd-scripts' own U-Net defines them."""
    out: Named = []
    held: Named = []
    block = ""
    for name, parameter in named:
        head, found, _ = name.partition("_attn2_")
        if found:
            held.append((name, parameter))
            block = head
            continue
        if held and not name.startswith(f"{block}_ff_"):
            out += held
            held = []
        out.append((name, parameter))
    return [*out, *held]


def test_peft_over_a_unet_is_named_by_its_config(tmp_path: Path):
    model = unet()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj", "ff.net.2"]))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    order = save(tmp_path / "run", [named], lambda name: "unet." + name.replace(".default", ""))
    found, _ = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet()) / "unet")
    keys = ["unet." + name.replace(".default", "") for name in order]
    assert keys in [_keys(claim) for claim in found]
    assert all(claim.source == "skeleton" for claim in found)
    first = next(claim for claim in found if _keys(claim) == keys)
    assert [name.removeprefix("unet.") for name in first.names] == order


@pytest.mark.parametrize("source", ["skeleton", "convention"])
@pytest.mark.parametrize("older", [False, True])
def test_doras_magnitudes_have_the_adapters_name_in_diffusers_models_too(older: bool, source: str, tmp_path: Path):
    """The pipeline's file drops it and `.weight`; diffusers' scripts for Stable Diffusion spell the factors in the older way beside it."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    model = unet()
    model.requires_grad_(requires_grad=False)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], use_dora=True))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    live = save(tmp_path / "run", [named])
    weights = peft.get_peft_model_state_dict(model)
    weights = convert_state_dict_to_diffusers(weights) if older else weights
    StableDiffusionPipeline.save_lora_weights(str(tmp_path / "run"), unet_lora_layers=weights, weight_name="lora.safetensors")
    raw, adapter = read(str(tmp_path / "run" / "optimizer.pt")), read_adapter(str(tmp_path / "run" / "lora.safetensors"))
    base = str(write_pipeline(tmp_path / "base", unet=unet()) / "unet") if source == "skeleton" else None
    found, lost = claims(Question(raw=raw, adapter=adapter, base=base), sources={source})
    assert live in [[name and name.removeprefix("unet.") for name in claim.names] for claim in found], lost


@pytest.mark.parametrize("own_unet", [False, True])
@pytest.mark.parametrize("plus", [False, True])
def test_sd_scripts_order_is_text_encoder_then_unet_in_groups_and_halves(plus: bool, own_unet: bool, tmp_path: Path):
    text = factors(text_encoder(), lambda path: _kohya("lora_te", path), SD_TEXT)
    image = factors(unet(), lambda path: _kohya("lora_unet", path), ("Transformer2DModel",))
    image = _turned(image) if own_unet else image
    halves = [[[one for one in part if ("lora_up" in one[0]) is up] for up in (False, True)] for part in (text, image)]
    groups = [half for part in halves for half in part] if plus else [text, image]
    modules = dict.fromkeys(name.partition(".")[0] for name, _ in text + image)
    order = save(tmp_path / "run", groups, beside=[f"{module}.alpha" for module in modules])
    found, _ = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet(), text_encoder=text_encoder()))
    assert order in [_keys(claim) for claim in found]
    assert order in [list(claim.names) for claim in found]


@pytest.mark.parametrize("plus", [False, True])
def test_block_lr_of_sd_scripts_makes_a_group_for_each_block_of_the_unet(plus: bool, tmp_path: Path):
    text = factors(text_encoder(), lambda path: _kohya("lora_te", path), SD_TEXT)
    image = factors(unet(), lambda path: _kohya("lora_unet", path), ("Transformer2DModel", "ResnetBlock2D", "Downsample2D"))
    blocks: dict[str, Named] = {}
    for name, parameter in image:  # get_block_index: resnets and attentions count alike, a sampler is the third; the middle is one
        half, level, word, at = re.match(r"lora_unet_(down|up|mid)_(?:blocks_(\d)_([a-z]+)_(\d))?", name).groups()
        blocks.setdefault(f"{half}{level}{2 if word == 'downsamplers' else at}", []).append((name, parameter))
    groups = [text, *blocks.values()]
    if plus:
        groups = [[one for one in part if ("lora_up" in one[0]) is up] for part in groups for up in (False, True)]
    order = save(tmp_path / "run", groups)
    found, lost = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet(), text_encoder=text_encoder()))
    assert len(groups) > 4
    assert order in [_keys(claim) for claim in found], lost
    assert all(claim.source == "skeleton" for claim in found)


def test_lora_fa_of_sd_scripts_trains_the_second_factors_alone(tmp_path: Path):
    parts = [
        factors(text_encoder(), lambda path: _kohya("lora_te", path), SD_TEXT),
        factors(unet(), lambda path: _kohya("lora_unet", path), ("Transformer2DModel",)),
    ]
    frozen = [name for part in parts for name, _ in part if "lora_down" in name]
    order = save(tmp_path / "run", [[one for one in part if "lora_up" in one[0]] for part in parts], beside=frozen)
    found, lost = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet(), text_encoder=text_encoder()))
    assert [_keys(claim) for claim in found][:1] == [order], lost


def test_oft_of_sd_scripts_has_a_lead_of_its_own(tmp_path: Path):
    blocks = [
        (f"{_kohya('oft_unet', path)}.oft_blocks", torch.nn.Parameter(torch.zeros(2, layer.out_features // 2, layer.out_features // 2)))
        for path, layer in layers(unet(), ("Transformer2DModel",))
    ]
    order = save(tmp_path / "run", [blocks], beside=[name.replace("oft_blocks", "alpha") for name, _ in blocks])
    found, lost = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet()))
    assert [_keys(claim) for claim in found][:1] == [order], lost
    adapter = read_adapter(str(tmp_path / "run" / "lora.safetensors"))
    ways, _ = claims(Question(raw=read(str(tmp_path / "run" / "optimizer.pt")), adapter=adapter), sources={"convention"})
    assert order in [_keys(claim) for claim in ways]


@pytest.mark.parametrize("projected", [False, True])
def test_two_text_encoders_are_told_apart_by_their_prefix(projected: bool, tmp_path: Path):
    """SDXL's second one has a projection, and since transformers 5 a module `text_model` that the first one lacks; keys have it for both."""
    parts = [
        factors(text_encoder(), lambda path: _kohya("lora_te1", f"text_model.{path}"), SD_TEXT),  # transformers 4 called it so
        factors(text_encoder(), lambda path: _kohya("lora_te2", f"text_model.{path}"), SD_TEXT),
        factors(unet(), lambda path: _kohya("lora_unet", path), ("Transformer2DModel",)),
    ]
    order = save(tmp_path / "run", [parts[0] + parts[1], parts[2]])
    base = write_pipeline(tmp_path / "base", unet=unet(), text_encoder=text_encoder(), text_encoder_2=text_encoder(projected=projected))
    assert order in [_keys(claim) for claim in _ask(tmp_path / "run", base)[0]]


def test_onetrainers_order_has_dots_and_a_group_for_each_model(tmp_path: Path):
    text = factors(text_encoder(), lambda path: f"text_encoder.{path}")
    image = factors(unet(), lambda path: f"unet.{path}")
    order = save(tmp_path / "run", [text, image])
    found, _ = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet(), text_encoder=text_encoder()))
    assert order in [_keys(claim) for claim in found]


def test_the_fourth_text_encoder_of_hidream_is_one_of_the_pipelines(tmp_path: Path):
    models = {"text_encoder": text_encoder(), "text_encoder_4": text_encoder(), "transformer": flux()}
    parts = [factors(model, lambda path, name=name: f"{name}.{path}") for name, model in models.items()]
    order = save(tmp_path / "run", parts)
    found, lost = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", **models))
    assert order in [_keys(claim) for claim in found], lost


GROUPS = (
    (r"transformer_blocks\.\d+", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.qkv"),
    (r"transformer_blocks\.\d+", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "attn.added_qkv"),
    (r"single_transformer_blocks\.\d+", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "qkv_mlp"),
)
"""OneTrainer modules/model/FluxModel.py, `fusion_groups`."""


@pytest.mark.parametrize("with_base", [False, True])
def test_onetrainers_fused_modules_stand_first_sorted_as_text(with_base: bool, tmp_path: Path):
    """Retyped from modules/module/FusedModule.py (discover_fused_groups) and LoRAModule.py (__create_modules)."""
    model = flux(blocks=11)
    left = {path: layer for path, layer in layers(model) if "blocks" in path}
    made: list[tuple[str, int, int]] = []
    for pattern, leaves, word in GROUPS:
        holders = sorted({path.removesuffix(f".{leaves[0]}") for path in left if path.endswith(leaves[0])})
        for holder in (one for one in holders if re.fullmatch(pattern, one)):
            taken = [left.pop(f"{holder}.{leaf}") for leaf in leaves]
            made.append((f"{holder}.{word}", taken[0].in_features, sum(layer.out_features for layer in taken)))
    made += [(path, layer.in_features, layer.out_features) for path, layer in left.items()]
    image: Named = []
    for path, width, rows in made:
        image.append((f"transformer.{path}.lora_down.weight", torch.nn.Parameter(torch.randn(2, width))))
        image.append((f"transformer.{path}.lora_up.weight", torch.nn.Parameter(torch.randn(rows, 2))))
    text = factors(text_encoder(), lambda path: f"text_encoder.{path}")
    order = save(tmp_path / "run", [text, image])
    base = write_pipeline(tmp_path / "base", transformer=model, text_encoder=text_encoder()) if with_base else None
    adapter = read_adapter(str(tmp_path / "run" / "lora.safetensors"))
    question = Question(raw=read(str(tmp_path / "run" / "optimizer.pt")), adapter=adapter, base=None if base is None else str(base))
    found, lost = claims(question, sources={"skeleton" if with_base else "convention"})
    assert order in [_keys(claim) for claim in found], lost


@pytest.mark.parametrize("shape", ["its own", "another's"])
def test_norms_that_were_trained_whole_beside_the_lora_stand_where_the_model_has_them(shape: str, tmp_path: Path):
    """diffusers' train_control_lora_flux.py with `--train_norm_layers`."""
    model = flux()
    model.requires_grad_(requires_grad=False)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["x_embedder", "to_q", "to_k"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "norm_q" in name or "norm_k" in name)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    live = save(tmp_path / "run", [named], lambda name: f"transformer.{name.replace('.default', '')}")
    base = flux() if shape == "its own" else flux(head=4)
    found, lost = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", transformer=base))
    names = [[name and name.removeprefix("transformer.") for name in claim.names] for claim in found]
    assert (live in names) is (shape == "its own"), lost
    assert names or "another base model?" in lost


def test_ai_toolkits_keys_over_a_flux_transformer(tmp_path: Path):
    named = factors(flux(), lambda path: f"transformer$${path.replace('.', '$$')}", ("FluxTransformer2DModel",))

    def key(name: str) -> str:
        return name.replace("$$", ".").replace("lora_down", "lora_A").replace("lora_up", "lora_B")

    order = [key(name) for name in save(tmp_path / "run", [named], key)]
    found, _ = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", transformer=flux()))
    assert [_keys(claim) for claim in found] == [order]


@pytest.mark.parametrize("with_base", [False, True])
def test_the_two_transformers_of_wan_lie_in_two_files_of_ai_toolkit(with_base: bool, tmp_path: Path):
    """Retyped from extensions_built_in/diffusion_models/wan22/wan22_14b_model.py, save_lora: the same keys in both files."""
    parts = [
        factors(wan(), lambda path, at=at: f"transformer$$transformer_{at}$${path.replace('.', '$$')}", ("WanTransformerBlock",)) for at in (1, 2)
    ]
    save(tmp_path / "run", [parts[0] + parts[1]])
    order = []
    for at, (word, part) in enumerate(zip(("high", "low"), parts), 1):
        keys = [
            name.replace(f"transformer$$transformer_{at}$$", "diffusion_model.")
            .replace("$$", ".")
            .replace("lora_down", "lora_A")
            .replace("lora_up", "lora_B")
            for name, _ in part
        ]
        save_file({key: tensor.detach().clone() for key, (_, tensor) in zip(keys, part)}, tmp_path / "run" / f"me_000000030_{word}_noise.safetensors")
        order += [key.replace("diffusion_model.", f"diffusion_model.transformer_{at}.") for key in keys]
    raw = read(str(tmp_path / "run" / "optimizer.pt"))
    adapter = for_state(read_adapter(str(tmp_path / "run" / "me_000000030_low_noise.safetensors")), raw)
    assert "were trained together" in adapter.assumed[-1]
    base = write_pipeline(tmp_path / "base", transformer=wan(), transformer_2=wan()) if with_base else None
    question = Question(raw=raw, adapter=adapter, base=None if base is None else str(base))
    found, lost = claims(question, sources={"skeleton" if with_base else "convention"})
    assert order in [_keys(claim) for claim in found], lost


@pytest.mark.parametrize("algo", ["lokr", "loha", "locon"])
def test_lycoris_order_is_the_models_with_each_modules_tensors_as_registered(algo: str, tmp_path: Path):
    import lycoris

    lycoris.LycorisNetwork.apply_preset({"target_module": ["Attention", "FeedForward", "ResnetBlock2D"]})
    net = lycoris.create_lycoris(unet(), 1.0, linear_dim=2, linear_alpha=1, algo=algo, use_tucker=True, conv_dim=2, factor=2)
    net.apply_to()
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    order = save(tmp_path / "run", [named], beside=[name for name in net.state_dict() if name.endswith(".alpha")])
    found, reason = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet()))
    assert order in [_keys(claim) for claim in found], reason


def test_another_models_configuration_makes_no_claim(tmp_path: Path):
    save(tmp_path / "run", [factors(unet(), lambda path: _kohya("lora_unet", path))])
    found, reason = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", transformer=flux()))
    assert not found
    assert "of the adapter's keys lie in none of transformer (FluxTransformer2DModel)" in reason


def test_a_text_encoder_that_is_not_at_hand_is_asked_for(tmp_path: Path):
    text = factors(text_encoder(), lambda path: _kohya("lora_te", path))
    save(tmp_path / "run", [text, factors(unet(), lambda path: _kohya("lora_unet", path))])
    found, reason = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet()) / "unet")
    assert not found
    assert "give the whole pipeline's folder" in reason


def test_a_model_of_other_widths_makes_no_claim(tmp_path: Path):
    save(tmp_path / "run", [factors(text_encoder(), lambda path: f"text_encoder.{path}") + factors(unet(), lambda path: f"unet.{path}")])
    found, reason = _ask(tmp_path / "run", write_pipeline(tmp_path / "base", unet=unet(), text_encoder=text_encoder(hidden=16)))
    assert not found
    assert "another base model?" in reason


def test_a_whole_unet_is_named_by_the_config_beside_its_weights(tmp_path: Path):
    model = unet()
    model.save_pretrained(tmp_path / "unet")
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    question = Question(raw=read(str(tmp_path / "optimizer.pt")), adapter=read_adapter(str(tmp_path / "unet")))
    found, _ = claims(question, sources={"skeleton"})
    assert [list(claim.names) for claim in found] == [[name for name, _ in model.named_parameters()]]


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_whole_models_that_were_trained_together_are_joined(together: bool, accelerate: bool, tmp_path: Path):
    """diffusers' scripts save a folder a model; accelerate numbers the files: model.safetensors, model_1.safetensors."""
    models = {"unet": unet(), "text_encoder": text_encoder()}
    leads = ("", "") if accelerate else ("unet.", "text_encoder.")
    base = write_pipeline(tmp_path / "base", **models)
    run = tmp_path / "run"
    run.mkdir()
    for at, (name, model) in enumerate(models.items()):
        if accelerate:
            save_model(model, str(run / f"model{f'_{at}' if at else ''}.safetensors"))
        else:
            model.save_pretrained(run / name)
    groups = [list(model.parameters()) for model in models.values()]
    groups = [[parameter for group in groups for parameter in group]] if together else groups
    optimizer = torch.optim.AdamW([{"params": group, "lr": 1e-3 / (at + 1)} for at, group in enumerate(groups)])
    for parameter in (one for group in groups for one in group):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), run / "optimizer.bin")
    raw = read(str(run / "optimizer.bin"))
    adapter = for_state(read_adapter(str(run / ("model.safetensors" if accelerate else "unet"))), raw)
    found, lost = claims(Question(raw=raw, adapter=adapter, base=str(base)), sources={"skeleton"})
    live = [lead + name for lead, model in zip(leads, models.values()) for name, _ in model.named_parameters()]
    assert live in [list(claim.names) for claim in found], lost
    assert accelerate or "2 models were trained together" in adapter.contested[0]
    if not accelerate:  # no file holds these keys either
        assert "2 models were trained together" in repair(str(run), base=str(base), names="file").ordering.assumed[0]
        (tmp_path / "live.txt").write_text("\n".join(name for model in models.values() for name, _ in model.named_parameters()))
        given = repair(str(run), order=str(tmp_path / "live.txt")).ordering
        assert all(key is not None and key.endswith(name) for key, name in zip(given.keys, given.names) if name is not None)


@pytest.mark.parametrize("with_base", [False, True])
def test_adapters_of_two_components_in_folders_of_their_own_are_joined(with_base: bool, tmp_path: Path):
    """diffusers' RealFill and PEFT's DreamBooth script save a PeftModel for each component: the folder is no adapter's name."""
    models = {"unet": unet(), "text_encoder": text_encoder()}
    base = write_pipeline(tmp_path / "base", **models) if with_base else None
    targets = {"unet": ["to_q", "to_k", "to_v"], "text_encoder": ["q_proj", "v_proj"]}
    tuned = {name: peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets[name])) for name, model in models.items()}
    groups = [[p for p in model.parameters() if p.requires_grad] for model in tuned.values()]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    for parameter in (one for group in groups for one in group):
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, model in tuned.items():
        model.save_pretrained(str(tmp_path / "run" / name))
    torch.save(optimizer.state_dict(), tmp_path / "run" / "optimizer.bin")
    raw = read(str(tmp_path / "run" / "optimizer.bin"))
    adapter = for_state(read_adapter(str(tmp_path / "run" / "unet")), raw)
    assert "2 adapters were trained together" in adapter.contested[0]
    question = Question(raw=raw, adapter=adapter, base=None if base is None else str(base))
    found, lost = claims(question, sources={"skeleton" if with_base else "convention"})
    live = [f"{name}.{inner}" for name, model in tuned.items() for inner, p in model.named_parameters() if p.requires_grad]
    assert live in [list(claim.names) for claim in found], lost


def test_a_model_beside_another_that_was_not_trained_stays_alone(tmp_path: Path):
    unet().save_pretrained(tmp_path / "unet")
    text_encoder().save_pretrained(tmp_path / "text_encoder")
    optimizer = torch.optim.AdamW(unet().parameters())
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    adapter = for_state(read_adapter(str(tmp_path / "unet")), read(str(tmp_path / "optimizer.bin")))
    assert not adapter.assumed
    assert "conv_in.weight" in adapter.tensors


def test_a_class_that_diffusers_does_not_have_is_said(tmp_path: Path):
    save(tmp_path / "run", [factors(unet(), lambda path: f"unet.{path}")])
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "NobodysModel"}))
    found, reason = _ask(tmp_path / "run", tmp_path / "unet")
    assert not found
    assert "the installed diffusers has no model NobodysModel" in reason


def test_without_a_configuration_the_way_is_named(tmp_path: Path):
    save(tmp_path / "run", [factors(unet(), lambda path: f"unet.{path}")])
    found, reason = _ask(tmp_path / "run", None)
    assert not found
    assert "pass --base DIR (the pipeline's folder" in reason
