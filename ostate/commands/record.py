"""The names of a live optimizer's parameters, written while model and optimizer are at hand."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ostate.errors import OrderingError
from ostate.ordering.keys import strip_wrappers

if TYPE_CHECKING:
    import torch

FILE = "optimizer_param_names.json"


def names_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[list[str]]:
    """Return the model's name of every parameter that the optimizer holds, group by group, in its own order: the living truth.

    Wrapper prefixes (DDP, torch.compile, FSDP, activation checkpointing) are left out. A parameter that two modules share has its first name.

    Args:
        optimizer: the optimizer, or a wrapper around it that has its `param_groups`.
        model: the model whose `named_parameters()` gives the names.

    Raises:
        OrderingError: the optimizer holds a tensor that is no parameter of this model.
    """
    known = {id(parameter): strip_wrappers(name) for name, parameter in model.named_parameters()}
    found = []
    for index, group in enumerate(optimizer.param_groups):
        strangers = [place for place, parameter in enumerate(group["params"]) if id(parameter) not in known]
        if strangers:
            raise OrderingError(
                f"{len(strangers)} of {len(group['params'])} tensors of the group are no parameters of this model",
                where=f"param_groups[{index}]['params'][{strangers[0]}]",
                fix="give the model that the optimizer was made for; DeepSpeed and FSDP1's flat tensors have no names, their own files record them",
            )
        found.append([known[id(parameter)] for parameter in group["params"]])
    return found


def record_names(optimizer: torch.optim.Optimizer, model: torch.nn.Module, path: str | os.PathLike[str]) -> str:
    """Write the names of the optimizer's parameters beside the state that is saved there, and return the file's path.

    Args:
        optimizer: the optimizer whose state is saved.
        model: the model it was made for.
        path: the checkpoint's folder, or the file to write.

    Raises:
        OrderingError: as `names_of`.
    """
    names = names_of(optimizer, model)
    target = os.path.join(path, FILE) if os.path.isdir(path) else os.fspath(path)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target) or ".", suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(names, stream, indent=1)
    Path(temporary).replace(target)
    return target
