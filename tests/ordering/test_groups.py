"""One row for each maker of groups. Where its library is here, it made the optimizer; else the groups are made by hand, as its source says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch

from ostate.core.naming import Question
from ostate.ordering import claims, heuristic_orders
from ostate.ordering.grouping import norms
from ostate.ordering.grouping.place import said
from ostate.ordering.grouping.refute import refute_groups
from ostate.ordering.grouping.rules import RULES
from ostate.read import read
from ostate.read.adapters import read_adapter
from tests import real
from tests.ordering import tiny
from tests.ordering.tiny import CAUSAL, llama, opt
from tests.records import replace

Model = torch.nn.Module
Groups = list[dict[str, Any]]


def _own(model: Model) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _adamw(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-3)


def _deal(model: Model, *tests: Callable[[str, torch.nn.Parameter], bool]) -> list[list[torch.nn.Parameter]]:
    dealt: list[list[torch.nn.Parameter]] = [[] for _ in range(len(tests) + 1)]
    for name, parameter in _own(model):
        dealt[next((at for at, test in enumerate(tests) if test(name, parameter)), len(tests))].append(parameter)
    return dealt


def trainer(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(str(tmp_path / "run"), report_to=[], weight_decay=0.1)
    return Trainer(model=model, args=arguments).create_optimizer()


def galore_of_trainer(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    targets = {id(parameter) for name, parameter in _own(model) if parameter.ndim == 2 and ("attn" in name or "mlp" in name)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in targets]
    return _adamw([{"params": rest}, {"params": [parameter for parameter in model.parameters() if id(parameter) in targets], "rank": 2}])


def peft_loraplus(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    from peft.optimizers import create_loraplus_optimizer

    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)


def factory_loraplus(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    apart, b, a = _deal(model, lambda name, _: "lora_embedding_B" in name, lambda name, one: "lora_B" in name or one.ndim == 1)
    names = {id(parameter): name for name, parameter in _own(model)}
    yes = [one for one in b if "bias" not in names[id(one)]]
    no = [one for one in b if "bias" in names[id(one)]]
    return _adamw([
        {"params": a, "lr": 1e-4, "weight_decay": 0.1}, {"params": yes, "lr": 1e-3, "weight_decay": 0.1},
        {"params": no, "lr": 1e-3, "weight_decay": 0.0}, {"params": apart, "lr": 1e-6, "weight_decay": 0.1},
    ])  # fmt: skip


def no_decay_first(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    no, yes = _deal(model, lambda name, _: "bias" in name)
    return _adamw([{"params": no, "weight_decay": 0.0}, {"params": yes, "weight_decay": 0.1}])


def axolotl(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    apart, no, yes = _deal(
        model,
        lambda name, _: "embed_tokens" in name or "lm_head" in name or name.endswith("modules_to_save.default.weight"),
        lambda name, _: "bias" in name,
    )
    groups = [{"params": yes, "weight_decay": 0.1}, {"params": apart, "weight_decay": 0.0, "lr": 1e-5}, {"params": no, "weight_decay": 0.0}]
    return _adamw([group for group in groups if group["params"]])


def unsloth(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    apart, rest = _deal(model, lambda name, _: name.endswith("modules_to_save.default.weight"))
    return _adamw([{"params": rest}, {"params": apart, "lr": 1e-5}])


def swift(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    """ms-swift's optimizers/multimodal.py: tower, aligner, the rest; what does not decay first, empty ones dropped."""
    groups: Groups = []
    for rate, part in enumerate(_deal(model, lambda name, _: "vision_tower" in name, lambda name, _: "multi_modal_projector" in name), 1):
        for decays in (False, True):
            mine = [p for name, p in _own(model) if any(p is one for one in part) and ("bias" not in name) == decays]
            groups += [{"params": mine, "weight_decay": 0.1 * decays, "lr": 1e-4 * rate}] if mine else []
    return _adamw(groups)


def nano_gpt(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    matrices, vectors = _deal(model, lambda _, one: one.ndim >= 2)
    return _adamw([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])


def timm(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    vectors, matrices = _deal(model, lambda _, one: one.ndim <= 1)
    return _adamw([{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}])


def plain(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    return tiny.trainables(model)


def all_parameters(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def each_alone(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    return _adamw([{"params": [parameter], "lr": 1e-4 * (at + 1)} for at, (_, parameter) in enumerate(_own(model))])


def late(model: Model, tmp_path: Path) -> torch.optim.Optimizer:
    first, rest = _deal(model, lambda name, _: ".layers.1." in name)
    optimizer = _adamw([{"params": first}])
    optimizer.add_param_group({"params": rest, "lr": 1e-5})
    return optimizer


def _qwen3() -> Model:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen3ForCausalLM(Qwen3Config(**size, num_key_value_heads=2, head_dim=8))


def _llava() -> Model:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**size, image_size=16, patch_size=8, projection_dim=16)
    text = LlamaConfig(**size, vocab_size=64, num_key_value_heads=2)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=63))


LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], **CAUSAL}
BIAS = {**LORA, "bias": "all"}
SAVED = {**LORA, "modules_to_save": ["lm_head", "embed_tokens"]}
NORM = {**LORA, "modules_to_save": ["norm"]}
EMBEDDED = {**LORA, "target_modules": ["q_proj", "embed_tokens"], "bias": "all"}


