"""One row for each PEFT method and option: the rebuilt model must name every position as the live optimizer does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch

from ostate.commands.repair import repair
from ostate.errors import Ambiguous
from ostate.ordering.keys import known_live_name, live_name
from ostate.ordering.sources.convention import orders_by_convention
from ostate.ordering.sources.from_keys import trained_keys
from tests import trained
from tests.ordering import tiny
from tests.ordering.tiny import CAUSAL, TARGETS, llama, opt


class Row(NamedTuple):
    """A method: its configuration, the model under it, how many trained tensors its file does not hold."""

    config: Callable[[], Any]
    model: Callable[[], torch.nn.Module] = llama
    without_key: int = 0
    by_key: bool = True
    """False: a key of this method does not tell the live name by itself."""


def _lora(**options: Any) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(**{"r": 2, **TARGETS, **CAUSAL, **options})


def _tuner(kind: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(peft, kind)(**{**TARGETS, **CAUSAL, **options})


def _prompt(kind: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(peft, kind)(num_virtual_tokens=3, **CAUSAL, **options)


def _tied() -> torch.nn.Module:
    return llama(tie_word_embeddings=True)


METHODS: dict[str, Row] = {
    "lora": Row(_lora()),
    "lora_all_linear": Row(_lora(target_modules="all-linear")),
    "lora_regex": Row(_lora(target_modules=r".*\.(q|up)_proj")),
    "lora_rslora": Row(_lora(use_rslora=True)),
    "lora_dora": Row(_lora(use_dora=True)),
    "lora_pissa": Row(_lora(init_lora_weights="pissa")),
    "lora_olora": Row(_lora(init_lora_weights="olora")),
    "lora_bias_all": Row(_lora(bias="all"), opt),
    "lora_bias_lora_only": Row(_lora(bias="lora_only"), opt),
    "lora_lora_bias": Row(_lora(lora_bias=True), opt),
    "lora_patterns": Row(_lora(rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 9})),
    "lora_layers": Row(_lora(layers_to_transform=[1])),
    "lora_embeddings": Row(_lora(target_modules=["q_proj", "embed_tokens", "lm_head"])),
    "lora_embeddings_tied": Row(_lora(target_modules=["q_proj", "embed_tokens"]), _tied),
    "lora_save_head_and_embeddings": Row(_lora(modules_to_save=["lm_head", "embed_tokens"])),
    "lora_save_norms": Row(_lora(modules_to_save=["norm"])),
    "lora_save_tied": Row(_lora(modules_to_save=["lm_head", "embed_tokens"]), _tied),
    "lora_ensure_weight_tying": Row(_lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True), _tied),
    "lora_kasa": Row(_lora(kasa_config=peft.KasaConfig())),
    "lora_tokens": Row(_lora(trainable_token_indices=[1, 2, 3])),
    "lora_tokens_tied": Row(_lora(trainable_token_indices=[1, 2, 3]), _tied),
    "trainable_tokens": Row(lambda: peft.TrainableTokensConfig(token_indices=[1, 2], **CAUSAL)),
    "adalora": Row(_tuner("AdaLoraConfig", init_r=4, target_r=2, total_step=10, tinit=1, tfinal=2)),
    "loha": Row(_tuner("LoHaConfig", r=2)),
    "lokr": Row(_tuner("LoKrConfig", r=2)),
    "oft": Row(_tuner("OFTConfig", oft_block_size=4)),
    "boft": Row(_tuner("BOFTConfig", boft_block_size=4)),
    "ia3": Row(_tuner("IA3Config", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "vera": Row(_tuner("VeraConfig", r=4)),
    "vera_without_projection": Row(_tuner("VeraConfig", r=4, save_projection=False)),
    "vblora": Row(_tuner("VBLoRAConfig", r=2, num_vectors=8, vector_length=8, topk=2), by_key=False),
    "vblora_topk_only": Row(
        _tuner("VBLoRAConfig", r=2, num_vectors=8, vector_length=8, topk=2, save_only_topk_weights=True), without_key=8, by_key=False
    ),
    "fourierft": Row(_tuner("FourierFTConfig", n_frequency=10)),
    "hra": Row(_tuner("HRAConfig", r=2)),
    "miss": Row(_tuner("MissConfig", r=2)),
    "ln_tuning": Row(_tuner("LNTuningConfig", target_modules=["input_layernorm", "norm"])),
    "prompt": Row(_prompt("PromptTuningConfig")),
    "prefix": Row(_prompt("PrefixTuningConfig")),
    "prefix_projected": Row(_prompt("PrefixTuningConfig", prefix_projection=True, encoder_hidden_size=16), without_key=5),
    "p_tuning": Row(_prompt("PromptEncoderConfig", encoder_hidden_size=16), without_key=7),
    "multitask_prompt": Row(_prompt("MultitaskPromptTuningConfig", num_tasks=2), by_key=False),
    "adaption_prompt": Row(lambda: peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=2, **CAUSAL)),
    "c3a": Row(_tuner("C3AConfig", block_size=4)),
    "randlora": Row(_tuner("RandLoraConfig", r=4)),
    "road": Row(_tuner("RoadConfig", group_size=4)),
    "shira": Row(_tuner("ShiraConfig", r=2)),
    "waveft": Row(_tuner("WaveFTConfig", n_frequency=10)),
    "delora": Row(_tuner("DeloraConfig", r=2)),
    "glora": Row(_tuner("GloraConfig", r=2)),
    "psoft": Row(_tuner("PsoftConfig", r=4)),
    "osf": Row(_tuner("OSFConfig")),
    "supertuning": Row(_tuner("SupertuningConfig")),
    "tinylora": Row(_tuner("TinyLoraConfig"), by_key=False),
}
BY_CONVENTION = (
    "delora", "glora", "psoft", "osf", "supertuning", "randlora", "vera", "loha", "lokr", "adalora", "lora_dora", "lora_kasa", "c3a", "hra", "road",
)  # fmt: skip
"""Methods whose own tensors a convention must order, and whose file may hold fixed ones beside them."""


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.filterwarnings("ignore")
def test_the_rebuilt_model_names_every_position_of_this_method(method: str, tmp_path: Path):
    row = METHODS[method]
    torch.manual_seed(0)
    model = peft.get_peft_model(row.model(), row.config())
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    found, _ = made.ask()
    own = tiny.from_skeleton(found)
    assert len(own) == 1
    assert list(own[0].names) == made.flat
    assert sum(key is None for key in own[0].keys) == row.without_key
    tiny.assert_keys_hold_the_live_values(own[0], made)
    if row.by_key:
        adapter = made.adapter()
        assert [live_name(key, adapter) for key in own[0].keys if key is not None] == [
            name for name, key in zip(made.flat, own[0].keys) if key is not None
        ]


@pytest.mark.parametrize("method", BY_CONVENTION)
@pytest.mark.filterwarnings("ignore")
def test_without_a_base_model_the_convention_orders_this_methods_tensors_as_the_live_model_does(method: str, tmp_path: Path):
    torch.manual_seed(0)
    model = peft.get_peft_model(llama(), METHODS[method].config())
    adapter = tiny.write(tmp_path, model, tiny.trainables(model)).adapter()
    orders = orders_by_convention(trained_keys(adapter))
    assert not isinstance(orders, str), orders
    live = [name for name, param in model.named_parameters() if param.requires_grad]
    assert live in [[live_name(key, adapter) for key in keys] for _, keys in orders]


@pytest.mark.filterwarnings("ignore")
def test_montecloras_samplers_which_peft_leaves_out_on_the_meta_device_are_ordered_by_convention(tmp_path: Path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, monteclora_config=peft.MontecloraConfig(num_samples=2, buffer_size=1), **TARGETS, **CAUSAL)
    model = peft.get_peft_model(llama(), config)
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    found, _ = made.ask()
    assert tiny.from_skeleton(found) == []
    assert made.flat in [list(claim.names) for claim in found]
    assert any("lora_monteclora_sampler.default.std_prior" in name for name in made.flat)


@pytest.mark.filterwarnings("ignore")
def test_the_vectors_that_all_modules_of_tinylora_share_bear_no_name_of_their_file(tmp_path: Path):
    """The live model lists them under its first module; the file, under none."""
    torch.manual_seed(0)
    adapter = tiny.write(tmp_path, model := peft.get_peft_model(llama(), peft.TinyLoraConfig(**TARGETS, **CAUSAL)), tiny.trainables(model)).adapter()
    assert {known_live_name(key, adapter) for key in trained_keys(adapter)} == {None}


@pytest.mark.filterwarnings("ignore")
def test_a_method_that_cannot_be_rebuilt_is_left_to_the_others_with_a_reason(tmp_path: Path):
    model = peft.get_peft_model(llama(), peft.C3AConfig(block_size=4, **TARGETS, **CAUSAL))
    made = tiny.write(tmp_path, model, tiny.trainables(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "block_size": 5}))
    found, lost = made.ask()
    assert tiny.from_skeleton(found) == []
    assert any("cannot be rebuilt" in loser["reason"] for loser in lost if loser["source"] == "skeleton")


@pytest.mark.filterwarnings("ignore")
def test_a_diagonal_between_the_factors_keeps_balance_from_being_asked_and_the_order_is_proven_without_it(tmp_path: Path):
    torch.manual_seed(0)
    model = peft.get_peft_model(trained.llama(6), peft.LoraConfig(r=4, kasa_config=peft.KasaConfig(), **TARGETS, **CAUSAL))
    trainables = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainables, lr=3e-3)
    for row in trained.sequences(12, 0):
        optimizer.zero_grad()
        model(**{key: value[None] for key, value in row.items()}).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found = repair(str(tmp_path)).ordering
    assert list(found.names) == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert found.verdict == "verified"
    assert found.evidence is not None
    assert "diagonal" in found.evidence.silent["balance"]
    assert not any(finding.rule == "module-stands-apart" for finding in found.findings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["prompt", "prefix", "p_tuning"])
def test_a_prompt_that_is_the_only_trained_tensor_needs_no_base_model_unless_a_network_stands_behind_it(method: str, tmp_path: Path):
    torch.manual_seed(0)
    model = peft.get_peft_model(llama(), METHODS[method].config())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    ids = torch.randint(3, 60, (2, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.peft_config["default"].base_model_name_or_path = "nobody/nothing"
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    if method == "p_tuning":
        with pytest.raises(Ambiguous) as error:
            repair(str(tmp_path))
        assert "--base DIR" in error.value.fix
    else:
        found = repair(str(tmp_path)).ordering
        assert (list(found.names), found.verdict) == (names, "unverified")
