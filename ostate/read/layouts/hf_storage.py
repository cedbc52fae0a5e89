"""Folders of torch's HuggingFaceStorageWriter: safetensors shards, one or more a process, keyed `<root>.state.<parameter>.<slot>`.

A shard's `__metadata__["DCP_SHARDING_INFO"]` says where each of its tensors starts in the whole (torch/distributed/checkpoint/_hf_utils.py);
without it (consolidated) every tensor is whole. Only tensors are stored: no hyperparameters.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping

from ostate.core.files import is_file, names_in, read_at, size_of
from ostate.core.foreign import parse_json, positions_in
from ostate.core.named_file import mentions_manifest
from ostate.core.safetensors import read_head
from ostate.core.state import Finding, RawState, SourceFile
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError
from ostate.optimizers.slots import MARKS_BELOW_STATE

from ..assemble import assemble
from ..container.dcp_index import DcpItem, overlap
from ..pickle.records import whole_numbers
from ..state_dict import Key
from ..which_optimizer import choose
from .dcp import optimizers_of

_INFO = "DCP_SHARDING_INFO"
_SHARD = re.compile(r"^shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors$")
_TEXT = re.compile(rb'"([^"\\]*)"')
_ENDS = tuple(f".{mark}".encode() for mark in MARKS_BELOW_STATE)


def detect(folder: str) -> bool:
    """True for a folder whose safetensors files hold an optimizer's tensors, other than in the named format."""
    return any(is_shard(os.path.join(folder, name)) for name in names_in(folder) if name.endswith(".safetensors"))


def is_shard(path: str) -> bool:
    """True for a safetensors file that holds an optimizer's tensors, other than in the named format."""
    if not is_file(path) or size_of(path) < 8:
        return False
    length = int.from_bytes(read_at(path, 0, 8), "little")
    if not 2 <= length <= size_of(path) - 8:
        return False
    header = read_at(path, 8, min(length, 1 << 22))
    if b"state." not in header:  # as in the adapter of thousands of experts
        return False
    return not mentions_manifest(header) and any(_is_slot(text) for text in _TEXT.findall(header))


def _is_slot(key: bytes) -> bool:
    """True for `<root>.state.<parameter>.<slot>`, the root perhaps empty."""
    return key.endswith(_ENDS) and (key.startswith(b"state.") or b".state." in key)


def read(folder: str, *, optimizer: int | str | None = None) -> RawState:
    """Return the state of all shards together.

    Args:
        folder: where the shards lie.
        optimizer: which one, where several lie there.

    Raises:
        ReadError: a shard is missing or cut short, shards overlap, or several optimizers lie here and none was chosen.
    """
    names = sorted(name for name in names_in(folder) if name.endswith(".safetensors") and is_shard(os.path.join(folder, name)))
    _check_shards(folder, names)
    pieces: dict[str, list[tuple[tuple[int, ...], TensorRef]]] = {}
    files = []
    for name in names:
        path = os.path.join(folder, name)
        head = read_head(path)
        tensors, metadata = head.tensors, head.metadata
        offsets = _offsets(path, metadata)
        for key, ref in tensors.items():
            pieces.setdefault(key, []).append((offsets.get(key, (0,) * len(ref.shape)), ref))
        files.append(_source(path))
    whole = {key: _whole(folder, key, found) for key, found in pieces.items()}
    found = {
        root: one for root, one in optimizers_of([DcpItem(key, None, ref.dtype, ref.shape, ()) for key, ref in whole.items()]).items() if one.state
    }
    root = _root(sorted(found), optimizer, folder)
    state: dict[Key, dict[str, object]] = {
        key: {str(leaf[-1]): whole[item.key] for leaf, item in leaves.items()} for key, leaves in found[root].state.items()
    }
    _check_complete(folder, state)
    numbers = positions_in(state)
    integers = numbers is not None
    if numbers is not None:
        state = dict(zip(numbers, state.values()))
    start, groups_start = (f"{root}.state.", f"{root}.param_groups.") if root else ("state.", "param_groups.")
    finding = Finding(
        rule="hyperparameters-missing",
        severity="warning",
        text="HuggingFaceStorageWriter stores tensors only: lr, betas, eps and weight_decay are not in these files",
        fix="pass them: --betas B1,B2 --eps E",
    )
    return assemble(
        state,
        [{"params": sorted(state) if integers else list(state)}],
        source=folder,
        layout="hfstorage",
        files=files,
        recorded=None if integers else "dcp",
        weights={key if key in state else key.removeprefix("model."): ref for key, ref in whole.items() if not key.startswith((start, groups_start))},
        facts={"root": root},
        findings=[finding],
    )


