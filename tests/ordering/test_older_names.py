"""Adapters whose keys an older transformers wrote, rebuilt by the maps that the installed one keeps."""

from __future__ import annotations

import re
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.ordering import tiny

pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 64}
PICTURES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 28, "patch_size": 14}
MROPE = {"type": "mrope", "mrope_section": [1, 1, 2]}
LLAVA = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector": "multi_modal_projector",
}
"""What transformers 4.52 renamed (modeling_llava.py, `_checkpoint_conversion_mapping`): the new beginning and the old one."""
OLDER = {
    "llava": ("Llava", {"text_config": {"model_type": "llama", **TEXT}, "vision_config": {"model_type": "clip_vision_model", **PICTURES}}, LLAVA),
    "paligemma": (
        "PaliGemma",
        {"text_config": {"model_type": "gemma", **TEXT}, "vision_config": {"model_type": "siglip_vision_model", **PICTURES}},
        LLAVA,
    ),
    "qwen2_vl": (
        "Qwen2VL",
        {"text_config": {**TEXT, "rope_scaling": MROPE}, "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}},
        {"model.language_model.": "model.", "model.visual.": "visual."},
    ),
}


def older(name: str, renamed: dict[str, str]) -> str:
    bare = name.removeprefix("base_model.model.")
    new = next((start for start in renamed if bare.startswith(start)), "")
    return "base_model.model." + renamed.get(new, "") + bare.removeprefix(new)


def with_older_keys(folder: Path, model: torch.nn.Module, rename) -> tiny.Made:
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "qkv", "linear_1"]))
    made = tiny.write(folder, wrapped, tiny.trainables(wrapped))
    path = folder / "adapter_model.safetensors"
    save_file({rename(key): tensor for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return made


@pytest.mark.parametrize("model", sorted(OLDER))
def test_the_older_names_of_a_vision_language_model_are_those_of_its_adapter(model: str, tmp_path: Path):
    kind, options, renamed = OLDER[model]
    config = getattr(transformers, f"{kind}Config")(**options)
    built = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    made = with_older_keys(tmp_path, built, lambda key: older(key, renamed))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == [older(name, renamed) for name in made.flat]
    assert set(claim.keys) == set(load_file(tmp_path / "adapter_model.safetensors"))
    assert "as an older release called them" in claim.rule


def test_the_layers_of_vit_before_transformers_5(tmp_path: Path):
    words = {"q": "query", "k": "key", "v": "value"}

    def rename(name: str) -> str:
        return re.sub(r"layers\.(\d+)\.attention\.([qkv])_proj", lambda at: f"encoder.layer.{at[1]}.attention.attention.{words[at[2]]}", name)

    made = with_older_keys(tmp_path, transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURES)), rename)
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == [rename(name) for name in made.flat]


@pytest.mark.parametrize("version", [None, "4.57.1", "5.23.0"])
def test_the_head_of_xlm_roberta_stands_behind_the_model_before_transformers_5(tmp_path: Path, version: str | None):
    config = transformers.XLMRobertaConfig(**{word: size for word, size in TEXT.items() if word != "num_key_value_heads"})
    model = transformers.XLMRobertaForSequenceClassification(config)
    assert next(iter(dict(model.named_children()))) == "classifier"
    head = model._modules.pop("classifier")
    if version != "5.23.0":
        model._modules["classifier"] = head  # as releases before 5 define it
    else:
        model._modules = {"classifier": head, **model._modules}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))
    made = tiny.write(tmp_path, wrapped, tiny.trainables(wrapped))
    if version is not None:
        card = tmp_path / "README.md"
        card.write_text(f"{card.read_text()}\n### Framework versions\n\n- Transformers {version}\n")
    own = [list(claim.names) for claim in tiny.from_skeleton(made.ask()[0])]
    assert own == [made.flat]


def test_names_that_no_release_ever_wrote_are_not_explained(tmp_path: Path):
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURES))
    made = with_older_keys(tmp_path, model, lambda key: key.replace(".layers.", ".floors."))
    found, lost = made.ask()
    assert tiny.from_skeleton(found) == []
    assert any("it names its modules differently" in loser["reason"] for loser in lost)