class Row(NamedTuple):
    """A maker: its optimizer, the adapter under it, what the claim must say, and whether only a guess can name it."""

    maker: Callable[[Model, Path], torch.optim.Optimizer]
    lora: dict[str, Any]
    rule: str
    model: Callable[[], Model] = llama
    source: str = "skeleton"


MAKERS: dict[str, Row] = {
    "plain": Row(plain, LORA, "one group of all trainables"),
    "all_parameters": Row(all_parameters, LORA, "one group of all parameters, frozen too"),
    "trainer": Row(trainer, LORA, "Trainer"),
    "trainer_bias": Row(trainer, BIAS, "Trainer", opt),
    "trainer_norm": Row(trainer, NORM, "Trainer"),
    "trainer_norm_by_name": Row(trainer, {**LORA, "modules_to_save": ["q_norm"]}, "Trainer of transformers >= 4.53", _qwen3),
    "trainer_saved": Row(trainer, SAVED, "Trainer"),
    "peft_loraplus": Row(peft_loraplus, LORA, "LoRA+ of peft"),
    "peft_loraplus_embedded": Row(peft_loraplus, EMBEDDED, "LoRA+ of peft", opt),
    "factory_loraplus": Row(factory_loraplus, EMBEDDED, "LoRA+ of LLaMA-Factory", opt),
    "no_decay_first": Row(no_decay_first, BIAS, "LLaMA-Factory BAdam, PPO", opt),
    "axolotl": Row(axolotl, {**BIAS, "modules_to_save": ["lm_head"]}, "axolotl", opt),
    "unsloth": Row(unsloth, SAVED, "Unsloth"),
    "swift": Row(swift, {**BIAS, "target_modules": ["q_proj", "v_proj", "linear_1"]}, "ms-swift", _llava),
    "nano_gpt": Row(nano_gpt, {**LORA, "use_dora": True}, "nanoGPT"),
    "timm": Row(timm, {**LORA, "use_dora": True}, "timm"),
    "each_alone": Row(each_alone, LORA, "one group for each parameter"),
    "late": Row(late, SAVED, "two groups by hand", source="convention"),
    "galore_of_trainer": Row(galore_of_trainer, LORA, "GaLore", source="convention"),
}


@pytest.mark.parametrize("maker", sorted(MAKERS))
@pytest.mark.filterwarnings("ignore")
def test_one_claim_gives_the_order_this_maker_made(maker: str, tmp_path: Path):
    row = MAKERS[maker]
    model = peft.get_peft_model(row.model(), peft.LoraConfig(**row.lora))
    made = tiny.write(tmp_path, model, row.maker(model, tmp_path))
    found, _ = made.ask()
    right = [claim for claim in found if tiny.agree(claim, made) and row.rule in claim.rule and claim.source == row.source]
    assert right, [(claim.source, claim.rule) for claim in found]
    tiny.assert_keys_hold_the_live_values(right[0], made)


@pytest.mark.parametrize("name", real.names("one-process"))
@pytest.mark.filterwarnings("ignore")
def test_the_order_of_every_real_case_is_among_the_claims(name: str):
    case = real.case(name)
    if (case.must_refuse and name != "neg_wrong_run") or name == "plain_sorted_names":
        pytest.skip("its state cannot be read, or only its numbers know the order")
    raw = read(str(case.state))
    found, _ = claims(Question(raw=raw, adapter=read_adapter(str(case.adapter)), base=str(case.base)))
    truth = {row["index"]: row["name"] for row in case.truth}
    assert found
    for claim in found:
        assert all(claim.names[entry.position] == truth[entry.position] for entry in raw.entries if entry.has_state), claim.rule


@pytest.mark.filterwarnings("ignore")
def test_sorted_names_fit_every_shape_so_the_claim_is_wrong_and_only_numbers_can_say_so():
    case = real.case("plain_sorted_names")
    found, _ = claims(Question(raw=read(str(case.state)), adapter=read_adapter(str(case.adapter)), base=str(case.base)))
    assert {claim.source for claim in found} == {"skeleton", "convention"}


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_sorted_names_are_among_the_guesses(with_base: bool):
    case = real.case("plain_sorted_names")
    raw, adapter = read(str(case.state)), read_adapter(str(case.adapter))
    if not with_base:
        adapter = replace(adapter, config={})
    found = heuristic_orders(Question(raw=raw, adapter=adapter, base=str(case.base) if with_base else None))
    assert {claim.source for claim in found} == {"convention"}
    assert [row["name"] for row in case.truth] in [list(claim.names) for claim in found]


@pytest.mark.filterwarnings("ignore")
def test_a_second_group_that_decays_is_not_trainers(tmp_path: Path):
    model = peft.get_peft_model(opt(), peft.LoraConfig(**BIAS))
    yes, no = _deal(model, lambda name, _: "bias" not in name)
    made = tiny.write(tmp_path, model, _adamw([{"params": yes, "weight_decay": 0.1}, {"params": no, "weight_decay": 0.1}]))
    found, lost = made.ask()
    assert tiny.from_skeleton(found) == []
    assert any("its group 1 has no weight decay, the file's has 0.1" in loser["reason"] for loser in lost)


