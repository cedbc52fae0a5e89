"""Which file or folder is the state, and which layout it has: found by what is in it, never by guessing between two.

A new layout is a module of `layouts` with `detect` and `read` as `LayoutReader` says, and a row of `READERS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import PurePath
from types import ModuleType
from typing import NamedTuple

from ostate.core.files import is_file, is_folder, is_remote, read_at, size_of
from ostate.core.state import Finding, RawState
from ostate.errors import ReadError, UnknownFormat

from .checkpoint_folder import trainer_step
from .peek import Peek
from .skipped import Skipped, skipped_finding
from .which_optimizer import called, several

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
TRAINER = "trainer_state.json"
_TRAINERS_FILES = ("optimizer.pt", "optimizer.bin")
"""transformers trainer.py OPTIMIZER_NAME and OPTIMIZER_NAME_BIN: what Trainer resumes from."""
MOST_OTHERS = 16
"""Folders, and files, that are looked into for states that were not read."""


class FoundState(NamedTuple):
    """The one file or folder that holds the state."""

    seen: Peek
    row: str
    """Of `READERS`."""
    optimizer: int | str | None
    """Which optimizer of it is meant, where that is not settled by the file."""
    skipped: tuple[Skipped, ...] = ()
    """What lies beside it and cannot be read."""


class LayoutReader(NamedTuple):
    """A layout on disk, and the module that reads it.

    A folder's module has `detect(folder: str) -> bool` and `read(folder: str, *, optimizer: int | str | None = None) -> RawState`.
    A file's module has the same two with a `Peek` in place of the path, so that a file is opened once.
    """

    module: str
    """Name within `ostate.read.layouts`."""
    folder: bool = False
    """True when the layout is a folder; False: one file."""
    marks: tuple[str, ...] = ()
    """For a folder: each must be a name in it (`*rank*`: a part of a name) before the module is imported."""
    ending: str = ""
    """For a file: how its name must end before the module is imported."""

    def accepts(self, seen: Peek) -> bool:
        """True when `seen` is of this layout. Two rows never accept the same path."""
        if seen.is_folder != self.folder or not seen.path.endswith(self.ending):
            return False
        if not all(any(mark == name or (mark[0] == "*" and mark.strip("*") in name) for name in seen.names) for mark in self.marks):
            return False
        return bool(self._module.detect(seen.path if self.folder else seen))

    def read(self, seen: Peek, optimizer: int | str | None) -> RawState:
        """Return the state exactly as stored."""
        state: RawState = self._module.read(seen.path if self.folder else seen, optimizer=optimizer)
        return state._replace(source=seen.asked, facts={**seen.facts, **state.facts})

    @property
    def _module(self) -> ModuleType:
        return import_module(f"{__package__}.layouts.{self.module}")


READERS: dict[str, LayoutReader] = {
    "torch": LayoutReader(module="torch_file"),
    "dcp": LayoutReader(module="dcp", folder=True, marks=(".metadata",)),
    "zero": LayoutReader(module="deepspeed_zero", folder=True, marks=("*_states.pt",)),
    "universal": LayoutReader(module="deepspeed_universal", folder=True, marks=("zero",)),
    "hfstorage": LayoutReader(module="hf_storage", folder=True, marks=("*.safetensors",)),
    "colossalai": LayoutReader(module="colossalai", folder=True, marks=("*.index.json",)),
    "colossalai-file": LayoutReader(module="colossalai_file", ending=".safetensors"),
    "fsdp-ranks": LayoutReader(module="fsdp_ranks", folder=True, marks=("*rank*",)),
}
"""Layout -> who reads it. Exactly one row accepts a path, or the path is refused."""


def find_state(path: str, *, state: str | None, optimizer: int | str | None) -> FoundState:
    """Return the one file or folder that holds the state. What lies beside it and is damaged, or something else, is skipped and kept in a list.

    Args:
        path: what the person gave.
        state: which file or folder within `path`, where the person says so.
        optimizer: which of Accelerate's `optimizer.bin`, `optimizer_1.bin`, … by number, or a word of the path, where there are several.

    Raises:
        ReadError: no such path; nothing there but what cannot be read, or the very file that the trainer resumes from cannot be read.
        SeveralOptimizers: more than one, as Accelerate numbers them.
        UnknownFormat: no state, or more than one.
    """
    target = path if state is None else _within(path, state)
    seen = Peek(target, asked=path)
    if not is_remote(target) and ("\0" in target or not os.path.exists(target)):
        raise ReadError("no such file or folder", where=target, fix="check the path")
    if not seen.is_folder:
        if target.endswith(_PIECES):
            raise UnknownFormat("this layout is a folder, and this is one file of it", where=target, fix="pass the folder")
        return FoundState(seen, reader_of(seen), optimizer)
    skipped: list[Skipped] = []
    found = list(_search(seen, 0, set(), skipped))
    _refuse_skipped(skipped, [one for one, _ in found])
    if len(found) > 1 and optimizer is not None and (chosen := _called(found, optimizer, target)):
        found, optimizer = chosen, None
    if not found:
        raise UnknownFormat(
            NO_STATE,
            where=target,
            fix="pass the checkpoint folder that holds optimizer.pt; the trainer writes none with save_only_model or after the last epoch",
        )
    if len(found) > 1 and len({one.place for one, _ in found}) == 1 and all(marks := [_accelerates(one) for one, _ in found]):
        raise several({int(mark[1] or 0): mark[0] for mark in marks if mark}, target)
    if len(found) > 1:
        listed = ", ".join(_within_target(one.path, target) for one, _ in found[:MOST_LISTED])
        more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
        raise UnknownFormat(f"{len(found)} states in this folder: {listed}{more}", where=target, fix="pass one of them, or choose with --state FILE")
    return FoundState(*found[0], optimizer, tuple(skipped))


def _refuse_skipped(skipped: Sequence[Skipped], found: Sequence[Peek]) -> None:
    """Raise what is wrong with a skipped file where no state was found, or where it is the one that its trainer would resume from.

    Trainer reads `optimizer.pt`; `optimizer.bin` is what it writes in its place under FSDP (transformers/trainer.py).
    """
    places, sound = {one.place for one in found}, {one.path for one in found}
    for one in skipped:
        name = os.path.basename(one.path)
        if os.path.dirname(one.path) in places and re.match(_ACCELERATE, name) and f"{one.path.removesuffix('.bin')}.pt" not in sound:
            one.error.fix = f"{one.error.fix}; or choose another state of this folder with --state FILE"
            raise one.error
    if skipped and not found:
        raise min(skipped, key=lambda one: not os.path.basename(one.path).startswith("optimizer")).error


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
                raise UnknownFormat("this layout is a folder, and this is one file of it", where=seen.path, fix="pass the folder")
        raise _no_state_in(seen, [] if is_remote(seen.path) else _beside(seen))
    if len(rows) > 1:
        raise UnknownFormat(f"several layouts fit: {', '.join(rows)}", where=seen.path, fix="pass the file that holds the state")
    return rows[0]


def _no_state_in(seen: Peek, beside: Sequence[str] = ()) -> UnknownFormat:
    """Return the refusal of a file without a state: what it is, and which state lies beside it, where there is one."""
    from .kinds import STATE_FIX, kind_of

    what, fix = kind_of(seen)
    if len(beside) == 1 and fix == STATE_FIX:
        fix = f"the state beside it is {beside[0]}: pass that, or the folder"
    return UnknownFormat(what, where=seen.path, fix=fix)


def _beside(seen: Peek) -> list[str]:
    """Return the names of the states that lie in the same folder as this file."""
    folder = Peek(seen.place, asked=seen.asked)
    try:
        found = _of_trainer(folder, list(_files(folder, [])))
    except ReadError:  # a folder that cannot be listed
        return []
    return [os.path.basename(one.path) for one, _ in found]


def _rows(seen: Peek, skipped: list[Skipped]) -> list[str]:
    """Return the rows that read this file or folder; what is wrong with it where none can tell goes to `skipped`."""
    rows = []
    for name, reader in READERS.items():
        try:
            if reader.accepts(seen):
                rows.append(name)
        except ReadError as error:
            skipped.append(Skipped(seen.path, error))
    return rows


def _search(seen: Peek, depth: int, visited: set[str], skipped: list[Skipped]) -> Iterator[tuple[Peek, str]]:
    """Yield the states of a folder; links that lead back are seen once. What cannot be read goes to `skipped`.

    What the folder's own index names comes first; then what lies in the folder itself; where nothing does, what lies in the folders below it.
    """
    real = seen.path if is_remote(seen.path) else os.path.realpath(seen.path)
    if real in visited:
        return
    visited.add(real)
    if len(visited) > MOST_FOLDERS:
        raise UnknownFormat(f"no state in the first {MOST_FOLDERS} folders", where=seen.asked, fix="pass the checkpoint folder itself")
    try:
        rows = _rows(seen, skipped) if seen.names else []
    except ReadError as error:  # a folder that cannot be listed
        if depth == 0:
            raise
        skipped.append(Skipped(seen.path, error))
        return
    if len(rows) > 1:
        raise UnknownFormat(f"several layouts fit: {', '.join(rows)}", where=seen.path, fix="pass the file that holds the state")
    folders = _folders(seen)
    named = [one for name in _indexed(seen, folders) for one in _search(_below(seen, name), depth + 1, visited, skipped)]
    here = [(seen, rows[0])] if rows else [] if named else _of_trainer(seen, list(_files(seen, skipped)))
    if here or named:
        yield from (*named, *here)
        return
    if depth < MOST_DEPTH:
        for name in folders:
            yield from _search(_below(seen, name), depth + 1, visited, skipped)


def _below(seen: Peek, name: str) -> Peek:
    return Peek(os.path.join(seen.path, name), asked=seen.asked)


def _indexed(seen: Peek, folders: Sequence[str]) -> list[str]:
    """Return the folders that the index names: `latest`; or the step of Trainer's state, where Trainer wrote no optimizer here."""
    tags = [tag for tag in tags_of(seen) if tag in folders]
    if tags or TRAINER not in seen.names or any(file in seen.names for file in _TRAINERS_FILES):
        return tags
    numbered = [name for name in folders if re.fullmatch(r"(?:global_step|checkpoint-)\d+", name)]
    step = trainer_step(os.path.join(seen.path, TRAINER)) if numbered else None
    return [name for name in numbered if re.sub(r"\D", "", name) == str(step)]


