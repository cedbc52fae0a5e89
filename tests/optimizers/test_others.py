"""States of other libraries, written by them: known by name, every tensor a slot, no tensor lost in a mapping."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_optimizer as po
import torch

import ostate
from ostate.checks.context import structure_of
from ostate.checks.structure import optimizer_not_recognised
from ostate.errors import ExportError, ReadError
from ostate.optimizers import OPTIMIZERS, step_of
from ostate.optimizers.moments import second_moment
from ostate.optimizers.slots import first_moment
from ostate.optimizers.slots import second_moment as second_slot
from ostate.read.hyper import plain_hyper

from .live import read, run
from .others import RETYPED, WRITTEN, auto8bit, retyped

CASES = [(row, rewrite, group) for row, cases in RETYPED.items() for rewrite, group in cases]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.filterwarnings("ignore")
def test_what_a_package_writes_is_known_and_its_steps_are_counted(name, tmp_path):
    row, make = WRITTEN[name]
    live = run(make, shapes=((70, 64), (5, 3)) if "Muon" in name else ((70, 64), (5, 3), (7,)))
    found = read(live.optimizer.state_dict(), tmp_path)
    assert found.optimizer == row
    spec = OPTIMIZERS[row]
    steps = {step_of(spec, scalars.get("step"), plain_hyper(found.hyper)) for scalars in found.scalars}
    assert steps == ({None} if spec.step == "none" else {3.0})
    for slots, param in zip(found.slots, live.params):
        stored = {key for key, value in live.optimizer.state[param].items() if torch.is_tensor(value) and value.dim()}
        assert {slot.partition(".")[0] for slot in slots} >= stored


@pytest.mark.parametrize(("row", "rewrite", "group"), CASES, ids=[f"{row}-{index}" for index, (row, *_) in enumerate(CASES)])
def test_what_a_trainer_writes_itself_is_known(row, rewrite, group, tmp_path):
    saved = retyped(run(torch.optim.AdamW).optimizer.state_dict(), rewrite, group)
    torch.save(saved, tmp_path / "optimizer.pt")
    raw = ostate.inspect(str(tmp_path / "optimizer.pt")).raw
    assert raw.optimizer == row
    assert all(entry.shape == shape for entry, shape in zip(raw.entries, ((70, 64), (64, 70), (5, 3), (7,))) if row != "automagic" or len(shape) > 1)


def test_spams_moments_are_read_in_the_shape_of_its_mask_or_refused_where_the_mask_leaves_some_out(tmp_path):
    whole, part = run(po.SPAM), run(lambda parameters: po.SPAM(parameters, density=0.5))
    torch.save(whole.optimizer.state_dict(), tmp_path / "optimizer.pt")
    entry = ostate.inspect(str(tmp_path / "optimizer.pt")).raw.entries[0]
    assert entry.shape == (70, 64)
    assert np.array_equal(next(entry.slots["exp_avg_sq"].chunks(70 * 64)).ravel(), whole.optimizer.state[whole.params[0]]["exp_avg_sq"].numpy())
    torch.save(part.optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ReadError, match="a random part of each matrix"):
        ostate.inspect(str(tmp_path / "optimizer.pt"))


@pytest.mark.parametrize("make", [po.SPAM, po.StableSPAM])
def test_what_counts_steps_beside_its_entries_is_named_and_not_given_back(make, tmp_path):
    live = run(make)
    torch.save(live.optimizer.state_dict(), tmp_path / "optimizer.pt")
    (tmp_path / "order.txt").write_text("\n".join(f"net.{number}.weight" for number in range(len(live.params))))
    done = ostate.repair(str(tmp_path / "optimizer.pt"), str(tmp_path / "named.safetensors"), order=str(tmp_path / "order.txt"))
    assert len(done.named.parameters) == len(live.params)
    with pytest.raises(ExportError, match="count steps beside their entries"):
        ostate.export(str(tmp_path / "named.safetensors"), "torch", str(tmp_path / "again.pt"))


def test_an_auto8bit_tensor_is_its_numbers_times_its_scale_bit_for_bit(tmp_path):
    values = torch.randn(70, 64, generator=torch.Generator().manual_seed(1)) * 1e-5
    packed = auto8bit(values)
    saved = {"state": {0: {"exp_avg": {"_type": "Auto8bitTensor", "state": packed}, "lr_mask": packed}}, "param_groups": [{"params": [0]}]}
    found = read(saved, tmp_path)
    wanted = (packed["quantized"].to(torch.float32) * packed["scale"]).numpy()
    for slot in ("exp_avg", "lr_mask"):
        assert found.slots[0][slot].encoding == "auto8bit"
        assert found.slots[0][slot].read().tobytes() == wanted.tobytes()
        assert np.concatenate(list(found.slots[0][slot].chunks(100))).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("broken", [{"quantized": 3}, {"scale": None}, {"scale": True}])
def test_an_auto8bit_tensor_without_its_parts_is_refused(broken, tmp_path):
    packed = {**auto8bit(torch.ones(4)), **broken}
    with pytest.raises(ostate.OstateError, match="lacks its int8 numbers or its scale"):
        read({"state": {0: {"exp_avg": packed}}, "param_groups": [{"params": [0]}]}, tmp_path)


def test_tensors_in_mappings_of_any_depth_are_slots(tmp_path):
    deep = {"inner": {"momentum": torch.arange(6.0).reshape(2, 3)}, "rate": 0.5}
    found = read({"state": {0: {"step": 2, "odd": deep, "list": [{"a": torch.ones(2)}]}}, "param_groups": [{"params": [0]}]}, tmp_path)
    assert set(found.slots[0]) == {"odd.inner.momentum", "list.0.a"}
    assert found.slots[0]["odd.inner.momentum"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.scalars[0]["odd.rate"] == 0.5


def test_a_state_whose_moments_lie_deep_is_never_called_empty(tmp_path):
    torch.save({"state": {0: {"deep": {"m": torch.ones(2, 3)}}}, "param_groups": [{"params": [0], "lr": 1.0}]}, tmp_path / "optimizer.pt")
    rules = {finding.rule for finding in ostate.inspect(str(tmp_path / "optimizer.pt")).findings}
    assert "optimizer-not-recognised" in rules
    assert not any("no-state" in rule or "state-is-empty" in rule for rule in rules)


def test_a_packed_learning_rate_is_no_packed_moment(tmp_path):
    for row, said in (("automagic", False), ("adam_aitk", True)):
        rewrite, group = RETYPED[row][0]
        torch.save(retyped(run(torch.optim.AdamW).optimizer.state_dict(), rewrite, group), tmp_path / "optimizer.pt")
        rules = {finding.rule for finding in ostate.inspect(str(tmp_path / "optimizer.pt")).findings}
        assert ("quantised-moments" in rules) == said


def test_a_second_moment_of_eight_bits_is_divided_by_as_it_stands(tmp_path):
    rewrite, group = RETYPED["adam_aitk"][0]
    live = run(torch.optim.AdamW, steps=20)
    found = read(retyped(live.optimizer.state_dict(), rewrite, group), tmp_path)
    slots = {name: slot.read() for name, slot in found.slots[0].items()}
    moment = second_moment("adam_aitk", slots, found.hyper, step=20.0, shape=(70, 64))
    true = live.optimizer.state[live.params[0]]["exp_avg_sq"].numpy()
    assert moment.correction == 1 - 0.999**20
    assert np.abs(moment.v - true).max() <= true.max() / 127 / 2 * 1.001


def test_the_average_of_divided_gradients_is_no_first_moment():
    entry = type("Entry", (), {"slots": {"exp_avg": 0, "exp_avg_sq": 0}})()
    assert first_moment(entry, "adamw") == "exp_avg"
    for row in ("adopt", "came", "adafactor", "adafactor_po"):
        assert first_moment(entry, row) is None
        assert second_slot(entry) == "exp_avg_sq"


def test_an_assumed_optimizer_is_a_warning(tmp_path):
    path = tmp_path / "optimizer.pt"
    torch.save(run(WRITTEN["pytorch_optimizer.RAdam"][1]).optimizer.state_dict(), path)
    raw = ostate.inspect(str(path)).raw
    (finding,) = optimizer_not_recognised(structure_of(raw, None))
    assert (finding.severity, finding.text) == ("warning", "the optimizer is not known by name: its moments are taken for Adam's")
    assert "--as adamw" in finding.fix
