"""Shell completion, as the shells ask for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

ASK = "import sys; sys.argv[0] = 'ostate'; from ostate.cli import main; main(prog_name='ostate')"


def completed(words, **environment):
    env = {**os.environ, "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_OSTATE_COMPLETE": "bash_complete", **environment}
    done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_commands_are_completed():
    assert completed("ostate re") == ["plain,repair", "plain,report"]


def test_options_are_completed():
    assert "plain,--adapter" in completed("ostate repair --ad")


def test_a_path_is_left_to_the_shell():
    assert completed("ostate inspect check") == ["file,check"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_one_that_the_shell_takes(shell, tmp_path):
    done = subprocess.run([sys.executable, "-m", "ostate", "completion", shell], capture_output=True, text=True, check=True)
    assert "_OSTATE_COMPLETE" in done.stdout
    assert " ostate" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)
