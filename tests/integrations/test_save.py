"""The Trainer callback that leaves named states behind: with the real Trainer, against its live optimizer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import ostate
from ostate.errors import OrderingError, OstateError
from ostate.integrations import NAMED
from ostate.probe import fill
from tests.ordering.tiny import CAUSAL, TARGETS, llama

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(16)]
MOMENTS = ("exp_avg", "exp_avg_sq")


def new_trainer(folder: Path, *callbacks):
    import peft
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(5)
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, lora_dropout=0.1, **TARGETS, **CAUSAL))
    arguments = TrainingArguments(
        str(folder), max_steps=6, save_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, weight_decay=0.1, report_to=[],
        use_cpu=True, disable_tqdm=True, save_total_limit=2, optim="adamw_torch",  # the kernel (fused or not) is not part of a named state
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=ROWS, callbacks=list(callbacks))


def live(trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Return a copy of the optimizer's state by the names of the live model."""
    return {name: copy.deepcopy(dict(trainer.optimizer.state[p])) for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, trainer at its end, live state at each save) of one run that saved three times and kept two."""
    from transformers import TrainerCallback

    from ostate.integrations import RecordNames, SaveNamed

    folder = tmp_path_factory.mktemp("run")
    seen = {}

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen[state.global_step] = live(trainer)

    trainer = new_trainer(folder, SaveNamed(), SaveNamed("../named/step-{step}.safetensors"), RecordNames(), Watch())
    trainer.train()
    return folder, trainer, seen


def test_every_save_holds_the_live_optimizer_bit_for_bit(run):
    folder, _, seen = run
    assert sorted(seen) == [2, 4, 6]
    for step, truth in seen.items():
        state = ostate.load(folder / "named" / f"step-{step}.safetensors")
        assert set(state.parameters) == set(truth)
        for name, slots in truth.items():
            assert state.parameters[name].step == step
            assert all(torch.equal(torch.from_numpy(state.tensor(name, slot)), slots[slot]) for slot in MOMENTS)


def test_the_file_in_the_checkpoint_is_sound_and_goes_with_it_when_the_trainer_removes_it(run):
    folder, *_ = run
    assert sorted(path.parent.name for path in folder.glob(f"checkpoint-*/{NAMED}")) == ["checkpoint-4", "checkpoint-6"]
    assert ostate.validate(str(folder / "checkpoint-6" / NAMED), deep=True) == []


def test_it_says_which_optimizer_it_was_with_which_settings(run):
    folder, *_ = run
    state = ostate.load(folder / "checkpoint-4" / NAMED)
    assert (state.optimizer, state.optimizer_class) == ("adamw", "torch.optim.adamw.AdamW")
    name = next(iter(state.parameters))
    assert state.hyper(name)["weight_decay"] == 0.1
    assert state.hyper(name)["lr"] == pytest.approx(1e-2 * 2 / 6)


def test_commands_on_the_checkpoint_go_on_taking_the_trainers_own_file(run, tmp_path):
    checkpoint = run[0] / "checkpoint-6"
    assert ostate.inspect(str(checkpoint)).raw.layout == "torch"
    ostate.repair(str(checkpoint), str(tmp_path / "repaired.safetensors"))
    compared = ostate.diff(str(tmp_path / "repaired.safetensors"), str(checkpoint / NAMED))
    assert (compared.only_a, compared.only_b) == ((), ())
    assert all(gap.equal for gap in compared.gaps)


def test_a_fresh_optimizer_filled_from_it_equals_the_live_one(run):
    folder, _, seen = run
    fresh = new_trainer(folder / "elsewhere")
    fresh.create_optimizer()
    fill(fresh.optimizer, fresh.model, ostate.load(folder / "checkpoint-6" / NAMED))
    names = dict(fresh.model.named_parameters())
    for name, slots in seen[6].items():
        there = fresh.optimizer.state[names[name]]
        assert float(there["step"]) == float(slots["step"])
        assert all(torch.equal(there[slot], slots[slot]) for slot in MOMENTS)


def test_the_real_trainer_resumes_from_it_as_if_it_had_never_stopped(run):
    folder, trainer, _ = run
    checkpoint = folder / "checkpoint-4"
    own = checkpoint / "optimizer.pt"
    own.unlink()
    ostate.export(str(checkpoint / NAMED), "torch", str(own))
    resumed = new_trainer(folder)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, slots in live(trainer).items():
        assert all(torch.equal(live(resumed)[name][slot], slots[slot]) for slot in MOMENTS)
    weights = dict(trainer.model.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in resumed.model.named_parameters())


def test_an_optimizer_of_another_model_is_refused_before_the_first_step(tmp_path):
    from ostate.integrations import SaveNamed

    trainer = new_trainer(tmp_path, SaveNamed())
    trainer.optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(OrderingError, match="not parameters of this model"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_search_over_hyperparameters_is_refused(tmp_path):
    from transformers import TrainerState

    from ostate.integrations import SaveNamed

    trainer = new_trainer(tmp_path)
    with pytest.raises(OstateError, match="trial"):
        SaveNamed().on_train_begin(trainer.args, TrainerState(is_hyper_param_search=True), trainer.control, optimizer=None, model=trainer.model)
