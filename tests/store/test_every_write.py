"""A full disk, Ctrl-C or SIGTERM at each write of each command that writes: no partial output, no temporary file, a message, its exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
from contextlib import redirect_stderr, redirect_stdout

import pytest

import ostate
from ostate.cli import main
from ostate.cli.failures import end_at_sigterm
from ostate.core import system
from tests.real import CASES

CHECKPOINT = str(CASES / "one-process" / "llama_qv" / "checkpoint-5")
ENDS = {"no space": 3, "SIGINT": 130, "SIGTERM": 143}
NONE = 1 << 40
WRITES = os.O_WRONLY | os.O_RDWR


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    path = tmp_path_factory.mktemp("named") / "named.safetensors"
    ostate.repair(CHECKPOINT, str(path))
    return str(path)


def commands(named):
    export = ["export", named, "-o", "out/o", "--to"]
    return {
        "repair": ["repair", CHECKPOINT, "-o", "out/o.safetensors"],
        "repair --batch": ["repair", "--batch", os.path.join(os.path.dirname(CHECKPOINT), "checkpoint-*"), "-o", "out"],
        "report": ["report", named, "-o", "out/o.html"],
        "torch": [*export, "torch", "--names"],
        "deepspeed-universal": [*export, "deepspeed-universal", "--adapter", CHECKPOINT],
        **{to: [*export, to] for to in ("less", "bergson", "dattri", "ota", "names", "dcp", "ostate")},
    }


COMMANDS = tuple(commands(""))


def count_writes(out, act, at):
    """Do `act` at the `at`-th thing that is done to a file below `out`; return where the count stands."""
    done = [0]

    def step():
        done[0] += 1
        if done[0] == at:
            act()

    def watch(event, arguments):
        if event == "open" and isinstance(arguments[0], str):
            path, mode, flags = arguments
            writes = bool(set(mode) & set("wxa+")) if isinstance(mode, str) else bool((flags or 0) & WRITES)
        else:
            path, writes = (arguments or (None,))[0], event in ("os.rename", "os.link", "os.mkdir")
        if writes and os.path.abspath(os.fsdecode(path)).startswith(out):
            step()

    import sys

    sys.addaudithook(watch)
    write_all = system.write_all

    def counted(*arguments):
        step()
        write_all(*arguments)

    system.write_all = counted  # in a child that ends with this command
    return done


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def child(folder, arguments, what, at, limit):
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    end_at_sigterm()
    act = full if what == "no space" else lambda: os.kill(os.getpid(), getattr(signal, what))
    done = count_writes(os.path.join(folder, "out"), act, at)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments, prog_name="ostate")
        except SystemExit as left:
            code = left.code or 0
    return {"code": code, "said": out.getvalue() + err.getvalue(), "writes": done[0]}


def run(folder, arguments, what="SIGTERM", at=0, limit=NONE):
    """Run a command in a child of its own, and return how it ended and what lies in its output folder."""
    (folder / "out").mkdir(parents=True)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        ended = {"code": "fault"}
        try:
            ended = child(str(folder), arguments, what, at, limit)
        finally:
            os.write(writing, json.dumps(ended).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        ended = json.loads(answer.read())
    os.waitpid(pid, 0)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file()}
    return ended, files


@pytest.mark.parametrize("command", COMMANDS)
def test_at_every_write_it_leaves_nothing_or_all(tmp_path, named, command):
    arguments = commands(named)[command]
    whole, files = run(tmp_path / "whole", arguments)
    assert whole["code"] in (0, 1), whole["said"]
    assert whole["writes"] > 1
    assert files
    last = whole["writes"]
    for at in sorted({1, 2, 3, 4, last // 2, last - 1, last} & set(range(1, last + 1))):
        for what in ("no space", ("SIGTERM", "SIGINT")[at % 2]):
            ended, left = run(tmp_path / f"{at}-{what}", arguments, what, at)
            where = f"{what} at write {at} of {whole['writes']}: {ended}, {left}"
            if left:  # while files get their names a signal waits; where no link can be made they are renamed
                assert left == files, where
                continue
            assert ended["code"] == ENDS[what], where
            assert not left, where
            assert ("the disk is full" if what == "no space" else "not written") in ended["said"], where


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_may_not_grow_further_leaves_nothing(tmp_path, named, command):
    """As a disk does that fills up in the middle of a write, also within torch's own."""
    arguments = commands(named)[command]
    _, files = run(tmp_path / "whole", arguments)
    for limit in (0, max(files.values()) // 2, max(files.values()) - 1):
        ended, left = run(tmp_path / str(limit), arguments, limit=limit)
        assert ended["code"] == 3, f"{limit}: {ended}"
        assert "grows beyond the size" in ended["said"]
        assert not left


def test_names_of_a_live_optimizer_are_written_whole_or_not_at_all(tmp_path):
    import torch

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    (tmp_path / "optimizer_param_names.json").write_text('["mine"]')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    try:
        with pytest.raises(ostate.errors.StoreError, match="grows beyond"):
            ostate.record_names(optimizer, model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "optimizer_param_names.json").read_text() == '["mine"]'
    assert len(list(tmp_path.iterdir())) == 1
    ostate.record_names(optimizer, model, tmp_path)
    assert json.loads((tmp_path / "optimizer_param_names.json").read_text()) == [["weight", "bias"]]


def test_a_signal_waits_until_what_must_be_whole_is_done():
    seen = []

    def interrupted():
        with system.uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            seen.append("done")
        seen.append("never")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's job in the background ignores
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert seen == ["done"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
