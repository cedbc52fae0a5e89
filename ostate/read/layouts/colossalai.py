"""ColossalAI's Booster with a sharded optimizer: an index, the groups, and files of entries by the parameter's id.

`pytorch_optim.bin.index.json` maps ids to `pytorch_optim-00001.bin`, …, each `{id: {exp_avg, exp_avg_sq, step}}`; its metadata names the
file of `param_groups` (colossalai/checkpoint_io/general_checkpoint_io.py, `save_sharded_optimizer`; hybrid_parallel_checkpoint_io.py puts
`-stage-00001-shard` into the names). Tensors are gathered over processes before they are saved: every entry is whole.

With `use_async` the parts are safetensors files under `optimizer.safetensors.index.json`, a tensor `state-<id>-<slot>` for each slot; what is no
tensor, such as HybridAdam's step, is the bytes of its pickle, listed in the header's `non_tensor_keys` (colossalai/utils/safetensors.py).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping

from ostate.core.files import is_file, names_in, read_at, size_of
from ostate.core.foreign import parse_json, positions_in
from ostate.core.safetensors import read_head
from ostate.core.state import RawState, SourceFile
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError

from ..assemble import assemble
from ..container import torchsave
from ..parts import parts_of
from ..pickle.globals import unpickle
from ..state_dict import Key

_ENDS = (".bin.index.json", ".safetensors.index.json")
GROUPS = "param_groups"
_AGAIN = "copy the whole folder again"
_NO_TENSORS = "non_tensor_keys"
SLOT = re.compile(r"^state-(?P<key>\d{1,18})-(?P<slot>.+)$", re.ASCII | re.DOTALL)
MOST_PICKLE = 1 << 16
"""Bytes of one pickled number."""


def detect(folder: str) -> bool:
    """True for a folder with an index of ids and the file of groups that it names."""
    return _index(folder) is not None


def _index(folder: str) -> str | None:
    """Return the index file of the folder, or None."""
    for name in names_in(folder):
        path = os.path.join(folder, name)
        if name.endswith(_ENDS) and positions_in(parts_of(path)) is not None and _groups_file(path):
            return path
    return None


def _groups_file(index: str) -> str:
    listed = parse_json(read_at(index, 0, size_of(index)))  # which `parts_of` has read before
    metadata = listed.get("metadata") if isinstance(listed, dict) else None
    file = metadata.get(GROUPS) if isinstance(metadata, dict) else None
    return file if isinstance(file, str) and os.path.basename(file) == file else ""


def read(folder: str, *, optimizer: int | str | None = None) -> RawState:  # noqa: ARG001  (one optimizer a folder)
    """Return the state of all parts together.

    Args:
        folder: where the index lies.
        optimizer: not asked: a folder holds one.

    Raises:
        ReadError: a part or the groups are missing, or a part lacks an id that the index says it holds.
    """
    index = _index(folder)
    assert index is not None
    parts = parts_of(index)
    files: list[SourceFile] = []
    groups = _loaded(os.path.join(folder, _groups_file(index)), files)
    if not isinstance(groups, list) or not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        raise ReadError("no list of groups", where=os.path.join(folder, _groups_file(index)), fix=_AGAIN)
    state: dict[Key, Mapping[str, object]] = {}
    for name in dict.fromkeys(parts.values()):
        path = os.path.join(folder, name)
        held = _loaded(path, files)
        if not isinstance(held, dict) or not all(isinstance(key, int) and isinstance(entry, dict) for key, entry in held.items()):
            raise ReadError("no entries by the parameters' ids", where=path, fix=_AGAIN)
        missing = next((key for key, file in parts.items() if file == name and int(key) not in held), None)
        if missing is not None:
            raise ReadError(f"the index says that entry {missing} lies here", where=path, fix=_AGAIN)
        state.update({key: entry for key, entry in held.items() if parts.get(str(key)) == name})
    return assemble(state, groups, source=folder, layout="colossalai", files=files)


def _loaded(path: str, files: list[SourceFile]) -> object:
    if not is_file(path):
        raise ReadError("a part that the index names is missing", where=path, fix=_AGAIN)
    if path.endswith(".safetensors"):
        return entries(path, files)
    stored = torchsave.load(path)
    files.append(stored.source)
    return stored.value


def entries(path: str, files: list[SourceFile]) -> dict[int, dict[str, object]]:
    """Return the entries of a part in safetensors, by id; the groups of a whole one are left out.

    Raises:
        ReadError: a tensor that is no entry's, or pickled bytes that are no number.
    """
    head = read_head(path)
    files.append(SourceFile(path, size_of(path), hashlib.sha256(head.raw).hexdigest()))
    try:
        listed = parse_json(head.metadata.get(_NO_TENSORS, "[]").encode())
    except ValueError:
        listed = None
    if not isinstance(listed, list):
        raise ReadError(f"{_NO_TENSORS} is no list", where=path, fix=_AGAIN)
    pickled = {name for name in listed if isinstance(name, str)}
    found: dict[int, dict[str, object]] = {}
    for name, ref in head.tensors.items():
        if name == GROUPS:
            continue
        read = SLOT.match(name)
        if read is None:
            raise ReadError(f"a tensor that is no slot of an entry: {name[:80]!r}", where=path, fix=_AGAIN)
        found.setdefault(int(read["key"]), {})[read["slot"]] = _unpickled(path, name, ref) if name in pickled else ref
    return found


def _unpickled(path: str, name: str, ref: TensorRef) -> object:
    if ref.dtype != "U8" or ref.nbytes > MOST_PICKLE:
        raise ReadError(f"{name} is no pickled number", where=path, fix=_AGAIN)
    value = unpickle(b"".join(chunk.astype("uint8").tobytes() for chunk in ref.chunks()), where=f"{path}: {name}")
    if type(value) not in (int, float, bool, type(None)):
        raise ReadError(f"{name} is no number", where=path, fix=_AGAIN)
    return value
