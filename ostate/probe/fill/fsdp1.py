"""FSDP1 (FullyShardedDataParallel), whose optimizer state is flat pieces of flat parameters: filled through its own interface."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer

from ostate.core.names import first_names, plain_names
from ostate.core.naming import NamedState
from ostate.errors import ProbeError

from .names import match


def is_fsdp1(model: nn.Module) -> bool:
    """True when a module of the model is wrapped by FSDP1."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def full_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the whole shape of every original parameter, by plain name; collective.

    Source: FSDP's own state dict, whose tensors under `sharded_state_dict` know their whole size without being gathered.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType

    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig()):
        held = model.state_dict()
    return {name: tuple(value.size()) for name, value in zip(plain_names(list(held)), held.values())}


def fill_fsdp1(optimizer: Optimizer, model: nn.Module, state: NamedState, slots: tuple[str, ...]) -> tuple[dict[str, str], int]:
    """Fill an optimizer over an FSDP1 model; every rank reads the whole state, and FSDP cuts it.

    Returns:
        (live name -> name in the state, bytes read).

    Raises:
        ProbeError: an entry that fits no parameter, or has another shape.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(name.endswith("_flat_param") for name, _ in model.named_parameters()):
        raise ProbeError("this FSDP1 model shows only flat parameters", fix="wrap it with use_orig_params=True, or use FSDP2 (fully_shard)")
    shapes = full_shapes(model)
    stand_ins = nn.Module()
    plain = first_names(model, error=ProbeError)
    held = [(plain[id(parameter)], parameter.requires_grad) for _, parameter in model.named_parameters()]
    for index, (name, _) in enumerate(held):
        stand_ins.register_parameter(str(index), nn.Parameter(torch.empty(shapes.get(name, ()), device="meta")))
    originals = _OriginalParameters(stand_ins, [name for name, _ in held])
    found = match(originals, state, [(name, originals.parameter(name)) for name, trainable in held if trainable])
    entries: dict[str, object] = {}
    count = 0
    for name, stored in found.entries.items():
        entry = state.parameters[stored]
        if not {"exp_avg", "exp_avg_sq"} <= set(entry.slots):
            raise ProbeError("the state lacks exp_avg or exp_avg_sq, FSDP1 needs both", where=name, fix="pass a state of Adam or AdamW")
        values = {slot: torch.from_numpy(entry.slots[slot].read().copy()) for slot in slots if slot in entry.slots}
        count += sum(value.numel() * value.element_size() for value in values.values())
        entries[name] = {"step": torch.tensor(float(entry.step or 0.0)), **values}
    whole = {"state": entries, "param_groups": FullyShardedDataParallel.optim_state_dict(model, optimizer)["param_groups"]}
    optimizer.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(model, optimizer, whole))
    return dict(found.entries), count


class _OriginalParameters(nn.Module):
    """Original parameters under their names, which hold dots and so cannot be attributes."""

    def __init__(self, held: nn.Module, names: list[str]) -> None:
        super().__init__()
        self._pairs = list(zip(names, held.parameters()))

    def named_parameters(
        self,
        prefix: str = "",  # noqa: ARG002
        recurse: bool = True,  # noqa: ARG002
        remove_duplicate: bool = True,  # noqa: ARG002
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._pairs)

    def parameter(self, name: str) -> nn.Parameter:
        return dict(self._pairs)[name]
