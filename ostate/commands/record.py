"""The names of a live optimizer's parameters, written while model and optimizer are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ostate.core.atomic import write_text
from ostate.core.names import LEADING, first_names, leading_modules
from ostate.core.names_list import NAMES_FILE
from ostate.errors import OrderingError, refusing

if TYPE_CHECKING:
    import torch

FILE = NAMES_FILE
"""What `record_names` writes in a folder."""


@refusing
def names_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[list[str]]:
    """Return the model's name of every parameter that the optimizer holds, group by group, in its own order.

    Wrapper prefixes (DDP, torch.compile, FSDP, activation checkpointing) are left out. A parameter that two modules share has its first name.

    Args:
        optimizer: the optimizer, or a wrapper around it that has its `param_groups`.
        model: the model whose `named_parameters()` gives the names.

    Raises:
        OrderingError: the optimizer holds a tensor that is no parameter of this model; two parameters end under one name.
    """
    known = first_names(model)
    if not hasattr(optimizer, "param_groups"):
        raise OrderingError(
            f"an optimizer with param_groups is expected, not a {type(optimizer).__name__}", fix="record_names(optimizer, model, path)"
        )
    found = []
    for index, group in enumerate(optimizer.param_groups):
        foreign_params = [place for place, parameter in enumerate(group["params"]) if id(parameter) not in known]
        if foreign_params:
            raise OrderingError(
                f"{len(foreign_params)} of {len(group['params'])} tensors of the group are not parameters of this model",
                where=f"param_groups[{index}]['params'][{foreign_params[0]}]",
                fix="pass the model that the optimizer was made for; DeepSpeed and FSDP1's flat tensors have no names, their own files record them",
            )
        found.append([known[id(parameter)] for parameter in group["params"]])
    return found


@refusing
def record_names(optimizer: torch.optim.Optimizer, model: torch.nn.Module, path: str | os.PathLike[str]) -> str:
    """Write the names of the optimizer's parameters beside the state that is saved there, and return the file's path.

    Args:
        optimizer: the optimizer whose state is saved.
        model: the model it was made for.
        path: the checkpoint's folder, or the file to write.

    Raises:
        OrderingError: as `names_of`; every parameter lies in a submodule `module`, which reads as a wrapper's.
        StoreError: the file cannot be written.
    """
    names = names_of(optimizer, model)
    if leading_modules(name for group in names for name in group):
        raise OrderingError(
            f"every name begins with {LEADING!r}, which whoever reads the file takes for DDP's and takes off",
            where=names[0][0] if names and names[0] else "",
            fix="rename the submodule `module`, or save the named state itself with ostate.save",
        )
    target = os.path.join(path, FILE) if os.path.isdir(path) else os.fsdecode(path)
    write_text(Path(target), json.dumps(names, indent=1), force=True)
    return target
