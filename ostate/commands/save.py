"""`ostate.save`: write the named format from a live optimizer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ostate.errors import refusing

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@refusing
def save(optimizer: Optimizer, model: nn.Module, path: str | os.PathLike[str], *, force: bool = False) -> str:
    """Write the state of a live optimizer under its parameters' names, moments in float32.

    On a sharded model (FSDP2, tensor parallel) every rank calls it: each gathers and writes its share of the parameters, one tensor at a time,
    and the first one writes the index. On DDP the first rank writes all. The path must be on a file system that all ranks see.

    Args:
        optimizer: Adam or AdamW of torch or bitsandbytes; any torch optimizer whose state is tensors.
        model: gives the names, without wrappers' segments.
        path: `*.safetensors`; of several shards, `path` with numbers, and `path.index.json`.
        force: replace an existing output.

    Returns:
        What `ostate.load` takes.

    Raises:
        ProbeTypeError: an optimizer or a model in the other's place.
        ProbeError: the optimizer holds a parameter that the model does not have; two parameters end under one name; it never stepped.
        StoreError: the file cannot be written; on every rank when it is so on one.
    """
    from . import save_live  # imports torch

    return save_live.save(optimizer, model, path, force=force)
