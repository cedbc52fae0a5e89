"""The rebuilt model: where it finds its configuration, what it understands, when it stands aside, what it keeps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from ostate.core.naming import Question
from ostate.errors import OrderingError
from ostate.ordering import claims
from ostate.ordering.keys import live_name
from ostate.ordering.sources.rebuilt import base_config as base
from ostate.ordering.sources.rebuilt import cache
from ostate.ordering.sources.rebuilt.listed import Answer, ListedModel, ListedParameter, NotBuilt, Request
from ostate.read import read
from ostate.read.adapters import for_state, read_adapter
from tests import real
from tests.ordering import tiny
from tests.ordering.tiny import CAUSAL, TARGETS, llama, opt
from tests.records import replace

pytestmark = pytest.mark.filterwarnings("ignore")


def _lora(**options: object) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 2, **TARGETS, **CAUSAL, **options})


def _gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def _mixtral() -> torch.nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MixtralForCausalLM(MixtralConfig(**size, num_key_value_heads=2, num_local_experts=4))


def _bert() -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**size, max_position_embeddings=16, num_labels=5))


def _resnet() -> torch.nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))


ARCHITECTURES = {
    "gpt2_conv1d": (_gpt2, _lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "mixtral_experts": (
        _mixtral,
        _lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], lora_dropout=0.0),
    ),
    "bert_classifier": (_bert, peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")),
    "resnet_conv2d": (_resnet, peft.LoraConfig(r=2, target_modules=["convolution"], modules_to_save=["classifier"])),
}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_architectures_of_every_kind_are_rebuilt(architecture: str, tmp_path: Path):
    model, config = ARCHITECTURES[architecture]
    made = tiny.write(tmp_path, wrapped := peft.get_peft_model(model(), config), tiny.trainables(wrapped))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat
    assert all(claim.keys)
    tiny.assert_keys_hold_the_live_values(claim, made)


def test_another_number_of_labels_than_the_base_models_is_no_obstacle(tmp_path: Path):
    model = peft.get_peft_model(_bert(), ARCHITECTURES["bert_classifier"][1])
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    for word in ("num_labels", "id2label", "label2id"):
        config.pop(word, None)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat


def test_a_resized_vocabulary_is_no_obstacle(tmp_path: Path):
    model = llama()
    config = model.config.to_dict()
    model.resize_token_embeddings(70)
    wrapped = peft.get_peft_model(model, _lora(modules_to_save=["embed_tokens", "lm_head"]))
    made = tiny.write(tmp_path, wrapped, tiny.trainables(wrapped))
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat


def test_a_quantised_base_model_needs_no_quantisation_library(tmp_path: Path):
    model = peft.get_peft_model(llama(), _lora())
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}))
    assert len(tiny.from_skeleton(made.ask()[0])) == 1


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "compressed-tensors", "hqq", "torchao", "a method of tomorrow"])
def test_no_way_to_quantise_the_base_hinders_the_rebuild(method: str, tmp_path: Path):
    model = peft.get_peft_model(llama(), _lora())
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": method, "bits": 4, "group_size": 128}}))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat


def test_the_reason_is_that_of_the_class_which_the_configuration_names(tmp_path: Path):
    model = peft.get_peft_model(llama(), _lora(task_type=None))
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 32, "architectures": ["LlamaForCausalLM"]}))
    _, lost = claims(Question(raw=made.raw, adapter=made.adapter(), base=str(tmp_path / "base")), ["skeleton"])
    assert lost[0]["reason"].startswith("LlamaForCausalLM gives ")


def test_an_adapter_of_a_compiled_model_is_named_as_the_model_itself(tmp_path: Path):
    model = peft.get_peft_model(llama(), _lora())
    model.base_model.model = torch.compile(model.base_model.model, backend="eager")
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    assert all("_orig_mod" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat
    assert None not in claim.keys


def test_an_adalora_after_its_budget_is_named_by_what_training_had(tmp_path: Path):
    options = {"init_r": 6, "target_r": 2, "total_step": 9, "tinit": 1, "tfinal": 2, "deltaT": 1, **TARGETS, **CAUSAL}
    model = peft.get_peft_model(llama(), peft.AdaLoraConfig(**options))
    optimizer = tiny.trainables(model)
    for step in range(9):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        model.base_model.update_and_allocate(step + 1)
    assert model.peft_config["default"].rank_pattern
    made = tiny.write(tmp_path, model, optimizer)
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat


def test_the_classifier_of_x_lora_is_named_beside_its_frozen_adapters(tmp_path: Path):
    for name in ("one", "two"):
        peft.get_peft_model(llama(), _lora()).save_pretrained(str(tmp_path / name))
    base = llama(use_cache=False)
    config = peft.XLoraConfig(hidden_size=16, xlora_depth=2, xlora_size=8, adapters={name: str(tmp_path / name) for name in ("one", "two")}, **CAUSAL)
    model = peft.get_peft_model(base, config)
    made = tiny.write(tmp_path / "made", model, tiny.trainables(model))
    path = tmp_path / "made" / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_cache": True}))
    found, lost = made.ask()
    own = tiny.from_skeleton(found)
    assert [list(claim.names) for claim in own] == [made.flat], lost


def test_remote_code_is_never_run(tmp_path: Path):
    model = peft.get_peft_model(llama(), _lora())
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    path = tmp_path / "base" / "config.json"
    marker = tmp_path / "ran"
    (tmp_path / "base" / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    found, lost = made.ask()
    assert tiny.from_skeleton(found) == []
    assert any("does not know the model type 'evil'" in loser["reason"] for loser in lost)
    assert not marker.exists()


def test_a_model_that_the_installed_release_names_differently_stands_aside_and_says_so(tmp_path: Path):
    case = real.case("vit_classifier")
    folder = tmp_path / "checkpoint"
    shutil.copytree(case.state.parent, folder)
    from safetensors.torch import save_file

    tensors = load_file(case.adapter)
    old = {key.replace(".layers.", ".encoder.layer.").replace(".attention.", ".attention.attention."): tensor for key, tensor in tensors.items()}
    save_file(old, folder / "adapter_model.safetensors")
    found, lost = claims(Question(raw=read(str(case.state)), adapter=read_adapter(str(folder)), base=str(case.base)), ["skeleton"])
    assert found == []
    assert "of the installed transformers" in lost[0]["reason"]


def test_an_adapter_of_another_size_stands_aside_with_both_shapes(tmp_path: Path):
    model = peft.get_peft_model(llama(), _lora())
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 32}))
    found, lost = made.ask()
    assert tiny.from_skeleton(found) == []
    assert any("has [2, 16]" in loser["reason"] for loser in lost)


def test_no_configuration_at_hand_says_what_to_pass(tmp_path: Path):
    case = real.case("llama_qv")
    adapter = replace(read_adapter(str(case.adapter)), config={"base_model_name_or_path": "nobody/nothing", "peft_type": "LORA"})
    found, lost = claims(Question(raw=read(str(case.state)), adapter=adapter), ["skeleton"])
    assert found == []
    assert "'nobody/nothing' is neither a local folder nor in the local Hugging Face cache: pass --base DIR" in lost[0]["reason"]


def test_a_base_that_holds_no_configuration_is_an_error(tmp_path: Path):
    case = real.case("llama_qv")
    with pytest.raises(OrderingError, match="no model configuration found"):
        base.find_config(Question(raw=read(str(case.state)), adapter=read_adapter(str(case.adapter)), base=str(tmp_path)))


def test_the_configuration_is_found_in_the_local_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = real.case("llama_qv")
    place = tmp_path / "hub" / "models--some--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    shutil.copy(case.base / "config.json", place / "snapshots" / "abc" / "config.json")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    adapter = replace(read_adapter(str(case.adapter)), config={"base_model_name_or_path": "some/model"})
    found = base.find_config(Question(raw=read(str(case.state)), adapter=adapter))
    assert found[1] == str(place / "snapshots" / "abc" / "config.json")


def test_the_configuration_is_found_beside_the_checkpoint():
    case = real.case("llama_qv")
    found = base.find_config(Question(raw=read(str(case.state)), adapter=read_adapter(str(case.adapter))))
    assert os.path.samefile(found[1], case.base / "config.json")


@pytest.mark.parametrize("cut", ["", "base_model.model."])
def test_an_adapter_that_transformers_itself_added_is_named_as_it_is_known_to_be_live(cut: str, tmp_path: Path):
    model = llama()
    model.add_adapter(peft.LoraConfig(r=2, modules_to_save=["lm_head"], **TARGETS))
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    adapter = replace(made.adapter(), cut=cut)
    (claim,) = tiny.from_skeleton(made.ask(adapter)[0])
    wanted = [name if cut else f"base_model.model.{name}" for name in made.flat]
    assert list(claim.names) == wanted
    assert [live_name(str(key), adapter) for key in claim.keys] == wanted
    assert made.flat[0] == "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert all(claim.keys)


def test_dora_of_peft_0_9_to_0_11_has_one_name_in_every_claim(tmp_path: Path):
    model = peft.get_peft_model(llama(), _lora(use_dora=True))
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    old = replace(made.adapter(), facts={"peft_version": "0.11.1"})
    names = {claim.names for claim in made.ask(old)[0]}
    assert names == {tuple(name.removesuffix(".weight") if "magnitude" in name else name for name in made.flat)}


def test_a_start_that_needs_a_tokenizer_is_not_asked_for(tmp_path: Path):
    model = peft.get_peft_model(llama(), peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL))
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    path = tmp_path / "adapter_config.json"
    start = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "be kind", "tokenizer_name_or_path": "nobody/nothing"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **start}))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat


def test_plain_fine_tuning_needs_no_adapter(tmp_path: Path):
    model = llama(tie_word_embeddings=True)
    made = tiny.write(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat
    assert all(claim.keys)
    tiny.assert_keys_hold_the_live_values(claim, made)


def test_a_sharded_model_is_one_set_of_weights(tmp_path: Path):
    model = llama()
    made = tiny.write(
        tmp_path, model, torch.optim.AdamW(model.parameters(), lr=1e-3), save=lambda one, to: one.save_pretrained(str(to), max_shard_size="4KB")
    )
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert list(claim.names) == made.flat
    tiny.assert_keys_hold_the_live_values(claim, made)


def _two(tmp_path: Path, train: list[str], **options: object) -> tiny.Made:
    model = peft.get_peft_model(opt(), _lora(**options))
    model.add_adapter("aaa", _lora(r=3, **options))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(f".{adapter}." in name for adapter in train)
    return tiny.write(tmp_path, model, tiny.trainables(model))


@pytest.mark.parametrize("train", [["default"], ["aaa"], ["default", "aaa"]])
def test_of_two_adapters_one_or_both_may_be_trained(train: list[str], tmp_path: Path):
    made = _two(tmp_path, train)
    asked = made.adapter(None if train[0] == "default" else "aaa")
    found = tiny.from_skeleton(made.ask(asked)[0])
    assert [claim for claim in found if list(claim.names) == made.flat], [claim.rule for claim in found]


@pytest.mark.parametrize("options", [{}, {"use_dora": True, "modules_to_save": ["final_layer_norm"]}])
@pytest.mark.parametrize("asked", [None, "aaa"])
def test_adapters_trained_together_have_keys_once_they_are_joined(asked: str | None, options: dict, tmp_path: Path):
    made = _two(tmp_path, ["default", "aaa"], **options)
    alone = made.adapter(asked)
    both = for_state(alone, made.raw)
    assert set(both.tensors) > set(alone.tensors)
    found = [claim for claim in tiny.from_skeleton(made.ask(both)[0]) if list(claim.names) == made.flat]
    assert found
    assert all(found[0].keys)
    tiny.assert_keys_hold_the_live_values(found[0], made, both)
    assert [live_name(str(key), both) for key in found[0].keys] == made.flat


def test_an_adapter_that_was_trained_alone_is_not_joined(tmp_path: Path):
    made = _two(tmp_path, ["aaa"])
    alone = made.adapter("aaa")
    assert for_state(alone, made.raw) is alone


def test_the_second_repair_of_an_adapter_imports_neither_peft_nor_torch(tmp_path: Path):
    model = peft.get_peft_model(llama(), _lora())
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    made.ask()
    script = (
        "import sys\nfrom ostate.read import read\nfrom ostate.read.adapters import read_adapter\n"
        "from ostate.core.naming import Question\nfrom ostate.ordering import claims\n"
        f"found, _ = claims(Question(raw=read({str(tmp_path / 'optimizer.pt')!r}), adapter=read_adapter({str(tmp_path)!r}),"
        f" base={str(tmp_path / 'base')!r}))\nprint(found[0].source, *({{'torch', 'peft', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "skeleton"


def asked(value: object) -> Request:
    return Request("Model", {"value": repr(value)}, (("default", {"r": 4}),), "default")


ONE = '{"parameters": [["a", "k", [1], ["default"], [], false]], "others": [], "free": [], "versions": {}}'


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[1]", b"null", b'{"parameters": [[1]]}', b"\xff", b'{"failed": 1}', b"[" * 100_000,
        *(ONE.replace(right, wrong).encode() for right, wrong in (
            ('"a"', "1"), ('"k"', "[]"), ("[1]", '["1"]'), ("[1]", "[-1]"), ("[1]", "[true]"), ('["default"]', '"default"'), ('["default"]', "[1]"),
            ("false", "0"), ('"others": []', '"others": [1]'), ('"free": []', '"free": {}'), ('"versions": {}', '"versions": []'),
        )),
    ],
)  # fmt: skip
def test_a_damaged_cache_is_built_anew(content: bytes):
    answer = ListedModel((ListedParameter("a", None, (1,), ("default",), (), False),), (), (), ())
    request = Request("Damaged", {"damaged": content.decode("latin-1")}, (), "default")
    cache.keep(request, answer)
    newest = max(Path(cache.folder()).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(content)
    assert cache.kept(request) is None
    cache.keep(request, answer)
    assert cache.kept(request) == answer


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.keep(asked(1), NotBuilt("why"))
    assert cache.kept(asked(1)) is None


def test_other_configurations_are_other_skeletons():
    cache.keep(asked(1), NotBuilt("one"))
    cache.keep(asked(2), NotBuilt("two"))
    assert (cache.kept(asked(1)), cache.kept(asked(2))) == (NotBuilt("one"), NotBuilt("two"))


@pytest.mark.parametrize(
    "answer",
    [
        NotBuilt("why"),
        NotBuilt("too much", hopeless=True),
        ListedModel(
            (ListedParameter("m.a", "k", (2, 3), ("one", "two"), ("LlamaRMSNorm",), True), ListedParameter("b", None, (), (), (), False)),
            ("inv_freq",),
            (2, 32000),
            (("peft", "0.19"), ("torch", "2.9")),
        ),
    ],
)
def test_what_is_kept_comes_back_as_it_was(answer: Answer):
    request = asked(repr(answer))
    assert cache.kept(request) is None
    cache.keep(request, answer)
    assert cache.kept(request) == answer


def test_a_model_for_images_and_text_is_rebuilt_where_its_configuration_names_no_class(tmp_path: Path):
    """Its adapters say CAUSAL_LM, and the text model alone has none of their keys."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": 64, **small, "num_key_value_heads": 2}
    vision = {"model_type": "clip_vision_model", **small, "image_size": 28, "patch_size": 14}
    model = peft.get_peft_model(
        LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision)), peft.LoraConfig(r=2, **TARGETS, **CAUSAL)
    )
    model.get_base_model().config.architectures = None
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    (claim,) = tiny.from_skeleton(made.ask()[0])
    assert tiny.agree(claim, made)