@pytest.mark.filterwarnings("ignore")
def test_groups_with_two_learning_rates_are_not_trainers(tmp_path: Path):
    model = peft.get_peft_model(opt(), peft.LoraConfig(**BIAS))
    yes, no = _deal(model, lambda name, _: "bias" not in name)
    made = tiny.write(tmp_path, model, _adamw([{"params": yes, "lr": 1e-3, "weight_decay": 0.0}, {"params": no, "lr": 1e-4, "weight_decay": 0.0}]))
    _, lost = made.ask()
    assert any("one learning rate" in loser["reason"] and "Trainer" in loser["rule"] for loser in lost)


@pytest.mark.filterwarnings("ignore")
def test_guesses_are_conventions_and_wait_until_no_other_rule_fits(tmp_path: Path):
    model = peft.get_peft_model(llama(), peft.LoraConfig(**LORA))
    made = tiny.write(tmp_path, model, plain(model, tmp_path))
    found, _ = made.ask()
    assert not any("sorted" in claim.rule or "by hand" in claim.rule for claim in found)


@pytest.mark.filterwarnings("ignore")
def test_state_at_a_frozen_position_refutes(tmp_path: Path):
    model = peft.get_peft_model(llama(), peft.LoraConfig(**LORA))
    made = tiny.write(tmp_path, model, all_parameters(model, tmp_path))
    raw = made.raw
    trained = next(entry for entry in raw.entries if entry.has_state)
    moved = tuple(replace(entry, slots=trained.slots, shape=entry.shape) if entry.position == 0 else entry for entry in raw.entries)
    found, lost = claims(Question(raw=replace(raw, entries=moved), adapter=made.adapter(), base=str(made.folder / "base")))
    assert tiny.from_skeleton(found) == []
    assert any("is frozen" in loser["reason"] for loser in lost)


def test_a_version_stamp_prefers_trainers_own_era():
    case = real.case("llama_save_norms@tf457")
    raw = read(str(case.state))
    adapter = read_adapter(str(case.adapter))
    stamped = replace(adapter, facts={"transformers_version": "4.57.1"})
    by_trainer = replace(raw, facts={**raw.facts, "global_step": 5})
    with_stamp, _ = claims(Question(raw=by_trainer, adapter=stamped, base=str(case.base)), ["skeleton"])
    without, _ = claims(Question(raw=by_trainer, adapter=adapter, base=str(case.base)), ["skeleton"])
    assert [claim.version_matched for claim in with_stamp] == [True]
    assert [claim.version_matched for claim in without] == [False]


def test_every_release_of_transformers_has_exactly_one_rule_of_trainer():
    spans = [rule.span for rule in RULES if rule.family == "Trainer"]
    for minor in range(60):
        assert sum(span.holds((4, minor)) for span in spans if span) == 1
    assert sum(span.holds((5, 23)) for span in spans if span) == 1


def test_every_rule_says_where_it_was_read():
    assert all(rule.source for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_neighbouring_releases_are_told_as_one():
    rules = [rule for rule in RULES if rule.family == "Trainer" and rule.span and rule.span.since >= norms.E1]
    assert said(rules) == "Trainer (transformers >= 4.26)"
    assert said(rules[:1]) == f"Trainer of transformers {rules[0].span.text}"


def test_empty_groups_count():
    case = real.case("llama_qv")
    raw = read(str(case.state))
    assert refute_groups(raw, [12, 0]) is None
    assert refute_groups(raw, [12]) == "it makes 1 group, the file has 2"
    assert refute_groups(raw, [0, 12]) == "its groups hold [0, 12] parameters, the file's [12, 0]"


def test_min_gpt_sorts_names_and_its_embeddings_do_not_decay(tmp_path: Path):
    """mingpt/model.py, `configure_optimizers`; XTTS took it over."""
    parts = {"wte": torch.nn.Embedding(9, 4), "wpe": torch.nn.Embedding(7, 4), "time_embed": torch.nn.Sequential(torch.nn.Linear(4, 4))}
    model = torch.nn.ModuleDict({**parts, "ln": torch.nn.LayerNorm(4), "c_attn": torch.nn.Linear(4, 12), "b_proj": torch.nn.Linear(12, 4)})
    rest = {name for name, _ in model.named_parameters() if name.endswith("bias") or name.startswith(("wte", "wpe", "ln"))}
    names = dict(model.named_parameters())
    order = [sorted(names.keys() - rest), sorted(rest)]
    optimizer = _adamw([{"params": [names[name] for name in group], "weight_decay": 0.1 * (1 - at)} for at, group in enumerate(order)])
    for parameter in names.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "best_model.pth")
    file = str(tmp_path / "best_model.pth")
    found, _ = claims(Question(raw=read(file), adapter=read_adapter(file)))
    assert [name for group in order for name in group] in [list(claim.names) for claim in found]
