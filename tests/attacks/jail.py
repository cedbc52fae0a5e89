"""Runs one reading function on hostile files, each in a child of its own with little memory and time, and tells what it did.

Run as a program: a list of [function, path] as JSON on stdin, a list of outcomes as JSON on stdout.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY = 400 << 20
SECONDS = 20
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink",
    "os.putenv", "subprocess.Popen", "socket.", "pickle.find_class", "marshal.load", "ctypes.", "shutil.", "tempfile.", "webbrowser.", "urllib.",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one hostile file came to."""

    error: str
    """The name of the exception's class; empty: it was read."""
    tree: tuple[str, ...]
    """Names of the class and those above it."""
    text: str
    fix: str
    events: tuple[str, ...]
    """What Python's audit hooks saw that reading never needs."""
    seconds: float
    """CPU time."""
    megabytes: int
    """Peak resident memory."""


def run(jobs: list[tuple[str, Path]]) -> list[Outcome]:
    """Return the outcome of each job, in order."""
    asked = json.dumps([[name, str(path)] for name, path in jobs])
    command = [sys.executable, "-m", "tests.attacks.jail"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return [Outcome(**{**one, "tree": tuple(one["tree"]), "events": tuple(one["events"])}) for one in json.loads(done.stdout)]


def child(name: str, path: str) -> dict[str, object]:
    """Read `path` in this process and describe what happened."""
    events: list[str] = []

    def watch(event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event.startswith(FORBIDDEN):
            events.append(f"{event} {args!r}"[:200])

    from ostate import read as formats

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    sys.addaudithook(watch)
    began, error = time.process_time(), None
    try:
        getattr(formats, name)(path)
    except BaseException as caught:  # noqa: BLE001  (whatever comes out is the finding of the test)
        error = caught
    return {
        "error": type(error).__name__ if error else "",
        "tree": [one.__name__ for one in type(error).__mro__] if error else [],
        "text": str(error)[:2000] if error else "",
        "fix": getattr(error, "fix", ""),
        "events": events,
        "seconds": time.process_time() - began,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def main() -> None:
    """Fork a child for each job, so that no attack can reach the next."""
    outcomes = []
    for name, path in json.load(sys.stdin):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with os.fdopen(writing, "w") as out:
                json.dump(child(name, path), out)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as come:
            text = come.read()
        _, status = os.waitpid(pid, 0)
        dead = {"error": f"died of {status}", "tree": [], "text": "", "fix": "", "events": [], "seconds": 0.0, "megabytes": 0}
        outcomes.append(json.loads(text) if text else dead)
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    import pkgutil
    from importlib import import_module

    from ostate import read as formats

    # Once, before the children are made, where an import counts as reading code.
    for module in pkgutil.walk_packages(formats.__path__, "ostate.read."):
        import_module(module.name)

    main()
