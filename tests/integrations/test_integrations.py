"""What is written for tomorrow is read back as the truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch

from ostate.commands.record import FILE, names_of, record_names
from ostate.errors import OrderingError
from ostate.read import read
from tests.ordering import tiny
from tests.ordering.tiny import CAUSAL, TARGETS, llama


def _model() -> torch.nn.Module:
    return peft.get_peft_model(llama(), peft.LoraConfig(r=2, **TARGETS, **CAUSAL))


def test_names_follow_the_optimizers_groups_and_order():
    model = _model()
    b, a = [[parameter for name, parameter in model.named_parameters() if word in name] for word in ("lora_B", "lora_A")]
    found = names_of(torch.optim.AdamW([{"params": b[::-1]}, {"params": a}]), model)
    assert [len(group) for group in found] == [4, 4]
    assert found[0][0].endswith("layers.1.self_attn.v_proj.lora_B.default.weight")
    assert all(".lora_A." in name for name in found[1])


def test_wrappers_do_not_reach_the_names():
    model = _model()
    optimizer = tiny.trainables(model)
    assert names_of(optimizer, torch.nn.ModuleDict({"module": model})) == names_of(optimizer, model)
    assert names_of(optimizer, torch.compile(model)) == names_of(optimizer, model)


def test_a_parameter_of_another_model_is_refused_with_its_place():
    with pytest.raises(OrderingError) as error:
        names_of(tiny.trainables(_model()), _model())
    assert error.value.where == "param_groups[0]['params'][0]"


def test_recorded_names_are_the_claim_that_outranks_the_rest(tmp_path: Path):
    model = _model()
    optimizer = torch.optim.AdamW(sorted((one for one in model.parameters() if one.requires_grad), key=lambda one: -one.shape[0]), lr=1e-3)
    made = tiny.write(tmp_path, model, optimizer)
    path = record_names(optimizer, model, tmp_path)
    assert Path(path).name == FILE
    assert json.loads(Path(path).read_text()) == made.names
    found, _ = made.ask()
    assert (found[0].source, found[0].rule, list(found[0].names)) == ("recorded", FILE, made.flat)


@pytest.mark.filterwarnings("ignore")
def test_the_callback_writes_names_into_every_checkpoint_of_the_real_trainer(tmp_path: Path):
    from transformers import Trainer, TrainingArguments

    from ostate.integrations import RecordNames

    model = _model()
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(4)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[RecordNames()])
    trainer.train()
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        assert json.loads((folder / FILE).read_text()) == names_of(trainer.optimizer, model)
        raw = read(str(folder / "optimizer.pt"))
        assert [entry.name for entry in raw.entries] == [name for group in names_of(trainer.optimizer, model) for name in group]


def test_names_are_recorded_where_transformers_is_not_installed(tmp_path):
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch, ostate.integrations as integrations\n"
        "model = torch.nn.Linear(2, 2)\n"
        f"integrations.record_names(torch.optim.AdamW(model.parameters()), model, {str(tmp_path)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert json.loads((tmp_path / FILE).read_text()) == [["weight", "bias"]]
