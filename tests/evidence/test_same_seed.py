"""Two runs of one script and seed with other target modules, or layers, draw the same starts: moments of one stand half in the other's gauges."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from ostate.evidence.comparison import Comparison
from ostate.read import read
from ostate.read.adapters import read_adapter
from ostate.read.weights import base_weights
from tests import trained
from tests.evidence.test_family_on_real import Known, recorded, settled

pytestmark = pytest.mark.filterwarnings("ignore")
RANK, LAYERS, PRETRAINED, STEPS, RATE = 8, 8, 20, 3, 2e-3


def batches(steps: int, seed: int) -> torch.Tensor:
    """Return ids, (steps, 8, length)."""
    rows = trained.sequences(steps * 8, seed)
    return torch.stack([row["input_ids"] for row in rows]).reshape(steps, 8, -1)


def steps_of(model: Any, rate: float, ids: torch.Tensor) -> torch.optim.AdamW:
    """Train what is trainable and return the optimizer."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate)
    for row in ids:
        optimizer.zero_grad()
        model(input_ids=row, labels=row).loss.backward()
        optimizer.step()
    return optimizer


@pytest.fixture(scope="module")
def base() -> Any:
    """A base model that has learned something: beside an untrained one, foreign kinds are seen one by one."""
    torch.manual_seed(8)
    model = trained.llama(LAYERS)
    steps_of(model, 3e-3, batches(PRETRAINED, 99))
    return model


def run(
    base: Any, targets: list[str], seed: int, folder: Path, *, steps: int = STEPS, layers: list[int] | None = None, rate: float = RATE, **more: Any
) -> Known:
    torch.manual_seed(seed)
    options = {"r": RANK, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": targets, "layers_to_transform": layers, **more}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options))
    optimizer = steps_of(model, rate, batches(steps, seed + 1))
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    live = {id(parameter): name for name, parameter in model.named_parameters()}
    names = tuple(live[id(parameter)] for group in optimizer.param_groups for parameter in group["params"])
    return Known(read(str(folder / "optimizer.pt")), read_adapter(str(folder)), names)


@pytest.mark.parametrize(
    ("seed", "kept", "one", "other"),
    [
        (3040, "o_proj", "v_proj", "k_proj"),
        (3047, "q_proj", "v_proj", "k_proj"),
        (3051, "q_proj", "v_proj", "k_proj"),
        (3051, "down_proj", "o_proj", "v_proj"),
    ],
)
def test_a_kind_of_another_run_is_not_verified_beside_one_that_both_runs_trained(base, tmp_path, seed, kept, one, other):
    """The kind that both trained is proven, and excluded every order that a program could have made of the two."""
    ours, theirs = run(base, [kept, one], seed, tmp_path / "ours"), run(base, [kept, other], seed, tmp_path / "theirs")
    own = settled(recorded(ours.raw, ours.names), ours.adapter)
    assert own is not None
    assert own.verdict == "verified"
    found = settled(recorded(ours.raw, theirs.names), theirs.adapter)
    if found is None:
        return
    wrong = {name for name, true in zip(theirs.names, ours.names) if name != true}
    assert found.verdict != "verified"
    assert wrong <= set(found.undecided)


ONE, TWO = ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 7]), ([0, 1, 2, 3, 5, 6], [0, 1, 2, 3, 6, 7])


@pytest.mark.parametrize(("seed", "steps", "layers"), [(60, 3, ONE), (62, 12, ONE), (61, 20, TWO)])
def test_a_layer_of_another_run_is_not_verified_beside_layers_that_both_runs_trained(base, tmp_path, seed, steps, layers):
    """The n-th module of either run began as the n-th of the other: gauges say little of a layer that only one of them trained, its updates do."""
    kinds, (ours_in, theirs_in) = ["q_proj", "v_proj"], layers
    ours = run(base, kinds, seed, tmp_path / "ours", steps=steps, layers=ours_in)
    theirs = run(base, kinds, seed, tmp_path / "theirs", steps=steps, layers=theirs_in)
    own = settled(recorded(ours.raw, ours.names), ours.adapter)
    assert own is not None
    assert own.verdict == "verified"
    found = settled(recorded(ours.raw, theirs.names), theirs.adapter)
    assert found is not None
    assert found.verdict == "partial"
    wrong = {name for name, true in zip(theirs.names, ours.names) if name != true}
    assert wrong <= set(found.undecided)


@pytest.mark.parametrize("seed", [2, 4, 8])
def test_magnitudes_of_another_runs_layers_are_not_named_where_their_modules_factors_are_not(base, tmp_path, seed):
    """Magnitudes of all layers go one way at first: two of other layers fitted each other's places, and were all that was named."""
    base.save_pretrained(tmp_path / "base")
    more = {"steps": 3, "rate": 5e-3, "r": 4, "use_dora": True}
    ours = run(base, ["v_proj"], seed, tmp_path / "ours", layers=[0, 1], **more)
    theirs = run(base, ["v_proj"], seed, tmp_path / "theirs", layers=[1, 2], **more)
    found = Comparison(ours.raw, theirs.adapter, base=base_weights(str(tmp_path / "base"))).recover()
    assert not found.proven
