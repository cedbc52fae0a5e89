"""For tomorrow's checkpoints: write the names, or the whole named state, while model and optimizer are at hand, so that nothing needs inferring.

`RecordNames` and `record_names` write `optimizer_param_names.json`: a JSON list of lists of names, one list for each parameter group, in the
optimizer's order. That plain form is what other programs under the same file name read; an object would have shut them out, and a list leaves
nothing to guess. `SaveNamed` writes the named state itself.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.names import LEADING, first_names, leading_modules
from .errors import OrderingError, OstateError

if TYPE_CHECKING:
    import torch

FILE = "optimizer_param_names.json"
NAMED = "optimizer.ostate.safetensors"
"""The named state in a checkpoint's folder. Commands that are given the folder go on taking what the trainer wrote."""


def names_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[list[str]]:
    """Return the model's name of every parameter that the optimizer holds, group by group, in its own order: the living truth.

    Wrapper prefixes (DDP, torch.compile, FSDP, activation checkpointing) are left out. A parameter that two modules share has its first name.

    Args:
        optimizer: the optimizer, or a wrapper around it that has its `param_groups`.
        model: the model whose `named_parameters()` gives the names.

    Raises:
        OrderingError: the optimizer holds a tensor that is no parameter of this model; two parameters end under one name.
    """
    known = first_names(model)
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
        OrderingError: as `names_of`; every parameter lies in a submodule `module`, which reads as a wrapper's.
    """
    names = names_of(optimizer, model)
    if leading_modules(name for group in names for name in group):
        raise OrderingError(
            f"every name begins with {LEADING!r}, which whoever reads the file takes for DDP's and takes off",
            where=names[0][0] if names and names[0] else "",
            fix="rename the submodule `module`, or save the named state itself with ostate.save",
        )
    target = os.path.join(path, FILE) if os.path.isdir(path) else os.fspath(path)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target) or ".", suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(names, stream, indent=1)
    Path(temporary).replace(target)
    return target


def _record_names() -> type:
    from transformers import TrainerCallback

    class RecordNames(TrainerCallback):
        """Trainer callback: writes `optimizer_param_names.json` into every checkpoint, on the first process."""

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            """Write the names beside the state that was just saved."""
            folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
            optimizer, model = kwargs.get("optimizer"), kwargs.get("model")
            if state.is_world_process_zero and optimizer is not None and model is not None and os.path.isdir(folder):
                record_names(optimizer, model, folder)

    return RecordNames


def _save_named() -> type:
    from transformers import TrainerCallback

    class SaveNamed(TrainerCallback):
        """Trainer callback: writes the named state of the live optimizer at each save, so that no checkpoint needs a repair.

        An optimizer whose parameters have no names in the model (DeepSpeed, FSDP1) is refused before the first step, not at the first save.
        On several processes `ostate.save` gathers what is sharded; all of them must see the folder.

        Args:
            path: the file, relative to the checkpoint's folder; `{step}` stands for the step, as in `../named/step-{step}.ostate.safetensors`.
        """

        def __init__(self, path: str = NAMED) -> None:
            self.path = path

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            """Refuse what could not be saved.

            Raises:
                OrderingError: the optimizer holds a tensor that is no parameter of the model.
                OstateError: a search over hyperparameters, whose folders a callback is not told.
            """
            if state.is_hyper_param_search:
                raise OstateError("SaveNamed cannot tell the folder of a trial", fix="leave it out of the search, and train the best trial with it")
            names_of(kwargs["optimizer"], kwargs["model"])

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            """Write the state of this step; that of an earlier run under the same name is replaced.

            Raises:
                OstateError: as `ostate.save`.
            """
            from .commands.save import save

            target = Path(args.output_dir, f"checkpoint-{state.global_step}", self.path.replace("{step}", str(state.global_step)))
            target.parent.mkdir(parents=True, exist_ok=True)
            save(kwargs["optimizer"], kwargs["model"], os.path.normpath(target), force=True)

    return SaveNamed


_CALLBACKS = {"RecordNames": _record_names, "SaveNamed": _save_named}
"""Made when first asked for: their base class is transformers', which takes seconds to import."""


def __getattr__(name: str) -> Any:
    if name in _CALLBACKS:
        globals()[name] = _CALLBACKS[name]()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
