"""Real models of transformers of which only a part was trained, without an adapter or beside one: the live optimizer's names, or a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ostate.commands.repair import Repaired, repair, verify
from ostate.errors import Ambiguous, CheckError
from ostate.evidence.moved import moved
from ostate.read import read
from ostate.read.adapters import read_adapter
from tests.ordering import tiny

SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(vocab_size=64, max_position_embeddings=20, num_labels=3, **SIZE))


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **SIZE))


def as_pretrained(model: Any) -> Any:
    """Norms that are no longer ones and zeros, as those of every pretrained model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def loss_of(model: Any) -> torch.Tensor:
    if hasattr(model.config, "image_size"):
        return model(pixel_values=torch.randn(4, 3, 8, 8, dtype=model.dtype), labels=torch.randint(0, 3, (4,))).loss
    ids = torch.randint(0, 64, (4, 8))
    return model(input_ids=ids, labels=ids if "CausalLM" in type(model).__name__ else torch.randint(0, 3, (4,))).loss


def trained(
    folder: Path, model: Any, trains: Callable[[str], Any], *, groups: str = "one", rate: float = 1e-3, steps: int = 3, save: bool = True
) -> list[str]:
    """Train what `trains` chooses by name, save it as Trainer does, and its start beside it; return the live optimizer's names."""
    if save:
        model.save_pretrained(folder / "base")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(trains(name)))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decays = [(name, parameter) for name, parameter in named if "bias" not in name and "norm" not in name.lower()]
    parts = [named] if groups == "one" else [decays, [pair for pair in named if pair not in decays]]
    optimizer = torch.optim.AdamW([{"params": [one for _, one in part], "weight_decay": 0.01 * (part is parts[0])} for part in parts], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return [name for part in parts for name, _ in part]


def named(found: Repaired) -> list[str | None]:
    return list(found.ordering.names)


PARTS = {
    "embeddings frozen": "encoder|classifier|pooler",
    "the last layer and the head": r"layer\.2\.|classifier",
    "two layers, not neighbours": r"layer\.[02]\.",
    "biases": r"bias$",
    "norms": "LayerNorm",
    "the head": "classifier",
    "queries and values": "query|value",
}


@pytest.mark.parametrize("groups", ["one", "Trainer"])
@pytest.mark.parametrize("part", PARTS)
def test_what_moved_since_the_base_model_tells_which_part_was_trained(part, groups, tmp_path):
    names = trained(tmp_path, as_pretrained(bert()), re.compile(PARTS[part]).search, groups=groups)
    assert named(repair(str(tmp_path), base=str(tmp_path / "base"))) == names


def test_an_earlier_save_of_the_run_tells_it_as_well(tmp_path):
    names = trained(tmp_path, as_pretrained(bert()), re.compile("query").search)
    assert named(repair(str(tmp_path), previous=str(tmp_path / "base"))) == names


@pytest.mark.parametrize("part", ["embeddings frozen", "the head"])
def test_shapes_that_one_part_alone_has_need_no_base_model(part, tmp_path):
    names = trained(tmp_path, as_pretrained(bert()), re.compile(PARTS[part]).search)
    assert named(repair(str(tmp_path))) == names


@pytest.mark.parametrize("part", ["the last layer and the head", "biases", "queries and values"])
def test_shapes_that_several_parts_have_are_refused_and_the_base_models_weights_asked_for(part, tmp_path):
    trained(tmp_path, as_pretrained(bert()), re.compile(PARTS[part]).search, groups="Trainer")
    with pytest.raises(Ambiguous, match="--base or --previous with weights") as error:
        repair(str(tmp_path))
    assert "--base DIR" in error.value.fix
    with pytest.raises(Ambiguous):
        repair(str(tmp_path), base=str(tmp_path / "config.json"))


def test_a_base_without_the_head_and_its_prefix_tells_it_as_well(tmp_path):
    model = as_pretrained(bert())
    model.bert.save_pretrained(tmp_path / "bare")
    names = trained(tmp_path, model, re.compile(PARTS["the last layer and the head"]).search)
    assert named(repair(str(tmp_path), base=str(tmp_path / "bare"))) == names


def blocks_in_turn(folder: Path) -> list[str]:
    """Train the first layer, then the second with a state of its own, as BAdam's BlockOptimizer does; save before the last steps too."""
    model = as_pretrained(bert())
    model.save_pretrained(folder / "base")
    trained(folder / "earlier", model, re.compile(r"layer\.0\.").search, save=False)
    trained(folder / "earlier", model, re.compile(r"layer\.1\.").search, save=False)
    return trained(folder, model, re.compile(r"layer\.1\.").search, save=False)


@pytest.mark.parametrize("with_base", [False, True])
def test_of_blocks_trained_in_turn_an_earlier_save_of_the_same_block_tells_which_with_a_base_model_or_without(with_base, tmp_path):
    names = blocks_in_turn(tmp_path)
    base = str(tmp_path / "base")
    assert named(repair(str(tmp_path), previous=str(tmp_path / "earlier"), base=base if with_base else None)) == names
    with pytest.raises(Ambiguous) as error:
        repair(str(tmp_path), base=base)
    assert any("blocks trained in turn" in why for why in error.value.why)
    assert "--previous" in error.value.fix


def test_a_state_that_was_emptied_where_blocks_change_was_not_saved_before_its_first_step(tmp_path):
    blocks_in_turn(tmp_path)
    state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    torch.save({**state, "state": {}}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckError) as early:
        repair(str(tmp_path))
    assert "before its first step" in early.value.fix
    (tmp_path / "trainer_state.json").write_text('{"global_step": 6}')
    with pytest.raises(CheckError, match="although the trainer counts 6 steps") as emptied:
        repair(str(tmp_path))
    assert "another checkpoint" in emptied.value.fix


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))}
    return WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=64, d_model=16, num_mel_bins=4, max_source_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    )


