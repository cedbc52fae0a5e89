"""Distributed checkpoints, back into the optimizer that made them: packed moments stay packed, and what else the folder held comes along."""

from __future__ import annotations

import json

import bitsandbytes
import pytest
import torch
import torch.distributed.checkpoint as dcp
import torchao.optim
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import ostate
from ostate.errors import ExportError, ReadError
from ostate.read import read
from tests import ranks
from tests.optimizers.live import run

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """What `packed_sharded.py` found on two processes."""
    out = tmp_path_factory.mktemp("packed")
    ranks.program("tests.exporters.packed_sharded", out, 2)
    return json.loads((out / "found.json").read_text())


@pytest.mark.parametrize("kind", ["8bit", "4bit", "fp8"])
def test_torchaos_shards_are_read_as_torchao_reads_them(packed, kind):
    assert packed[kind]["read"]
    assert packed[kind]["decoded_from"] == ["plain", f"torchao-{kind}"]


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
@pytest.mark.parametrize("to", ["dcp", "dcp-flat"])
def test_torchaos_moments_go_back_packed_and_the_sharded_run_goes_on_bit_for_bit(packed, kind, to):
    assert packed[kind][to] is True
    assert "export-packed-again" in packed[kind]["rules"][to]
    assert "export-packing-lost" not in packed[kind]["rules"][to]


def test_what_is_not_packed_again_is_said(packed):
    assert "export-packing-lost" in packed["fp8"]["rules"]["dcp"]


def after_three_steps(optimizer, params):
    generator = torch.Generator().manual_seed(9)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator) * 1e-3
        optimizer.step()
    return [param.detach().clone() for param in params]


@pytest.mark.parametrize("make", [bitsandbytes.optim.AdamW8bit, bitsandbytes.optim.Lion8bit, bitsandbytes.optim.PagedAdamW32bit])
def test_bitsandbytes_goes_on_from_ours_by_position_as_from_its_own(make, tmp_path):
    """NeMo Automodel saves `optimizer.state_dict()` as it is where the model is quantised; bitsandbytes wraps its slots there.

    bitsandbytes counts its steps in plain integers, which torch's load leaves as they are below keys that are numbers: from either checkpoint.
    """
    shapes = ((70, 64), (64, 64), (5, 3))
    live = run(make, shapes=shapes)
    start = [param.detach().clone() for param in live.params]
    dcp.save({"optim": live.optimizer.state_dict()}, checkpoint_id=str(tmp_path / "saved"), no_dist=True)
    (tmp_path / "order.txt").write_text("a\nb\nc")
    ostate.repair(str(tmp_path / "saved"), str(tmp_path / "named.safetensors"), order=str(tmp_path / "order.txt"))
    ostate.export(str(tmp_path / "named.safetensors"), "dcp-positions", tmp_path / "back")

    def resumed(place):
        params = [torch.nn.Parameter(values.clone()) for values in start]
        optimizer = make(params)
        optimizer.load_state_dict(run(make, shapes=shapes, steps=3).optimizer.state_dict())  # entries to be filled
        state = optimizer.state_dict()
        for entry in state["state"].values():
            for value in entry["__bnb_optimizer_quant_state__"].values():
                value.zero_()
        dcp.load({"optim": state}, checkpoint_id=str(place), no_dist=True)
        optimizer.load_state_dict(state)
        return after_three_steps(optimizer, params)

    own, ours = resumed(tmp_path / "saved"), resumed(tmp_path / "back")
    assert all(torch.equal(one, other) for one, other in zip(own, ours))
    assert all(torch.equal(one, other) for one, other in zip(after_three_steps(live.optimizer, live.params), ours))


def test_torchs_adamw_is_given_the_decoded_moments_where_asked(tmp_path):
    live = run(bitsandbytes.optim.AdamW8bit, shapes=((70, 64),))
    torch.save(live.optimizer.state_dict(), tmp_path / "optimizer.pt")
    (tmp_path / "order.txt").write_text("a")
    ostate.repair(str(tmp_path / "optimizer.pt"), str(tmp_path / "named.safetensors"), order=str(tmp_path / "order.txt"))
    state = ostate.load(str(tmp_path / "named.safetensors"))
    done = ostate.export(state, "dcp", tmp_path / "adamw", taken_as="adamw_torch")
    assert "export-packing-lost" in {finding.rule for finding in done.findings}
    wanted = {"optim": {"state": {"a": {"exp_avg_sq": torch.empty(70, 64), "step": torch.tensor(0.0)}}}}
    dcp.load(wanted, checkpoint_id=str(tmp_path / "adamw"), no_dist=True)
    assert torch.equal(wanted["optim"]["state"]["a"]["exp_avg_sq"], torch.as_tensor(state.tensor("a", "exp_avg_sq")))


