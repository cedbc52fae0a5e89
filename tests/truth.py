"""What a live optimizer said when its checkpoint was written: a JSON list, one row a parameter. The one form that every case has.

A row has `name` and `shape`; for a parameter with state also `step`, the hyperparameters of its group, and `<slot>_sha256` for each slot: the
SHA-256 of its float32 bytes in C order, little-endian. `index` is the position, `group` the group, `master` the digest of float32 master weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HYPER = ("lr", "initial_lr", "betas", "eps", "weight_decay", "amsgrad")


def digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's float32 bytes."""
    return hashlib.sha256(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()


def row_of(
    name: str, shape: Iterable[int], hyper: Mapping[str, Any], slots: Mapping[str, torch.Tensor], *, step: Any = None, **more: Any
) -> dict[str, Any]:
    """Return one parameter's row.

    Args:
        name: the live `named_parameters()` name.
        shape: its shape.
        hyper: the param_group it is in.
        slots: its state's tensors, without `step`; empty: it has no state.
        step: updates taken.
        more: `index`, `group`, `master`, …
    """
    row: dict[str, Any] = {"name": name, "shape": list(shape), **more}
    if slots:
        row |= {} if step is None else {"step": float(step)}
        row |= {key: list(hyper[key]) if key == "betas" else hyper[key] for key in HYPER if key in hyper}
        row |= {f"{slot}_sha256": digest(value) for slot, value in slots.items()}
    return row


def rows_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the rows of an optimizer in one process, in its own order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    rows: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            slots = dict(optimizer.state.get(parameter, {}))
            step = slots.pop("step", None)
            tensors = {slot: value for slot, value in slots.items() if isinstance(value, torch.Tensor)}
            rows.append(row_of(names[parameter], parameter.shape, group, tensors, step=step, index=len(rows), group=number))
    return rows


def slots_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Return slot -> digest."""
    return {key.removesuffix("_sha256"): value for key, value in row.items() if key.endswith("_sha256") and value is not None}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(rows, list)
    return rows
