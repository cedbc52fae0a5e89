"""Write every FSDP1 and ZeroRedundancyOptimizer layout with two gloo processes: `python -m tests.read.make_fsdp1 OUT`.

Truth is the live optimizer's local pieces, put together in rank order, never through a checkpoint API.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, FullyShardedDataParallel, ShardedOptimStateDictConfig, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer

from tests import ranks

from .make_model import Block, Tiny, adamw, plain_truth, record, train, trainable, two_groups, write_truth

WORLD = 2


def wrapped(use_orig_params: bool) -> FullyShardedDataParallel:
    model = Tiny()
    if not use_orig_params:  # a FlatParameter is trainable as a whole or not at all
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    return FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy({Block}), use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def plain_name(name: str) -> str:
    return name.replace("_fsdp_wrapped_module.", "")


def truth_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Gather the local 1-D pieces of every process and put them together in rank order."""
    shapes = {name: parameter.shape for name, parameter in Tiny().named_parameters()}
    names = {parameter: plain_name(name) for name, parameter in model.named_parameters()}
    rows = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            pieces: list[Any] = [None] * WORLD
            dist.all_gather_object(pieces, dict(optimizer.state.get(parameter, {})))
            pieces = [piece for piece in pieces if piece]
            name = names[parameter]
            slots = {slot: torch.cat([piece[slot] for piece in pieces]).reshape(shapes[name]) for slot in ("exp_avg", "exp_avg_sq")}
            rows[name] = record(slots, shapes[name], pieces[0]["step"], group)
    return rows


def finish(folder: Path, rows: dict[str, Any], **more: Any) -> None:
    if dist.get_rank() == 0:
        write_truth(folder, rows, **more)


def original_parameters(out: Path) -> None:
    model = wrapped(use_orig_params=True)
    optimizer = adamw(model)
    train(model, optimizer)
    rows = truth_of(model, optimizer)
    order = [name for group in two_groups(Tiny(), named=True) for name, _ in group["params"]]
    FullyShardedDataParallel.set_state_dict_type(
        model, StateDictType.SHARDED_STATE_DICT, optim_state_dict_config=ShardedOptimStateDictConfig(offload_to_cpu=True)
    )
    sharded = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    dcp.save({"optimizer": sharded}, checkpoint_id=out / "sharded" / "optimizer_0")
    finish(out / "sharded", rows)
    (out / "named_ranks").mkdir(exist_ok=True)
    torch.save(sharded, out / "named_ranks" / f"optimizer_0_rank{dist.get_rank()}.bin")
    finish(out / "named_ranks", rows)
    for case, offload in (("full", False), ("full_offloaded", True)):
        FullyShardedDataParallel.set_state_dict_type(
            model,
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(),
            FullOptimStateDictConfig(offload_to_cpu=offload, rank0_only=False),
        )
        gathered = FullyShardedDataParallel.optim_state_dict(model, optimizer)
        if dist.get_rank() == 0:
            (out / case).mkdir()
            torch.save(gathered, out / case / "optimizer.bin")
        finish(out / case, rows)
    (out / "raw_ranks").mkdir(exist_ok=True)
    torch.save(optimizer.state_dict(), out / "raw_ranks" / f"optimizer_rank{dist.get_rank()}.pt")
    finish(out / "raw_ranks", rows, order=order)


def flat_parameters(out: Path) -> None:
    """use_orig_params=False: ids count FlatParameters."""
    model = wrapped(use_orig_params=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer)
    (out / "raw_flat").mkdir(exist_ok=True)
    torch.save(optimizer.state_dict(), out / "raw_flat" / f"optimizer_rank{dist.get_rank()}.pt")
    FullyShardedDataParallel.set_state_dict_type(
        model, StateDictType.SHARDED_STATE_DICT, optim_state_dict_config=ShardedOptimStateDictConfig(offload_to_cpu=True)
    )
    sharded = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    dcp.save({"optimizer": sharded}, checkpoint_id=out / "flat_sharded" / "optimizer_0")


def redundancy(out: Path) -> None:
    """ZeroRedundancyOptimizer: consolidated, and each process's own part."""
    model = nn.parallel.DistributedDataParallel(Tiny())
    optimizer = ZeroRedundancyOptimizer([p for _, p in trainable(model)], torch.optim.AdamW, lr=1e-2)
    train(model, optimizer)
    reference = Tiny()
    plain = torch.optim.AdamW([p for _, p in trainable(reference)], lr=1e-2)
    train(reference, plain)
    rows = plain_truth(reference, plain)
    order = [name for name, _ in trainable(reference)]
    (out / "redundancy_parts").mkdir(exist_ok=True)
    torch.save(optimizer.optim.state_dict(), out / "redundancy_parts" / f"optimizer_rank{dist.get_rank()}.pt")
    finish(out / "redundancy_parts", rows, order=order)
    optimizer.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        (out / "redundancy").mkdir()
        torch.save(optimizer.state_dict(), out / "redundancy" / "optimizer.pt")
    finish(out / "redundancy", rows, order=order)


ALL = (original_parameters, flat_parameters, redundancy)


if __name__ == "__main__":
    ranks.make_all(WORLD, ALL, Path(sys.argv[1]))
