"""Several adapters lie with one state: the numbers say whose it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from ostate.commands.repair import names, repair
from ostate.errors import Contradiction, OstateError
from tests import trained


def lora(**options):
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=True, **options)


def steps(model, optimizer, many: int, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(many):
        ids = torch.randint(0, 12, (8, 12), generator=draw)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def tuned(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)


def live(optimizer, model) -> list[str]:
    by = {p: name for name, p in model.named_parameters()}
    return [by[p] for group in optimizer.param_groups for p in group["params"]]


def save(folder: Path, model, optimizer, **options) -> Path:
    model.save_pretrained(str(folder), **options)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """(folder, live names): `policy` was trained, `reference` beside it never was; neither is called default."""
    torch.manual_seed(1)
    model = peft.get_peft_model(trained.llama(4), lora(), adapter_name="reference")
    model.add_adapter("policy", lora())
    model.set_adapter("policy")
    optimizer = tuned(model)
    steps(model, optimizer, 12)
    return save(tmp_path_factory.mktemp("policy") / "checkpoint-12", model, optimizer), live(optimizer, model)


@pytest.fixture(scope="module")
def going_on(tmp_path_factory):
    """(folder, live names): an adapter that goes on training, as TRL does it: a frozen copy of its start lies in `ref`."""
    torch.manual_seed(2)
    model = peft.get_peft_model(trained.llama(4), lora())
    steps(model, tuned(model), 12)
    model.add_adapter("ref", lora())
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in weights.items():
            if ".ref." in name:
                p.copy_(weights[name.replace(".ref.", ".default.")])
    model.set_adapter("default")
    optimizer = tuned(model)
    steps(model, optimizer, 20, seed=5)
    return save(tmp_path_factory.mktemp("trl") / "checkpoint-20", model, optimizer), live(optimizer, model)


def test_of_two_siblings_the_one_that_the_numbers_explain_is_named(policy):
    folder, right = policy
    found, settled = names(str(folder))
    assert [name for _, name, _ in found] == right
    assert settled


def test_asking_for_a_sibling_that_explains_less_is_refused_and_the_other_one_named(policy):
    with pytest.raises(Contradiction, match="'policy' beside it") as error:
        repair(str(policy[0]), adapter_name="reference")
    assert "--adapter-name policy" in error.value.fix
    with pytest.raises(Contradiction):
        repair(str(policy[0]), adapter=str(policy[0] / "reference"))


def test_an_adapter_that_was_never_trained_proves_nothing(policy, tmp_path):
    shutil.copytree(policy[0] / "reference", tmp_path / "lora")
    shutil.copy(policy[0] / "optimizer.pt", tmp_path)
    with pytest.raises(OstateError, match="never trained"):
        repair(str(tmp_path), adapter=str(tmp_path / "lora"))


def test_the_adapter_in_the_folder_itself_is_taken_before_the_frozen_copy_below_it(going_on):
    folder, right = going_on
    for options in ({}, {"adapter_name": "default"}, {"adapter": str(folder)}):
        done = repair(str(folder), **options)
        assert list(done.named.parameters) == right
        assert any(finding.rule == "adapter-chosen" and "ref" in finding.text for finding in done.findings) or options
    with pytest.raises(Contradiction, match="'default' beside it"):
        repair(str(folder), adapter_name="ref")


def test_adapters_trained_together_are_joined_unasked(tmp_path):
    torch.manual_seed(3)
    model = peft.get_peft_model(trained.llama(3), lora(), adapter_name="sql")
    model.add_adapter("chat", lora())
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    optimizer = tuned(model)
    for turn in range(40):
        model.set_adapter(["sql", "chat"][turn % 2])
        for name, p in model.named_parameters():
            p.requires_grad_("lora_" in name)
        steps(model, optimizer, 1, seed=turn)
    model.get_base_model().config.save_pretrained(tmp_path / "base")
    done = repair(str(save(tmp_path / "both", model, optimizer)), base=str(tmp_path / "base"))
    right = dict(zip(range(99), live(optimizer, model)))
    assert {p.position: name for name, p in done.named.parameters.items()} == right
    assert not any(finding.rule == "name-assumed" for finding in done.findings)


def test_a_named_adapter_whose_folder_was_copied_says_that_its_name_is_assumed(policy, tmp_path):
    shutil.copytree(policy[0] / "policy", tmp_path / "lora")
    shutil.copy(policy[0] / "optimizer.pt", tmp_path / "lora")
    done = repair(str(tmp_path / "lora"))
    (said,) = [finding for finding in done.findings if finding.rule == "name-assumed"]
    assert set(said.names) == set(done.named.parameters)
    assert "--adapter-name" in said.fix
    assert done.ordering.assumed
    told = repair(str(tmp_path / "lora"), adapter_name="policy")
    assert list(told.named.parameters) == policy[1]
    assert told.ordering.assumed == ()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin", "lora.safetensors"])
def test_a_damaged_adapter_to_the_side_is_no_matter_of_this_checkpoint(policy, tmp_path, file):
    """It may be of another run, and still be being written."""
    place = tmp_path / "one" / "checkpoint-12"
    place.mkdir(parents=True)
    shutil.copy(policy[0] / "optimizer.pt", place)
    (tmp_path / "one" / "other").mkdir()
    (tmp_path / "one" / "other" / file).write_bytes(b"x" * 100)
    (place / "order.txt").write_text("\n".join(policy[1]))
    assert set(repair(str(place), order=str(place / "order.txt")).named.parameters) == set(policy[1])


class PolicyAndValue(torch.nn.Module):
    """TRL's `PolicyAndValueWrapper` (trl 0.25 experimental/ppo) with a LoRA on either model: PEFT calls both `default`."""

    def __init__(self) -> None:
        super().__init__()
        base = trained.llama(4)
        value = LlamaForSequenceClassification(LlamaConfig(**{**base.config.to_dict(), "num_labels": 1}))
        self.policy = peft.get_peft_model(base, lora())
        self.value_model = peft.get_peft_model(value, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"))

    def loss_of(self, ids: torch.Tensor) -> torch.Tensor:
        inner = self.value_model.base_model.model
        value = inner.score(inner.model(input_ids=ids).last_hidden_state).squeeze(-1)
        return self.policy(input_ids=ids, labels=ids).loss + (value - (ids % 7) / 7).pow(2).mean()


def test_of_a_policys_and_a_critics_adapter_that_one_optimizer_trained_the_folders_own_is_named_and_the_other_said(tmp_path):
    torch.manual_seed(6)
    model = PolicyAndValue()
    optimizer = tuned(model)
    draw = torch.Generator().manual_seed(0)
    for _ in range(12):
        optimizer.zero_grad()
        model.loss_of(torch.randint(0, 12, (8, 12), generator=draw)).backward()
        optimizer.step()
    model.policy.save_pretrained(str(tmp_path))
    model.value_model.save_pretrained(str(tmp_path / "value"))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    names_live = dict(enumerate(live(optimizer, model)))
    done = repair(str(tmp_path))
    assert {p.position: f"policy.{name}" for name, p in done.named.parameters.items()}.items() <= names_live.items()
    assert len(done.named.parameters) == 16
    (said,) = [finding for finding in done.findings if finding.rule == "adapter-chosen"]
    assert "other positions are those of" in said.text
    done = repair(str(tmp_path), adapter=str(tmp_path / "value"))
    assert {p.position: f"value_model.{name}" for name, p in done.named.parameters.items()}.items() <= names_live.items()
    assert len(done.named.parameters) == 17
    assert done.ordering.assumed
