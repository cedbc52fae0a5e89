"""What other packages print while they are imported and run: not on a person's screen, unless `-v` asks for it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest

from ostate.core.quiet import SHOW_ALL, quiet
from tests.real import case


def talk():
    logging.getLogger("somebody").warning("logged")
    warnings.warn("warned", stacklevel=1)
    print("printed", file=sys.stderr)


def test_nothing_of_other_packages_reaches_the_screen_and_all_of_it_does_afterwards(capsys):
    with quiet():
        talk()
    assert capsys.readouterr().err == ""
    with pytest.warns(UserWarning, match="warned"):
        talk()
    assert "printed" in capsys.readouterr().err


def test_under_verbose_nothing_is_silenced(capsys):
    shown = SHOW_ALL.set(True)
    try:
        with pytest.warns(UserWarning, match="warned"), quiet():
            talk()
    finally:
        SHOW_ALL.reset(shown)
    assert "printed" in capsys.readouterr().err


def test_rebuilding_a_model_prints_nothing_before_the_verdict(tmp_path):
    """torchao prints of extensions that it cannot load, torch of what it deprecates, both while peft is imported."""
    llama = case("llama_qv")
    words = ["repair", str(llama.state), "--adapter", str(llama.adapter), "--base", str(llama.base), "--dry-run"]
    cold = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}  # no listing is kept there, so the model is rebuilt
    done = subprocess.run([sys.executable, "-m", "ostate", *words], capture_output=True, text=True, check=False, env=cold)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("partial: ")
