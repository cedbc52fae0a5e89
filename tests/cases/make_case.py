"""Make a case of a live optimizer and its model: `make_case(folder, "name", optimizer, model)`; then `real.case("name")` reads it.

A case is what the tests of every package run over: a checkpoint as the real library writes it, and in `<name>.truth.json` what the live optimizer
said. Call this right after the optimizer's last step. Keep a case under 100 KB: two to twelve layers of width 32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests import truth

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors")


def make_case(
    folder: Path,
    name: str,
    optimizer: torch.optim.Optimizer,
    model: Any,
    *,
    note: str = "",
    write: Callable[[Path, torch.optim.Optimizer], None] | None = None,
) -> Path:
    """Write the checkpoint, what names its parts and the truth, and return the checkpoint's folder.

    Args:
        folder: where cases lie, such as tests/cases/one-process.
        name: of the case.
        optimizer: the live optimizer, after its last step.
        model: its model; one of PEFT is saved as PEFT saves it, of another the trained parameters are saved under their own names.
        note: what the case is for, in one line.
        write: writes the state into the checkpoint's folder in another layout, which is then the folder; None: torch.save, as optimizer.pt.

    Raises:
        FileExistsError: there is a case of that name.
    """
    checkpoint = folder / name
    checkpoint.mkdir(parents=True)
    if write is None:
        torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")
    else:
        write(checkpoint, optimizer)
    if hasattr(model, "peft_config"):
        model.save_pretrained(checkpoint)
        weights = "adapter_model.safetensors"
    else:
        weights = "model.safetensors"
        trained = {key: parameter.detach().clone() for key, parameter in model.named_parameters() if parameter.requires_grad}
        save_file(trained, checkpoint / weights, metadata={"format": "pt"})
    if hasattr(model, "config") and hasattr(model.config, "to_json_file"):
        (folder / f"{name}.base").mkdir()
        model.config.to_json_file(folder / f"{name}.base" / "config.json")
    meta = {
        "case": name,
        "note": note,
        "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        "files": {"checkpoint": name, "optimizer": name if write is not None else f"{name}/optimizer.pt"},
        "adapter_file": f"{name}/{weights}",
        "versions": {library: found for library in LIBRARIES if (found := _version(library))},
    }
    (folder / f"{name}.meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    truth.write(folder / f"{name}.truth.json", truth.rows_of(optimizer, model))
    return checkpoint


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
