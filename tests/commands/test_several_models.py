"""One optimizer over several models, whose weights Accelerate saves in numbered files."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from accelerate import Accelerator

from ostate.commands.repair import repair
from ostate.errors import OrderingError
from tests import trained


class First(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = torch.nn.Linear(16, 32), torch.nn.Linear(32, 8)

    def forward(self, x):
        return self.narrow(self.wide(x).tanh())


class Second(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 24), torch.nn.Linear(24, 4)

    def forward(self, x):
        return self.down(self.up(x).tanh())


class Twin(torch.nn.Module):
    """Names of the first model, other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = torch.nn.Linear(8, 20), torch.nn.Linear(20, 4)

    def forward(self, x):
        return self.narrow(self.wide(x).tanh())


def save(folder: Path, second: torch.nn.Module, *, safe: bool) -> list[str]:
    torch.manual_seed(1)
    first = First()
    accelerator = Accelerator(cpu=True)
    one, other, optimizer = accelerator.prepare(first, second, torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=1e-2))
    for _ in range(6):
        optimizer.zero_grad()
        accelerator.backward(other(one(torch.randn(8, 16))).pow(2).mean())
        optimizer.step()
    accelerator.save_state(str(folder), safe_serialization=safe)
    shared = {name for name, _ in first.named_parameters()}
    lead = "pytorch_model_1."
    return [*(name for name, _ in first.named_parameters()), *((lead + name if name in shared else name) for name, _ in second.named_parameters())]


@pytest.mark.parametrize("second", [Second, Twin])
def test_the_models_of_one_optimizer_are_joined_in_the_order_of_their_files(tmp_path, second):
    names = save(tmp_path / "state", second(), safe=False)
    done = repair(str(tmp_path / "state"))
    assert {p.position: name for name, p in done.named.parameters.items()} == dict(enumerate(names))
    assert done.ordering.verdict == "unverified"
    assert bool(done.ordering.assumed) == (second is Twin)


def test_sorted_files_tell_no_order_of_several_models(tmp_path):
    save(tmp_path / "state", Second(), safe=True)
    with pytest.raises(OrderingError):
        repair(str(tmp_path / "state"))


def test_two_models_of_one_configuration_are_rebuilt_from_it_and_their_order_is_said_to_be_assumed(tmp_path):
    torch.manual_seed(0)
    models = [trained.llama(2), trained.llama(2)]
    accelerator = Accelerator(cpu=True)
    one, other, optimizer = accelerator.prepare(*models, torch.optim.AdamW([p for model in models for p in model.parameters()], lr=1e-3))
    for row in trained.sequences(6, 0):
        optimizer.zero_grad()
        batch = {name: value[None] for name, value in row.items()}
        accelerator.backward(one(**batch).loss + other(**batch).loss)
        optimizer.step()
    accelerator.save_state(str(tmp_path / "state"))
    models[0].config.save_pretrained(tmp_path / "base")
    names = [lead + name for lead, model in zip(("", "model_1."), models) for name, _ in model.named_parameters()]
    done = repair(str(tmp_path / "state"), base=str(tmp_path / "base"))
    assert list(done.ordering.names) == names
    assert not done.ordering.proven
    assert "in the order of their files" in done.ordering.assumed[0]
    with pytest.raises(OrderingError) as error:
        repair(str(tmp_path / "state"))
    assert "--base DIR" in error.value.fix


def test_the_second_optimizer_goes_with_the_second_model(tmp_path):
    """A policy and its critic, each with a LoRA and an optimizer of its own: the first model's weights fit the second state by shape too."""
    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    models = [peft.get_peft_model(trained.llama(6), peft.LoraConfig(**settings)) for _ in range(2)]
    optimizers = [torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3) for model in models]
    accelerator = Accelerator(cpu=True)
    one, other, *prepared = accelerator.prepare(*models, *optimizers)
    for row in trained.sequences(12, 0):
        batch = {name: value[None] for name, value in row.items()}
        accelerator.backward(one(**batch).loss + other(**batch).loss)
        for optimizer in prepared:
            optimizer.step()
            optimizer.zero_grad()
    accelerator.save_state(str(tmp_path / "state"))
    for number, model in enumerate(models):
        done = repair(str(tmp_path / "state"), optimizer=number)
        assert list(done.named.parameters) == [name for name, p in model.named_parameters() if p.requires_grad]
        assert done.ordering.verdict == "verified"
        assert done.named.adapter["file"] == ("model.safetensors", "model_1.safetensors")[number]
