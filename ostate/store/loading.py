"""Read a named file: one, several with an index, or the only one in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ostate.core.files import is_remote, read_at, size_of
from ostate.core.named_file import INDEX, MANIFEST, files_of_index, is_named
from ostate.core.naming import NamedState, positions_of
from ostate.core.safetensors import Head, unique
from ostate.core.tensors import Slot, TensorRef
from ostate.errors import StoreError, refusing

from . import from_manifest, header, manifest
from .plan import index_path

RAW_FILES = ("optimizer.pt", "optimizer.bin", "trainer_state.json", ".metadata", "latest")
"""Files of a training's own checkpoint: torch.save's, Trainer's, torch.distributed.checkpoint's, DeepSpeed's."""
Wrap = Callable[[TensorRef, str], Slot]
"""Makes the slot from a stored tensor and the digest that the manifest has of it."""


@refusing
def load(path: str | os.PathLike[str], *, wrap: Wrap | None = None) -> NamedState:
    """Return the state that `path` holds: a file, an index of several, or a folder with one of them. No number is read.

    Args:
        path: where it is.
        wrap: makes the slots; None: they are the stored tensors.

    Raises:
        ReadError: no such file.
        StoreError: not a sound named file.
    """
    heads = open_heads(find(os.fsdecode(path)))
    parts = []
    for head in heads:
        rows = parsed(head)
        try:
            parts.append(_state(rows, head, wrap or _with_crc32))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            fix = "see `ostate validate`"
            raise StoreError(f"the manifest does not fit the tensors: {type(error).__name__} {error}", where=head.path, fix=fix) from error
    return parts[0] if len(parts) == 1 else _joined(parts, os.fsdecode(path))


def find(path: str) -> str:
    """Return the file or the index that a path stands for.

    Raises:
        ReadError: nothing there.
        StoreError: a folder with none, or with several.
    """
    if is_remote(path):
        return path
    place = Path(path)
    if place.is_dir():
        found = [str(file) for file in sorted(place.glob(f"*{INDEX}")) if is_named(str(file))]
        shards = {str(place / name) for index in found for name in files_of_index(index)}
        found += [str(file) for file in sorted(place.glob("*.safetensors")) if str(file) not in shards and is_named(str(file))]
        if not found and any((place / name).exists() for name in RAW_FILES):
            raise StoreError(header.RAW, where=path, fix=header.REPAIR_FIRST.format(path=path))
        if not found:
            raise StoreError("no named state in this folder", where=path, fix=header.NOT_OURS)
        if len(found) > 1:
            names = ", ".join(Path(file).name for file in found)
            raise StoreError(f"several named states in this folder: {names}", where=path, fix="pass the path of one of them")
        return found[0]
    if not place.exists() and index_path(place).exists():
        return str(index_path(place))
    _refuse_raw(path)
    _refuse_raw(path)
    return path


def _refuse_raw(path: str) -> None:
    """Refuse what torch.save wrote; a safetensors file begins with the length of its header, which is below 4 GB."""
    head = read_at(path, 0, min(8, size_of(path)))
    if head.startswith((b"PK\x03\x04", b"\x80")) and any(head[4:]):
        raise StoreError(header.RAW, where=path, fix=header.REPAIR_FIRST.format(path=path))


def open_heads(path: str) -> list[Head]:
    """Return the head of the file, or of each file of an index, in order.

    Raises:
        ReadError: a file is missing.
        StoreError: a head, or the index, is not sound.
    """
    if not path.endswith(".json"):
        return [header.read(path)]
    names = files_of_index(path, error=StoreError, fix=header.NOT_OURS)
    return [header.read(str(Path(path).parent / name)) for name in names]


def parsed(head: Head) -> dict[str, object]:
    """Return the manifest as JSON.

    Raises:
        StoreError: none there, not JSON, another version.
    """
    text = head.metadata.get(MANIFEST)
    if text is None:
        raise StoreError("a safetensors file, but not a named optimizer state", where=head.path, fix=header.NOT_OURS)
    try:
        rows = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"the manifest is not JSON: {error}", where=head.path, fix=header.NOT_OURS) from error
    version = rows.get("format_version") if isinstance(rows, dict) else None
    if version != manifest.VERSION:
        raise StoreError(f"format version {version!r}; this ostate reads {manifest.VERSION}", where=head.path, fix="pip install -U ostate")
    table: dict[str, object] = rows
    return table


def _state(rows: Mapping[str, object], head: Head, wrap: Wrap) -> NamedState:
    slots: dict[str, dict[str, Slot]] = {}
    for name, row in from_manifest.json_object(rows["parameters"]).items():
        fields = from_manifest.json_object(row)
        digests = from_manifest.json_object(fields["digest"])
        chosen = map(str, from_manifest.json_list(fields["slots"]))
        slots[name] = {slot: wrap(head.tensors[f"state.{name}.{slot}"], from_manifest.text(digests[slot])) for slot in chosen}
    return from_manifest.to_state(rows, slots, head.path)


def _with_crc32(ref: TensorRef, digest: str) -> TensorRef:
    kind, _, digits = digest.partition(":")
    return ref._replace(crc32=int(digits, 16)) if kind == "crc32" else ref


def _joined(parts: Sequence[NamedState], path: str) -> NamedState:
    first = parts[0]
    groups = []
    for index, group in enumerate(first.groups):
        names = tuple(name for part in parts for name in part.groups[index].names or ())
        positions = tuple(position for part in parts for position in part.groups[index].positions)
        groups.append(group._replace(names=names, positions=positions))
    parameters = {name: parameter for part in parts for name, parameter in part.parameters.items()}
    ordering = first.ordering
    if ordering is not None:
        names_at, keys_at = from_manifest.by_position(parameters)
        undecided = dict.fromkeys(name for part in parts if part.ordering is not None for name in part.ordering.undecided)
        in_order = dict.fromkeys((*(name for name in parameters if name in undecided), *undecided))
        ordering = replace(ordering, names=names_at, keys=keys_at, undecided=tuple(in_order))
    whole = replace(first, groups=tuple(groups), parameters=parameters, ordering=ordering, path=path)
    at = positions_of(whole)  # several processes each wrote a share: the groups' order is the positions'
    return replace(whole, groups=tuple(group._replace(names=tuple(sorted(group.names or (), key=at.__getitem__))) for group in groups))
