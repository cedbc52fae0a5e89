"""A state of a part of what the adapter holds: one of two optimizers, or one vector that all modules share."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from ostate.commands.repair import repair
from tests import trained

PARTS = {
    "lora_A": lambda name: "lora_A" in name,
    "lora_B": lambda name: "lora_B" in name,
    "the adapter": lambda name: "lora_" in name,
    "the head": lambda name: "lora_" not in name,
    "all but lora_B": lambda name: "lora_B" not in name,
    "all but lora_A": lambda name: "lora_A" not in name,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    base = trained.llama(3)
    folder = tmp_path_factory.mktemp("base")
    base.save_pretrained(folder)
    base.name_or_path = str(folder)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(base, lora)


def steps(model, optimizers, many: int) -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(many):
        ids = torch.randint(0, 12, (8, 12), generator=draw)
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize(("one", "other"), [("lora_A", "all but lora_A"), ("lora_B", "all but lora_B"), ("the adapter", "the head")])
def test_each_of_two_optimizers_is_named_by_the_kind_of_parameter_it_was_given(model, tmp_path: Path, one: str, other: str):
    own = {part: {name: p for name, p in model.named_parameters() if p.requires_grad and PARTS[part](name)} for part in (one, other)}
    optimizers = {part: torch.optim.AdamW(parameters.values(), lr=1e-3) for part, parameters in own.items()}
    steps(model, optimizers.values(), 3)
    model.save_pretrained(tmp_path)
    for part, optimizer in optimizers.items():
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        done = repair(str(tmp_path))
        assert list(done.named.parameters) == list(own[part])
        for name, parameter in own[part].items():
            assert torch.equal(torch.from_numpy(done.named.tensor(name, "exp_avg_sq")), optimizer.state[parameter]["exp_avg_sq"]), name


def test_the_one_vector_of_unilora_bears_the_first_modules_name(tmp_path: Path):
    base = trained.llama(2)
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = peft.get_peft_model(base, peft.UniLoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    steps(model, [optimizer], 2)
    model.save_pretrained(tmp_path / "run")
    torch.save(optimizer.state_dict(), tmp_path / "run" / "optimizer.pt")
    done = repair(str(tmp_path / "run"))
    assert list(done.named.parameters) == [name for name, p in model.named_parameters() if p.requires_grad]
