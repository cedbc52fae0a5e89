"""Write a named file: all of it, or nothing, and never over an input."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ostate.core import system
from ostate.core.atomic import beside, cannot_write, publish, refuse_inputs, refuse_targets
from ostate.core.brief import brief
from ostate.core.files import is_remote, new_buffer, recorded
from ostate.core.named_file import is_named
from ostate.core.naming import NamedState
from ostate.core.safetensors import Head
from ostate.core.state import Finding
from ostate.core.stream import Summary
from ostate.core.tensors import Part, TensorRef
from ostate.errors import ReadError, StoreError, refusing

from . import header, manifest
from .copying import CHUNK_BYTES, copy, shift
from .plan import SHARD_BYTES, FilePlan, check_names, cut, index_path, plan, shard_path

Summaries = Mapping[tuple[str, str], Summary]
"""(name, slot) -> what was seen while it was copied."""


@dataclass(frozen=True, slots=True, repr=False)
class Written:
    """What `write` left behind."""

    path: str
    """What `load` takes: the file, or the index of several."""
    files: tuple[str, ...]
    nbytes: int
    findings: tuple[Finding, ...]
    """All that stand in the manifest: the state's own, then those that `check` added."""

    def __repr__(self) -> str:
        return brief(self)


@refusing
def write(
    state: NamedState,
    out: str | os.PathLike[str],
    *,
    keep_dtype: bool = False,
    force: bool = False,
    sha256: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
    check: Callable[[Summaries], Sequence[Finding]] | None = None,
    shard: tuple[int, int] | None = None,
    inputs: Iterable[str] = (),
) -> Written:
    """Write `state` to `out`; the same state gives the same bytes.

    Args:
        state: what to write; its numbers are read now, a chunk at a time.
        out: the file, whose folder exists; above `max_shard_bytes` (or 90 MB of header) it becomes several files with an index.
        keep_dtype: leave 16-bit moments as they are.
        force: replace an existing output.
        sha256: record a SHA-256 a tensor in place of a CRC32.
        max_shard_bytes: tensor bytes a file.
        check: looks at the ranges seen while copying; its findings go into the manifest, and when it raises nothing is written.
        shard: (number, of how many) when `state` is one process's part of a state that several write at once, each under `shard_path`; one of
            them writes the index when all are there (`write_index`).
        inputs: files that were read besides those that hold the state's numbers; a named file among them is an earlier output, looked at in passing.

    Raises:
        StoreError: the output exists, is an input, or cannot be written; a source changed meanwhile.
        ReadError: a source cannot be read.
    """
    target = Path(os.fsdecode(out))
    check_names(state)
    shards = cut(state, keep=keep_dtype, shard_bytes=max_shard_bytes)
    paths = [shard_path(target, index + 1, len(shards)) for index in range(len(shards))]
    index = index_path(target) if len(shards) > 1 else None
    finals = [*paths, index] if index is not None else paths
    sources = sources_of(state)
    refuse_targets([target, *finals], sources, force=force)
    refuse_inputs([path for path in (target, index_path(target), *finals) if not _ours(path)], inputs)
    before = [_stamp(path) for path in sources]
    temporary: list[Path] = []
    try:
        if shard is not None and len(shards) > 1:
            raise StoreError("one process's part is too large for one file", where=str(target), fix="save from more processes")
        with recorded():  # each source stays the file that it is at its first tensor
            found, total = _fill(state, shards, paths, temporary, shard, keep_dtype=keep_dtype, sha256=sha256, check=check)
        if index is not None:
            temporary.append(beside(index))
            _write_index(temporary[-1], shards, paths, temporary)
        _refuse_changed(sources, before)
        old_index = [path for path in (index_path(target),) if os.path.exists(path) and _ours(path)]
        stale = [path for path in (target, *old_index) if path not in finals] if force else []
        publish(temporary, finals, stale, force=force)
    except OSError as error:
        raise cannot_write(error, target) from error
    finally:
        for path in temporary:
            with suppress(OSError):
                path.unlink()
    return Written(str(finals[-1]), tuple(map(str, finals)), total, (*state.findings, *found))


def _refuse_changed(sources: Sequence[str], before: Sequence[tuple[int, ...]]) -> None:
    changed = [path for path, stamp in zip(sources, before) if _stamp(path) != stamp]
    if changed:
        raise StoreError("the source changed while it was read", where=changed[0], fix="wait until the run has finished writing it")


def _ours(path: Path) -> bool:
    """True for a named file, or the index of several; one that is damaged, or not there, is none."""
    try:
        return is_named(str(path))
    except ReadError:
        return False


