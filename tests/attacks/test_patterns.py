"""Every regular expression takes steps in proportion to the text, counted: a foreign text cannot make one run for minutes."""

from __future__ import annotations

import sys
import time

import pytest

from ostate.read.checkpoint_folder import card_versions
from ostate.read.layouts.hf_storage import is_shard
from tests.attacks.patterns import growth, patterns

LINEAR = 2.6
"""Where the text doubles; a quadratic pattern takes four times the steps."""


@pytest.fixture(autouse=True)
def deep():
    """The counting matcher calls itself for each repetition of a group."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(before)


def test_all_patterns_are_linear():
    found = patterns()
    assert len(found) > 120
    assert any("checkpoint_folder" in place for place in found)
    slow = {place: grown for place, (text, flags) in found.items() if (grown := growth(text, flags))[0] > LINEAR}
    assert slow == {}


@pytest.mark.parametrize("pattern", [r"(?m)^\s*-", r"(a+)+$", r"\s*:?\s*x", r"(?:a|a)*b", r".*\.state\..*\.exp"])
def test_the_counter_sees_patterns_that_are_not(pattern):
    assert growth(pattern, 0)[0] > LINEAR


@pytest.mark.parametrize("text", ["\n", " ", "- PEFT\n", "- PEFT ", "- ", "9", "- PEFT 9"])
def test_a_model_card_of_a_megabyte_of_anything_is_read_at_once(text):
    """A megabyte of line breaks took twenty minutes."""
    began = time.process_time()
    assert card_versions(text * (1_000_000 // len(text))) == {}
    assert time.process_time() - began < 2


def test_versions_in_a_model_card_are_still_found():
    card = "# Card\n### Framework versions\n\n- PEFT 0.15.2\n- Transformers: 4.51.3\n  - TRL : v0.12.0.dev0\n"
    assert card_versions(card) == {"peft_version": "0.15.2", "transformers_version": "4.51.3", "trl_version": "0.12.0.dev0"}


def test_a_header_of_one_endless_key_is_looked_through_at_once(tmp_path):
    text = b'{"' + b"state." * 600_000
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    began = time.process_time()
    assert not is_shard(str(tmp_path / "a.safetensors"))
    assert time.process_time() - began < 2
