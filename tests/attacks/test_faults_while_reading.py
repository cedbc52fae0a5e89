"""A file that changes between one look and the next: whatever read that happens at, a result or a refusal in words, and no half output."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

import ostate
from ostate.core import system
from ostate.errors import OstateError, ReadError
from tests.real import CASES

CHECKPOINT = CASES / "one-process" / "llama_qv" / "checkpoint-5"
REAL = system.read, system.read_into


class Fault:
    """Stands where ostate reads, and does something to the files before one of the reads."""

    def __init__(self, monkeypatch, at, act, times=1):
        self.at, self.act, self.times, self.reads = at, act, times, 0
        monkeypatch.setattr(system, "read", lambda descriptor, length, offset: self(REAL[0], descriptor, length, offset))
        monkeypatch.setattr(system, "read_into", lambda descriptor, view, offset: self(REAL[1], descriptor, view, offset))

    def __call__(self, real, *arguments):
        self.reads += 1
        if self.at <= self.reads < self.at + self.times:
            self.act()
        return real(*arguments)


def raising(number):
    def act():
        raise OSError(number, os.strerror(number))

    return act


def folder_of(tmp_path, number):
    folder = tmp_path / str(number) / "checkpoint-5"
    shutil.copytree(CHECKPOINT, folder)
    return folder


ACTS = {
    "the disk fails": lambda folder: raising(errno.EIO),
    "no permission any more": lambda folder: raising(errno.EACCES),
    "the handle is stale": lambda folder: raising(errno.ESTALE),
    "the state shrinks": lambda folder: lambda: os.truncate(folder / "optimizer.pt", 2000),
    "the adapter shrinks": lambda folder: lambda: os.truncate(folder / "adapter_model.safetensors", 100),
    "the state vanishes": lambda folder: lambda: (folder / "optimizer.pt").unlink(missing_ok=True),
    "the state is replaced": lambda folder: lambda: shutil.copy(folder / "adapter_model.safetensors", folder / "optimizer.pt"),
    "the folder vanishes": lambda folder: lambda: shutil.rmtree(folder, ignore_errors=True),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("command", ["inspect", "repair"])
def test_at_every_read_it_ends_in_words_and_leaves_no_half_output(tmp_path, monkeypatch, act, command):
    counted = Fault(monkeypatch, 0, lambda: None)
    run(command, folder_of(tmp_path, "plain"))
    last = counted.reads
    assert last > 4
    ends = {"done": 0, "refused": 0}
    for at in sorted({1, 2, 3, 4, 5, 6, 7, 8, *range(9, last + 1, max(1, last // 8)), last}):
        folder = folder_of(tmp_path, at)
        Fault(monkeypatch, at, ACTS[act](folder), times=2)
        ends[run(command, folder)] += 1
        left = [path.name for path in folder.parent.iterdir() if path != folder]
        assert left in ([], ["out.safetensors"]), f"read {at}: {left}"
    assert sum(ends.values()) > 4


def run(command, folder):
    """Return how it ended; any error but a refusal fails the test by itself."""
    out = folder.parent / "out.safetensors"
    try:
        if command == "inspect":
            ostate.inspect(str(folder), values=True)
        else:
            ostate.repair(str(folder), str(out))
    except OstateError as error:
        assert not out.exists()
        assert error.what  # noqa: PT017
        return "refused"
    return "done"


def test_a_stale_handle_is_opened_again_once_and_the_numbers_are_the_same(tmp_path, monkeypatch):
    """What a network disk says when its server came back."""
    folder = folder_of(tmp_path, 0)
    before = ostate.inspect(str(folder), values=True).values
    for at in (1, 3, 9, 20):
        Fault(monkeypatch, at, raising(errno.ESTALE))
        assert ostate.inspect(str(folder), values=True).values == before
    Fault(monkeypatch, 1, raising(errno.ESTALE), times=99)
    with pytest.raises(ReadError, match="cannot read the file"):
        ostate.inspect(str(folder / "optimizer.pt"), values=True)


def test_a_stale_handle_of_a_file_that_was_replaced_is_refused(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, 0)

    def replaced():
        shutil.copy(folder / "optimizer.pt", folder / "new.pt")
        (folder / "new.pt").replace(folder / "optimizer.pt")
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    Fault(monkeypatch, 3, replaced)
    with pytest.raises(ReadError, match="another file took this name"):
        ostate.inspect(str(folder / "optimizer.pt"), values=True)
