"""Whole files get their names, or none does: targets that may be written, temporary names, renames that never overwrite."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ostate.errors import StoreError

from . import system
from .files import is_remote

_WHY = {
    errno.ENOSPC: ("the disk is full", "free some space, or write elsewhere"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or write elsewhere"),
    errno.EFBIG: ("the file grows beyond the size this system allows", "raise `ulimit -f`, or write smaller files with max_shard_bytes"),
    errno.EROFS: ("the target is read-only", "write elsewhere"),
    errno.EACCES: ("no permission to write in the target folder", "write elsewhere"),
    errno.EPERM: ("no permission to write in the target folder", "write elsewhere"),
    errno.ENOENT: ("the target folder does not exist", "make the folder first: mkdir -p"),
    errno.ENAMETOOLONG: ("the output's name is too long for this file system", "give a shorter one"),
    errno.ENOTDIR: ("the target folder is not a folder", "check the path"),
}


_LONGEST = 255
"""Bytes of a name that file systems take."""


def cannot_write(error: OSError, target: Path) -> StoreError:
    """Return what to tell a person when the system will not write."""
    what, fix = _WHY.get(error.errno or 0, (f"cannot write: {error.strerror}", "check the disk"))
    return StoreError(what, where=str(target), fix=fix)


def check_target(out: str | os.PathLike[str], *, force: bool = False, inputs: Sequence[str | os.PathLike[str] | None] = ()) -> None:
    """Refuse an output that `write` would refuse, before any work is done.

    Raises:
        StoreError: it exists, is a folder or an input, or its folder is missing.
    """
    text = os.fsdecode(out)
    if text == "-":
        raise StoreError("a named file is not written to standard output", where=text, fix="pass a file name, e.g. lora.ostate.safetensors")
    if text.endswith(("/", os.sep)) and not os.path.exists(text):
        raise StoreError("the output ends as a folder does, and there is none", where=text, fix="pass a file name, e.g. lora.ostate.safetensors")
    target = Path(text)
    refuse_targets([target], [os.fsdecode(path) for path in inputs if path is not None], force=force)
    if not target.parent.is_dir():
        raise StoreError("the target folder does not exist", where=str(target.parent), fix="make the folder first: mkdir -p")


def refuse_targets(targets: Sequence[Path], sources: Sequence[str], *, force: bool) -> None:
    """Refuse outputs that are folders, devices, pipes, inputs, or there already.

    Raises:
        StoreError: one of them is.
    """
    for target in targets:
        if os.path.isdir(target):
            raise StoreError("the output is a folder", where=str(target), fix="pass a file name, e.g. lora.ostate.safetensors")
        refuse_special(target)
        there = os.path.exists(target)
        if there and any(_same(target, source) for source in sources):
            raise StoreError(INPUT, where=str(target), fix="choose another output name")
        if (there or os.path.islink(target)) and not force:
            raise StoreError("the output exists already", where=str(target), fix="pass --force to replace it, or choose another name")


def refuse_special(target: Path) -> None:
    """Refuse an output that is a device, a pipe or a socket: renaming a file onto `/dev/null` would replace it, for everybody.

    Raises:
        StoreError: it is.
    """
    if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        raise StoreError("the output is a device, a pipe or a socket", where=str(target), fix="pass another name")


def refuse_inputs(targets: Sequence[Path], inputs: Iterable[str]) -> None:
    """Refuse outputs that are one of `inputs`, by device and inode, or folders that hold one.

    Raises:
        StoreError: one of them is.
    """
    there = [target for target in targets if os.path.exists(target)]
    read = list(inputs) if there else []
    for target in there:
        source = next((source for source in read if _same(target, source)), None)
        if source is not None:
            raise StoreError(INPUT, where=str(target), fix="choose another output name")
        if os.path.isdir(target) and (held := next((source for source in read if _holds(target, source)), None)) is not None:
            raise StoreError("the output folder holds one of the inputs, which are never changed", where=held, fix="choose another output folder")


INPUT = "the output is one of the inputs, which are never changed"


def _holds(folder: Path, source: str) -> bool:
    return not is_remote(source) and any(_same(folder, str(above)) for above in Path(source).resolve().parents)


def _same(target: Path, source: str) -> bool:
    if is_remote(source):
        return False
    with suppress(OSError):
        return target.samefile(source)
    return False


def beside(path: Path) -> Path:
    """Return a temporary name in the same folder, which no other process takes."""
    ending = f".{os.getpid()}-{os.urandom(4).hex()}.tmp"
    name = path.name
    while len(name.encode(errors="surrogateescape")) + 1 + len(ending) > _LONGEST:
        name = name[:-1]
    return path.with_name(f".{name}{ending}")


def write_text(target: Path, text: str, *, force: bool) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        StoreError: it cannot be written, or another program wrote it meanwhile.
    """
    temporary = beside(target)
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        system.flush_file(temporary)
        publish([temporary], [target], [], force=force)
    except OSError as error:
        raise cannot_write(error, target) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(temporary: Sequence[Path], finals: Sequence[Path], stale: Sequence[Path], *, force: bool) -> None:
    """Give whole files their names; an index last, so that shards alone are never taken for a state. A signal waits until that is done."""
    with system.uninterrupted():
        _publish(temporary, finals, stale, force=force)


def _publish(temporary: Sequence[Path], finals: Sequence[Path], stale: Sequence[Path], *, force: bool) -> None:
    for path in stale:
        path.unlink(missing_ok=True)
    if force and len(finals) > 1:
        finals[-1].unlink(missing_ok=True)
    given: list[Path] = []
    try:
        for path, final in zip(temporary, finals):
            if force:
                path.replace(final)
            else:
                _rename_new(path, final)
            given.append(final)
    except (OSError, StoreError):
        for final in given:
            final.unlink(missing_ok=True)
        raise
    system.flush_folder(finals[0].parent)


def publish_folder(temporary: Path, final: Path, *, force: bool) -> None:
    """Give a whole folder its name; with `force` an existing one makes way for it.

    Raises:
        StoreError: it exists, and `force` was not given.
    """
    with system.uninterrupted():
        _publish_folder(temporary, final, force=force)


def _publish_folder(temporary: Path, final: Path, *, force: bool) -> None:
    old = beside(final)
    if final.exists() and force:
        final.rename(old)
    try:
        temporary.rename(final)  # fails on a folder that holds something
    except OSError as error:
        if old.exists():
            old.rename(final)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise StoreError("the output exists already", where=str(final), fix="pass --force to replace it, or choose another name") from error
    shutil.rmtree(old, ignore_errors=True)


def _rename_new(path: Path, final: Path) -> None:
    """Rename, but never over a file that another writer put there meanwhile."""
    try:
        system.rename_new(path, final)
    except FileExistsError as error:
        raise StoreError("another program wrote the output meanwhile", where=str(final), fix="look at it before --force") from error
