"""States of many optimizers over one LoRA model: every name right, every slot the live one's, bit for bit."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb_functional
import numpy as np
import pytest
import schedulefree
import torch
import torchao.optim
from bitsandbytes import optim as bnb

import ostate
from ostate.commands.options import Options
from ostate.commands.repair import repair
from ostate.errors import ProbeError
from ostate.optimizers import OPTIMIZERS, step_of
from ostate.optimizers.moments import SECOND_MOMENTS, has_second_moment, second_moment
from ostate.probe import AdamPreconditioner, Guards
from tests import trained

OPT = torch.optim
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
CASES: dict[str, tuple[str, Make]] = {
    "AdamW": ("adamw", lambda p: OPT.AdamW(p, lr=1e-2)),
    "AdamW amsgrad": ("adamw", lambda p: OPT.AdamW(p, lr=1e-2, amsgrad=True)),
    "Adam": ("adam", lambda p: OPT.Adam(p, lr=1e-2)),
    "NAdam": ("nadam", lambda p: OPT.NAdam(p, lr=1e-2)),
    "RAdam": ("radam", lambda p: OPT.RAdam(p, lr=1e-2)),
    "Adamax": ("adamax", lambda p: OPT.Adamax(p, lr=1e-2)),
    "Adagrad": ("adagrad", lambda p: OPT.Adagrad(p, lr=1e-2)),
    "RMSprop": ("rmsprop", lambda p: OPT.RMSprop(p, lr=1e-2, momentum=0.9, centered=True)),
    "SGD": ("sgd", lambda p: OPT.SGD(p, lr=1e-2, momentum=0.9)),
    "Adafactor of torch": ("adafactor_torch", lambda p: OPT.Adafactor(p, lr=1e-2)),
    "Muon": ("muon", lambda p: OPT.Muon(p, lr=1e-2)),
    "bnb AdamW8bit": ("adam_bnb", lambda p: bnb.AdamW8bit(p, lr=1e-2)),
    "bnb AdamW": ("adam_bnb", lambda p: bnb.AdamW(p, lr=1e-2)),
    "bnb AdEMAMix8bit": ("ademamix_bnb", lambda p: bnb.AdEMAMix8bit(p, lr=1e-2)),
    "bnb Lion8bit": ("lion_bnb", lambda p: bnb.Lion8bit(p, lr=1e-3)),
    "torchao AdamW8bit": ("adam_torchao", lambda p: torchao.optim.AdamW8bit(p, lr=1e-2)),
    "torchao AdamW4bit": ("adam_torchao", lambda p: torchao.optim.AdamW4bit(p, lr=1e-2)),
    "torchao AdamWFp8": ("adam_torchao", lambda p: torchao.optim.AdamWFp8(p, lr=1e-2)),
    "AdamW schedule-free": ("adamw_schedulefree", lambda p: schedulefree.AdamWScheduleFree(p, lr=1e-2)),
    "transformers Adafactor": ("adafactor", lambda p: adafactor(p)),
}
BNB = {"exp_avg": ("1", 0), "exp_avg_slow": ("1", 1), "exp_avg_sq": ("2", 0)}
STEPS = 8


def adafactor(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(params, lr=1e-2, relative_step=False, beta1=0.9)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A LoRA of rank 32 on a hidden size of 128: every factor has 4096 elements, enough to be packed."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lora")
    model = trained.llama(4, hidden_size=128, intermediate_size=64)
    model.save_pretrained(folder / "base")
    return folder / "base", get_peft_model(model, LoraConfig(r=32, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def trained_by(make: Make, model: Any, folder: Path) -> tuple[Any, torch.optim.Optimizer]:
    """Train a copy of the model, save it as the Trainer would, and return both alive."""
    torch.compiler.set_stance("force_eager")
    model = copy.deepcopy(model)
    optimizer = make([param for param in model.parameters() if param.requires_grad])
    if hasattr(optimizer, "train"):
        optimizer.train()
    torch.manual_seed(1)
    for step in range(STEPS):
        rows = trained.sequences(4, seed=step)
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.compiler.set_stance("default")
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return model, optimizer


def live_slot(state: dict[str, Any], slot: str) -> torch.Tensor:
    """The library's own float32 of a slot."""
    if slot in state:
        return state[slot].dequantize() if hasattr(state[slot], "codes") else state[slot]
    number, layer = BNB[slot]
    codes, scale = state[f"state{number}"], state.get(f"absmax{number}")
    if codes.dim() == 3:
        codes, scale = codes[layer], None if scale is None else scale[layer]
    if codes.dtype != torch.uint8:
        return codes
    return bnb_functional.dequantize_blockwise(codes.contiguous(), absmax=scale.contiguous(), code=state[f"qmap{number}"], blocksize=256)


