"""How far a command is, is told in one way everywhere: bytes read, of about how many."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostate import diff, inspect, plot
from ostate.commands.validate import validate
from tests import real

NAMED = str(Path(__file__).parent.parent / "golden" / "0.1.0" / "lora.ostate.safetensors")


def stored() -> str:
    return str(real.case("llama_qv").state)


@pytest.mark.parametrize(
    "command",
    [
        lambda step: inspect(stored(), values=True, progress=step),
        lambda step: inspect(NAMED, values=True, progress=step),
        lambda step: validate(NAMED, deep=True, progress=step),
        lambda step: diff(stored(), NAMED, progress=step),
        lambda step: plot.page([NAMED], progress=step),
    ],
    ids=["inspect", "inspect named", "validate", "diff", "report"],
)
def test_progress_goes_on_to_the_end_of_what_was_announced(command):
    steps: list[tuple[int, int]] = []
    command(lambda done, total: steps.append((done, total)))
    done, total = steps[-1]
    assert done == total > 0
    assert [one for one, _ in steps] == sorted(one for one, _ in steps)


def test_nobody_is_told_afterwards():
    steps: list[tuple[int, int]] = []
    inspect(stored(), values=True, progress=lambda done, total: steps.append((done, total)))
    count = len(steps)
    inspect(stored(), values=True)
    assert len(steps) == count