def tags_of(seen: Peek) -> list[str]:
    """Return what DeepSpeed's `latest` and `latest_universal` in the folder name, there or not."""
    return list(dict.fromkeys(_tag(os.path.join(seen.path, file)) for file in ("latest", "latest_universal") if file in seen.names))


def _of_trainer(seen: Peek, found: list[tuple[Peek, str]]) -> list[tuple[Peek, str]]:
    """Return the file that Trainer itself writes and resumes from, where its `trainer_state.json` lies beside it; else all that was found."""
    own = [one for one in found if os.path.basename(one[0].path) in _TRAINERS_FILES] if TRAINER in seen.names else []
    return own if len(own) == 1 else found


def _files(seen: Peek, skipped: list[Skipped]) -> Iterator[tuple[Peek, str]]:
    """Yield the files of a folder that hold a state. A file called like one that holds none, or cannot be read, goes to `skipped`."""
    for name in seen.names:
        path = os.path.join(seen.path, name)
        flat = name.startswith("optim") and name.endswith(".safetensors")
        if name.startswith(_NEVER_START) or (name.endswith(_NEVER_END) and not flat) or not is_file(path):
            continue
        one = Peek(path, asked=seen.asked)
        wanted = name.startswith("optimizer") and not flat
        try:
            rows = _rows(one, skipped) if wanted or flat or one.is_torch else []
        except ReadError as error:  # gone, or not to be read
            skipped.append(Skipped(path, error))
            continue
        if rows:
            yield one, rows[0]
        elif wanted and (not skipped or skipped[-1].path != path):
            skipped.append(Skipped(path, _no_state_in(one)))


