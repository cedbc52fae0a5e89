"""The tests that mean "the names are right": one step from the repaired state equals one step of the optimizer that was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ostate
from ostate.commands.options import Options
from ostate.commands.repair import repair
from ostate.errors import Contradiction
from ostate.probe import lora_adamw
from tests.trained import Trained


def gradients(run: Trained) -> dict[str, torch.Tensor]:
    """Return made-up gradients by name, of the size the run has seen."""
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(p.shape, generator=generator) * 1e-3 for p, name in run.names.items()}


def step_of_the_original(run: Trained) -> dict[str, torch.Tensor]:
    """Return the parameters after one more step of the live optimizer; everything is put back afterwards."""
    before = {p: p.detach().clone() for p in run.names}
    state = {p: {slot: value.clone() for slot, value in slots.items()} for p, slots in run.optimizer.state.items()}
    for p, name in run.names.items():
        p.grad = gradients(run)[name].clone()
    run.optimizer.step()
    after = {name: p.detach().clone() for p, name in run.names.items()}
    with torch.no_grad():
        for p in run.names:
            p.copy_(before[p])
            p.grad = None
    for p, slots in state.items():
        run.optimizer.state[p].update(slots)
    return after


def step_of_the_repaired(run: Trained, named: Path, swap: tuple[str, str] | None = None) -> dict[str, torch.Tensor]:
    """Return the parameters after one step of an AdamW that was filled by name."""
    model = run.fresh()
    optimizer = lora_adamw(model, ostate.load(str(named)))
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if swap:
        one, other = (live[name] for name in swap)
        optimizer.state[one], optimizer.state[other] = optimizer.state[other], optimizer.state[one]
    for name, p in live.items():
        p.grad = gradients(run)[name].clone()
    optimizer.step()
    return {name: p.detach() for name, p in live.items()}


@pytest.fixture(params=["llama_run", "opt_run", "bias_run"])
def run(request: pytest.FixtureRequest) -> Trained:
    return request.getfixturevalue(request.param)


def test_one_step_from_the_repaired_state_equals_the_original_bit_for_bit(run, tmp_path):
    repair(str(run.checkpoint), str(tmp_path / "named.safetensors"), options=Options(base=str(run.base)))
    original = step_of_the_original(run)
    repaired = step_of_the_repaired(run, tmp_path / "named.safetensors")
    assert set(repaired) == set(original)
    assert all(torch.equal(repaired[name], original[name]) for name in original)


def test_one_step_with_two_same_shaped_entries_swapped_differs(llama_run, tmp_path):
    repair(str(llama_run.checkpoint), str(tmp_path / "named.safetensors"))
    original = step_of_the_original(llama_run)
    swap = tuple(f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_B.default.weight" for layer in (2, 10))
    swapped = step_of_the_repaired(llama_run, tmp_path / "named.safetensors", swap)
    assert {name for name in original if not torch.equal(swapped[name], original[name])} == set(swap)


def test_every_moment_has_its_own_name_bit_for_bit(run, tmp_path):
    done = repair(str(run.checkpoint), str(tmp_path / "named.safetensors"), options=Options(base=str(run.base)))
    state = ostate.load(str(tmp_path / "named.safetensors"))
    assert done.ordering.left_out == ()
    for slot in ("exp_avg", "exp_avg_sq"):
        truth = run.live(slot)
        assert set(truth) == set(state.parameters)
        for name, value in truth.items():
            assert torch.equal(torch.from_numpy(state.tensor(name, slot).copy()), value), name


@pytest.mark.parametrize("base", [True, False])
def test_another_runs_adapter_is_refused_and_nothing_is_written(llama_run, other_run, tmp_path, base):
    options = Options(adapter=str(other_run.checkpoint), base=str(llama_run.base) if base else None)
    with pytest.raises(Contradiction):
        repair(str(llama_run.checkpoint / "optimizer.pt"), str(tmp_path / "named.safetensors"), options=options)
    assert list(tmp_path.iterdir()) == []
