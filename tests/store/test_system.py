"""System calls and what does the same where they are missing; the tests of reading and writing pass without them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ostate
from ostate.core import files, system
from ostate.core.atomic import beside
from ostate.errors import ExportError, ReadError

ROOT = Path(__file__).parents[2]
LAST = ROOT / "tests" / "cases" / "long" / "long_opt" / "checkpoint-300"
POSIX = {"pread", "preadv", "pwrite", "posix_fadvise", "posix_fallocate", "link", "O_CLOEXEC", "O_BINARY", "O_DIRECTORY", "setitimer", "SIGVTALRM"}


@pytest.fixture
def bare(monkeypatch):
    """Take away every call that is not on every system."""
    for name in ("_preadv", "_pread", "_pwrite", "_fadvise", "_link", "_setitimer"):
        monkeypatch.setattr(system, name, None)
    monkeypatch.setattr(system, "_DIRECTORY", 0)
    monkeypatch.setattr(system, "_ALLOCATES", False)
    monkeypatch.setattr(system, "KEEPS_OPEN", False)
    files._local.clear()


def test_calls_that_are_not_on_every_system_stand_in_one_file():
    for file in (ROOT / "ostate").rglob("*.py"):
        if file.name == "system.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) and node.value != "link" else None
            assert named not in POSIX, f"{file}:{node.lineno}"
            assert not (isinstance(node, (ast.Import, ast.ImportFrom)) and {alias.name for alias in node.names} & {"resource", "fcntl", "signal"}), (
                file
            )


def test_every_text_file_says_its_encoding():
    """Windows would take its own code page."""
    for file in (ROOT / "ostate").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("write_text", "read_text"):
                assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{file}:{node.lineno}"


def test_bytes_are_read_and_written_at_their_place_without_the_calls_that_do_it_at_once(bare, tmp_path):
    descriptor = system.open_new(tmp_path / "a")
    system.reserve(descriptor, 100)
    system.write_all(descriptor, b"0123456789", 5)
    system.write_all(descriptor, memoryview(b"ab"), 7)
    assert system.read(descriptor, 4, 6) == b"1ab4"
    buffer = bytearray(20)
    system.read_ahead(descriptor, 0)
    assert system.read_into(descriptor, memoryview(buffer), 13) == 2
    assert buffer[:2] == b"89"
    os.close(descriptor)
    system.flush_file(tmp_path / "a")
    system.flush_folder(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"\0" * 5 + b"01ab456789"


@pytest.mark.parametrize("name", ["read", "write"])
def test_no_call_asks_for_more_than_macos_gives(monkeypatch, tmp_path, name):
    monkeypatch.setattr(system, "_MOST", 3)
    descriptor = system.open_new(tmp_path / "a")
    system.write_all(descriptor, b"0123456789", 0)
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    os.close(descriptor)
    assert files.read_at(str(tmp_path / "a"), 1, 8) == b"12345678"
    buffer = bytearray(7)
    files.read_into(str(tmp_path / "a"), 2, memoryview(buffer))
    assert buffer == b"2345678"


def test_a_new_name_is_never_taken_from_another_writer(bare, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("one")
    system.rename_new(one, tmp_path / "final")
    other.write_text("other")
    with pytest.raises(FileExistsError):
        system.rename_new(other, tmp_path / "final")
    assert (tmp_path / "final").read_text() == "one"


def test_no_file_stays_open_where_that_would_keep_it_from_being_replaced(bare, tmp_path):
    named = tmp_path / "lora.ostate.safetensors"
    ostate.repair(LAST, named)
    state = ostate.load(named)
    state.tensor(next(iter(state)), "exp_avg")
    opened = {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()} if Path("/proc/self/fd").is_dir() else set()
    assert str(named) not in opened
    assert str(LAST / "optimizer.pt") not in opened
    before = named.read_bytes()
    ostate.repair(LAST, named, force=True)
    assert named.read_bytes() == before


def test_a_file_that_another_one_replaces_while_it_is_read_is_refused(bare, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0" * 100)
    buffer = memoryview(bytearray(10))
    files.read_into(str(path), 0, buffer)
    (tmp_path / "b").write_bytes(b"1" * 100)
    (tmp_path / "b").replace(path)
    with pytest.raises(ReadError, match="another file took this name"):
        files.read_into(str(path), 10, buffer, on=True)
    files.read_into(str(path), 0, buffer)
    assert bytes(buffer) == b"1" * 10


@pytest.mark.skipif(not system.KEEPS_OPEN, reason="an open file cannot be replaced there")
def test_what_reads_one_file_in_pieces_reads_the_same_file_to_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0" * 100)
    buffer = memoryview(bytearray(10))
    with files.recorded():
        files.read_into(str(path), 0, buffer)
        (tmp_path / "b").write_bytes(b"1" * 100)
        (tmp_path / "b").replace(path)
        files.read_into(str(path), 50, buffer)
        assert bytes(buffer) == b"0" * 10
    files.read_into(str(path), 50, buffer)
    assert bytes(buffer) == b"1" * 10


class Late(Exception):
    pass


@pytest.mark.parametrize("timer", [system._setitimer, None], ids=["signal", "thread"])
def test_what_takes_too_long_is_stopped_and_again_when_it_swallows_that(monkeypatch, timer):
    monkeypatch.setattr(system, "_setitimer", timer)
    caught = []

    def deaf():
        while True:
            try:
                while True:
                    pass
            except Late:
                caught.append(1)
                if len(caught) == 2:
                    raise

    with pytest.raises(Late), system.cpu_limit(0.2, Late):
        deaf()
    assert len(caught) == 2


@pytest.mark.parametrize("timer", [system._setitimer, None], ids=["signal", "thread"])
def test_what_is_done_in_time_is_left_alone(monkeypatch, timer):
    monkeypatch.setattr(system, "_setitimer", timer)
    with system.cpu_limit(0.3, Late):
        pass
    began = time.process_time()
    while time.process_time() - began < 0.5:
        pass


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path):
    for letters in ("x", "ä"):
        out = tmp_path / (letters * ((255 - len(".safetensors")) // len(letters.encode())) + ".safetensors")
        assert len(beside(out).name.encode()) <= 255
        assert ostate.repair(LAST, out).out == (str(out),)


def test_a_name_that_is_too_long_is_said_to_be(tmp_path):
    with pytest.raises(ostate.OstateError, match="name is too long"):
        ostate.repair(LAST, tmp_path / ("x" * 300 + ".safetensors"))


def test_names_that_would_be_one_file_are_refused_where_case_does_not_count(monkeypatch, tmp_path):
    (tmp_path / "case").touch()
    assert system.folds_case(tmp_path) == (tmp_path / "CASE").exists()
    monkeypatch.setattr(system, "folds_case", lambda _: True)
    state = ostate.load(ostate.repair(LAST, tmp_path / "a.safetensors").out[0])
    names = list(state)
    renamed = [(f"^{names[0]}$".replace(".", r"\."), names[1].upper())]
    with pytest.raises(ExportError, match="one file"):
        ostate.export(state, "deepspeed-universal", tmp_path / "out", adapter=LAST, rename=renamed)
    assert not (tmp_path / "out").exists()


def test_reading_and_writing_pass_their_tests_without_those_calls():
    """The other tests of the suite do too: `PYTHONPATH=tests/portable pytest`; a job of the workflow runs them so."""
    chosen = ["tests/store/test_round_trip.py", "tests/store/test_join.py", "tests/core/test_tensors.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "portable")}
    there = subprocess.run(
        [sys.executable, "-c", "import os; print(hasattr(os, 'pread'))"], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == "False"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
