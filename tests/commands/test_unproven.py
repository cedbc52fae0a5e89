"""What is advised where an order is not proven: what could prove it, and nothing that was found already."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import ostate

CASES = Path(__file__).parent.parent / "cases" / "one-process"


@pytest.mark.parametrize(
    ("case", "silent", "rule", "base"),
    [("llama_qv", 12, "order-unverified", False), ("llama_qv", 8, "order-undecided", False), ("bias_all", 0, "order-undecided", True)],
)
def test_a_base_model_that_was_rebuilt_is_asked_for_only_where_its_weights_could_prove_a_name(case, silent, rule, base, tmp_path):
    """The numbers of the last entries say nothing of their names."""
    for beside in (case, f"{case}.base"):
        shutil.copytree(CASES / beside, tmp_path / beside)
    checkpoint = tmp_path / case / "checkpoint-5"
    state = torch.load(checkpoint / "optimizer.pt")
    for entry in list(state["state"].values())[len(state["state"]) - silent :]:
        entry["exp_avg"].zero_()
        entry["exp_avg_sq"].fill_(1e-6)
    torch.save(state, checkpoint / "optimizer.pt")
    done = ostate.repair(checkpoint, tmp_path / "named.ostate.safetensors")
    assert done.ordering.source == "skeleton"
    (fix,) = [finding.fix for finding in done.findings if finding.rule == rule]
    assert "pass --previous DIR" in fix
    assert ("--base" in fix) is base