def _folders(seen: Peek) -> list[str]:
    """Return the folders to look into; where `latest` names one, the other steps beside it are left alone."""
    folders = [name for name in seen.names if not name.startswith(".") and is_folder(os.path.join(seen.path, name))]
    tags = set(tags_of(seen)) & set(folders)
    return [name for name in folders if name in tags or not (tags and name.startswith("global_step"))]


def _tag(path: str) -> str:
    return read_at(path, 0, min(4096, size_of(path))).decode("utf-8", "replace").strip()


def others(seen: Peek, files: Iterable[str]) -> tuple[str, ...]:
    """Return the states in the folder that was asked for and below it which were not read, as paths within it.

    Args:
        seen: the state that was read, a file or a folder.
        files: what was read of it.
    """
    if is_remote(seen.asked) or not os.path.isdir(seen.asked):
        return ()
    read = {os.path.realpath(path) for path in (*files, seen.path)}
    visited = {os.path.realpath(seen.asked)}
    queue, found, opened = [Peek(seen.asked)], [], 0
    while queue:
        folder = queue.pop(0)
        chosen = os.path.realpath(folder.path) in read
        if not chosen and _is_state(folder):
            found.append(folder.path)
            continue
        for name in folder.names:
            path = os.path.join(folder.path, name)
            if name.startswith(_NEVER_START) or name.endswith(_NEVER_END) or (real := os.path.realpath(path)) in visited:
                continue
            one = Peek(path, asked=seen.asked)
            if os.path.isdir(path):
                if not chosen and len(visited) < MOST_OTHERS:  # what lies below a state that is a folder belongs to it
                    visited.add(real)
                    queue.append(one)
            elif real not in read and opened < MOST_OTHERS and os.path.isfile(path) and _starts_as_torch(one):
                opened += 1
                found += [path] * _is_state(one)
    return tuple(os.path.relpath(path, seen.asked) for path in found)


