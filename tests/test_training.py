"""What trains is marked, so that the other tests of a package can be run alone in seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import trains

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("tests.read.make_verl", id="steps an optimizer"),
        pytest.param("tests.read.test_verl", id="starts processes that do, through a module of its folder"),
        pytest.param("tests.commands.test_choosing", id="through a module of another folder"),
        pytest.param("tests.trained", id="by a Trainer"),
    ],
)
def test_a_module_that_trains_is_known_by_what_it_says_or_imports(module):
    assert trains(module)


@pytest.mark.parametrize("module", ["tests.real", "tests.core.test_names", "tests.ordering.test_convention", "os"])
def test_a_module_that_only_reads_or_builds_a_model_does_not_train(module):
    assert not trains(module)


def test_a_test_that_asks_for_a_trained_run_is_marked_and_the_others_of_its_module_are_not():
    command = [sys.executable, "-m", "pytest", "tests/exporters/test_archive.py", "--collect-only", "-p", "no:cacheprovider", "-o", "addopts=-q"]

    def chosen(mark: str) -> set[str]:
        done = subprocess.run([*command, "-m", mark], cwd=ROOT, capture_output=True, text=True, check=True)
        return {line for line in done.stdout.splitlines() if "::" in line}

    marked, others = chosen("trains"), chosen("not trains")
    assert marked
    assert others
    assert not marked & others