def _check_shards(folder: str, names: list[str]) -> None:
    """Shards are numbered from 1, and each process says how many files it wrote."""
    numbered = {int(match[1]): name for name in names if (match := _SHARD.match(name))}
    if not numbered:
        return
    name = numbered[max(numbered)]
    for number in range(1, max(numbered) + 1):
        if number not in numbered:
            missing = re.sub(r"^shard-\d+", f"shard-{number:05d}", name)
            raise ReadError(
                f"shard {number} is missing, {max(numbered)} is there", where=os.path.join(folder, missing), fix="copy the whole folder again"
            )


def _check_complete(folder: str, state: Mapping[Key, Mapping[str, object]]) -> None:
    """Each process writes some of the whole tensors, so where a shard is gone some parameters lack what the others have."""
    slots = {slot for entry in state.values() for slot in entry}
    for key, entry in state.items():
        if lost := slots - set(entry):
            raise ReadError(f"{key} has no {min(lost)}, others have", where=folder, fix="a shard is missing: copy the whole folder again")


def _offsets(path: str, metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    text = metadata.get(_INFO)
    if text is None:
        return {}
    try:
        stored = parse_json(text)
        if not isinstance(stored, dict):
            raise TypeError("it is no object")
        return {key: whole_numbers(row.get("saved_offsets") if isinstance(row, dict) else None) for key, row in stored.items()}
    except (ValueError, TypeError) as error:
        raise ReadError(f"{_INFO} cannot be read: {error}", where=path, fix="copy the file again") from error


def _source(path: str) -> SourceFile:
    length = int.from_bytes(read_at(path, 0, 8), "little")
    return SourceFile(path, size_of(path), hashlib.sha256(read_at(path, 0, 8 + length)).hexdigest())


def _whole(folder: str, key: str, pieces: list[tuple[tuple[int, ...], TensorRef]]) -> TensorRef:
    """Put the pieces of one tensor together; its shape is how far they reach."""
    first = pieces[0][1]
    if not first.shape:
        return first
    if any(len(starts) != len(first.shape) or len(ref.shape) != len(first.shape) or ref.dtype != first.dtype for starts, ref in pieces):
        raise ReadError(f"the pieces of {key} differ in rank or dtype", where=folder, fix="a shard is from another run: copy the folder again")
    distinct = {starts: ref for starts, ref in pieces if ref.numel}
    shape = tuple(max((starts[axis] + ref.shape[axis] for starts, ref in pieces), default=0) for axis in range(len(first.shape)))
    placed = [part._replace(starts=starts) for starts, ref in sorted(distinct.items()) for part in ref.parts]
    within = all(start >= 0 for part in placed for start in part.starts)
    if sum(ref.numel for ref in distinct.values()) != math.prod(shape) or not within or overlap(placed, shape, folder):
        raise ReadError(
            f"the pieces of {key} hold {sum(ref.numel for ref in distinct.values())} of {math.prod(shape)} elements",
            where=folder,
            fix="a shard is missing or from another run: copy the whole folder again",
        )
    return TensorRef(first.dtype, shape, tuple(placed))


def _root(roots: list[str], optimizer: int | str | None, folder: str) -> str:
    return roots[choose(roots, optimizer, folder)]
