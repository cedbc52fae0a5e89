"""Many checkpoints, one named file each: side by side, and picked up again where an earlier run stopped."""

from __future__ import annotations

import glob
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

from ostate import store
from ostate.core.brief import brief
from ostate.core.file_digest import sha256_of_file
from ostate.core.files import is_file
from ostate.core.naming import NamedState, Ordering, settled
from ostate.core.state import Finding, RawState
from ostate.core.system import folds_case
from ostate.errors import OstateError, ReadError, StoreError

from .options import Options, passed_to
from .repair import opened, repair

ENDING = ".ostate.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Outcome:
    """What came of one checkpoint."""

    path: str
    """The checkpoint."""
    out: str
    """The named file."""
    verdict: str
    """The verdict of its names, or `refused`."""
    done: bool = False
    """True when an earlier run had written it from the same bytes, with the same options."""
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
        StoreError: `folder` is a file.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise StoreError("the output is a file, and --batch writes one for each checkpoint", where=folder, fix="pass a folder: -o named/")
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
    work: list[tuple[str, str]],
    *,
    options: Options | None = None,
    jobs: int = 1,
    force: bool = False,
    keep_dtype: bool = False,
    sha256: bool = False,
    say: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Repair every checkpoint of `work`, `jobs` at a time, each in a process of its own; a refusal stops none of the others.

    Args:
        work: (checkpoint, named file) pairs, as `targets` gives them.
        options: the same for all.
        jobs: processes at a time.
        force: write those too that an earlier run has written, and over files that ostate did not write.
        keep_dtype: leave 16-bit moments as they are.
        sha256: record a SHA-256 of every tensor.
        say: called as each one ends.

    Returns:
        Outcomes in the order of `work`.
    """
    by_path = {}
    ask = partial(one, options=options or Options(), force=force, keep_dtype=keep_dtype, sha256=sha256)
    for outcome in _outcomes(work, ask, jobs):
        by_path[outcome.path] = outcome
        if say is not None:
            say(outcome)
    return [by_path[path] for path, _ in work]


def _outcomes(work: list[tuple[str, str]], ask: Callable[[str, str], Outcome], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        for path, out in work:
            yield ask(path, out)
        return
    # spawn: a forked child would share this process's open files and threads.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(ask, path, out) for path, out in work]):
            yield future.result()


def one(path: str, out: str, options: Options, force: bool, *, keep_dtype: bool = False, sha256: bool = False) -> Outcome:
    """Repair one checkpoint, unless `out` was written from the same bytes, with the same options, before."""
    began = time.perf_counter()
    try:
        if not force and os.path.exists(out) and (written := written_from(path, out, options, keep_dtype=keep_dtype, sha256=sha256)) is not None:
            order, _ = written
            return Outcome(path=path, out=out, verdict=order.verdict, done=True, settled=settled(*written))
        replaces = force or store.begins_as_ours(out)
        done = repair(path, out, options=options, force=replaces, keep_dtype=keep_dtype, sha256=sha256)
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


def written_from(path: str, out: str, options: Options, **how: bool) -> tuple[Ordering, Sequence[Finding]] | None:
    """Return how the names in `out` are proven and what is odd in it; None where it was written from other files, or with other options."""
    try:
        written = store.load(out)
    except OstateError:
        return None
    raw, found = opened(path, options)
    if written.ordering is None or not _same_options(written, options, how) or not _same_state(written, raw):
        return None
    digest = written.adapter.get("sha256")
    files = dict.fromkeys(adapter.file for adapter in found.adapters if is_file(adapter.file))
    if isinstance(digest, str) and digest not in map(sha256_of_file, files):
        return None
    return written.ordering, written.findings


def _same_options(written: NamedState, options: Options, how: Mapping[str, bool]) -> bool:
    passed = passed_to(options, **how)
    return all(written.source.get(field) == passed.get(field) for field in ("options", "option_files"))


def _same_state(written: NamedState, raw: RawState) -> bool:
    recorded = written.source.get("files")
    files = [file for file in recorded if isinstance(file, Mapping)] if isinstance(recorded, (list, tuple)) else []
    there = sorted(repr((file.index_sha256, file.size)) for file in raw.files)
    return there == sorted(repr((file.get("index_sha256"), file.get("size"))) for file in files)
