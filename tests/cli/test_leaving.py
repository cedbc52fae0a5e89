"""How the program ends: its exit code, what was asked to run at the end, and an output that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.real import CASES

STATE = str(CASES / "long" / "long_opt" / "checkpoint-300")
RUN = "import sys; sys.argv[0] = 'ostate'; from ostate.cli import run; run()"


def left(*words, code=RUN, **streams):
    return subprocess.run([sys.executable, "-c", code, *words], text=True, check=False, **{"capture_output": not streams, **streams})


@pytest.mark.parametrize(("words", "code"), [(("inspect", STATE), 0), (("nothing",), 2), (("inspect", __file__), 3)])
def test_the_exit_code_is_the_commands(words, code):
    assert left(*words).returncode == code


def test_all_of_the_output_is_written_to_a_pipe():
    out = left("inspect", STATE, "--json").stdout
    assert out.endswith("}\n")
    assert out.count("exp_avg_sq") == 88


def test_what_asked_to_be_called_at_the_end_is_called():
    done = left("inspect", STATE, code=f"import atexit; atexit.register(print, 'the end')\n{RUN}")
    assert done.stdout.splitlines()[-1] == "the end"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize(
    "words",
    [
        *[("inspect", STATE), ("inspect", STATE, "--json"), ("names", STATE), ("names", STATE, "--csv"), ("completion", "bash")],
        *[("--help",), ("--version",), ("repair", "--help")],
    ],
)
def test_a_full_disk_behind_the_output_is_an_error_in_words(words):
    with open("/dev/full", "w") as full:
        done = left(*words, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr.startswith("Error: the output cannot be written: ")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error_in_words():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = left("names", STATE, stdout=gone, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_was_closed_disturbs_nothing(closed):
    shell = f'exec "$0" -c "$1" inspect "$2" {closed}>&-'
    done = subprocess.run(["sh", "-c", shell, sys.executable, RUN, STATE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("exp_avg_sq" in done.stdout) == (closed == 2)