def preconditioned_as_it_is_told(state: Any) -> None:
    """The probe divides by the second moment's own form, or says why it does not."""
    form = SECOND_MOMENTS[OPTIMIZERS[state.optimizer].moment]
    if form.v is None:
        with pytest.raises(ProbeError, match=re.escape(form.why_not)):
            AdamPreconditioner(state)
        return
    probe = AdamPreconditioner(state, guards=Guards(relative_cap=None), precision="float64")
    assert bool([finding for finding in probe.findings if finding.rule == "second-moment-rebuilt"]) == bool(form.approximate)
    for name, named in state.parameters.items():
        tensors = {slot: state.tensor(name, slot) for slot in named.slots}
        moment = second_moment(state.optimizer, tensors, state.hyper(name), step=named.step, shape=named.shape)
        denominator = np.sqrt(moment.v / moment.correction) + moment.eps
        scale = probe.apply(name, torch.ones(named.shape, dtype=torch.float64)).numpy()
        known = moment.v > 0
        assert known.any()
        assert np.allclose((scale * denominator)[known], 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_every_name_is_right_and_every_slot_is_the_live_one(name, lora, tmp_path):
    row, make = CASES[name]
    base, start = lora
    model, optimizer = trained_by(make, start, tmp_path)
    done = repair(str(tmp_path), str(tmp_path / "named.safetensors"), options=Options(base=str(base)))
    state = ostate.load(str(tmp_path / "named.safetensors"))
    assert state.optimizer == row
    live = {key: param for key, param in model.named_parameters() if param.requires_grad}
    assert list(state.parameters) == list(live)
    if "exp_avg" in state.parameters[next(iter(live))].slots and "exp_avg_sq" in state.parameters[next(iter(live))].slots:
        assert done.ordering.verdict == "verified"
    for key, param in live.items():
        named = state.parameters[key]
        assert named.slots
        for slot in named.slots:
            wanted = live_slot(optimizer.state[param], slot).float().contiguous().numpy()
            assert state.tensor(key, slot).tobytes() == wanted.tobytes(), (key, slot)
        spec = OPTIMIZERS[row]
        if has_second_moment(spec):
            step = step_of(spec, named.step, state.hyper(key))
            assert step == STEPS
            tensors = {slot: state.tensor(key, slot) for slot in named.slots}
            moment = second_moment(row, tensors, state.hyper(key), step=step, shape=named.shape)
            assert np.isfinite(np.sqrt(moment.v / moment.correction)).all()
    preconditioned_as_it_is_told(state)
    quantised = [finding for finding in done.findings if finding.rule == "quantised-moments"]
    assert bool(quantised) == any(parameter.decoded_from != "plain" for parameter in state.parameters.values())
    assert all("v off by about" in finding.text for finding in quantised)


class Remembering(OPT.AdamW):
    """An optimizer of somebody's own: AdamW that also keeps the last gradient."""

    def step(self, closure: Any = None) -> Any:
        done = super().step(closure)
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["previous_grad"] = param.grad.clone()
        return done


def test_an_unknown_optimizer_gets_its_names_and_the_probe_refuses_it(lora, tmp_path):
    base, start = lora
    model, optimizer = trained_by(lambda params: Remembering(params, lr=1e-2), start, tmp_path)
    done = repair(str(tmp_path), str(tmp_path / "named.safetensors"), options=Options(base=str(base)))
    assert done.ordering.verdict == "verified"
    assert "optimizer-not-recognised" in {finding.rule for finding in done.findings}
    state = ostate.load(str(tmp_path / "named.safetensors"))
    live = {key: param for key, param in model.named_parameters() if param.requires_grad}
    assert state.optimizer == "unknown"
    assert list(state.parameters) == list(live)
    for key, param in live.items():
        for slot in ("exp_avg", "exp_avg_sq", "previous_grad"):
            assert np.array_equal(state.tensor(key, slot), optimizer.state[param][slot].numpy())
    with pytest.raises(ProbeError, match="the optimizer is not known"):
        AdamPreconditioner(state)


def test_lora_fa_is_named_by_its_own_record_and_not_probed(lora, tmp_path):
    from peft.optimizers import create_lorafa_optimizer

    base, start = lora
    model = copy.deepcopy(start)
    optimizer = create_lorafa_optimizer(model, r=64, lora_alpha=64, lr=1e-2)
    for step in range(3):
        rows = trained.sequences(4, seed=step)
        model(**{key: torch.stack([row[key] for row in rows]) for key in rows[0]}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    repair(str(tmp_path), str(tmp_path / "named.safetensors"), options=Options(base=str(base)))
    state = ostate.load(str(tmp_path / "named.safetensors"))
    assert state.optimizer == "lora_fa"
    wanted = {name for name, param in model.named_parameters() if param.requires_grad}
    assert set(state.parameters) == wanted
    assert all("lora_B" in name for name in wanted)
    for name in wanted:
        kept = optimizer.state[name[: name.find("lora")] + "lora"]
        assert np.array_equal(state.tensor(name, "exp_avg_sq"), kept["exp_avg_sq_B"].numpy())
    preconditioned_as_it_is_told(state)
