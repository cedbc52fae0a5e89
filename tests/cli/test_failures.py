"""How commands end that do not end well: never a traceback, never as "completed with warnings", the same from the library."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import ostate
from ostate.cli import main
from ostate.commands import inspect as inspection
from ostate.errors import MissingPackage, OstateError, OutOfMemory, refusal_for
from tests.real import CASES

CHECKPOINT = CASES / "one-process" / "llama_all_linear_12" / "checkpoint-5"
TOO_LARGE = 1 << 62


@pytest.fixture
def failing(monkeypatch):
    """A function that makes `ostate inspect` and `ostate.inspect` fail deep inside, as a call of torch, numpy or the interpreter would."""

    def set_up(raise_it):
        monkeypatch.setattr(inspection, "open_state", raise_it)

    return set_up


def test_an_error_that_nobody_foresaw_is_three_lines_and_70(failing):
    failing(lambda *_, **__: {}["betas"])
    done = CliRunner().invoke(main, ["inspect", str(CHECKPOINT)])
    assert done.exit_code == 70
    what, where, fix = done.stderr.splitlines()
    assert what == "Error: ostate itself failed, and it is not your fault: KeyError: 'betas'"
    assert where.startswith("  at:  ostate/commands/inspect.py:")
    assert "report" in fix
    assert "-v" in fix


def test_under_v_the_traceback_of_such_an_error_is_printed(failing):
    failing(lambda *_, **__: {}["betas"])
    done = CliRunner().invoke(main, ["inspect", "-v", str(CHECKPOINT)])
    assert done.exit_code == 70
    assert "Traceback (most recent call last)" in done.stderr
    assert 'failing(lambda *_, **__: {}["betas"])' in done.stderr


@pytest.mark.parametrize(
    "raise_it",
    [
        pytest.param(lambda *_, **__: bytearray(TOO_LARGE), id="the interpreter"),
        pytest.param(lambda *_, **__: __import__("numpy").empty(TOO_LARGE >> 4), id="numpy"),
        pytest.param(lambda *_, **__: __import__("torch").empty(TOO_LARGE >> 4), id="torch"),
        pytest.param(lambda *_, **__: __import__("mmap").mmap(-1, TOO_LARGE), id="a map"),
    ],
)
def test_memory_that_runs_out_is_a_refusal_from_the_command_and_from_the_library(failing, raise_it):
    failing(raise_it)
    done = CliRunner().invoke(main, ["inspect", str(CHECKPOINT)])
    assert done.exit_code == 3, done.stderr
    assert done.stderr.startswith("Error: memory ran out: ")
    assert "ulimit -v" in done.stderr
    with pytest.raises(OutOfMemory) as caught:
        ostate.inspect(str(CHECKPOINT))
    assert isinstance(caught.value, OstateError)
    assert isinstance(caught.value, MemoryError)


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(failing):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    failing(missing)
    done = CliRunner().invoke(main, ["inspect", str(CHECKPOINT)])
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [
        "Error: this needs the package transformers, which is not installed",
        "  fix: pip install 'ostate[base]'",
    ]
    with pytest.raises(MissingPackage):
        ostate.inspect(str(CHECKPOINT))


def test_an_error_of_ours_is_no_refusal():
    for error in (KeyError("a"), ValueError("a"), OSError(2, "No such file"), RuntimeError("a"), ModuleNotFoundError("b", name="ostate.b")):
        assert refusal_for(error) is None


def test_a_file_that_vanished_meanwhile_is_a_refusal_with_its_name(failing, tmp_path):
    failing(lambda *_, **__: os.listdir(tmp_path / "gone"))
    done = CliRunner().invoke(main, ["inspect", str(CHECKPOINT)])
    assert done.exit_code == 3
    assert "a file changed or could not be reached meanwhile: No such file or directory" in done.stderr
    assert str(tmp_path / "gone") in done.stderr
    with pytest.raises(OstateError):
        ostate.inspect(str(CHECKPOINT))


def test_every_public_function_tells_of_memory_that_ran_out():
    """Held by the mark that `refusing` leaves: a new function of the face needs it too."""
    functions = [getattr(ostate, name) for name in ostate.__all__ if callable(getattr(ostate, name)) and not isinstance(getattr(ostate, name), type)]
    assert {one.__name__ for one in functions} == {
        "diff", "export", "inspect", "load", "names", "names_of", "record_names", "repair", "save", "validate", "verify", "write",
    }  # fmt: skip
    assert [one.__name__ for one in functions if not hasattr(one, "__wrapped__")] == []


@pytest.mark.parametrize("kilobytes", [30_000, 100_000, 150_000, 200_000, 260_000])
@pytest.mark.parametrize("arguments", [["inspect", "--values"], ["repair", "--dry-run"]], ids=["inspect", "repair"])
def test_little_address_space_never_ends_in_a_traceback(kilobytes, arguments):
    command = [arguments[0], str(CHECKPOINT), *arguments[1:]]
    script = f'ulimit -v {kilobytes}; exec "$0" -m ostate "$@"'
    done = subprocess.run(["bash", "-c", script, sys.executable, *command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "OpenBLAS" not in done.stderr
    assert done.returncode in (0, 3), done.stderr
    if done.returncode == 3:
        assert done.stderr.startswith("Error: ")
        assert "  fix: " in done.stderr


def test_control_c_ends_a_command_with_130_and_no_traceback(failing):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    failing(interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
    try:
        done = CliRunner().invoke(main, ["inspect", str(CHECKPOINT)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.exit_code == 130
    assert "Traceback" not in done.output


def test_wrong_usage_stays_2_and_a_refusal_stays_3(tmp_path):
    assert CliRunner().invoke(main, ["inspect", str(tmp_path / "nothing")]).exit_code == 2
    assert CliRunner().invoke(main, ["inspect", str(tmp_path)]).exit_code == 3


def test_an_error_text_as_long_as_a_book_or_full_of_signs_is_cut_and_made_visible(failing):
    def long(*_, **__):
        raise ValueError("\x1b[31m" + "x" * 100_000)

    failing(long)
    done = CliRunner().invoke(main, ["inspect", str(CHECKPOINT)])
    assert done.exit_code == 70
    assert len(click.unstyle(done.stderr)) < 2000
    assert "\x1b" not in done.stderr
