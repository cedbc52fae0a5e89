"""Runs `ostate` commands on hostile files, each in a child of its own with little memory and time, and tells what came out.

Run as a program: a list of {"folder", "out", "args"} as JSON on stdin, a list of outcomes as JSON on stdout.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.jail import FORBIDDEN

MEMORY = 400 << 20
"""Bytes that a command may take beyond what its interpreter had when it was forked."""
SECONDS = 25
_OWN = ("tempfile.", "os.remove", "os.rename", "os.mkdir", "os.link", "os.rmdir", "shutil.", "os.chmod")
"""What writing an output needs; judged by its path."""


_IMPORTS = ("marshal.loads", "ctypes.dlsym", "ctypes.dlopen")
"""What importing a module of ours or of the standard library does by itself."""


@dataclass(frozen=True)
class Said:
    """What one command came to."""

    code: int
    """The exit code; -1: an exception that is no refusal; below: killed."""
    out: str
    err: str
    events: tuple[str, ...]
    """What Python's audit hooks saw that this command never needs."""
    seconds: float
    megabytes: int
    """Resident memory beyond the interpreter's own."""


def run(jobs: list[tuple[Path, list[str]]], *, torch: bool = False) -> list[Said]:
    """Run each command in its folder; `out` below the folder is the only place it may write to."""
    asked = json.dumps([{"folder": str(folder), "args": args} for folder, args in jobs])
    command = [sys.executable, "-m", "tests.attacks.console", *(["torch"] if torch else [])]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return [Said(**{**one, "events": tuple(one["events"])}) for one in json.loads(done.stdout)]


def _watch(folder: str, events: list[str]) -> None:
    """Note whatever a command has no business to do."""
    allowed = os.path.join(folder, "out"), os.path.join(folder, ".out")

    def watch(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
            if not os.path.join(folder, str(args[0])).startswith(allowed) and args[0] != os.devnull:
                events.append(f"{event} {args!r}"[:200])
        elif event.startswith(_OWN):
            if not any(isinstance(arg, (str, bytes)) and os.path.join(folder, os.fsdecode(arg)).startswith(allowed) for arg in args):
                events.append(f"{event} {args!r}"[:200])
        elif event.startswith(FORBIDDEN) and event not in _IMPORTS:
            events.append(f"{event} {args!r}"[:200])

    sys.addaudithook(watch)


def child(folder: str, args: list[str]) -> dict[str, object]:
    """Run one command in this process and describe what happened."""
    from ostate.cli import main

    events: list[str] = []
    os.chdir(folder)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, err = io.StringIO(), io.StringIO()
    _watch(folder, events)
    began, code = time.process_time(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(args, prog_name="ostate")
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        except BaseException:  # noqa: BLE001  (whatever comes out is the finding of the test)
            code = -1
            traceback.print_exc()
    return {
        "code": code,
        "out": out.getvalue()[:200_000],
        "err": err.getvalue()[:20_000],
        "events": events[:20],
        "seconds": time.process_time() - began,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - own) >> 10,
    }


def main() -> None:
    """Fork a child for each command, so that no attack can reach the next."""
    outcomes = []
    for job in json.load(sys.stdin):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with os.fdopen(writing, "w") as out:
                json.dump(child(job["folder"], job["args"]), out)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as come:
            text = come.read()
        _, status = os.waitpid(pid, 0)
        dead = {"code": -status, "out": "", "err": "", "events": [], "seconds": 0.0, "megabytes": 0}
        outcomes.append(json.loads(text) if text else dead)
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    import pkgutil
    from importlib import import_module

    import jsonschema  # noqa: F401

    import ostate

    heavy = ("ostate.probe", "ostate.exporters", "ostate.__main__", "ostate.plot", "ostate.report.figures")
    heavy += ("ostate.commands.demo_run", "ostate.commands.save_live")  # import torch
    for found in pkgutil.walk_packages(ostate.__path__, "ostate."):  # once, before the children are made
        if not found.name.startswith(heavy):
            with contextlib.suppress(ImportError):
                import_module(found.name)
    if "torch" in sys.argv:
        import torch  # noqa: F401

    main()