def test_parameters_that_a_model_never_trains_are_no_part_of_it(tmp_path):
    model = as_pretrained(whisper())  # freezes its encoder's positions
    model.save_pretrained(tmp_path / "base")
    part = [(name, one) for name, one in model.named_parameters() if "model.encoder.layers.1." in name]
    optimizer = torch.optim.AdamW([one for _, one in part])
    for _, one in part:
        one.grad = torch.randn_like(one)
    optimizer.step()
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert named(repair(str(tmp_path), base=str(tmp_path / "base"))) == [name for name, _ in part]


def test_another_base_model_from_which_everything_differs_names_nothing(tmp_path):
    trained(tmp_path, as_pretrained(bert()), re.compile(PARTS["biases"]).search)
    as_pretrained(bert()).save_pretrained(tmp_path / "other")
    with pytest.raises(Ambiguous, match="another base model"):
        repair(str(tmp_path), base=str(tmp_path / "other"))


def test_norms_that_are_still_ones_and_zeros_were_not_trained(tmp_path):
    names = trained(tmp_path, bert(), lambda name: name.endswith("bias") and "LayerNorm" not in name)
    assert named(repair(str(tmp_path))) == names


def test_after_a_single_step_which_a_warmup_takes_without_a_rate_nothing_is_said_to_stand_still(tmp_path):
    trained(tmp_path, bert(), re.compile("bias").search, steps=1)
    assert not moved(read(str(tmp_path / "optimizer.pt")), read_adapter(str(tmp_path)), None).unmoved


@pytest.mark.parametrize(("part", "certain"), [("encoder|pooler|classifier", True), (r"layer\.1\.", False)])
def test_a_trained_norm_whose_steps_bfloat16_rounds_away_is_not_taken_for_a_frozen_one(part, certain, tmp_path):
    names = trained(tmp_path, bert().to(torch.bfloat16), re.compile(part).search, rate=1e-4)
    found = moved(read(str(tmp_path / "optimizer.pt")), read_adapter(str(tmp_path)), read_adapter(str(tmp_path / "base")).tensors)
    assert "bert.encoder.layer.1.output.LayerNorm.weight" not in found.moved | found.unmoved
    if certain:
        assert named(repair(str(tmp_path), base=str(tmp_path / "base"))) == names
    else:
        with pytest.raises(Ambiguous):
            repair(str(tmp_path), base=str(tmp_path / "base"))


def test_a_base_in_float32_is_rounded_as_the_trained_weights_are_stored(tmp_path):
    model = as_pretrained(bert())
    model.save_pretrained(tmp_path / "base")
    names = trained(tmp_path, model.to(torch.bfloat16), re.compile("query").search, rate=1e-2, save=False)
    assert named(repair(str(tmp_path), base=str(tmp_path / "base"))) == names


