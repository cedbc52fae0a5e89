"""What is advised where an order is not proven: what could prove it, and nothing that was found already."""

from __future__ import annotations

from pathlib import Path

import pytest

import ostate

CASES = Path(__file__).parent.parent / "cases" / "one-process"


@pytest.mark.parametrize(
    ("case", "rule", "base"),
    [("never_stepped", "order-unverified", False), ("llama_qv", "order-undecided", False), ("bias_all", "order-undecided", True)],
)
def test_a_base_model_that_was_rebuilt_is_asked_for_only_where_its_weights_could_prove_a_name(case, rule, base, tmp_path):
    done = ostate.repair(CASES / case / "checkpoint-5", tmp_path / "named.ostate.safetensors")
    assert done.ordering.source == "skeleton"
    (fix,) = [finding.fix for finding in done.findings if finding.rule == rule]
    assert "pass --previous DIR" in fix
    assert ("--base" in fix) is base
