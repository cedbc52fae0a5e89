"""The state of live optimizers: torch's Adam family and bitsandbytes', written and read under torch's slot names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from ostate.core.hyper import shown
from ostate.errors import ProbeError, ProbeTypeError

from ..precondition.shards import is_sharded, local
from ..precondition.usable import number


class _Bitsandbytes(Protocol):
    """bitsandbytes' Optimizer8bit, as far as it is asked (bitsandbytes/optim/optimizer.py)."""

    initialized: bool
    state: dict[Tensor, dict[str, object]]
    param_groups: list[dict[str, object]]

    def check_overrides(self) -> None: ...
    def init_state(self, group: dict[str, object], parameter: Tensor, group_index: int, index: int) -> None: ...


_BNB = {"exp_avg": "state1", "exp_avg_sq": "state2"}
SLOT_KEYS = {key: slot for slot, key in _BNB.items()}
"""bitsandbytes' key -> torch's slot name."""
_BLOCK = 256
"""Elements that share one absmax in bitsandbytes' 8-bit state (bitsandbytes/optim/optimizer.py, Optimizer2State.init_state)."""


def kind_of_optimizer(optimizer: Optimizer) -> str:
    """Return `torch` or `bitsandbytes`.

    Raises:
        ProbeError: an optimizer whose state is not laid out as Adam's.
    """
    if not isinstance(optimizer, Optimizer):
        raise ProbeTypeError(
            f"a torch.optim.Optimizer is expected, not a {type(optimizer).__name__}", where="fill", fix="fill(optimizer, model, state)"
        )
    for cls in type(optimizer).__mro__:
        if cls in (torch.optim.Adam, torch.optim.AdamW):
            return "torch"
        if cls.__module__.startswith("bitsandbytes.") and cls.__name__ == "Optimizer2State":
            return "bitsandbytes"
    raise ProbeError(
        f"{type(optimizer).__module__}.{type(optimizer).__qualname__} keeps its state in a layout that is not Adam's",
        fix="use lora_adamw, or torch.optim.AdamW, or a 32-bit bitsandbytes AdamW",
    )