@pytest.mark.parametrize("part", [".", "classifier|layernorm"])
def test_a_model_that_transformers_5_saved_under_keys_of_4_has_its_live_names(part, tmp_path):
    names = trained(tmp_path, as_pretrained(vit()), re.compile(part).search)
    assert any(name not in read_adapter(str(tmp_path)).tensors for name in names)
    out = str(tmp_path / "out.ostate.safetensors")
    found = repair(str(tmp_path), out, base=str(tmp_path / "base"))
    assert named(found) == names
    assert all(found.ordering.keys)
    again = verify(out, adapter=str(tmp_path))
    assert (list(again.names), again.keys) == (names, found.ordering.keys)
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert named(repair(str(tmp_path), order=str(tmp_path / "names.txt"))) == names


def mixture(kind: str) -> Any:
    import transformers

    sizes = {**SIZE, "num_key_value_heads": 2, "vocab_size": 64, "num_experts_per_tok": 2}
    experts = {"num_local_experts": 4} if kind == "Mixtral" else {"num_experts": 4, "moe_intermediate_size": 12, "decoder_sparse_step": 1}
    config = getattr(transformers, f"{kind}Config")(**sizes, **experts)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


@pytest.mark.parametrize("groups", ["one", "Trainer"])
@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_experts_that_are_fused_in_training_and_saved_one_by_one_have_their_live_names(kind, groups, tmp_path):
    names = trained(tmp_path, as_pretrained(mixture(kind)), lambda name: True, groups=groups)
    fused = {name for name in names if name.endswith(".mlp.experts.gate_up_proj")}
    assert fused
    assert not fused & set(read_adapter(str(tmp_path)).tensors)
    out = str(tmp_path / "out.ostate.safetensors")
    done = repair(str(tmp_path), out)
    assert named(done) == names
    assert fused <= set(done.ordering.undecided)
    assert list(verify(out, adapter=str(tmp_path)).names) == names


def test_experts_of_an_older_release_were_not_fused_when_they_were_trained(tmp_path):
    trained(tmp_path, mixture("Mixtral"), lambda name: True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_version": "4.50.0"}))
    with pytest.raises(Ambiguous):
        repair(str(tmp_path))


def test_a_model_that_transformers_4_saved_keeps_the_names_of_its_file(tmp_path):
    trained(tmp_path, vit(), lambda name: True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_version": "4.50.0"}))
    assert set(named(repair(str(tmp_path)))) == set(read_adapter(str(tmp_path)).tensors)


def lora(folder: Path, besides: str) -> list[str]:
    """Train a LoRA and, beside it, parameters of the model that PEFT does not save."""
    import peft

    base = tiny.llama()
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, **tiny.TARGETS, **tiny.CAUSAL))
    return trained(folder, model, re.compile(f"lora_|{besides}").search, save=False)


def test_a_head_that_is_one_tensor_with_the_saved_embedding_has_no_position_of_its_own(tmp_path):
    import peft

    torch.manual_seed(0)
    saved = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    model = peft.get_peft_model(tiny.llama(tie_word_embeddings=True), peft.LoraConfig(r=4, **saved, **tiny.TARGETS, **tiny.CAUSAL))
    names = trained(tmp_path, model, re.compile("lora_|modules_to_save").search, save=False, steps=8)
    assert {key for key in read_adapter(str(tmp_path)).tensors if "lora_" not in key} >= {"base_model.model.lm_head.weight"}
    assert named(repair(str(tmp_path))) == names


def test_norms_unfrozen_beside_a_lora_are_named_by_the_rebuilt_model(tmp_path):
    names = lora(tmp_path, "norm")
    found = repair(str(tmp_path), base=str(tmp_path / "base"))
    assert named(found) == names
    assert {name for name in names if "norm" in name} <= set(found.ordering.undecided)
    assert not found.settled


def test_one_of_two_matrices_of_a_shape_beside_a_lora_gets_no_name(tmp_path):
    lora(tmp_path, "embed_tokens")
    assert not [name for name in named(repair(str(tmp_path), base=str(tmp_path / "base"))) if name and "lora_" not in name]
