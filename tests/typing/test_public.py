"""The public names are typed for who imports ostate: `ostate.load` and its like are no Any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_strict_type_checker_knows_the_public_names():
    """`assert_type` fails on Any, and an ignore that nothing needs is an error under mypy's strict mode."""
    command = [sys.executable, "-m", "mypy", "tests/typing/public.py"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