class Adapted(torch.nn.Module):
    """A layer as NeMo Automodel's LinearLoRA has it: frozen weight, `lora_A` and `lora_B` beside it (components/_peft/lora.py)."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(16, 16) / 4, requires_grad=False)
        self.lora_A, self.lora_B = torch.nn.Linear(16, 4, bias=False), torch.nn.Linear(4, 16, bias=False)
        torch.nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return x @ self.weight.T + self.lora_B(self.lora_A(x))


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict({"q_proj": Adapted(), "v_proj": Adapted()}) for _ in range(8))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["v_proj"](layer["q_proj"](x).tanh())
        return x


def automodels_checkpoint(folder):
    """What its Checkpointer leaves in `epoch_0_step_12`: the adapter with PEFT's prefix, the flattened optimizer, the scheduler beside it."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"model": Layers()})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 6)
    for _ in range(12):
        optimizer.zero_grad()
        model["model"](torch.randn(32, 16)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    (folder / "model").mkdir(parents=True)
    weights = {f"base_model.model.{name}": p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    save_file(weights, str(folder / "model" / "adapter_model.safetensors"))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    (folder / "model" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "model" / "automodel_peft_config.json").write_text("{}")
    state = get_optimizer_state_dict(model, optimizer, options=FLAT)
    dcp.save({"optim": state, "sched": scheduler.state_dict()}, checkpoint_id=str(folder / "optim"), no_dist=True)
    return model, optimizer, scheduler


def test_nemo_automodels_checkpoint_is_proven_and_goes_back_with_its_scheduler(tmp_path):
    model, optimizer, scheduler = automodels_checkpoint(tmp_path / "epoch_0_step_12")
    done = ostate.repair(str(tmp_path / "epoch_0_step_12"), str(tmp_path / "named.safetensors"))
    live = {name: optimizer.state[p] for name, p in model.named_parameters() if p.requires_grad}
    assert (set(done.named), done.ordering.verdict, done.ordering.assumed) == (set(live), "verified", ())
    assert all(torch.equal(torch.as_tensor(done.named.tensor(name, slot)), live[name][slot]) for name in live for slot in ("exp_avg", "exp_avg_sq"))
    ostate.export(done.named, "dcp-flat", tmp_path / "back", rest=tmp_path / "epoch_0_step_12" / "optim")
    model.zero_grad()
    again = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1.0)
    counts = torch.optim.lr_scheduler.StepLR(again, 1)
    state = {"optim": get_optimizer_state_dict(model, again, options=FLAT), "sched": counts.state_dict()}
    dcp.load(state, checkpoint_id=str(tmp_path / "back"), no_dist=True)
    set_optimizer_state_dict(model, again, state["optim"], options=FLAT)
    counts.load_state_dict(state["sched"])
    assert counts.state_dict() == scheduler.state_dict()
    for name, p in model.named_parameters():
        assert all(torch.equal(again.state[p][slot], value) for slot, value in live.get(name, {}).items()), name
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def packed_matrix(folder):
    """A distributed checkpoint of one matrix under torchao."""
    torch.compiler.set_stance("force_eager")
    live = run(torchao.optim.AdamW8bit, shapes=((128, 64),))
    torch.compiler.set_stance("default")
    (entry,) = live.optimizer.state.values()
    dcp.save({"optim": {"state": {"w": dict(entry)}}}, checkpoint_id=str(folder), no_dist=True)


def test_a_column_shard_of_packed_moments_is_refused_with_a_way_out(tmp_path, monkeypatch):
    from ostate.read.container import dcp_index

    packed_matrix(tmp_path / "saved")
    true = dcp_index.read_index

    def by_columns(folder):
        index = true(folder)
        for key, item in index.items.items():
            if key.endswith("exp_avg"):
                halves = tuple(dcp_index.Blob(b.file, b.offset, b.length, (0, at), (128, 32)) for b in item.blobs for at in (0, 32))
                index.items[key] = dcp_index.DcpItem(item.key, item.path, item.dtype, item.shape, halves)
        return index

    monkeypatch.setattr("ostate.read.layouts.dcp.read_index", by_columns)
    with pytest.raises(ReadError, match="cut other than by rows") as refused:
        read(str(tmp_path / "saved"))
    assert "full_state_dict=True" in refused.value.fix


def test_the_rest_is_only_for_checkpoints_of_many_entries(tmp_path):
    live = run(torch.optim.AdamW, shapes=((4, 3),))
    torch.save(live.optimizer.state_dict(), tmp_path / "optimizer.pt")
    (tmp_path / "order.txt").write_text("a")
    ostate.repair(str(tmp_path / "optimizer.pt"), str(tmp_path / "named.safetensors"), order=str(tmp_path / "order.txt"))
    path = str(tmp_path / "named.safetensors")
    with pytest.raises(ExportError, match="holds an optimizer and nothing else"):
        ostate.export(path, "torch", None, rest=tmp_path)
    with pytest.raises(ReadError, match="not a distributed checkpoint"):
        ostate.export(path, "dcp", None, rest=tmp_path)
