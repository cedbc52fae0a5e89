"""What surrounds a command and a call: a folder that is gone, few descriptors, outputs that are no files, paths and arguments of another kind."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import ostate
from ostate.errors import OstateError, ReadError, StoreError
from tests import real

CASE = real.case("llama_qv")
REPOSITORY = Path(__file__).parents[2]
CHECKPOINT = str(CASE.state.parent)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    path = tmp_path_factory.mktemp("named") / "named.safetensors"
    ostate.repair(CHECKPOINT, path, adapter=CHECKPOINT)
    return str(path)


def said(arguments, *, cwd=None, descriptors=None):
    """Run a command in a process of its own."""

    def bound():
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    command = [sys.executable, "-m", "ostate", *arguments]
    return subprocess.run(command, cwd=cwd, preexec_fn=bound, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", ["inspect .", "repair . -o x", "names ./x", "report x -o y"])
def test_a_folder_that_is_gone_is_said(tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir {gone} && exec {sys.executable} -P -m ostate {command}"
    around = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["bash", "-c", script], cwd=gone, capture_output=True, text=True, timeout=120, env=around)
    assert (done.returncode, "fix:" in done.stderr) in ((3, True), (2, False)), done.stderr  # 2: an argument that is looked up does not exist
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("descriptors", [8, 10, 12])
@pytest.mark.parametrize("to", ["dcp", "deepspeed-universal", "torch"])
def test_few_descriptors_leave_nothing_behind(tmp_path, named, to, descriptors):
    arguments = ["export", named, "--to", to, "--adapter", CHECKPOINT, "-o", str(tmp_path / "out")]
    done = said(arguments, descriptors=descriptors)
    assert done.returncode in (0, 1, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if done.returncode == 3 else ["out"])


@pytest.mark.parametrize("command", ["repair", "report", "torch", "dcp"])
def test_an_output_that_is_a_pipe_or_a_socket_stays_one(tmp_path, named, command):
    """A device is the same to us; making one takes rights that a test should not have."""
    pipe, end = tmp_path / "pipe.html", tmp_path / "socket.html"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(end))
        for place, kind in ((pipe, stat.S_ISFIFO), (end, stat.S_ISSOCK)):
            first = {"repair": ["repair", CHECKPOINT], "report": ["report", named]}.get(command, ["export", named, "--to", command])
            done = said([*first, "--force", "-o", str(place)])
            assert done.returncode == 3, done.stderr
            assert "a device, a pipe or a socket" in done.stderr
            assert kind(place.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe.html", "socket.html"]


class Located:
    """A path of a class of one's own, in bytes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


@pytest.mark.parametrize("kind", [os.fsencode, Located, Path], ids=["bytes", "an object of bytes", "Path"])
def test_paths_of_every_kind_are_taken(tmp_path, named, kind):
    out = tmp_path / "out.safetensors"
    assert ostate.repair(kind(CHECKPOINT), kind(str(out)), adapter=kind(CHECKPOINT)).out == (str(out),)
    assert out.read_bytes() == Path(named).read_bytes()
    assert ostate.inspect(kind(CHECKPOINT), adapter=kind(CHECKPOINT)).raw.entries
    ostate.verify(kind(named), adapter=kind(CHECKPOINT))
    assert ostate.load(kind(named)).parameters.keys() == ostate.load(named).parameters.keys()
    assert ostate.validate(kind(named)) == ostate.validate(named)
    ostate.diff(kind(named), kind(CHECKPOINT))
    ostate.export(kind(named), "torch", kind(str(tmp_path / "optimizer.pt")), wanted=kind(CHECKPOINT))


WRONG = {
    "adapter_name": (7, [], b"x"), "names": (7, "x", []), "state": (7, b"x", ["a"]), "optimizer": (1.5, [], b"x"), "step": (1.5, "7", []),
    "betas": (7, (0.9,), ("a", "b"), "ab"), "eps": ("1e-8", [], {}),
}  # fmt: skip


@pytest.mark.parametrize("argument", WRONG)
def test_an_argument_of_another_kind_is_refused_by_its_name(argument):
    for value in WRONG[argument]:
        with pytest.raises(TypeError, match=f"^{argument}="):
            ostate.repair(CHECKPOINT, **{argument: value})


@pytest.mark.parametrize("call", [ostate.inspect, ostate.repair, ostate.load, ostate.validate, ostate.verify])
@pytest.mark.parametrize("path", ["\ud800", "a\0b", "x" * 5000, ""])
def test_a_path_that_no_file_system_holds_is_refused_in_words(call, path):
    with pytest.raises(OstateError) as refused:
        call(path)
    assert refused.value.fix


def test_an_output_that_no_file_system_holds_is_refused_in_words(tmp_path, named):
    for name in ("\ud800", "a\0b", "x" * 5000):
        with pytest.raises((ReadError, StoreError)) as refused:
            ostate.export(named, "torch", str(tmp_path / name))
        assert refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_layout_that_is_a_list_is_refused_in_words(tmp_path, named):
    with pytest.raises(OstateError, match="no layout is called"):
        ostate.export(named, ["torch"], tmp_path / "out")
