"""Files of every released version stay readable, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import ostate
from tests.golden import same
from tests.golden.make import facts
from tests.real import case

GOLDEN = sorted(path.parent for path in Path(__file__).parent.glob("*/facts.json"))


@pytest.mark.parametrize("release", GOLDEN, ids=lambda release: release.name)
def test_a_released_file_says_what_it_said(release):
    assert json.loads(json.dumps(facts(release / "lora.ostate.safetensors"))) == json.loads((release / "facts.json").read_text())


@pytest.mark.parametrize("release", GOLDEN, ids=lambda release: release.name)
def test_a_released_file_is_sound(release):
    assert [finding for finding in ostate.validate(str(release / "lora.ostate.safetensors"), deep=True) if finding.severity == "error"] == []


@pytest.mark.parametrize("release", GOLDEN, ids=lambda release: release.name)
def test_a_released_file_holds_the_truth_of_the_live_optimizer(release):
    truth = case("llama_qv").with_state
    found = facts(release / "lora.ostate.safetensors")
    assert {name: row["slots"]["exp_avg_sq"] for name, row in found.items()} == {name: row["exp_avg_sq_sha256"] for name, row in truth.items()}


@pytest.mark.parametrize("release", GOLDEN, ids=lambda release: release.name)
def test_one_changed_byte_is_seen(release, tmp_path):
    file = tmp_path / "lora.ostate.safetensors"
    shutil.copy(release / "lora.ostate.safetensors", file)
    changed = bytearray(file.read_bytes())
    changed[-3] ^= 1
    file.write_bytes(changed)
    assert any(finding.severity == "error" for finding in ostate.validate(str(file), deep=True))


def test_there_is_a_golden_file():
    assert GOLDEN


@pytest.mark.long
@pytest.mark.parametrize("name", same.CASES)
def test_repair_writes_the_names_and_numbers_that_it_wrote(name, tmp_path):
    """What else changed, the manifest's words and facts, `python -m tests.golden.same` shows against another checkout."""
    parts, line = same.difference(json.loads(same.RECORDED.read_text())[name], same.repaired(name, tmp_path / "out.safetensors"))
    assert parts == [], line
