"""Fuzz one target until it breaks or the time is over: `python -m fuzz.run pickle -max_total_time=600`.

With atheris (`pip install atheris`), which is no dependency of ostate, the inputs are guided by coverage. Where it cannot be installed the same
targets run with the mutators of `fuzz/mutator.py` and `fuzz/structured.py`, each for half of the inputs. That loop takes `-max_total_time`,
`-seed` and `-timeout` as libFuzzer does. The corpus grows in
`fuzz/corpus/<target>`, which `python -m fuzz.seeds` starts; a finding is left as `fuzz/found/<target>-<digest>`. With file names in place of
options: runs these files once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ostate.errors import OstateError

from .mutator import mutated
from .structured import STRUCTURED

HERE = Path(__file__).parent
LONGEST = 16384
SECONDS = 20
MEGABYTES = 900


class TooSlow(BaseException):
    """An input took longer than it may; a `BaseException`, so that nothing under test takes it for its own."""


def main() -> None:
    """Hand the target to libFuzzer, or to the loop below."""
    name, more = sys.argv[1], sys.argv[2:]
    corpus, found = HERE / "corpus" / name, HERE / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    if importlib.util.find_spec("atheris") is not None:
        guided(name, corpus, found, more)
    else:
        plain(name, corpus, found, more)


def guided(name: str, corpus: Path, found: Path, more: list[str]) -> None:
    """Run under atheris."""
    import atheris

    with atheris.instrument_imports(include=["ostate"]):
        from fuzz.targets import TARGETS
    places = [] if any(not one.startswith("-") for one in more) else [str(corpus)]
    bounds = [f"-artifact_prefix={found / name}-", f"-max_len={LONGEST}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}"]
    words = HERE / "words" / f"{name}.txt"
    bounds += [f"-dict={words}"] if words.exists() else []
    atheris.Setup([sys.argv[0], *bounds, *more, *places], _once(TARGETS[name]))
    atheris.Fuzz()


def _once(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def once(data: bytes) -> None:
        with contextlib.suppress(OstateError):
            target(data)

    return once


def plain(name: str, corpus: Path, found: Path, more: list[str]) -> None:
    """Run with inputs that are changed at random, until the time is over; print how many there were.

    Whatever an input ends in but a refusal rises, as does one that takes longer than `-timeout`, or 900 MB more than the process began with.
    """
    from fuzz.targets import TARGETS

    options = dict(one[1:].split("=", 1) for one in more if one.startswith("-"))
    files = [Path(one) for one in more if not one.startswith("-")]
    inputs = [path.read_bytes() for path in sorted(corpus.iterdir())] or [b""]
    words = [part for data in inputs for part in data.split() if 3 < len(part) < 40][:2000]
    seed, limit = int(options.get("seed", 0)), int(options.get("timeout", SECONDS))
    chance, count, refused = random.Random(seed), 0, 0
    start, stop = time.monotonic(), float(options.get("max_total_time", 60))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + (MEGABYTES << 10)
    signal.signal(signal.SIGPROF, _late)
    while files or time.monotonic() - start < stop:
        data = files.pop().read_bytes() if files else changed(name, inputs, words, chance)
        count += 1
        signal.setitimer(signal.ITIMER_PROF, limit)  # CPU time: a busy machine is no fault of the input's
        with left_on_failure(data, found, name):
            try:
                TARGETS[name](data)
            except OstateError:
                refused += 1
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > most:
                raise MemoryError(f"more than {MEGABYTES} MB")
        if not files and any(not one.startswith("-") for one in more):
            break
    print(f"{name}: {count} inputs, {refused} refused, in {time.monotonic() - start:.0f} s; seed {seed}, not guided by coverage")


def changed(name: str, inputs: Sequence[bytes], words: Sequence[bytes], chance: random.Random) -> bytes:
    """Return the next input of a target: half of them keep the structure that the target reads, where it has one."""
    if name in STRUCTURED and chance.random() < 0.5:
        return STRUCTURED[name](chance.choice(inputs), chance)[:LONGEST]
    return mutated(inputs, words, chance, LONGEST)


@contextlib.contextmanager
def left_on_failure(data: bytes, folder: Path, name: str) -> Iterator[None]:
    """Keep the input where what is done with it fails, and let the failure rise."""
    with contextlib.ExitStack() as stack:
        path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
        stack.callback(print, f"a finding: {path}")
        stack.callback(path.write_bytes, data)
        yield
        stack.pop_all()


def _late(_: int, __: FrameType | None) -> Any:
    raise TooSlow(f"longer than {SECONDS} s")


if __name__ == "__main__":
    main()