def _fill(
    state: NamedState,
    shards: Sequence[tuple[str, ...]],
    paths: Sequence[Path],
    temporary: list[Path],
    part: tuple[int, int] | None,
    *,
    keep_dtype: bool,
    sha256: bool,
    check: Callable[[Summaries], Sequence[Finding]] | None,
) -> tuple[tuple[Finding, ...], int]:
    """Write the data of every shard, then, when all numbers were seen, the heads."""
    blank = "sha256:" + "0" * 64 if sha256 else "crc32:" + "0" * 8
    opened: list[tuple[int, FilePlan, int, dict[tuple[str, str], str]]] = []
    summaries: dict[tuple[str, str], Summary] = {}
    found: tuple[Finding, ...] = ()
    buffer = new_buffer(CHUNK_BYTES)  # one for all: fresh memory costs the system a fault a page
    try:
        for number, (names, path) in enumerate(zip(shards, paths), start=1):
            layout = plan(state, names, keep=keep_dtype)
            shard = (number, len(shards)) if len(shards) > 1 else part
            digests = {(job.name, job.slot): blank for job in layout.jobs}
            head_bytes = len(header.pack(layout.tensors, manifest.of_state(state, names, digests, state.findings, shard)))
            temporary.append(beside(path))
            descriptor = system.open_new(temporary[-1])
            opened.append((descriptor, layout, head_bytes, digests))
            system.reserve(descriptor, head_bytes + layout.nbytes)
            system.write_all(descriptor, layout.steps, head_bytes + layout.steps_at)
            for job in layout.jobs:
                digests[job.name, job.slot], seen = copy(job, descriptor, head_bytes, buffer, sha256=sha256, measure=check is not None)
                if seen is not None:
                    summaries[job.name, job.slot] = seen
        if check is not None:
            found = tuple(check(summaries))
        total = 0
        for number, (descriptor, layout, head_bytes, digests) in enumerate(opened, start=1):
            shard = (number, len(shards)) if len(shards) > 1 else part
            head = header.pack(layout.tensors, manifest.of_state(state, layout.names, digests, (*state.findings, *found), shard), head_bytes)
            if len(head) > head_bytes:
                shift(descriptor, head_bytes, len(head), layout.nbytes)
            total += _finish(descriptor, head, layout.nbytes)
    finally:
        for descriptor, *_ in opened:
            os.close(descriptor)
    return found, total


def _finish(descriptor: int, head: bytes, data: int) -> int:
    """Put the head in front, flush, read it back."""
    system.write_all(descriptor, head, 0)
    os.ftruncate(descriptor, len(head) + data)
    os.fsync(descriptor)
    if system.read(descriptor, len(head), 0) != head or os.fstat(descriptor).st_size != len(head) + data:
        raise StoreError("the written file does not read back the same", fix="the disk is failing: write elsewhere")
    return len(head) + data


def _write_index(path: Path, shards: Sequence[tuple[str, ...]], paths: Sequence[Path], temporary: Sequence[Path]) -> None:
    heads = [header.read(str(part)) for part in temporary[: len(shards)]]
    text = index_text([(final.name, head) for final, head in zip(paths, heads)])
    with path.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_index(out: str | os.PathLike[str], files: Sequence[str], *, force: bool = False) -> str:
    """Write the index of files that several processes wrote, in order; it gets its name when it is whole.

    Returns:
        The index's path, which `load` takes.

    Raises:
        StoreError: it exists, or a file is no part of a named state.
    """
    index = index_path(Path(os.fsdecode(out)))
    text = index_text([(Path(file).name, header.read(file)) for file in files])
    temporary = beside(index)
    try:
        with temporary.open("xb") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        publish([temporary], [index], [], force=force)
    except OSError as error:
        raise cannot_write(error, index) from error
    finally:
        temporary.unlink(missing_ok=True)
    return str(index)


def index_text(shards: Iterable[tuple[str, Head]]) -> bytes:
    """Return the index of shards, (file name, head) each, as Hugging Face writes it; the same shards give the same bytes."""
    weight_map: dict[str, str] = {}
    total = 0
    for name, head in shards:
        weight_map |= dict.fromkeys(head.tensors, name)
        total += head.data_bytes
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, ensure_ascii=False).encode() + b"\n"


def sources_of(state: NamedState) -> list[str]:
    """Return every file the state's numbers come from."""
    found = {part.file for p in state.parameters.values() for s in p.slots.values() for part in parts_of(s)}
    return sorted(found | ({state.path} if state.path else set()))


def parts_of(slot: object) -> Iterable[Part]:
    """Return the pieces in files behind a slot, as far as it shows them."""
    if isinstance(slot, TensorRef):
        return slot.parts
    found: list[Part] = []
    for name in getattr(slot, "__dataclass_fields__", ()):
        value = getattr(slot, name)
        values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else (value,)
        for item in values:
            if isinstance(item, TensorRef):
                found.extend(item.parts)
            elif hasattr(item, "chunks"):
                found.extend(parts_of(item))
    return found


def _stamp(path: str) -> tuple[int, ...]:
    if is_remote(path):
        return ()
    try:
        seen = os.stat(path)
    except OSError:
        return (-1,)
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns
