"""Every method of the installed PEFT has a row: what is tested of it, with networks that hold the test to its word, or why nothing is."""

from __future__ import annotations

import pytest
from peft import PeftType

from ostate.evidence.methods import LIKE_LORA, METHODS
from tests.evidence.method_nets import STARTS

TESTED = {name for name, method in METHODS.items() if method.pairs or method.vectors}
OLD_NAMES = {"BONE"}
"""Methods that later releases call otherwise (MISS), whose test is the same."""


@pytest.mark.parametrize("name", [kind.value for kind in PeftType])
def test_every_method_of_peft_has_a_row(name: str) -> None:
    assert name in METHODS or name in LIKE_LORA
    assert name in TESTED or name in LIKE_LORA or len(METHODS[name].silent) > 15


def test_every_test_of_a_method_is_held_to_its_word_by_networks() -> None:
    assert set(STARTS) == TESTED - OLD_NAMES
