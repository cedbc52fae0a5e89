"""ColossalAI's Booster with a sharded optimizer: an index, the groups, and files of entries by the parameter's id.

`pytorch_optim.bin.index.json` maps ids to `pytorch_optim-00001.bin`, …, each `{id: {exp_avg, exp_avg_sq, step}}`; its metadata names the
file of `param_groups` (colossalai/checkpoint_io/general_checkpoint_io.py, `save_sharded_optimizer`; hybrid_parallel_checkpoint_io.py puts
`-stage-00001-shard` into the names). Tensors are gathered over processes before they are saved: every entry is whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ostate.core.files import is_file, names_in, read_at, size_of
from ostate.core.foreign import parse_json, positions_in
from ostate.core.state import RawState, SourceFile
from ostate.errors import ReadError

from ..assemble import assemble
from ..container import torchsave
from ..parts import parts_of
from ..state_dict import Key

_END = ".bin.index.json"
_GROUPS = "param_groups"
_AGAIN = "copy the whole folder again"


def detect(folder: str) -> bool:
    """True for a folder with an index of ids and the file of groups that it names."""
    return _index(folder) is not None


def _index(folder: str) -> str | None:
    """Return the index file of the folder, or None."""
    for name in names_in(folder):
        path = os.path.join(folder, name)
        if name.endswith(_END) and positions_in(parts_of(path)) is not None and _groups_file(path):
            return path
    return None


def _groups_file(index: str) -> str:
    listed = parse_json(read_at(index, 0, size_of(index)))  # which `parts_of` has read before
    metadata = listed.get("metadata") if isinstance(listed, dict) else None
    file = metadata.get(_GROUPS) if isinstance(metadata, dict) else None
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


def _loaded(path: str, files: list[SourceFile]) -> Any:
    if not is_file(path):
        raise ReadError("a part that the index names is missing", where=path, fix=_AGAIN)
    stored = torchsave.load(path)
    files.append(stored.source)
    return stored.value