def put(optimizer: Optimizer, kind: str, parameter: Tensor, at: tuple[int, int], moments: Mapping[str, Tensor], step: float) -> Tensor:
    """Make `moments` (on the parameter's device) the state of one parameter.

    Args:
        optimizer: the live optimizer.
        kind: as `kind_of_optimizer` says.
        parameter: the one to fill.
        at: (group, index in the group).
        moments: exp_avg, exp_avg_sq and, for amsgrad, max_exp_avg_sq.
        step: updates taken.

    Returns:
        The second moment as it now lies in the state.

    Raises:
        ProbeError: an 8-bit optimizer; amsgrad without max_exp_avg_sq.
    """
    if kind == "bitsandbytes":
        return _put_bitsandbytes(cast("_Bitsandbytes", optimizer), parameter, at, moments, step)
    group = optimizer.param_groups[at[0]]
    if group["amsgrad"] and "max_exp_avg_sq" not in moments:
        raise ProbeError("the group is amsgrad and the state has no max_exp_avg_sq", where=f"group {at[0]}", fix="amsgrad=False")
    state = {"step": _step_tensor(group, parameter, step), "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
    if group["amsgrad"]:
        state["max_exp_avg_sq"] = moments["max_exp_avg_sq"]
    optimizer.state[parameter] = state
    return state["exp_avg_sq"]


def _step_tensor(group: Mapping[str, object], parameter: Tensor, step: float) -> Tensor:
    # torch/optim/adam.py _init_group: a float32 scalar, on the parameter's device for the kernels that count there themselves.
    if group.get("fused") or group.get("capturable"):
        return torch.tensor(float(step), dtype=torch.float32, device=parameter.device)
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(float(step), dtype=dtype)


def _put_bitsandbytes(optimizer: _Bitsandbytes, parameter: Tensor, at: tuple[int, int], moments: Mapping[str, Tensor], step: float) -> Tensor:
    if not optimizer.initialized:
        optimizer.check_overrides()
    optimizer.state[parameter] = {}
    optimizer.init_state(optimizer.param_groups[at[0]], parameter, *at)
    state = optimizer.state[parameter]
    kept = {slot: cast(Tensor, state[key]) for slot, key in _BNB.items()}
    if kept["exp_avg"].dtype != torch.float32:
        del optimizer.state[parameter]
        raise ProbeError(
            "this bitsandbytes optimizer keeps 8-bit codes, which cannot hold the state's numbers exactly",
            where=type(optimizer).__name__,
            fix="use AdamW32bit, or lora_adamw",
        )
    state["step"] = int(step)
    for slot, held in kept.items():
        held.copy_(moments[slot])
    return kept["exp_avg_sq"]


def moment(state: Mapping[str, object], slot: str) -> Tensor | None:
    """Return a moment of one parameter's live state as stored numbers, decoded where it is packed; None when it is not there.

    Raises:
        ProbeError: codes of a packing that is not known.
    """
    value = state.get(slot, state.get(_BNB.get(slot, slot)))
    if not isinstance(value, Tensor):
        return None
    table, scales = (state.get(key + _BNB.get(slot, slot)[-1]) for key in ("qmap", "absmax"))
    if value.dtype == torch.uint8 and isinstance(table, Tensor) and isinstance(scales, Tensor):
        return _decode_8bit(value, table, scales)
    if not is_sharded(value) and type(value) not in (Tensor, torch.nn.Parameter) and hasattr(value, "dequantize"):
        value = value.dequantize()
    if value.is_meta or value.layout is not torch.strided:
        what = "lies on the meta device and has no numbers" if value.is_meta else f"is a {str(value.layout).removeprefix('torch.')} tensor"
        raise ProbeError(f"{slot} {what}", fix="use an optimizer whose state is on a device, in dense tensors")
    if not value.is_floating_point():
        raise ProbeError(f"{slot} holds {value.dtype} codes in a packing that is not known", fix="use an optimizer with float moments")
    return value.detach()


def _decode_8bit(codes: Tensor, qmap: Tensor, absmax: Tensor) -> Tensor:
    values = qmap.to(codes.device)[codes.reshape(-1).long()]
    scale = absmax.to(codes.device).repeat_interleave(_BLOCK)[: values.numel()]
    return (values * scale).reshape(codes.shape)


def steps_of(optimizer: Optimizer, parameters: list[Tensor]) -> list[float | None]:
    """Return each parameter's step as a Python number, None where there is none; one transfer a device.

    Raises:
        ProbeError: an entry that is no mapping, or a step that is no real number.
    """
    out: list[float | None] = [None] * len(parameters)
    waiting: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
    for index, parameter in enumerate(parameters):
        entry = optimizer.state.get(parameter) or {}
        if not isinstance(entry, Mapping):
            raise ProbeError(
                f"an entry of the optimizer's state is a {type(entry).__name__}, not a mapping", where=f"parameter {index}", fix="fill it anew"
            )
        step = entry.get("step")
        if step is not None and (step.is_meta or step.is_complex() if isinstance(step, Tensor) else number(step) is None):
            raise ProbeError(f"the step is {shown(step)}, which is no count", where=f"parameter {index}", fix="pass checkpoint_step, and no step")
        if type(step) is Tensor and step.ndim == 0:
            waiting.setdefault((step.device, step.dtype), []).append((index, step))
        elif isinstance(step, Tensor):
            step = local(step)
            if step.numel():
                waiting.setdefault((step.device, step.dtype), []).append((index, step.reshape(-1)[0]))
        elif step is not None:
            out[index] = float(step)
    for members in waiting.values():
        for (index, _), value in zip(members, torch.stack([value.detach() for _, value in members]).tolist()):
            out[index] = float(value)
    return out
