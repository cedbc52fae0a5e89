"""Which file or folder is the state, and which layout it has: found by what is in it, never by guessing between two.

A new layout is a module of `layouts` with `detect` and `read` as `Reader` says, and a row of `READERS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from ostate.core.files import is_file, is_folder, is_remote, read_at, size_of
from ostate.core.state import RawState
from ostate.errors import ReadError, UnknownFormat, UnsafePickle

from .peek import Peek

MOST_DEPTH = 4
MOST_FOLDERS = 2000
"""Folders that are looked into before a search gives up."""
MOST_LISTED = 10
NO_STATE = "no optimizer state in this folder or below it"
_NEVER_START = (
    "adapter_model", "pytorch_model", "pytorch_lora_weights", "scheduler", "rng_state", "random_states", "training_args", "scaler",
    "tokenizer", "merges.", ".",
)  # fmt: skip
_NEVER_END = (
    ".json", ".jsonl", ".txt", ".md", ".yaml", ".yml", ".csv", ".log", ".png", ".py", ".model", ".gguf", ".safetensors", ".distcp",
    "_model_states.pt", "_optim_states.pt",
)  # fmt: skip
"""Starts and ends of names of files that belong to a checkpoint and hold no state by themselves: not opened when a folder is searched."""
_PIECES = (".metadata", ".distcp", "_model_states.pt")
"""Files that mean nothing without their folder."""
_ACCELERATE = r"^optimizer(?:_(\d+))?\.(?:bin|pt)$"


class Reader(NamedTuple):
    """A layout on disk, and the module that reads it.

    A folder's module has `detect(folder: str) -> bool` and `read(folder: str, *, optimizer: int | None = None) -> RawState`.
    A file's module has the same two with a `Peek` in place of the path, so that a file is opened once.
    """

    module: str
    """Name within `ostate.read.layouts`."""
    folder: bool = False
    """True when the layout is a folder; False: one file."""
    marks: tuple[str, ...] = ()
    """For a folder: each must be a name in it (`*rank*`: a part of a name) before the module is imported."""

    def accepts(self, seen: Peek) -> bool:
        """True when `seen` is of this layout. Two rows never accept the same path."""
        if seen.is_folder != self.folder:
            return False
        if not all(any(mark == name or (mark[0] == "*" and mark.strip("*") in name) for name in seen.names) for mark in self.marks):
            return False
        return bool(self._module.detect(seen.path if self.folder else seen))

    def read(self, seen: Peek, optimizer: int | None) -> RawState:
        """Return the state exactly as stored."""
        state: RawState = self._module.read(seen.path if self.folder else seen, optimizer=optimizer)
        return state._replace(source=seen.asked, facts={**seen.facts, **state.facts})

    @property
    def _module(self) -> ModuleType:
        return import_module(f"{__package__}.layouts.{self.module}")


READERS: dict[str, Reader] = {
    "torch": Reader(module="torch_file"),
    "dcp": Reader(module="dcp", folder=True, marks=(".metadata",)),
    "zero": Reader(module="deepspeed_zero", folder=True, marks=("*_states.pt",)),
    "universal": Reader(module="deepspeed_universal", folder=True, marks=("zero",)),
    "hfstorage": Reader(module="hf_storage", folder=True, marks=("*.safetensors",)),
    "fsdp-ranks": Reader(module="fsdp_ranks", folder=True, marks=("*rank*",)),
}
"""Layout -> who reads it. Exactly one row accepts a path, or the path is refused."""


def find_state(path: str, *, state: str | None, optimizer: int | None) -> tuple[Peek, str, int | None]:
    """Return the one file or folder that holds the state, the row of `READERS` that reads it, and which optimizer of that file is meant.

    Args:
        path: what the person gave.
        state: which file or folder within `path`, where the person says so.
        optimizer: which of Accelerate's `optimizer.bin`, `optimizer_1.bin`, …, where there are several.

    Raises:
        ReadError: no such path.
        UnknownFormat: no state, or more than one.
    """
    target = path if state is None else _within(path, state)
    seen = Peek(target, asked=path)
    if not is_remote(target) and ("\0" in target or not os.path.exists(target)):
        raise ReadError("no such file or folder", where=target, fix="check the path")
    if not seen.is_folder:
        if target.endswith(_PIECES):
            raise UnknownFormat("one file of a layout that is a folder", where=target, fix="give the folder")
        return seen, reader_of(seen), optimizer
    found = list(_search(seen, 0, set()))
    if len(found) > 1 and optimizer is not None and (chosen := _numbered(found, optimizer)):
        found, optimizer = chosen, None
    if not found:
        raise UnknownFormat(
            NO_STATE,
            where=target,
            fix="give the checkpoint folder that holds optimizer.pt; the trainer writes none with save_only_model or after the last epoch",
        )
    if len(found) > 1:
        listed = ", ".join(_within_target(one.path, target) for one, _ in found[:MOST_LISTED])
        more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
        raise UnknownFormat(f"{len(found)} states in this folder: {listed}{more}", where=target, fix="give one of them, or choose with --state FILE")
    return *found[0], optimizer


def _within(path: str, state: str) -> str:
    inside = os.path.join(path, state)
    return inside if not is_remote(state) and (is_file(inside) or is_folder(inside)) else state


def _within_target(path: str, target: str) -> str:
    return path.removeprefix(target.rstrip("/") + "/") if is_remote(path) else os.path.relpath(path, target)


def reader_of(seen: Peek) -> str:
    """Return the row that reads this file or folder.

    Raises:
        UnknownFormat: none does, or more than one.
        ReadError: the file is damaged.
    """
    rows = [name for name, reader in READERS.items() if reader.accepts(seen)]
    if not rows:
        if seen.path.endswith(".safetensors"):
            from .layouts.hf_storage import is_shard

            if is_shard(seen.path):
                raise UnknownFormat("one file of a layout that is a folder", where=seen.path, fix="give the folder")
        raise UnknownFormat("no optimizer state in this file", where=seen.path, fix="give the optimizer file or its checkpoint folder")
    if len(rows) > 1:
        raise UnknownFormat(f"several layouts fit: {', '.join(rows)}", where=seen.path, fix="give the file that holds the state")
    return rows[0]


def _search(seen: Peek, depth: int, visited: set[str]) -> Iterator[tuple[Peek, str]]:
    """Yield the states that lie in the folder itself or, where none does, in the folders below it; links that lead back are seen once."""
    real = seen.path if is_remote(seen.path) else os.path.realpath(seen.path)
    if real in visited:
        return
    visited.add(real)
    if len(visited) > MOST_FOLDERS:
        raise UnknownFormat(f"no state in the first {MOST_FOLDERS} folders", where=seen.asked, fix="give the checkpoint folder itself")
    rows = [name for name, reader in READERS.items() if reader.folder and reader.accepts(seen)]
    if len(rows) > 1:
        raise UnknownFormat(f"several layouts fit: {', '.join(rows)}", where=seen.path, fix="give the file that holds the state")
    here = [(seen, rows[0])] if rows else []
    if not rows:
        here += list(_files(seen))
    if here:
        yield from here
        return
    if depth < MOST_DEPTH:
        for name in _folders(seen):
            yield from _search(Peek(os.path.join(seen.path, name), asked=seen.asked), depth + 1, visited)


def _files(seen: Peek) -> Iterator[tuple[Peek, str]]:
    for name in seen.names:
        path = os.path.join(seen.path, name)
        if name.startswith(_NEVER_START) or name.endswith(_NEVER_END) or not is_file(path):
            continue
        one = Peek(path, asked=seen.asked)
        wanted = name.startswith("optimizer")
        try:
            rows = [row for row, reader in READERS.items() if not reader.folder and (wanted or one.is_torch) and reader.accepts(one)]
        except UnsafePickle:
            if wanted:
                raise
            continue
        if rows:
            yield one, rows[0]


def _folders(seen: Peek) -> list[str]:
    """Return the folders to look into; where `latest` names one, the other steps beside it are left alone."""
    folders = [name for name in seen.names if not name.startswith(".") and is_folder(os.path.join(seen.path, name))]
    tags = {_tag(os.path.join(seen.path, file)) for file in ("latest", "latest_universal") if file in seen.names} & set(folders)
    return [name for name in folders if name in tags or not (tags and name.startswith("global_step"))]


def _tag(path: str) -> str:
    return read_at(path, 0, min(4096, size_of(path))).decode("utf-8", "replace").strip()


def _numbered(found: list[tuple[Peek, str]], optimizer: int) -> list[tuple[Peek, str]]:
    """Return Accelerate's file of that number: `optimizer.bin` is 0."""
    marks = [(re.match(_ACCELERATE, os.path.basename(one.path)), one, row) for one, row in found]
    return [(one, row) for mark, one, row in marks if mark is not None and int(mark[1] or 0) == optimizer]
