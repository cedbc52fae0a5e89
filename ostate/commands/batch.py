"""Many checkpoints, one named file each: side by side, and picked up again where an earlier run stopped."""

from __future__ import annotations

import glob
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from ostate import read as formats
from ostate import store
from ostate.core.brief import brief
from ostate.core.naming import Ordering, settled
from ostate.core.state import Finding
from ostate.core.system import folds_case
from ostate.errors import OstateError, ReadError

from .options import Options
from .repair import repair

ENDING = ".ostate.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one checkpoint."""

    path: str
    """The checkpoint."""
    out: str
    """The named file."""
    verdict: str
    """The verdict of its names, or `refused`."""
    done: bool = False
    """True when an earlier run had written it from the same bytes."""
    settled: bool = False
    """True when no person needs to look."""
    parameters: int = 0
    """How many were named."""
    seconds: float = 0.0
    """Wall time."""
    reason: str = ""
    """Why it was refused."""

    def __repr__(self) -> str:
        return brief(self)


def targets(pattern: str, folder: str) -> list[tuple[str, str]]:
    """Return (checkpoint, named file in `folder`) for every path that `pattern` matches, in order.

    The file is called after what distinguishes the path from the others: `runs/a/checkpoint-500` becomes `a--checkpoint-500`.

    Raises:
        ReadError: nothing matches.
    """
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        fix = "check the folders in the pattern, which is relative to the current one, and put it in quotes"
        raise ReadError("no checkpoint matches", where=pattern, fix=fix)
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in found])
    names = [os.path.relpath(os.path.abspath(path), shared).replace(os.sep, "--") + ENDING for path in found]
    if len({name.casefold() for name in names}) < len(names) and folds_case(folder):
        raise ReadError("two outputs would be one file: their names differ in capitals alone", where=folder, fix="repair them one by one")
    return [(path, os.path.join(folder, name)) for path, name in zip(found, names)]


def repair_all(
    work: list[tuple[str, str]], *, options: Options | None = None, jobs: int = 1, force: bool = False, say: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Repair every checkpoint of `work`, `jobs` at a time, each in a process of its own; a refusal stops none of the others.

    Args:
        work: (checkpoint, named file) pairs, as `targets` gives them.
        options: the same for all.
        jobs: processes at a time.
        force: write those too that an earlier run has written.
        say: called as each one ends.

    Returns:
        Outcomes in the order of `work`.
    """
    by_path = {}
    for outcome in _outcomes(work, options or Options(), jobs, force):
        by_path[outcome.path] = outcome
        if say is not None:
            say(outcome)
    return [by_path[path] for path, _ in work]


def _outcomes(work: list[tuple[str, str]], options: Options, jobs: int, force: bool) -> Iterator[Outcome]:
    if jobs == 1:
        for path, out in work:
            yield one(path, out, options, force)
        return
    # spawn: a forked child would share this process's open files and threads.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(one, path, out, options, force) for path, out in work]):
            yield future.result()


def one(path: str, out: str, options: Options, force: bool) -> Outcome:
    """Repair one checkpoint, unless `out` was written from the same bytes before."""
    began = time.perf_counter()
    try:
        if not force and os.path.exists(out) and (written := written_from(path, out, options)) is not None:
            order, _ = written
            return Outcome(path=path, out=out, verdict=order.verdict, done=True, settled=settled(*written))
        done = repair(path, out, options=options, force=True)
    except OstateError as error:
        return Outcome(path=path, out=out, verdict="refused", reason=error.what, seconds=time.perf_counter() - began)
    return Outcome(
        path=path,
        out=out,
        verdict=done.ordering.verdict,
        settled=done.settled,
        parameters=len(done.named.parameters),
        seconds=time.perf_counter() - began,
    )


def written_from(path: str, out: str, options: Options) -> tuple[Ordering, Sequence[Finding]] | None:
    """Return how the names in `out` are proven and what is odd in it, when it was written from the very files at `path`; else None."""
    try:
        written = store.load(out)
    except OstateError:
        return None
    raw = formats.read(path, state=options.state, optimizer=options.optimizer)
    recorded = written.source.get("files")
    files = [file for file in recorded if isinstance(file, Mapping)] if isinstance(recorded, (list, tuple)) else []
    there = sorted(repr((file.index_sha256, file.size)) for file in raw.files)
    then = sorted(repr((file.get("index_sha256"), file.get("size"))) for file in files)
    return (written.ordering, written.findings) if there == then and written.ordering is not None else None
