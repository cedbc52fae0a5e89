"""ColossalAI's Booster with an optimizer in one file, saved with `use_async`: a safetensors file of entries and pickled groups.

`state-<id>-<slot>` for each slot, and `param_groups`, the bytes of the list's pickle (colossalai/utils/safetensors.py, `_flatten_optim_state_dict`,
called by checkpoint_io/general_checkpoint_io.py, `save_unsharded_optimizer`). Without `use_async` the one file is torch.save's.
"""

from __future__ import annotations

from collections.abc import Mapping

from ostate.core.state import RawState, SourceFile
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError

from ..assemble import assemble
from ..peek import Peek
from ..pickle.globals import unpickle
from ..state_dict import Key
from .colossalai import GROUPS, SLOT, entries

MOST_PICKLE = 1 << 25
"""Bytes of the pickled groups."""


def detect(seen: Peek) -> bool:
    """True for a safetensors file with pickled groups and nothing else but slots of entries by number."""
    keys = seen.header[0].keys()
    return GROUPS in keys and len(keys) > 1 and all(key == GROUPS or SLOT.match(key) for key in keys)


def read(seen: Peek, *, optimizer: int | str | None = None) -> RawState:
    """Return the state in this file, exactly as stored.

    Args:
        seen: the file.
        optimizer: there is only one; 0 or None.

    Raises:
        ReadError: groups that are no list, or entries whose pickled bytes are no number.
    """
    if optimizer:
        raise ReadError(f"there is only one optimizer here, not {optimizer}", where=seen.path, fix="drop --optimizer")
    files: list[SourceFile] = []
    state: dict[Key, Mapping[str, object]] = dict(entries(seen.path, files).items())
    return assemble(state, _groups(seen.header[0][GROUPS], seen.path), source=seen.asked, layout="colossalai-file", files=files)


def _groups(ref: TensorRef, path: str) -> list[dict[str, object]]:
    groups: object = None
    if ref.dtype == "U8" and ref.nbytes <= MOST_PICKLE:
        groups = unpickle(b"".join(chunk.astype("uint8").tobytes() for chunk in ref.chunks()), where=f"{path}: {GROUPS}")
    if not isinstance(groups, list) or not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        raise ReadError("no list of groups", where=f"{path}: {GROUPS}", fix="copy the file again")
    return groups