def choice(seen: Peek, not_read: Sequence[str], skipped: Sequence[Skipped]) -> list[Finding]:
    """Say which state of a folder was read where there are others, what was skipped, and where the folder's index names another than that one."""
    if seen.asked == seen.path or is_remote(seen.asked) or not os.path.isdir(seen.asked):
        return []
    read = os.path.relpath(seen.path, seen.asked)
    said = []
    if not_read:
        text = f"{read} was read; not read: {', '.join(not_read)}"
        said.append(Finding(rule="other-states", severity="note", text=text, fix="choose another with --state FILE"))
    if skipped:
        doubt = any(os.path.basename(one.path).startswith("optimizer") for one in skipped)
        said.append(skipped_finding(skipped, seen.asked, fix="look whether one of these is the state that you mean" if doubt else ""))
    missed = [tag for tag in tags_of(Peek(seen.asked)) if tag and tag not in PurePath(read).parts]
    if missed and len(missed) == len(tags_of(Peek(seen.asked))):
        text = f"`latest` names {missed[0]}, which holds no state; {read} was read"
        said.append(Finding(rule="index-names-another", severity="warning", text=text, fix="copy that folder too, or choose with --state FILE"))
    return said


def _starts_as_torch(seen: Peek) -> bool:
    """True when the file can be read and starts as torch.save's do."""
    try:
        return seen.is_torch
    except ReadError:
        return False


def _is_state(seen: Peek) -> bool:
    """True when some row reads it; what is damaged, or holds what no state needs, is none."""
    try:
        return any(reader.folder == seen.is_folder and reader.accepts(seen) for reader in READERS.values())
    except ReadError:
        return False


def _accelerates(one: Peek) -> re.Match[str] | None:
    return re.match(_ACCELERATE, os.path.basename(one.path))


def _called(found: list[tuple[Peek, str]], optimizer: int | str, target: str) -> list[tuple[Peek, str]]:
    """Return the file that is meant: by Accelerate's number (`optimizer.bin` is 0), or by a folder or word of its path."""
    if isinstance(optimizer, str):
        return [found[number] for number in called([_within_target(one.path, target) for one, _ in found], optimizer)]
    marks = [(_accelerates(one), one, row) for one, row in found]
    return [(one, row) for mark, one, row in marks if mark is not None and int(mark[1] or 0) == optimizer]
