"""What the fuzzers feed: a target that refuses every input at its door looks at nothing behind it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
import torch

from fuzz import seeds, structured, targets
from fuzz.run import changed
from ostate.errors import OstateError


@pytest.fixture(autouse=True)
def _corpus_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "CORPUS", tmp_path)


def _refused(target: Callable[[bytes], None], data: bytes) -> str:
    try:
        target(data)
    except OstateError as error:
        return error.what
    return ""


@pytest.mark.parametrize("name", ["pickle", "config", "manifest", "safetensors"])
def test_a_target_reads_what_was_not_changed(name):
    """All but seeds that are damaged on purpose; `config` had weights of which every configuration was refused, `pickle` no storages."""
    made = list(seeds.SEEDS[name]())
    reasons = [reason for data in made if (reason := _refused(targets.TARGETS[name], data))]
    assert len(reasons) <= len(made) / 8, reasons[:3]


@pytest.mark.parametrize("name", ["pickle", "config", "manifest", "safetensors"])
def test_of_what_was_changed_with_its_structure_some_is_read_and_some_refused(name):
    made, chance = list(seeds.SEEDS[name]()), random.Random(3)
    reasons = [_refused(targets.TARGETS[name], structured.STRUCTURED[name](chance.choice(made), chance)) for _ in range(60)]
    assert 3 <= sum(map(bool, reasons)) <= 57
    assert len(set(reasons)) >= 4
    assert not any("JSON that can be read" in reason or "not JSON" in reason for reason in reasons)


def test_an_archive_written_anew_is_still_one(tmp_path):
    torch.save({"a": torch.ones(3), "b": [1, 2]}, tmp_path / "whole.pt")
    whole, chance = (tmp_path / "whole.pt").read_bytes(), random.Random(1)
    reasons = {_refused(targets.zip_index, structured.archive_changed(whole, chance)) for _ in range(40)}
    assert "" in reasons
    assert not any("directory" in reason or "checksum" in reason for reason in reasons)


def test_opcodes_are_moved_as_wholes():
    data, chance = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", random.Random(2)
    made = {structured.pickle_changed(data, chance) for _ in range(200)}
    assert len(made) > 50
    assert all(one.endswith(b".") for one in made)
    assert data not in {structured.pickle_changed(b"\x80", chance)}


def test_half_of_the_inputs_keep_their_structure():
    chance, text = random.Random(0), json.dumps({"r": 8, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA"}).encode()
    sound = 0
    for _ in range(200):
        try:
            json.loads(changed("config", [text], [], chance))
        except ValueError:
            continue
        sound += 1
    assert 90 <= sound <= 150
