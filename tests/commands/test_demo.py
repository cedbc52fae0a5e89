"""`ostate demo` tells a true story: what it prints is what its files hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import ostate
from ostate.cli import main
from ostate.commands.demo_run import LAYERS, STEPS

NAMED = LAYERS * 7 * 2


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(folder, what the screen showed)"""
    folder = tmp_path_factory.mktemp("demo")
    threads = torch.get_num_threads()
    done = CliRunner().invoke(main, ["demo", "--folder", str(folder)], catch_exceptions=False)
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_by_position_no_parameter_has_its_own_state_and_by_name_every_one(told):
    assert f"by position: 0 of {NAMED} LoRA parameters have their own exp_avg_sq" in told[1]
    assert "coverage 100%" in told[1]


def test_the_wrong_number_is_larger_by_orders_of_magnitude(told):
    (times,) = re.findall(r"by position it was (\S+) times too large", told[1])
    assert float(times) > 1e3


def test_the_names_it_leaves_are_proven_and_sound(told):
    file = str(told[0] / "lora.ostate.safetensors")
    assert ostate.verify(file, adapter=str(told[0] / "run" / f"checkpoint-{STEPS}")).verdict == "verified"
    assert [finding.rule for finding in ostate.validate(file, deep=True) if finding.severity != "note"] == []


def test_the_readme_tells_its_numbers(told):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"0 of {NAMED}" in readme
    assert f"{NAMED} of {NAMED}" in readme
    shown = re.findall(r"\| ([\d,]+) times \|", readme)
    seen = re.findall(r"with it \S+: (\S+) times", told[1])
    assert len(shown) == len(seen) == 2
    for text, number in zip(shown, seen):
        assert 0.5 < float(text.replace(",", "")) / float(number) < 2


def test_it_shows_what_the_commands_print(told):
    for command in ("inspect", "repair", "validate"):
        assert f"$ ostate {command} " in told[1]
    assert "verified: the tensor values rule out every other order" in told[1]
    assert "sound (every byte was read)" in told[1]
