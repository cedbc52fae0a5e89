"""Trainer callbacks that write the names, or the whole named state, into each checkpoint, so that nothing needs inferring.

`RecordNames` and `record_names` write `optimizer_param_names.json`: a JSON list of lists of names, one list for each parameter group, in the
optimizer's order. That plain form is what other programs under the same file name read; an object would have shut them out, and a list leaves
nothing to guess. `SaveNamed` writes the named state itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .commands.record import FILE, names_of, record_names
from .commands.save import save
from .errors import OstateError

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
else:
    try:
        from transformers import TrainerCallback
    except ImportError:  # without it there is no Trainer to call one back
        TrainerCallback = object

__all__ = ["FILE", "NAMED", "RecordNames", "SaveNamed", "names_of", "record_names"]

NAMED = "optimizer.ostate.safetensors"
"""The named state in a checkpoint's folder. Commands that are given the folder go on taking what the trainer wrote."""


class RecordNames(TrainerCallback):
    """Trainer callback: writes `optimizer_param_names.json` into every checkpoint, on the first process."""

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        *,
        optimizer: Optimizer | None = None,
        model: Module | None = None,
        **more: object,  # noqa: ARG002
    ) -> None:
        """Write the names beside the state that was just saved."""
        folder = os.path.join(str(args.output_dir), f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and optimizer is not None and model is not None and os.path.isdir(folder):
            record_names(optimizer, model, folder)


class SaveNamed(TrainerCallback):
    """Trainer callback: writes the named state of the live optimizer at each save, so that no checkpoint needs a repair.

    An optimizer whose parameters have no names in the model (DeepSpeed, FSDP1) is refused before the first step, not at the first save.
    On several processes `ostate.save` gathers what is sharded; all of them must see the folder.

    Args:
        path: the file, relative to the checkpoint's folder; `{step}` stands for the step, as in `../named/step-{step}.ostate.safetensors`.
    """

    def __init__(self, path: str = NAMED) -> None:
        self.path = path

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        *,
        optimizer: Optimizer | None = None,
        model: Module | None = None,
        **more: object,  # noqa: ARG002
    ) -> None:
        """Refuse what could not be saved.

        Raises:
            OrderingError: the optimizer holds a tensor that is no parameter of the model.
            OstateError: a search over hyperparameters, whose folders a callback does not know.
        """
        if state.is_hyper_param_search:
            raise OstateError(
                "SaveNamed does not know the folder of a hyperparameter-search trial", fix="do not use it in the search; train the best trial with it"
            )
        names_of(*_live(optimizer, model))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        *,
        optimizer: Optimizer | None = None,
        model: Module | None = None,
        **more: object,  # noqa: ARG002
    ) -> None:
        """Write the state of this step; that of an earlier run under the same name is replaced.

        Raises:
            OstateError: as `ostate.save`.
        """
        target = Path(str(args.output_dir), f"checkpoint-{state.global_step}", self.path.replace("{step}", str(state.global_step)))
        target.parent.mkdir(parents=True, exist_ok=True)
        save(*_live(optimizer, model), os.path.normpath(target), force=True)


def _live(optimizer: Optimizer | None, model: Module | None) -> tuple[Optimizer, Module]:
    if optimizer is None or model is None:
        what = "the trainer hands its callbacks no optimizer or no model"
        raise OstateError(what, where="SaveNamed", fix="call ostate.save in the training loop, which has both")
    return optimizer, model
